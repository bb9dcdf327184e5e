"""Run the stages of a preset one after the other: the whole job, from text to a model that talks.

A preset (runs/*.toml) lists its stages and holds one table of settings for each script, and [all] for every script:

    preset = "pocket"
    stages = ["tok_train", "base_train", "chat_eval --source=mid", "report"]
    [all]
    data = "pocket"
    [base_train]
    depth = 4

Each stage is a process of its own, `python -m scripts.STAGE preset.toml FLAGS`, so what one leaves in memory cannot
touch the next. A stage that has finished with the same settings, on the same output of the stages before it, is not
run again; one that was interrupted goes on from its last save. Time and peak memory are measured from outside.

Where there are several CUDA devices, the stages that can use them run on all, a rank each (`--nproc` says another
number); a run begun on so many ranks goes on with any other.

Run: `python -m scripts.speedrun runs/pocket.toml [--nproc=N]`
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nanochat.common import UserError, check_at_least, get_base_dir, print_banner
from nanochat.configurator import REFUSED, load_toml, nearest
from nanochat.files import atomic_write, sha256_file
from nanochat.report import MAKERS, Report
from nanochat.run import check_deterministic, free_fields, rows_per_rank

# Gradient stages, and where they save as they go.
RESUMABLE = {"base_train": "base_checkpoints", "mid_train": "mid_checkpoints", "chat_sft": "chatsft_checkpoints",
             "chat_rl": "chatrl_checkpoints"}
# Those that may run on several ranks.
DISTRIBUTED = ("base_train", "base_loss", "base_eval", "mid_train", "chat_sft", "chat_rl", "chat_eval")
SOURCES = Path(__file__).resolve().parents[1]
LIBRARY_STAGES = ("dataset", "report")  # commands of the library: fetch the data first, render the card last
SAMPLE_EVERY = 0.5  # seconds between two looks at the memory


@dataclass
class Stage:
    """One line of the preset's `stages`. `"chat_eval --source=mid"` -> name chat_eval_mid, script chat_eval."""

    name: str
    script: str
    flags: list[str]
    settings: dict  # its table and [all]: what its result depends on, besides the stages before it

    @property
    def module(self) -> str:
        return f"{'nanochat' if self.script in LIBRARY_STAGES else 'scripts'}.{self.script}"


# --------------------------------------------------------------------------- the preset


def config_fields(script: str) -> dict[str, Any] | None:
    """Fields of a script's Config and their defaults (None where they are no literals), read from its source: no script
    imports a script. None: cannot tell.

    Reading them now means that a misspelt key fails in the first second and not after an hour.
    """
    folder = "nanochat" if script in LIBRARY_STAGES else "scripts"
    return _fields_in(SOURCES / folder / f"{script}.py", "Config")


@functools.cache
def _fields_in(path: Path, name: str) -> dict[str, Any] | None:
    """The same of a source file's class `name` and of its bases, which may come from other files of ours."""
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields: dict[str, Any] = {}
            for base in node.bases:
                inherited = _fields_in(path, base.id) if isinstance(base, ast.Name) else None
                if inherited is None:
                    return None
                fields |= inherited
            return fields | {f.target.id: _literal(f.value) for f in node.body
                             if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)}
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return _fields_in(SOURCES.joinpath(*node.module.split(".")).with_suffix(".py"), name)
    return None


def _literal(node: ast.expr | None) -> Any:
    """`ast` of `524288 -> 524288`, of `field(...) -> None`"""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def setting(stage: Stage, name: str) -> Any:
    """What a stage will find in a field: its flag, else its table's value, else that of [all], else the default.

    None: it has no such field ([all] is for those scripts that know a key).
    """
    flag = re.findall(rf"--{name.replace('_', '[-_]')}[= ](\S+)", " ".join(stage.flags))
    if flag:
        return int(flag[-1]) if flag[-1].isdecimal() else flag[-1]
    if name == "deterministic" and "--deterministic" in stage.flags:
        return True
    fields = config_fields(stage.script)
    if fields is not None and name not in fields:
        return None
    default = (fields or {}).get(name)
    return stage.settings.get(stage.script, {}).get(name, stage.settings.get("all", {}).get(name, default))


