"""Where task rows come from, checked one by one: files of one's own, the pocket world, published sets of the hub.

One setting, `data`, says which. A file of one's own is JSON Lines; a set of the hub is parquet, fetched by
`nanochat/hub.py` when the task is made and kept with the revision it has (`pinned_listing`): a second run, also
without network, has the same rows. Whatever is wrong with a row names its file and line.

There is nothing to run here; `python -m tasks.catalog gsm8k` shows rows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import reprlib
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from nanochat.common import UserError, get_base_dir
from nanochat.dataset import data_dir, on_hub
from nanochat.files import atomic_write
from nanochat.hub import HubFile, Listing, fetch, list_files, what_is_wrong

Row = dict[str, Any]
Check = Callable[[Any], None]  # raises BadRow
MAX_UNPACKED = 256 << 20  # bytes in a .gz file of rows: a thousandth of it can unpack to all memory there is


class BadRow(UserError):
    """A row of a task file that cannot be used, and why; `load_jsonl` adds the file and the line."""


class Rows(list):
    """Rows that have been read; `fingerprint` is another where a byte of their files is."""

    def __init__(self, rows: Iterable[Any], fingerprint: str) -> None:
        super().__init__(rows)
        self.fingerprint = fingerprint


class KnownRows(Protocol):
    """`Rows` or what behaves so."""

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def fingerprint_of(*values: object) -> str:
    """16 hex digits: `("GSM8K", 0, None, 1, "5f3a…") -> "0b1c…"`."""
    return hashlib.sha256(json.dumps([str(value) for value in values]).encode()).hexdigest()[:16]


def rows_fingerprint(get: Callable[[int], Any], n: int) -> str:
    """That of rows with no file behind them: all are read, some 150 000 of 2 kB a second."""
    digest = hashlib.sha256()
    for index in range(n):
        try:
            said = repr(get(index))
        except (UserError, RecursionError) as e:  # a bad row, or one nested too deeply; a loader leaves it out
            said = type(e).__name__
        digest.update(said.encode() + b"\n")
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------- files of one's own


def fields(**types: type) -> Check:
    """A checker for `load_jsonl`: `fields(question=str, answer=int)` wants exactly these types under these keys."""

    def check(row: Any) -> None:
        if not isinstance(row, dict):
            raise BadRow(f"must be a JSON object, not {type(row).__name__}")
        for key, kind in types.items():
            if type(row.get(key)) is not kind:  # isinstance would take true for the number 1
                raise BadRow(f'needs "{key}" of type {kind.__name__}')

    return check


def load_jsonl(path: str | Path, check: Check | None = None) -> Rows:
    """The rows of a JSON Lines file; blank lines are skipped. Whatever is wrong with a line names file and line.

    Lines end at b"\\n" only: JSON strings may hold U+2028 and other things that `str.splitlines` breaks at. A key that
    stands twice in one object is refused: of two lists of "messages" JSON would keep the second without a word. Where
    there is no such file but one with .gz behind its name, that is read.
    """
    path = Path(path)
    if not path.is_file() and (packed := path.with_name(path.name + ".gz")).is_file():
        path = packed
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in path.parent.glob("*.jsonl*"))) or "nothing of the kind"
        raise UserError(f"{path} is missing (the folder has: {found}): put it there, or choose another --data or split")
    rows, digest = [], hashlib.sha256()
    for number, line in enumerate(_lines(path), start=1):
        digest.update(line)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=_object)
            if check is not None:
                check(row)
        except UnicodeDecodeError as e:  # a ValueError too, so it must come first
            raise UserError(f"{path}:{number}: byte {e.start} is not UTF-8: save the file as UTF-8") from e
        except json.JSONDecodeError as e:  # its own text counts lines within this one
            raise UserError(f"{path}:{number}: not JSON: {e.msg} at character {e.pos + 1}: mend or remove this line"
                            ) from e
        except (BadRow, ValueError, RecursionError) as e:
            raise UserError(f"{path}:{number}: {e}: mend or remove this line") from e
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows: write at least one, or choose another file")
    return Rows(rows, digest.hexdigest()[:16])


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, or of what a .gz file unpacks to; the latter bounded."""
    if path.suffix != ".gz":
        with open(path, "rb") as f:
            yield from f
        return
    left = MAX_UNPACKED
    try:
        with gzip.open(path, "rb") as f:
            while line := f.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise UserError(f"{path} unpacks to more than {MAX_UNPACKED:,} bytes: unpack it yourself (gunzip) "
                                    "if it is what you want")
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path} is not a whole gzip file ({e}): get it again") from e


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What JSON makes of one object, unless it says something twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise BadRow(f"the key {reprlib.repr(twice)} stands twice in one object")
    return made


# --------------------------------------------------------------------------- by the setting


