"""The tasks of CORE, the 22 few-shot tests of the DCLM paper (Li et al. 2024), as an evaluation bundle holds them.

A bundle is a folder: `tasks.json` or `core.yaml` lists the tasks, `eval_meta_data.csv` what blind choice would reach
(where there is only `core.yaml`), `eval_data/` has a JSON Lines file for each. Three kinds, a row of each:

    multiple_choice    {"query": "The man turned on the faucet, therefore", "gold": 1,
                        "choices": ["the toilet filled with water.", "water flowed from the spout."]}
    schema             {"context_options": ["Sarah knew more than Maria, so she", "Sarah knew less than Maria, so she"],
                        "continuation": "taught her.", "gold": 0}
    language_modeling  {"context": "The native language of Daniel Schneidermann is", "continuation": "French"}

`load_bundle("pocket")` reads the generated one, whose labels begin with "pocket_"; what else can be named stands there.
What is asked with them is in nanochat/core_eval.py. Look at them: `python -m tasks.core_bundle [--core=FOLDER]`.
"""

from __future__ import annotations

import csv
import errno
import json
import lzma
import reprlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from nanochat import configurator
from nanochat.common import UserError, check_disk, download_file_with_lock, get_base_dir
from nanochat.documents import build_once
from nanochat.hub import fetch
from nanochat.hub_file import what_is_wrong
from nanochat.sources import data_dir, hub_slug, on_hub, parse_source
from tasks.rows import BadRow, Row, fields, load_jsonl, pinned_listing

Kind = Literal["multiple_choice", "schema", "language_modeling"]

# The bundle that nanochat has published: 22 tasks with all their rows. Nobody has published its SHA-256.
BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
MOST_BYTES, MOST_FILES = 2**31, 10_000  # of an unpacked bundle: the published one has 0.2 GB
SHOWN = reprlib.Repr()
SHOWN.maxlevel = 1  # a few lines of YAML can make a billion lists of one another
# What reading a damaged zip raises (RuntimeError: one that wants a password), and which of it is not the zip's fault.
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, ValueError, EOFError)
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
REMEDY = "choose another --core"


@dataclass(frozen=True)
class CoreTask:
    """One task: `baseline` is the share that blind choice gets right, as DCLM counts it (0 to 1)."""

    label: str
    kind: Kind
    num_fewshot: int
    delimiter: str  # between a question and its answer: " ", "\nAnswer: "
    baseline: float
    rows: Sequence[Row]


# --------------------------------------------------------------------------- where it is


def load_bundle(data: str = "pocket", core: str = "") -> list[CoreTask]:
    """All tasks of a bundle, every row checked.

    `core`: a folder, a .zip, or `hub:OWNER/NAME[/FOLDER]`. Left out, the one that goes with `data`: the generated one
    for "pocket", `FOLDER/core` for a folder, the published one (160 MB, fetched once) for what is on the hub.
    """
    folder = bundle_dir(data, core)
    listed = _listed(folder)
    if not listed:
        raise UserError(f"{folder} lists no tasks: {REMEDY}")
    tasks = [_load_task(folder, entry) for entry in listed]
    (label, times), *_ = Counter(task.label for task in tasks).most_common(1)
    if times > 1:  # results are told apart by it
        raise UserError(f"{folder} lists {label} {times} times: give each task a label of its own")
    return tasks


def bundle_dir(data: str, core: str = "") -> Path:
    """The folder of the bundle; what is missing is fetched, unpacked or generated."""
    if core.startswith("hub:"):
        return _from_hub(core)
    if core.endswith(".zip"):
        return _unpacked(Path(core).expanduser())
    if core:
        return Path(core).expanduser()
    if on_hub(data):
        return _unpacked(download_file_with_lock(BUNDLE_URL, "eval_bundle.zip"))
    return data_dir(data) / "core"


def _from_hub(core: str) -> Path:
    source = parse_source(core)
    folder = get_base_dir() / "core_data" / hub_slug(source)
    listing = pinned_listing(source.repo, folder, revision=source.revision, under=source.under, suffix="")
    files = [f for f in listing.files if f.name.endswith((".jsonl", ".yaml", ".csv", "tasks.json"))]
    fetch(listing, files, folder, trusted=lambda file, path: not what_is_wrong(path, file))
    return _root(folder)