def check_sizes(path: Path, stages: list[Stage], nproc: int) -> None:
    """Refuse batch sizes that `nproc` ranks cannot share, before the first stage and not in the third."""
    base = next((stage for stage in stages if stage.script == "base_train"), None)
    for stage in stages:
        total, rows = setting(stage, "total_batch_size"), setting(stage, "device_batch_size")
        length = base and setting(base, "max_seq_len")  # the later stages have their model's
        if stage.script in RESUMABLE and rows:
            ranks = nproc if stage.script in DISTRIBUTED else 1
            deterministic = bool(setting(stage, "deterministic"))
            try:
                if total and length:
                    rows_per_rank(total, rows, length, ranks, deterministic=deterministic)
                elif deterministic:  # reinforcement learning finds its rows as it goes
                    check_deterministic(rows, ranks)
            except UserError as e:
                raise UserError(f"{path}: {stage.name}: {e}") from None


def _unknown(path: Path, what: str, name: str, known: set[str]) -> UserError:
    return UserError(f"{path}: unknown {what} '{name}'{nearest(name, sorted(known))}")


def load_preset(path: Path) -> tuple[str, list[Stage]]:
    """Read a preset and check every name in it. Returns its name and its stages."""
    preset = load_toml(path)
    if not isinstance(preset.get("stages"), list) or not preset["stages"]:
        raise UserError(f'{path} lists no stages: it needs a line like stages = ["tok_train", "base_train"]')
    scripts = {p.stem for p in Path(__file__).parent.glob("*.py")} - {"__init__", "speedrun"} | set(LIBRARY_STAGES)
    stages = []
    for line in preset["stages"]:
        script, *flags = shlex.split(str(line)) or [""]
        if script not in scripts:
            raise _unknown(path, "stage", script, scripts)
        source = re.findall(r"--source[= ](\w+)", " ".join(flags))
        if script == "chat_eval" and not source:
            raise UserError(f'{path}: stage "chat_eval" does not say which model: e.g. "chat_eval --source=sft"')
        settings = {"all": preset.get("all", {}), script: preset.get(script, {})}
        stages.append(Stage("_".join([script, *source]), script, flags, settings))
    _check_tables(path, preset, scripts, {stage.script for stage in stages})
    return str(preset.get("preset", path.stem)), stages


def _check_tables(path: Path, preset: dict, scripts: set[str], used: set[str]) -> None:
    """Every table belongs to a script, and every key in it to that script's Config ([all]: to any of them)."""
    for table in preset:
        if table not in {"preset", "stages", "all"} | scripts:
            raise _unknown(path, "table or key", table, {"preset", "stages", "all"} | scripts)
    fields = {script: config_fields(script) for script in used}
    for script, known in fields.items():
        for key in preset.get(script, {}):
            if known is not None and key not in known:
                raise _unknown(path, f"key in [{script}]:", key, set(known))
    if fields and None not in fields.values():
        anywhere = {key for known in fields.values() if known is not None for key in known}
        for key in preset.get("all", {}):
            if key not in anywhere:
                raise _unknown(path, "key in [all]:", key, anywhere)


# --------------------------------------------------------------------------- what is done already


