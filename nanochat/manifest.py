"""What a source's files were when they were taken in: the manifest, a JSON file, and every comparison with it.

    version    2
    source     the folder, or OWNER/NAME of a hub repository
    listing    hub only: all files of the repository's folder, and the commit (`revision`) that the source is pinned to
    asked      hub only: how many training shards `python -m nanochat.dataset -n` last asked for
    pins       the validation split (split.py)
    files      name -> bytes, rows, sha256, row_groups [[rows, bytes of text, CRC-32 of its bytes in the file]], stat
    converted  folder -> the same for the shards in it, to which the files not read in place were converted

A file whose size, times and inode (`stat`) are as recorded is taken to be the file that was hashed; any other is
hashed again, so a copied or touched file is fine and an altered one is named. Not covered: file systems whose times are
coarser than TICK_NS, and whoever writes to the disk beside the file system; for those there is `--verify`.

A manifest belongs to the place of its folder: a folder that is moved, or whose manifest is deleted, is taken in anew,
and if it has changed since, with another validation split (a hub source: at another commit).

dataset.py uses it; there is nothing to run here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from nanochat.common import UserError, print0, progress
from nanochat.documents import FORMATS, open_parquet, text_chunks
from nanochat.files import atomic_write
from nanochat.hub import HubFile, Listing

VERSION = 2
TICK_NS = 20_000_000  # the clock that stamps files moves on at least this often (100 Hz kernels, twice)
HASHERS = 4  # threads: hashlib and the disk work without Python's lock
T = TypeVar("T")


class NeedsLock(Exception):
    """Something must be made, written or refused, and that is for the holder of the manifest's lock to do."""


@dataclass(frozen=True)
class Entry:
    """One file: its content, and what it looked like from outside when that was read."""

    bytes: int
    sha256: str
    row_groups: tuple[tuple[int, int, int], ...]  # (rows, bytes of text, CRC-32) of each; () if it is no parquet file
    stat: tuple[int, int, int]  # mtime_ns, ctime_ns, inode

    @property
    def rows(self) -> int:
        return sum(rows for rows, _, _ in self.row_groups)


@dataclass(frozen=True)
class Pins:
    """The validation split (see split.py). Either all of one file, or row groups and documents by their content."""

    units: tuple[tuple[str, str, int], ...] = ()  # (file, its SHA-256, row group)
    documents: tuple[str, ...] = ()  # hashes
    rewrite: tuple[str, ...] = ()  # SHA-256 of parquet files that are split by document all the same
    file: str = ""

    def as_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return found if self.file else {k: v for k, v in found.items() if k != "file"}


@dataclass
class Manifest:
    """The JSON file behind a `Corpus`. `pins` is None as long as nothing was pinned."""

    path: Path
    source: str = ""
    listing: Listing | None = None
    asked: int = 0
    pins: Pins | None = None
    files: dict[str, Entry] = field(default_factory=dict)
    converted: dict[str, dict[str, Entry]] = field(default_factory=dict)  # by folder beside the manifest
    version: int = VERSION  # of the file that was read
    held: bool = False  # is it locked, and by us?

    def need_lock(self) -> None:
        if not self.held:
            raise NeedsLock

    def save(self) -> None:
        """Write it, whole or not at all, and only if it says something new."""
        listed = self.listing or Listing("", "", ())
        text = _dump({
            "version": VERSION, "source": self.source, "revision": listed.revision, "asked": self.asked,
            "pins": self.pins.as_json() if self.pins else None,
            "files": _entries_json(self.files), "converted": {k: _entries_json(e) for k, e in self.converted.items()},
            "listing": {f.name: [f.bytes, f.sha256, f.blob_id] for f in listed.files}})
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            self.need_lock()
            try:
                atomic_write(self.path, text)
            except OSError as e:
                raise _not_written(self.path, e) from e


def _entries_json(entries: dict[str, Entry]) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": e.bytes, "rows": e.rows if e.row_groups else None, "sha256": e.sha256,
                   "row_groups": e.row_groups, "stat": e.stat} for name, e in entries.items()}


def _entries(d: dict[str, dict[str, Any]]) -> dict[str, Entry]:
    return {name: Entry(e["bytes"], e["sha256"], tuple((rows, size, crc) for rows, size, crc in e["row_groups"]),
                        tuple(e["stat"])) for name, e in d.items()}


def _dump(content: dict[str, Any]) -> str:
    """JSON that a person can read and `diff`: a file a line."""
    def block(value: Any) -> str:
        if not isinstance(value, dict) or not value or not all(isinstance(v, (dict, list)) for v in value.values()):
            return json.dumps(value)
        return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"

    return "{\n" + ",\n".join(f" {json.dumps(k)}: {block(v)}" for k, v in content.items()) + "\n}\n"


