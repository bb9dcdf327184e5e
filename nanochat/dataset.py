"""Where pretraining text comes from: the pocket world, the hub, or a folder of one's own; always parquet row groups.

One setting, `data`, names the source: `pocket` (generated here, no download), `hub` (FineWeb-Edu shards), or a folder
of txt, md, jsonl and parquet files, nested as you like. `corpus(data)` turns it into one manifest: the files, their
hashes, their *units* (row groups), and a validation split that is pinned the first time a source is seen and never
moves afterwards, whatever is added to the folder.

    python -m nanochat.dataset --from=my_texts      # verify, convert and pin a folder; prints what it found
    python -m nanochat.dataset -n 8                 # fetch 8 training shards (and the validation shard) from the hub
    python -m nanochat.dataset                      # make the pocket world

How a folder becomes units: a parquet file with at least two row groups of a sane size is read where it lies (if there
are 20 row groups or more, else validation would take too large a share); all other files are split into documents and
written once to parquet shards under `get_base_dir()/datasets/`.
How the split is pinned: about 1% of the row groups of the files read in place, by file hash, and about 1% of the
documents of the others, by document hash. What comes later is training text.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from filelock import FileLock

from nanochat import configurator
from nanochat.common import UserError, atomic_write, get_base_dir, print0, progress, sha256_file
from nanochat.documents import (
    FORMATS,
    build_once,
    document_hash,
    open_parquet,
    read_documents,
    row_group_texts,
    write_shards,
)

HUB_REPO = "karpathy/fineweb-edu-100b-shuffle"
HUB_SHARD = "shard_{:05d}.parquet"
HUB_VAL_SHARD = 0  # the one shard that every machine has: validation is the same text for any -n
HUB_DEFAULT_SHARDS = 8
MAX_ROW_GROUP_BYTES = 64 << 20  # a larger row group is rewritten: it would have to be tokenized in one go
MIN_UNITS = 20  # fewer row groups: the split is made by document
MAX_VAL_UNITS, MAX_VAL_DOCUMENTS = 64, 2000
MANIFEST_VERSION = 1  # part of every fingerprint: raise it when conversion or pinning changes


@dataclass(frozen=True)
class Unit:
    """One row group: the grain in which text is read, shuffled and counted."""

    path: Path
    row_group: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Shard:
    """One parquet file of a corpus."""

    path: Path
    bytes: int
    sha256: str
    row_groups: tuple[tuple[int, int], ...]  # (rows, bytes of text) of each

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.row_groups)

    def units(self) -> list[Unit]:
        return [Unit(self.path, i, rows, size) for i, (rows, size) in enumerate(self.row_groups) if rows]


@dataclass(frozen=True)
class Corpus:
    """What a run reads: the manifest of one source, resolved.

    `fingerprint` is a function of the source files and of the pinned split alone; a loader's state carries it, so that
    a run is never resumed on other text without a word.
    """

    label: str  # "pocket", "hub" or the folder's path, for prints and reports
    folder: Path  # where the source text lies
    manifest: Path
    files: tuple[Shard, ...]
    train: tuple[Unit, ...]
    val: tuple[Unit, ...]
    fingerprint: str

    def units(self, split: str) -> tuple[Unit, ...]:
        """The units of `"train"` or `"val"`, in their canonical (unshuffled) order."""
        if split not in ("train", "val"):
            raise UserError(f"split '{split}' is unknown: choose train or val")
        return self.train if split == "train" else self.val


# --------------------------------------------------------------------------- sources


def data_dir(data: str | Path) -> Path:
    """The folder that the setting `data` names.

    `"pocket"` is generated once (a second process waits for the first), `"hub"` is where downloads are kept, anything
    else is a folder of one's own and must hold something.
    """
    if str(data) == "pocket":
        from nanochat import pocket

        return build_once(get_base_dir() / "pocket_data" / pocket.content_hash()[:16], pocket.generate)
    if str(data) == "hub":
        folder = get_base_dir() / "hub_data"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(data).expanduser()
    if not folder.exists():
        raise UserError(f"data folder {data} does not exist: give a folder of {FORMATS} files, or 'pocket' or 'hub'")
    if not folder.is_dir():
        raise UserError(f"{data} is a file: give the folder that holds it")
    if not any(folder.iterdir()):
        raise UserError(f"data folder {data} is empty: put {FORMATS} files into it")
    return folder


def fetch_hub_shards(n: int) -> list[Path]:
    """Download the validation shard and `n` training shards into the hub's data folder; those present stay.

    Files come through `huggingface_hub`: resumable, and `HF_ENDPOINT` and offline mode are honoured.
    """
    from huggingface_hub import hf_hub_download

    folder = data_dir("hub") / "corpus"
    names = [HUB_SHARD.format(i) for i in range(n + 1)]
    missing = [name for name in names if not (folder / name).is_file()]

    def fetch(name: str) -> None:
        try:
            hf_hub_download(HUB_REPO, name, repo_type="dataset", local_dir=folder)
        except Exception as e:  # the client raises a dozen kinds; to the person all of them mean "not fetched"
            cause: BaseException = e
            while cause.__cause__ is not None:  # the outermost one only says "could not be found"
                cause = cause.__cause__
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise UserError(f"could not fetch {name} of {HUB_REPO}: {reason} "
                            "(check the network or HF_ENDPOINT and run again, or use --data=pocket)") from e

    with ThreadPoolExecutor(4) as pool:
        for _ in progress(pool.map(fetch, missing), total=len(missing), description="shards"):
            pass
    return [folder / name for name in names]


# --------------------------------------------------------------------------- the manifest


def corpus(data: str | Path = "pocket") -> Corpus:
    """The manifest of a source, made or brought up to date; cheap when nothing changed (one `stat` a file)."""
    root = data_dir(data)
    if str(data) == "hub":
        have = {path.name for path in (root / "corpus").glob("shard_*.parquet")}
        if HUB_SHARD.format(HUB_VAL_SHARD) not in have or len(have) < 2:
            fetch_hub_shards(HUB_DEFAULT_SHARDS)
    folder = root / "corpus" if (root / "corpus").is_dir() else root
    key = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", root.resolve().name)[:40]
    workshop = get_base_dir() / "datasets" / f"{slug}-{key}"
    workshop.mkdir(parents=True, exist_ok=True)
    with FileLock(workshop / "manifest.lock"):  # ranks and other processes wait for the first
        return _Manifest(workshop / "manifest.json", folder, "hub" if str(data) == "hub" else "").corpus(str(data))


class _Manifest:
    """The JSON file behind a `Corpus`: what each source file was when last seen, and the pinned validation split."""

    def __init__(self, path: Path, folder: Path, pin_rule: str):
        self.path, self.folder, self.pin_rule = path, folder, pin_rule
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if old.get("version") != MANIFEST_VERSION:
            old = {}
        self.known: dict[str, dict] = old.get("files", {})
        self.converted: dict = old.get("converted", {})
        # {"units": [[file, sha256, row_group]], "documents": [hash], "rewrite": [sha256 of files not read in place]}
        self.pins: dict | None = old.get("val")

    def corpus(self, label: str) -> Corpus:
        self.files = self._survey()
        rewrite = self.pins["rewrite"] if self.pins else self._choose_rewrite()
        in_place = {name: f for name, f in self.files.items() if f["row_groups"] and f["sha256"] not in rewrite}
        others = [name for name in self.files if name not in in_place]
        if self.pins is None:
            self.pins = {"units": self._choose_units(in_place), "documents": self._choose_documents(others),
                         "rewrite": rewrite}
        digest = self._digest(self.files)
        shards = {name: self._shard(self.folder / name, f) for name, f in in_place.items()}
        if others:
            self._convert(others)
            made = self.path.parent / self.converted["folder"]
            shards |= {f"~{name}": self._shard(made / name, f) for name, f in self.converted["shards"].items()}
        train, val = self._split(shards)
        self._save()  # only now: a split that cannot be used must not be pinned
        self._forget_old_conversions()
        return Corpus(label, self.folder, self.path, tuple(shards.values()), train, val, digest)

    @staticmethod
    def _shard(path: Path, f: dict) -> Shard:
        return Shard(path, f["bytes"], f["sha256"], tuple((rows, size) for rows, size in f["row_groups"]))

    def _survey(self) -> dict[str, dict]:
        """Every usable file below the folder, by relative name, as `_describe` says."""
        found: dict[str, dict] = {}
        names = sorted(_usable_files(self.folder))
        if not names:
            raise UserError(f"no {FORMATS} file below {self.folder}: put text there, or choose another --data")
        for name in progress(names, description="checking files"):
            path = self.folder / name
            stat, old = path.stat(), self.known.get(name, {})
            if (old.get("bytes"), old.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
                found[name] = old
                continue
            found[name] = _describe(path)
        return found

    def _digest(self, files: dict[str, dict]) -> str:
        """The corpus fingerprint: names and hashes of the sources, and the pins."""
        content = [MANIFEST_VERSION, [[name, f["sha256"]] for name, f in files.items()], self.pins]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()[:16]

    def _choose_rewrite(self) -> list[str]:
        """Well-shaped parquet files to split by document all the same: one of so few row groups is a large share."""
        few = sum(len(f["row_groups"]) for f in self.files.values()) < MIN_UNITS and self.pin_rule != "hub"
        return [f["sha256"] for f in self.files.values() if f["row_groups"]] if few else []

    def _choose_units(self, in_place: dict[str, dict]) -> list[list]:
        """About 1% of the row groups, chosen by a hash of their file's content: the same on any machine."""
        units = [[name, f["sha256"], i] for name, f in in_place.items() for i, (rows, _) in enumerate(f["row_groups"])
                 if rows]
        if self.pin_rule == "hub":
            return [u for u in units if u[0] == HUB_SHARD.format(HUB_VAL_SHARD)]
        units.sort(key=lambda u: hashlib.sha256(f"{u[1]} {u[2]}".encode()).digest())
        return units[: min(MAX_VAL_UNITS, round(len(units) / 100) or 1)]

    def _choose_documents(self, names: list[str]) -> list[str]:
        """About 1% of the documents (at least 20 of them or a tenth), those with the smallest hashes."""
        total, smallest = 0, set()
        for text in self._documents(names):
            total += 1
            smallest.add(document_hash(text))
            if len(smallest) > 4 * MAX_VAL_DOCUMENTS:  # all hashes of a huge corpus would not fit into memory
                smallest = set(sorted(smallest)[:MAX_VAL_DOCUMENTS])
        if names and not total:
            raise UserError(f"the files below {self.folder} hold no text: put {FORMATS} files with text there")
        if len(smallest) < 2:
            if names and len(names) == len(self.files):
                raise UserError(f"{self.folder} holds one document only: validation needs a second, different one")
            return []  # one stray document beside parquet files: training text
        n = min(total, len(smallest)) if total <= MAX_VAL_DOCUMENTS else total
        wanted = min(max(-(-n // 100), min(n // 10, 20)), MAX_VAL_DOCUMENTS)
        return sorted(smallest)[:wanted]

    def _documents(self, names: list[str]) -> Iterator[str]:
        for name in names:
            yield from read_documents(self.folder / name)

    def _convert(self, names: list[str]) -> None:
        """Write the documents of `names` to parquet shards, unless this very content has been converted before."""
        name = "shards-" + self._digest({n: self.files[n] for n in names})
        if self.converted.get("folder") == name and (self.path.parent / name).is_dir():
            return
        pinned = set(self.pins["documents"])

        def fill(folder: Path) -> None:
            print0(f"converting {len(names)} file(s) of {self.folder} to parquet (once)")
            write_shards(folder, self._documents(progress(names, description="converting")), pinned)

        made = build_once(self.path.parent / name, fill)
        shards = {p.name: _describe(p, in_place=True) for p in sorted(made.glob("*.parquet"))}
        self.converted = {"folder": name, "shards": shards}

    def _forget_old_conversions(self) -> None:
        """Keep the conversion in use and the one before it, which a running loader may still read."""
        made = sorted(self.path.parent.glob("shards-*/"), key=lambda p: p.stat().st_mtime)
        for folder in made[:-2]:
            if folder.name != self.converted.get("folder"):
                shutil.rmtree(folder, ignore_errors=True)

    def _split(self, shards: dict[str, Shard]) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
        pinned = {(sha, row_group): name for name, sha, row_group in self.pins["units"]}
        train, val, seen = [], [], set()
        for name, shard in shards.items():
            for unit in shard.units():
                key = (shard.sha256, unit.row_group)
                is_val = key in pinned or name.startswith("~val")
                if is_val and not (key in pinned and key in seen):  # a second copy of a validation file is left out
                    val.append(unit)
                elif not is_val:
                    train.append(unit)
                seen.add(key)
        remedy = f"put it back, or delete {self.path} to pin a new split (results before and after do not compare)"
        gone = sorted({name for key, name in pinned.items() if key not in seen})
        if not val:
            raise UserError(f"the validation text of {self.folder} is gone or changed "
                            f"({', '.join(gone) or 'all of it'}): {remedy}")
        if gone:
            print0(f"note: validation text is missing or changed, {', '.join(gone)} of {self.folder}: {remedy}")
        if not train:
            raise UserError(f"{self.folder} leaves no training text beside the validation split: add files")
        return tuple(train), tuple(val)

    def _save(self) -> None:
        manifest = {"version": MANIFEST_VERSION, "folder": str(self.folder), "val": self.pins, "files": self.files,
                    "converted": self.converted}
        text = json.dumps(manifest, indent=1)
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            atomic_write(self.path, text)


def _usable_files(folder: Path) -> Iterator[str]:
    """Relative names of the files of known kinds below `folder`; hidden files and folders are passed over."""
    for where, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in FORMATS.split(", "):
                yield (Path(where) / name).relative_to(folder).as_posix()


def _describe(path: Path, in_place: bool = False) -> dict:
    """A manifest entry. `row_groups` is empty for a file that has to be converted first."""
    stat = path.stat()
    entry = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_file(path), "row_groups": []}
    if path.suffix.lower() == ".parquet":
        metadata, column = open_parquet(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        sizes = [(g.num_rows, g.column(column).total_uncompressed_size) for g in groups]
        sane = sum(rows > 0 for rows, _ in sizes) >= 2 and max(size for _, size in sizes) <= MAX_ROW_GROUP_BYTES
        if in_place or sane:
            entry["row_groups"] = sizes
    return entry


# --------------------------------------------------------------------------- reading


def read_unit(unit: Unit) -> list[str]:
    """The documents of one unit; empty and null ones are left out. A damaged file is a `UserError` naming it."""
    return row_group_texts(unit.path, unit.row_group)


def list_parquet_files(data_dir: str | Path | None = None) -> list[Path]:
    """The parquet files below a folder, sorted; without one, those of the pocket corpus."""
    if data_dir is None:
        return [shard.path for shard in corpus("pocket").files]
    return sorted(p for p in Path(data_dir).rglob("*.parquet") if p.is_file())


def parquets_iter_batched(split: str, start: int = 0, step: int = 1,
                          data: str | Path = "pocket") -> Iterator[list[str]]:
    """The documents of a split, a unit at a time, in canonical order: units `start, start + step, ...`.

    With `start=rank, step=world_size` the ranks share the split among them.
    """
    for unit in corpus(data).units(split)[start::step]:
        yield read_unit(unit)


def text_iterator(data: str | Path, split: str = "train", max_chars: int | None = None,
                  doc_cap: int | None = None) -> Iterator[str]:
    """Documents for a tokenizer: each cut to `doc_cap` characters, until `max_chars` have been given.

    Units come in a fixed shuffled order, so that the first megabytes are a sample of the whole, not its first file.
    """
    units = list(corpus(data).units(split))
    random.Random(0).shuffle(units)
    left = float("inf") if max_chars is None else max_chars
    for unit in units:
        for text in read_unit(unit):
            if left <= 0:
                return
            text = text[:doc_cap]
            left -= len(text)
            yield text


# --------------------------------------------------------------------------- command line


@dataclass
class Config:
    folder: str = "pocket"
    """A folder of txt, md, jsonl and parquet files (also spelled --from=FOLDER), or `pocket`."""
    shards: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 0
    """Fetch this many training shards of FineWeb-Edu from the hub instead."""


def describe(made: Corpus) -> Iterable[str]:
    """The lines that the command prints about a corpus."""
    yield f"corpus       {made.label} ({made.folder})"
    yield f"parquet      {len(made.files)} file(s), {sum(f.bytes for f in made.files) / 1e6:.1f} MB"
    for split in ("train", "val"):
        units = made.units(split)
        yield (f"{split:12} {sum(u.rows for u in units):,} documents in {len(units):,} row group(s), "
               f"{sum(u.bytes for u in units) / 1e6:.1f} MB of text")
    yield f"manifest     {made.manifest} (the validation split is pinned there)"
    yield f"fingerprint  {made.fingerprint}"


def main(config: Config) -> None:
    if config.shards < 0:
        raise UserError(f"-n {config.shards}: give the number of shards to fetch, 1 or more")
    if config.shards:
        fetch_hub_shards(config.shards)
    made = corpus("hub" if config.shards else config.folder)
    print0("\n".join(describe(made)))
    if made.label not in ("pocket", "hub"):
        print0(f"use it with  --data={made.label}")


if __name__ == "__main__":
    import sys

    # `from` is a Python keyword and cannot name a field; on the command line it is the natural word
    sys.argv[1:] = [re.sub(r"^--from(?==|$)", "--folder", argument) for argument in sys.argv[1:]]
    configurator.main(main, Config)