class Ledger:
    """What this preset's stages have done so far: `speedrun/<preset>.json` under the base folder, written whole.

    A record: {"hash": of all that the stage depends on, "finished", "report_sha256", "seconds", "peak_memory_bytes"}
    """

    def __init__(self, preset: str, report: Report) -> None:
        self.preset, self.report = preset, report
        self.path = get_base_dir() / "speedrun" / f"{preset}.json"
        try:
            self.records: dict[str, dict] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or not ours: then nothing counts as done
            self.records = {}

    def report_hash(self, name: str) -> str | None:
        path = self.report.folder / f"{name}.json"
        return sha256_file(path) if path.exists() else None

    def done(self, name: str, key: str) -> bool:
        """Finished with this very hash, and its report and the directory it wrote are still there."""
        record = self.records.get(name, {})
        return bool(record.get("finished") and record.get("hash") == key and record.get("report_sha256")
                    and record["report_sha256"] == self.report_hash(name) and self.output(name).exists())

    def output(self, name: str) -> Path:
        """What a stage leaves beside its report, as the report says (evaluations: nothing else)."""
        path = self.report.folder / f"{name}.json"
        return Path(json.loads(path.read_text(encoding="utf-8")).get("checkpoint", path))

    def how_to_start(self, name: str, key: str) -> list[str]:
        """The flags for a stage that saves as it goes: on with this same run, or over an earlier one of this preset.

        Both when this run was begun: it may have been stopped before it had replaced the earlier one. `--overwrite`
        only where what lies there is this preset's: a run that a person made by hand is not ours to replace; the stage
        will refuse.
        """
        overwrite = ["--overwrite"] if self.records.get(name, {}).get("ours") else []
        return ["--resume", *overwrite] if self.begun(name, key) else overwrite

    def begun(self, name: str, key: str) -> bool:
        """Started with this very hash and not finished: what it saved can be gone on from."""
        record = self.records.get(name, {})
        return record.get("hash") == key and not record.get("finished")

    def write(self, name: str, key: str, finished: bool, seconds: float = 0.0, peak: int = 0,
              ours: bool = False) -> None:
        """Record an attempt. Time adds up over the attempts at the same thing: that is what it cost."""
        before = self.records.get(name, {})
        old = before if self.begun(name, key) else {}
        self.records[name] = {
            "hash": key,
            "finished": finished,
            "ours": before.get("ours", False) or ours,  # what lies in the stage's directory is this preset's
            "report_sha256": self.report_hash(name) if finished else None,
            "seconds": round(old.get("seconds", 0.0) + seconds, 2),
            "peak_memory_bytes": max(old.get("peak_memory_bytes", 0), peak),
        }
        atomic_write(self.path, json.dumps(self.records, indent=1) + "\n")

    def log(self, stages: list[Stage]) -> None:
        """Leave the times and the memory to the report card (the report's own seconds are not in it)."""
        records = {s.name: self.records[s.name] for s in stages if s.name in self.records and s.script != "report"}
        measured = {n: {k: r[k] for k in ("seconds", "peak_memory_bytes")} for n, r in records.items()}
        self.report.log("speedrun", {
            "preset": self.preset,
            "wall_seconds": round(sum(m["seconds"] for m in measured.values()), 2),
            "peak_memory_bytes": max((m["peak_memory_bytes"] for m in measured.values()), default=0),
            "stages": measured,
        })


