"""The validation split: chosen once from what a source holds, pinned in its manifest, and never moved afterwards; and
the conversion of files that must be divided by document.

A hub source of several files: all of one, its `validation-…` or else its first (FineWeb-Edu: shard 0), for any N.
Anything else: about 1% of the row groups of the files read in place, by the hash of their file, and about 1% of the
documents of the files that are converted, by their own hash. What comes later is training text, except for copies of
pinned text, which are left out: of pinned files and row groups, and of single documents in files that are converted.
Pinned text that is gone is an error: the rest would be another validation set.

Not covered: a document of the validation split that stands again in a parquet file read in place (files with the same
bytes are seen, single documents are not); text that differs by one character.
dataset.py uses it; there is nothing to run here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat import hub
from nanochat.common import UserError, print0, progress
from nanochat.documents import FORMATS, build_once, document_hash, read_documents, row_group_texts, write_shards
from nanochat.manifest import Entry, Manifest, Pins, as_now, compare, printable, some_of

MAX_ROW_GROUP_BYTES = 64 << 20  # a larger row group is rewritten: it would have to be tokenized in one go
MIN_UNITS = 20  # fewer row groups: the split is made by document
MAX_VAL_UNITS, MAX_VAL_DOCUMENTS = 64, 2000
KEEP_CONVERSIONS = 30 * 86400  # seconds since a corpus() last named them: a run reads them for weeks without asking
RULES = 2  # part of every fingerprint: raise it when conversion or pinning changes


@dataclass(frozen=True)
class Unit:
    """One row group: the grain in which text is read, shuffled and counted."""

    path: Path
    row_group: int
    rows: int
    bytes: int
    crc32: int | None = None  # of its text as it lies in the file; `read_unit` compares


@dataclass(frozen=True)
class Shard:
    """One parquet file of a corpus."""

    path: Path
    bytes: int
    sha256: str
    row_groups: tuple[tuple[int, int, int], ...]  # (rows, bytes of text, CRC-32) of each

    @classmethod
    def of(cls, path: Path, f: Entry) -> Shard:
        return cls(path, f.bytes, f.sha256, f.row_groups)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _, _ in self.row_groups)

    def units(self) -> list[Unit]:
        return [Unit(self.path, i, rows, size, crc) for i, (rows, size, crc) in enumerate(self.row_groups) if rows]


def digest(files: dict[str, Entry], pins: Pins) -> str:
    """The fingerprint of source files and pins: 16 hex digits."""
    content = [RULES, [[name, f.sha256] for name, f in files.items()], pins.as_json()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def is_well_shaped(entry: Entry, least: int = 2) -> bool:
    """Whether a parquet file can be read where it lies: enough row groups, none too large."""
    sizes = [(rows, size) for rows, size, _ in entry.row_groups]
    return sum(rows > 0 for rows, _ in sizes) >= least and max(size for _, size in sizes) <= MAX_ROW_GROUP_BYTES


def read_in_place(files: dict[str, Entry], pins: Pins) -> list[str]:
    """The files that are read where they lie; all others are converted."""
    least = 1 if pins.file else 2  # a single row group cannot be divided, but need not be
    return [name for name, f in files.items() if is_well_shaped(f, least) and f.sha256 not in pins.rewrite]


# --------------------------------------------------------------------------- choosing


def rewritten(files: dict[str, Entry]) -> tuple[str, ...]:
    """Well-shaped parquet files to split by document all the same: one of so few row groups is a large share."""
    shaped = [f for f in files.values() if is_well_shaped(f)]
    return tuple(f.sha256 for f in shaped) if sum(len(f.row_groups) for f in shaped) < MIN_UNITS else ()


def choose(folder: Path, files: dict[str, Entry]) -> Pins:
    """The split of a source that has none yet: the same on any machine."""
    few = Pins(rewrite=rewritten(files))
    in_place = read_in_place(files, few)
    others = [name for name in files if name not in in_place]
    return Pins(_choose_units({name: files[name] for name in in_place}),
                _choose_documents(folder, others, alone=not in_place), few.rewrite)


def _choose_units(in_place: dict[str, Entry]) -> tuple[tuple[str, str, int], ...]:
    """About 1% of the row groups, chosen by a hash of their file's content."""
    units = [(name, f.sha256, i) for name, f in in_place.items() for i, group in enumerate(f.row_groups) if group[0]]
    units.sort(key=lambda u: hashlib.sha256(f"{u[1]} {u[2]}".encode()).digest())
    return tuple(units[: min(MAX_VAL_UNITS, round(len(units) / 100) or 1)])