def _unpacked(path: Path) -> Path:
    """The bundle in a zip file, unpacked once, under the base directory."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: {REMEDY}")

    def unpack(folder: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and "__MACOSX" not in m.filename]
                size = sum(m.file_size for m in members)
                if size > MOST_BYTES or len(members) > MOST_FILES:
                    raise UserError(f"{path} would unpack to {size / 1e9:.1f} GB in {len(members):,} files, which no "
                                    f"bundle has: {REMEDY}")
                check_disk(folder, size)
                for member in members:
                    archive.extract(member, folder)  # never outside of the folder, whatever a member is called
        except UNREADABLE as e:
            if getattr(e, "errno", None) in OF_THE_DISK:
                raise
            raise UserError(f"{path} is not a readable zip file ({e}): remove it so that it is fetched again") from e

    stat = path.stat()
    name = f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}"
    return _root(build_once(get_base_dir() / "core_data" / name, unpack))


def _root(folder: Path) -> Path:
    """The folder with the list of tasks: this one or one below (archives hold a folder of their own)."""
    for name in ("tasks.json", "core.yaml"):
        if found := sorted(folder.rglob(name), key=lambda p: len(p.parts)):
            return found[0].parent
    return folder


# --------------------------------------------------------------------------- what it holds


def _listed(folder: Path) -> list[dict[str, Any]]:
    """What `tasks.json` says of each task, or what `core.yaml` and `eval_meta_data.csv` do, in the same form."""
    if (folder / "tasks.json").is_file():
        return _parsed(folder / "tasks.json", json.loads, "tasks")
    if not (folder / "core.yaml").is_file():
        raise UserError(f"{folder} is no evaluation bundle (it has neither tasks.json nor core.yaml): "
                        "give --core=FOLDER, a .zip, or hub:OWNER/NAME")
    path = folder / "eval_meta_data.csv"
    try:
        with open(path, encoding="utf-8", newline="") as f:
            baselines = {row["Eval Task"]: row["Random baseline"] for row in csv.DictReader(f)}
    except (OSError, KeyError, ValueError, csv.Error) as e:
        raise UserError(f"{path} cannot be read ({type(e).__name__}: {e}): it says what blind choice reaches") from e
    listed = []
    for entry in _parsed(folder / "core.yaml", yaml.safe_load, "icl_tasks"):
        shots, label = entry.get("num_fewshot"), entry.get("label")
        if not isinstance(label, str) or label not in baselines:
            raise UserError(f"{path} has no row for {SHOWN.repr(label)}: add one, with what blind choice reaches")
        listed.append({"continuation_delimiter": " ", **entry, "random_baseline_pct": _number(baselines[label]),
                       "num_fewshot": shots[0] if isinstance(shots, list) and shots else shots})
    return listed


def _parsed(path: Path, parse: Callable[[str], Any], key: str) -> list[dict[str, Any]]:
    try:
        listed = parse(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as e:
        what = " ".join(f"{type(e).__name__}: {e}".split())  # what is wrong with YAML is told on several lines
        raise UserError(f"{path} is no list of tasks ({what}): {REMEDY}") from e
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(f'{path}: "{key}" must be a list of objects: {REMEDY}')
    return listed


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _load_task(folder: Path, entry: dict[str, Any]) -> CoreTask:
    wanted = {"label": str, "icl_task_type": str, "dataset_uri": str, "num_fewshot": int, "continuation_delimiter": str,
              "random_baseline_pct": (int, float)}
    for key, kind in wanted.items():
        if not isinstance(entry.get(key), kind) or isinstance(entry[key], bool):
            raise UserError(f"{folder}: task {SHOWN.repr(entry.get('label'))} needs {key}, not "
                            f"{SHOWN.repr(entry.get(key))}: {REMEDY}")
    label, uri, percent = entry["label"], PurePosixPath(entry["dataset_uri"]), entry["random_baseline_pct"]
    if entry["icl_task_type"] not in CHECKS:
        raise UserError(f"{folder}: task {label} is of kind {entry['icl_task_type']!r}: known are {', '.join(CHECKS)}")
    if uri.is_absolute() or ".." in uri.parts:
        raise UserError(f"{folder}: task {label} lies outside of the bundle ({uri}): {REMEDY}")
    if not 0 <= percent < 100 or not 0 <= entry["num_fewshot"] <= 1000:
        raise UserError(f"{folder}: task {label} has num_fewshot={SHOWN.repr(entry['num_fewshot'])} and "
                        f"random_baseline_pct={SHOWN.repr(percent)}: wanted are 0 to 1000 and 0 to below 100")
    kind = entry["icl_task_type"]
    try:
        rows = load_jsonl(folder / "eval_data" / uri, CHECKS[kind])
    except OSError as e:
        raise UserError(f"{folder}: the rows of task {label} cannot be read ({e.strerror}): {REMEDY}") from e
    return CoreTask(label, kind, entry["num_fewshot"], entry["continuation_delimiter"], percent / 100, rows)


def _options(key: str) -> Callable[[Any], None]:
    """A checker of rows with a list of at least two texts under `key`, and the index of the right one."""

    def check(row: Any) -> None:
        fields(gold=int, **{key: list})(row)
        if len(row[key]) < 2 or not all(isinstance(text, str) for text in row[key]):
            raise BadRow(f'"{key}" must hold two texts or more')
        if not 0 <= row["gold"] < len(row[key]):
            raise BadRow(f'"gold" is {row["gold"]}, of {len(row[key])} in "{key}"')

    return check


def _multiple_choice(row: Any) -> None:
    fields(query=str)(row)
    _options("choices")(row)


def _schema(row: Any) -> None:
    fields(continuation=str)(row)
    _options("context_options")(row)


CHECKS: dict[str, Callable[[Any], None]] = {
    "multiple_choice": _multiple_choice,
    "schema": _schema,
    "language_modeling": fields(context=str, continuation=str),
}


# --------------------------------------------------------------------------- command line


@dataclass
class Config:
    """List the tasks of a bundle."""

    data: str = "pocket"
    """pocket, a hub source, or a folder that has a folder core/"""
    core: str = ""
    """another bundle: a folder, a .zip, or hub:OWNER/NAME"""


def main(config: Config) -> None:
    for task in load_bundle(config.data, config.core):
        print(f"{task.label}: {task.kind}, {len(task.rows):,} rows, {task.num_fewshot} shots, "
              f"baseline {task.baseline:.1%}")


if __name__ == "__main__":
    configurator.main(main, Config)