def load_manifest(path: Path) -> Manifest:
    """The manifest at `path`, an empty one if there is none. One of version 1 knows the pins, and each file's content
    but not where its text lies.
    """
    if not path.exists():
        return Manifest(path)
    try:
        d = json.loads(path.read_text(encoding="utf-8"))
        if d["version"] == 1:
            files = {name: Entry(e["bytes"], e["sha256"], (), (0, 0, 0)) for name, e in d["files"].items()}
            return Manifest(path, pins=_pins(d["val"]), files=files, version=1)
        if d["version"] > VERSION:
            raise UserError(f"{path} was written by a newer nanochat: use that one, or set NANOCHAT_BASE_DIR elsewhere")
        listed = tuple(HubFile(name, *values) for name, values in d["listing"].items())
        return Manifest(
            path, d["source"], Listing(d["source"], d["revision"], listed) if listed else None, d["asked"],
            _pins(d["pins"]) if d["pins"] else None, _entries(d["files"]),
            {k: _entries(e) for k, e in d["converted"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} cannot be read ({type(e).__name__}: {printable(str(e))}): delete it and the source is "
                        "taken in anew (if it has changed: another commit, another validation split)") from None


def _pins(d: dict[str, Any]) -> Pins:
    return Pins(tuple((str(name), str(sha), int(i)) for name, sha, i in d["units"]), tuple(d["documents"]),
                tuple(d["rewrite"]), d.get("file", ""))


def with_manifest(path: Path, work: Callable[[Manifest], T], *, alone: bool = False) -> T:
    """`work(manifest)`; only if that raises `NeedsLock` (or is to be `alone`), once more with the lock.

    So a source that is ready can be read while another process converts for hours, and where nothing can be written.
    """
    if not alone:
        with contextlib.suppress(NeedsLock):
            return work(load_manifest(path))
    with locked(path) as manifest:
        return work(manifest)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Manifest]:
    """The manifest at `path`, and nobody else has it until the block ends. Nothing is saved unless the block does."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=3)
    except Timeout:
        print0(f"waiting for another process that prepares {path.parent.name}")
        lock.acquire()
    except OSError as e:
        raise _not_written(path, e) from e
    try:
        manifest = load_manifest(path)
        manifest.held = True
        yield manifest
    finally:
        lock.release()


def _not_written(path: Path, e: OSError) -> UserError:
    return UserError(f"cannot write to {path.parent} ({e.strerror or e}): set NANOCHAT_BASE_DIR to a folder where you "
                     "can write")


# --------------------------------------------------------------------------- what is there


def text_files(folder: Path) -> list[str]:
    """Names below `folder` of all files of known kinds, sorted; hidden files and folders are passed over.

    Links are followed; a folder that can be reached in two ways is read once, so a circle of links is no circle.
    """
    found, seen, folders, links = [], set(), [folder], []
    while folders or links:
        where = folders.pop() if folders else links.pop(0)  # links last: a file is called by its own folder's name
        try:
            status = where.stat()
            names = sorted(os.listdir(where)) if (status.st_dev, status.st_ino) not in seen else []
        except OSError as e:
            raise _unreadable(where, e) from e
        seen.add((status.st_dev, status.st_ino))
        for path in (where / name for name in names if not name.startswith(".")):
            if os.path.isdir(path):
                (links if path.is_symlink() else folders).append(path)
            elif path.suffix.lower() in FORMATS.split(", "):
                found.append(path.relative_to(folder).as_posix())
    if not found:
        raise UserError(f"no {FORMATS} file below {folder}: put text there, or choose another --data")
    return sorted(found)


def describe(path: Path) -> Entry:
    """Read a file once: its hash, and for parquet where its text lies. A `UserError` names what cannot be used."""
    try:
        status = _settled_stat(path)
        chunks = text_chunks(*open_parquet(path)) if path.suffix.lower() == ".parquet" else []
        sha256, crcs = hash_with_ranges(path, [(c.offset, c.length) for c in chunks])
        if _signature(path.stat()) != _signature(status):
            raise UserError(f"{printable(path)} changed while it was read: wait until it is finished, and run it again")
    except OSError as e:
        raise _unreadable(path, e) from e
    groups = tuple((c.rows, c.bytes, crc) for c, crc in zip(chunks, crcs, strict=True))
    return Entry(status.st_size, sha256, groups, _signature(status)[1:])


def _settled_stat(path: Path) -> os.stat_result:
    """The `stat` of a regular file, taken when the clock has moved on since its last change: another change within the
    same tick would leave the same times behind.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{printable(path)} is not a regular file: remove it")  # a pipe would keep us for ever
    age = time.time_ns() - status.st_ctime_ns
    if 0 <= age < TICK_NS:
        time.sleep((TICK_NS - age) / 1e9)
        status = path.stat()
    return status