def _choose_documents(folder: Path, names: Sequence[str], alone: bool) -> tuple[str, ...]:
    """About 1% of the documents (at least 20 of them or a tenth), those with the smallest hashes."""
    total, smallest = 0, set()
    for text in documents_of(folder, names):
        total += 1
        smallest.add(document_hash(text))
        if len(smallest) > 4 * MAX_VAL_DOCUMENTS:  # all hashes of a huge corpus would not fit into memory
            smallest = set(sorted(smallest)[:MAX_VAL_DOCUMENTS])
    if names and not total:
        raise UserError(f"the files below {folder} hold no text: put {FORMATS} files with text there")
    if len(smallest) < 2:
        if names and alone:
            raise UserError(f"{folder} holds one document only: validation needs a second, different one")
        return ()  # one stray document beside parquet files: training text
    n = min(total, len(smallest)) if total <= MAX_VAL_DOCUMENTS else total
    wanted = min(max(-(-n // 100), min(n // 10, 20)), MAX_VAL_DOCUMENTS)
    return tuple(sorted(smallest)[:wanted])


def documents_of(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """The documents of some files, one file after the other."""
    for name in names:
        yield from read_documents(folder / name)


# --------------------------------------------------------------------------- converting


def conversion(pins: Pins, files: dict[str, Entry]) -> tuple[list[str], str]:
    """The files that are converted, and the folder beside the manifest for that: named after all it is made of."""
    in_place, pinned = set(read_in_place(files, pins)), {sha256 for _, sha256, _ in pins.units}
    names = [name for name in files if name not in in_place]
    read = {name: f for name, f in files.items()
            if name not in in_place or name == pins.file or f.sha256 in pinned}  # these for what is left out
    return names, "shards-" + digest(read, pins)


def convert(manifest: Manifest, files: dict[str, Entry], folder: Path, verify: bool) -> dict[str, Shard]:
    """Parquet shards with the documents of files not read in place, written unless this very content has been before.

    Conversions not used for KEEP_CONVERSIONS are deleted; whoever uses one says so by touching its folder.
    """
    pins, place = manifest.pins, manifest.path.parent
    names, name = conversion(pins, files)
    if not names:
        return {}
    made, known = place / name, manifest.converted.get(name)
    if known and made.is_dir():
        with contextlib.suppress(OSError):  # a base directory may be one that we can only read
            os.utime(made)
        known, problems = compare(made, known, verify=verify, held=manifest.held)
        if problems:
            manifest.need_lock()
            print0(f"note: {made} is damaged ({some_of(problems)}): it is made again")
            shutil.rmtree(made)
    else:
        manifest.need_lock()
    for stale in place.glob(".shards-*") if manifest.held else ():  # of processes that died: nobody else converts here
        shutil.rmtree(stale, ignore_errors=True)
    build_once(made, lambda temporary: _write_conversion(temporary, pins, files, folder, names))
    shards = sorted(p.name for p in made.glob("*.parquet"))
    manifest.converted[name] = as_now(made, shards, known or {})
    return {f"~{shard}": Shard.of(made / shard, f) for shard, f in manifest.converted[name].items()}


def _write_conversion(made: Path, pins: Pins, files: dict[str, Entry], folder: Path, names: Sequence[str]) -> None:
    hub.check_disk(made.parent, sum(files[name].bytes for name in names))
    print0(f"converting {len(names)} file(s) of {printable(folder)} to parquet (once)")
    training = progress([n for n in names if n != pins.file], description="converting")
    validation = [pins.file] if pins.file in names else []
    write_shards(made, documents_of(folder, training), set(pins.documents), documents_of(folder, validation),
                 _held_out(folder, files, pins))
    before = {name: files[name] for name in names}
    if as_now(folder, names, before) != before:
        raise UserError(f"{printable(folder)} changed while it was converted: run it again")


def _held_out(folder: Path, files: dict[str, Entry], pins: Pins) -> set[str]:
    """Hashes of the documents that are pinned by their file or row group."""
    if pins.file:
        return {document_hash(text) for text in documents_of(folder, [pins.file])}
    where = {f.sha256: name for name, f in files.items()}
    return {document_hash(text) for _, sha256, i in pins.units if sha256 in where
            for text in row_group_texts(folder / where[sha256], i, files[where[sha256]].row_groups[i][2])}


def forget_old_conversions(manifest: Manifest) -> None:
    """Delete what nobody has used for long, when there is something to write anyway."""
    if not manifest.held:
        return
    for path in manifest.path.parent.glob("shards-*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > KEEP_CONVERSIONS:
            shutil.rmtree(path, ignore_errors=True)
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    there = {name: e for name, e in manifest.converted.items() if (manifest.path.parent / name).is_dir()}
    manifest.converted = there


# --------------------------------------------------------------------------- applying


def divide(shards: dict[str, Shard], pins: Pins) -> tuple[tuple[Unit, ...], tuple[Unit, ...], list[str]]:
    """`(train, validation, pinned text that is gone)` of shards by name; converted ones are `~val-…` and `~train-…`."""
    pinned = {(sha, row_group): name for name, sha, row_group in pins.units}
    whole = shards[pins.file].sha256 if pins.file in shards else ""
    train, val, seen = [], [], set()
    for name, shard in shards.items():
        for unit in shard.units():
            key = (shard.sha256, unit.row_group)
            if name.startswith("~val") or name == pins.file or (key in pinned and key not in seen):
                val.append(unit)
            elif key not in pinned and shard.sha256 != whole:  # a second copy of a validation file is left out
                train.append(unit)
            seen.add(key)
    gone = sorted({f"row groups of {printable(name)}" for key, name in pinned.items() if key not in seen})
    have = sum(shard.rows for name, shard in shards.items() if name.startswith("~val"))
    if not pins.file and have < len(pins.documents):
        gone.append(f"{len(pins.documents) - have} of {len(pins.documents)} documents")
    return tuple(train), tuple(val), gone


def check_divided(folder: Path, manifest: Path, train: Sequence[Unit], val: Sequence[Unit], gone: list[str]) -> None:
    """Refuse a source whose validation text is gone, or that has nothing else."""
    if gone or not val:
        raise UserError(
            f"the validation text of {printable(folder)} is gone or changed ({some_of(gone) or 'all of it'}): put it "
            f"back, or delete {manifest} to pin a new split (results before and after do not compare)")
    if not train:
        raise UserError(f"{printable(folder)} leaves no training text beside the validation split: add files")