def stage_hash(stage: Stage, before: str) -> str:
    """Hash of all that decides a stage's result: its command, its settings, and `before`, the makers before it."""
    free = free_fields({k: v for values in stage.settings.values() for k, v in values.items()}
                       | {flag.lstrip("-"): True for flag in stage.flags})
    settings = {table: {k: v for k, v in values.items() if k not in free}  # they do not change the result
                for table, values in stage.settings.items()}
    text = json.dumps([stage.script, stage.flags, settings, before], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# --------------------------------------------------------------------------- running


def tree_memory(floor: int) -> int:
    """Memory of this process and all below it in bytes; `floor` if it is surely not above that.

    Resident sizes count shared pages once a process (compile workers share hundreds of MiB of torch), proportional
    sizes count them once, but are slow to read. Resident is never below proportional: only a sum of resident sizes
    above the peak so far is worth the slow look.
    """
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    resident = proportional = 0
    for slow in (False, True):
        for process in processes:
            try:
                if slow:
                    full = process.memory_full_info()
                    proportional += getattr(full, "pss", full.rss)
                else:
                    resident += process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile, or is not ours to look into
                continue
        if resident <= floor:
            return floor
    return max(floor, proportional)


def run_command(command: list[str]) -> tuple[int, float, int, int | None]:
    """Run a command to its end. Returns (exit code, seconds, peak bytes of the process tree, signal that came or None).

    SIGINT and SIGTERM are passed on once each (a closed terminal's SIGHUP as SIGTERM) and the child is waited for: it
    saves. It has a session of its own: a terminal's Ctrl-C would reach it twice, and twice means "do not even save".
    """
    received: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(signum: int, _frame: object) -> None:
        received.append(signum)
        if child is not None:
            child.send_signal(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # but what `nohup` and the like ignore stays ignored
    before = {s: signal.signal(s, pass_on) for s in caught if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        began, peak, code = time.monotonic(), 0, None
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        if received:  # it came while the child was being made
            pass_on(received.pop(), None)
        while code is None:
            peak = tree_memory(peak)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(timeout=SAMPLE_EVERY)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code, time.monotonic() - began, peak, received[0] if received else None


def cuda_devices() -> int:
    """How many CUDA devices torch sees here. Asked of another process: importing torch takes seconds, and memory."""
    if not shutil.which("nvidia-smi"):
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def run_stage(
    path: Path, stage: Stage, stages: list[Stage], key: str, ledger: Ledger, head: str, nproc: int = 1
) -> int:
    """Run one stage and keep the ledger. Returns its exit code, 128 + the signal's number if one came."""
    launch = ["nanochat.launch", str(nproc)] if nproc > 1 and stage.script in DISTRIBUTED else []
    command = [sys.executable, "-m", *launch, stage.module, str(path), *stage.flags]
    start = ledger.how_to_start(stage.name, key) if stage.script in RESUMABLE else []
    command += start
    print(f"{head}{': going on from its last save' if '--resume' in start else ''}", flush=True)
    if stage.script == "report":
        ledger.log(stages)
        command.append(f"--out={Path.cwd()}")
    else:
        (ledger.report.folder / f"{stage.name}.json").unlink(missing_ok=True)  # an old figure must not pass for a new
        ledger.write(stage.name, key, finished=False)
    began = time.time()
    code, seconds, peak, signum = run_command(command)
    # A stage that refused may have found somebody else's run in its place; one that saved has not.
    ledger.write(stage.name, key, finished=code == 0 and signum is None, seconds=seconds, peak=peak,
                 ours=code != REFUSED or saved_since(stage, began))
    if signum is not None:
        by = signal.Signals(signum).name
        print(f"\nStopped in {stage.name} by {by}. The same command goes on from here.", flush=True)
        return 128 + signum
    if code != 0:
        print(f"{stage.name} failed with exit code {code}. Mend it and give the same command again: "
              "finished stages are skipped.", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def saved_since(stage: Stage, began: float) -> bool:
    """Whether this stage has written a checkpoint since then (seconds since 1970)."""
    metas = get_base_dir().glob(f"{RESUMABLE.get(stage.script)}/{setting(stage, 'model_tag') or '*'}/meta_*.json")
    return any(meta.stat().st_mtime >= began for meta in metas)


def run_preset(path: Path, nproc: int = 0) -> int:
    """Run all stages of a preset that are not done yet, on `nproc` ranks where they can (0: one a CUDA device).

    Returns the exit code.
    """
    path = path.resolve()
    preset, stages = load_preset(path)
    nproc = nproc or max(1, cuda_devices())
    check_sizes(path, stages, nproc)
    ledger = Ledger(preset, Report(get_base_dir() / "report"))
    began, before = time.monotonic(), ""
    for i, stage in enumerate(stages, start=1):
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        head = f"[{i}/{len(stages)} {minutes:02d}:{seconds:02d}] {stage.name}"
        key = stage_hash(stage, before)
        if stage.script != "report" and ledger.done(stage.name, key):
            print(f"{head}: done before with the same settings, skipped", flush=True)
        elif (code := run_stage(path, stage, stages, key, ledger, head, nproc)) != 0:
            return code
        if stage.name in MAKERS:  # evaluations only look: a changed one makes nothing after it old
            before = f"{key} {ledger.report_hash(stage.name)}"
    say_goodbye(stages, time.monotonic() - began)
    return 0


def say_goodbye(stages: list[Stage], seconds: float) -> None:
    """Where all is, and what to do with it."""
    print(f"\nDone in {int(seconds) // 60} min {int(seconds) % 60} s. Checkpoints and reports: {get_base_dir()}")
    if any(s.script == "report" for s in stages):
        print(f"Report card: {Path.cwd() / 'report.md'} (and report.json)")
    scripts = {s.script for s in stages}
    if {"mid_train", "chat_sft", "chat_rl"} & scripts:
        python = Path(sys.executable)
        if python.is_relative_to(Path.cwd()):
            python = python.relative_to(Path.cwd())
        chat = f"{python} -m scripts.chat_{{}}{' --source=rl' if 'chat_rl' in scripts else ''}"
        print(f"Talk to it:  {chat.format('cli')}, or in the browser: {chat.format('web')}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.speedrun", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("preset", type=Path, help="a preset file, e.g. runs/pocket.toml")
    parser.add_argument("--nproc", type=int, default=0, metavar="N",
                        help="ranks of the training stages (default: one a CUDA device, else one)")
    args = parser.parse_args(argv)
    print_banner()
    try:
        check_at_least(0, nproc=args.nproc)
        return run_preset(args.preset, args.nproc)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # between two stages
        return 130


if __name__ == "__main__":
    sys.exit(main())