def _signature(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def hash_with_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> tuple[str, list[int]]:
    """SHA-256 (hex) of a file and CRC-32 of byte ranges `(offset, length)` in it, in one reading.

    `b"abcdef", [(1, 2)] -> sha256(b"abcdef"), [crc32(b"bc")]`
    """
    digest, crcs, position = hashlib.sha256(), [0] * len(ranges), 0
    ahead = sorted(range(len(ranges)), key=lambda i: ranges[i], reverse=True)  # next one last
    inside: list[int] = []  # those that have begun and not ended
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
            view, end = memoryview(block), position + len(block)
            while ahead and ranges[ahead[-1]][0] < end:
                inside.append(ahead.pop())
            for i in inside:
                first, stop = ranges[i][0] - position, sum(ranges[i]) - position
                crcs[i] = zlib.crc32(view[max(0, first) : stop], crcs[i])
            inside = [i for i in inside if sum(ranges[i]) > end]
            position = end
    return digest.hexdigest(), crcs


def describe_all(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """`describe` for many files, in threads, with a progress bar."""
    names = list(names)
    with ThreadPoolExecutor(HASHERS) as pool:
        entries = pool.map(describe, [folder / name for name in names])
        return dict(zip(names, progress(entries, total=len(names), description="hashing"), strict=True))


# --------------------------------------------------------------------------- comparing


def as_now(folder: Path, names: Sequence[str], known: dict[str, Entry]) -> dict[str, Entry]:
    """The entries of `names` as the files are now; one that looks as `known` says is not read again."""
    found = {name: known[name] for name in names if name in known and looks_the_same(folder / name, known[name])}
    found |= describe_all(folder, [name for name in names if name not in found])
    return {name: found[name] for name in names}


def looks_the_same(path: Path, entry: Entry) -> bool:
    """Whether a file has the size, times and inode that were recorded: then its bytes are taken to be the same."""
    try:
        return _signature(path.stat()) == (entry.bytes, *entry.stat)
    except OSError:
        return False


def compare(folder: Path, known: dict[str, Entry], *, verify: bool = False,
            held: bool = True) -> tuple[dict[str, Entry], list[str]]:
    """`known` files against the disk: `(entries, what is wrong)`; entries get the new stat where only that has moved.

    Without the lock (`held`), `NeedsLock` where anything is to be hashed or said: one process does, the others wait.

    `verify`: every file is hashed, however familiar it looks. Problems read `"missing a.parquet"`, `"truncated
    b.parquet (10 of 200 bytes)"`, `"altered c.parquet (its SHA-256 differs)"`.
    """
    entries, problems, doubtful = dict(known), [], []
    for name, entry in known.items():
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            problems.append(f"missing {printable(name)}")
            continue
        except OSError as e:
            raise _unreadable(folder / name, e) from e
        if status.st_size < entry.bytes:
            problems.append(f"truncated {printable(name)} ({status.st_size:,} of {entry.bytes:,} bytes)")
        elif status.st_size > entry.bytes:
            problems.append(f"altered {printable(name)} ({status.st_size:,} instead of {entry.bytes:,} bytes)")
        elif verify or _signature(status)[1:] != entry.stat:
            doubtful.append(name)
    if (doubtful or problems) and not held:
        raise NeedsLock
    with ThreadPoolExecutor(HASHERS) as pool:
        looks = pool.map(lambda name: _seen_again(folder / name, known[name]), doubtful)
        for name, entry in zip(doubtful, progress(looks, total=len(doubtful), description="hashing"), strict=True):
            if entry is None:
                problems.append(f"altered {printable(name)} (its SHA-256 differs)")
            else:
                entries[name] = entry
    return entries, problems


def _seen_again(path: Path, entry: Entry) -> Entry | None:
    """`entry` with the file's present stat if the content is still the same, else None. Its format is not looked at:
    what has changed may be no parquet any more.
    """
    try:
        status = _settled_stat(path)
        same = hash_with_ranges(path, [])[0] == entry.sha256
    except OSError as e:
        raise _unreadable(path, e) from e
    return dataclasses.replace(entry, stat=_signature(status)[1:]) if same else None


def changes(before: dict[str, Entry], after: dict[str, Entry], limit: int = 20) -> list[str]:
    """What a person did to a folder: `["added a.txt", "removed b.txt", "changed c.txt"]`; at first nothing."""
    if not before:
        return []
    found = [f"added {printable(name)}" for name in after if name not in before]
    found += [f"removed {printable(name)}" for name in before if name not in after]
    found += [f"changed {printable(name)}" for name, entry in after.items()
              if name in before and before[name].sha256 != entry.sha256]
    return found[:limit] + ([f"and {len(found) - limit:,} more"] if len(found) > limit else [])


def some_of(items: Sequence[str], limit: int = 6) -> str:
    """`["a", "b", "c"], 2 -> "a, b and 1 more"`: a line must stay a line."""
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def printable(name: str | Path) -> str:
    """A name in one line of valid text, whatever a file system lets it hold: `"a\\nb" -> "a\\\\nb"`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name))


def _unreadable(path: Path, e: OSError) -> UserError:
    return UserError(f"{printable(path)}: cannot be read ({e.strerror or e}): mend or remove it")