def task_rows(data: str, part: str, check: Check, hub: tuple[str, str]) -> Shuffled:
    """The rows of one split of one set, in a fixed shuffled order, so that any slice is a fair sample.

    (MMLU stands sorted by subject: its first 200 rows are algebra and anatomy.) `part` is the file inside the data
    folder, `hub` the dataset repository and the prefix of its parquet files:
    `task_rows("fineweb-edu", "gsm8k/test.jsonl", check, hub=("openai/gsm8k", "main/test-"))`.
    """
    if not on_hub(data):
        return Shuffled(load_jsonl(task_dir(data) / part, check))
    rows = hub_rows(*hub)
    for _, problem in rows.problems(check):  # of a set that measures something none may be missing
        raise UserError(f"{problem}: tell the owners of {hub[0]}, or choose --data=FOLDER with rows of your own")
    return Shuffled(rows)


def task_dir(data: str) -> Path:
    """The folder of task files. What the hub has no set for (identity, word list, …) comes from the pocket world."""
    return data_dir("pocket" if on_hub(data) else data)


class Shuffled(Sequence[Row]):
    """The same rows in an order that depends on nothing but their number; `without` are left out."""

    def __init__(self, rows: KnownRows, seed: int = 42, without: Collection[int] = ()) -> None:
        self.rows, self.fingerprint = rows, fingerprint_of(rows.fingerprint, seed, sorted(without))
        self.order = list(range(len(rows)))
        random.Random(seed).shuffle(self.order)
        if without:
            self.order = [i for i in self.order if i not in without]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index):
        return self.rows[self.order[index]]


# --------------------------------------------------------------------------- published sets


def hub_rows(repo: str, prefix: str) -> ParquetRows:
    """The rows of a published dataset: its parquet files whose names begin with `prefix`, fetched once and verified."""
    folder = get_base_dir() / "task_data" / repo.replace("/", "--")
    listing = pinned_listing(repo, folder)
    files = [file for file in listing.files if file.name.startswith(prefix)]
    if not files:
        raise UserError(f"{repo} has no parquet file named {prefix}* at revision {listing.revision[:12]}: choose "
                        f"another split or --data=FOLDER, or remove {folder / 'manifest.json'} for the latest revision")
    # trusted if right, so that then no lock is written: the folder may be one that only its owner may write to
    paths = fetch(listing, files, folder, trusted=lambda file, path: not what_is_wrong(path, file))
    return ParquetRows(paths, fingerprint_of(*(f"{f.name} {f.sha256 or f.blob_id}" for f in files)))


def pinned_listing(repo: str, folder: Path, **which: str) -> Listing:
    """What `repo` held when it was first asked for, kept as `folder/manifest.json`: its files, their size and SHA-256.

    From then on every run has the same rows, without asking the hub. Remove the file to have the latest revision.
    `which`: revision, under, suffix, as for `list_files`.
    """
    path = folder / "manifest.json"
    if not path.exists():  # once it does nobody writes it again, so that reading needs no lock
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "manifest.lock"):  # ranks that start together must not pin two revisions
            if not path.exists():
                atomic_write(path, json.dumps(asdict(list_files(repo, **which)), indent=1) + "\n")
    try:
        kept = json.loads(path.read_bytes())
        return Listing(kept["repo"], kept["revision"], tuple(HubFile(**file) for file in kept["files"]))
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged: remove it, and the latest revision of {repo} is taken") from e


class ParquetRows(Sequence[Row]):
    """Parquet files as one list of row dicts, kept in Arrow memory (half a million dicts would take many GB)."""

    def __init__(self, paths: Sequence[str | Path], fingerprint: str = "") -> None:
        import pyarrow
        import pyarrow.parquet

        self.paths, self.fingerprint, tables = list(paths), fingerprint, []
        for path in self.paths:
            try:
                tables.append(pyarrow.parquet.read_table(path))
            except (pyarrow.ArrowException, OSError) as e:
                raise UserError(f"{path} is not a readable parquet file: remove it so that it is fetched again") from e
        self.ends = list(accumulate(table.num_rows for table in tables))
        try:
            self.table = pyarrow.concat_tables(tables)
        except pyarrow.ArrowException as e:
            raise UserError(f"{self.paths[0]} and the files beside it have other columns each: remove them all") from e

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index):
        return _row(self.table.slice(range(len(self))[index], 1).to_pylist()[0])

    def where(self, index: int) -> str:
        """`(".../test-0.parquet", 3 rows) and (".../test-1.parquet", 5 rows), 4 -> ".../test-1.parquet: row 2"`."""
        file = bisect_right(self.ends, index)
        return f"{self.paths[file]}: row {index - (self.ends[file - 1] if file else 0) + 1}"

    def problems(self, check: Check) -> Iterator[tuple[int, str]]:
        """`(index, file, row and what is wrong)` of each row that `check` refuses. Half a million rows: seconds."""
        index = 0
        for batch in self.table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                try:
                    check(_row(row))
                except BadRow as e:
                    yield index, f"{self.where(index)}: {e}"
                index += 1


def _row(row: Row) -> Row:
    """MMLU's auxiliary_train keeps each row inside one more struct column, called "train"."""
    return row["train"] if set(row) == {"train"} else row
