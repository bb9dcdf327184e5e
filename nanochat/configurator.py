"""A dataclass becomes a command line: defaults in the code, then a TOML preset, then flags.

Every script ends in

    if __name__ == "__main__":
        configurator.main(main, Config)

and then understands

    python -m scripts.base_train --depth=6 --device-batch-size 8
    python -m scripts.base_train runs/pocket.toml --depth=6

A preset holds a table `[all]` for fields that several scripts have, and a table for each script by its name
(`[base_train]`); a flat TOML file gives fields directly. Unknown keys and flags are refused with the nearest name.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import time
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nanochat.common import UserError, compute_cleanup, get_dist_info, say
from nanochat.files import FULL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

C = TypeVar("C")
REFUSED = 2  # exit status after a UserError


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; a missing or malformed one is a `UserError` that names it."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"preset {path} does not exist: see runs/ for those that come with nanochat") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"preset {path} is not valid TOML: {e}") from None


def nearest(name: str, known: Sequence[str]) -> str:
    """`nearest("dept", ["depth", "seed"]) -> "; did you mean 'depth'?"` (empty when nothing is near)."""
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value may stand in a field of this type (an int may stand for a float, a list for a tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def preset_values(config_class: type, preset: dict[str, Any], section: str, path: str | Path) -> dict[str, Any]:
    """The fields that `preset` sets for the script `section`.

    `{"all": {"seed": 1, "vocab_size": 5}, "base_train": {"depth": 4}}` gives base_train `{"seed": 1, "depth": 4}`:
    a key of `[all]` goes to the scripts that have such a field, a key of a script's own table must fit.
    """
    hints = typing.get_type_hints(config_class, include_extras=True)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(config_class)}
    has_tables = any(isinstance(v, dict) for v in preset.values())
    if has_tables:
        scripts = {str(stage).split()[0] for stage in preset.get("stages", ()) if str(stage).strip()}
        for key, value in preset.items():
            if not isinstance(value, dict) and key not in ("preset", "stages"):
                raise UserError(f"{path}: '{key}' stands outside any table: move it into [all] or [{section}]")
            if section not in preset and key not in scripts and difflib.get_close_matches(key, [section]):
                raise UserError(f"{path}: unknown table [{key}]; did you mean [{section}]?")
    own = preset.get(section, {}) if has_tables else preset
    shared = {k: v for k, v in preset.get("all", {}).items() if k in fields} if has_tables else {}
    values = {}
    for key, value in {**shared, **own}.items():
        if key not in fields:
            raise UserError(f"{path}: {section} has no setting '{key}'{nearest(key, list(fields))}")
        if not _fits(value, fields[key]):
            kind = getattr(fields[key], "__name__", str(fields[key]))
            raise UserError(f"{path}: {section}.{key} = {value!r} is not of type {kind}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def parse(config_class: type[C], argv: Sequence[str], section: str) -> C:
    """`argv` (without the program's name) as an instance of `config_class`. Exits through tyro on `--help`."""
    import tyro

    arguments = list(argv)
    default = {}
    if arguments and arguments[0].endswith(".toml"):
        path = arguments.pop(0)
        default = preset_values(config_class, load_toml(path), section, path)
    names = [f.name for f in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    for argument in arguments:  # tyro refuses these too, but in a box of ten lines
        name = argument[2:].split("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in (*names, "help") and name.removeprefix("no_") not in names:
            raise UserError(f"{section} has no flag '{argument}'{nearest(name, names)} (--help lists all)")
    return tyro.cli(config_class, args=arguments, default=config_class(**default), prog=section, use_underscores=True)


def main(run: Callable[[C], None], config_class: type[C], *, distributed: bool = False) -> None:
    """Parse the command line, run, and turn what a person can mend into one line and a non-zero exit status.

    `distributed`: the script may be started by torchrun with several ranks; another says that it works in one process.
    """
    section = Path(sys.argv[0]).stem
    try:
        config = parse(config_class, sys.argv[1:], section)
        if not distributed and get_dist_info()[3] > 1:
            raise UserError(f"{section} works in one process: start it without torchrun, python -m ... {section}")
        run(config)
    except UserError as e:
        _say(f"error: {e}")
        sys.exit(REFUSED)
    except KeyboardInterrupt as e:
        _say(str(e) or "interrupted")
        sys.exit(getattr(e, "status", 130))  # a run that was stopped says by which signal
    except OSError as e:
        if e.errno not in FULL:
            raise
        _say(f"error: the disk is full ({e.filename or 'while writing'}: {e.strerror}): free some space or point "
             "NANOCHAT_BASE_DIR elsewhere; the last finished checkpoint is intact")
        sys.exit(REFUSED)
    except Exception as e:
        if (reason := _failure_elsewhere(e)) is None:
            raise
        _say(reason)
        time.sleep(5)  # torchrun ends us as soon as it sees the other: it is to name the one that failed first
        sys.exit(1)
    finally:
        if "torch" in sys.modules:
            compute_cleanup()


def _say(text: str) -> None:
    """To stderr; what several ranks have to say alike is said once, and by another rank than 0 with its number."""
    _, rank, local_rank, world_size = get_dist_info()
    if world_size > 1:
        from nanochat.ranks import first_to_say, rank_and_world

        if rank_and_world()[1] == 1:  # too early to ask the others: all ranks of a machine have done the same
            if local_rank > 0:
                return
        else:
            if rank > 0:
                time.sleep(1)  # what rank 0 finds as well is everybody's, and said without a rank
            if not first_to_say(text):
                return
        if rank > 0 and text.startswith("error: "):
            text = f"error on rank {rank}: " + text.removeprefix("error: ")
    say(text, file=sys.stderr)


# What gloo and NCCL say of a connection whose other end is gone; any other error of theirs keeps its traceback.
_CLOSED = ("connection closed", "connection reset", "broken pipe", "remote process exit")


def _failure_elsewhere(error: Exception) -> str | None:
    """What to say if it was another rank that failed: told by that one, or seen by the end of the connection."""
    if get_dist_info()[3] == 1:
        return None
    from nanochat.ranks import OtherRankFailed, rank_and_world

    if isinstance(error, OtherRankFailed):
        return f"stopped: {error}"
    met = rank_and_world()[1] > 1  # before that, an address is wrong or a machine does not answer
    if met and isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _CLOSED):
        return (f"rank {get_dist_info()[1]} stopped: its connection to another rank is gone "
                f"({str(error).split('. ')[0]}); see what that one said, or how it ended")
    return None
