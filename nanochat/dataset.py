"""Where pretraining text comes from: the pocket world, the hub, or a folder of one's own; always parquet row groups.

One setting, `--data`, names the source (the grammar stands in sources.py). `corpus(data)` fetches what is missing of a
hub source, compares what is there with the source's manifest (manifest.py), refuses what differs from it by name, and
returns the *units* (row groups) of a training and a validation split that never moves (split.py). When it has returned,
nothing is fetched any more: no run dies of the network later.

    python -m nanochat.dataset                                  # make the pocket world
    python -m nanochat.dataset --from=my_texts                  # take a folder in, as it is now; prints what it found
    python -m nanochat.dataset --source=fineweb-edu -n 8        # fetch 8 training shards (and the validation shard)
    python -m nanochat.dataset --source=hub:me/texts --dry-run  # what would be fetched, and the disk that it needs
    python -m nanochat.dataset --from=my_texts --verify         # hash every byte again

A parquet file with at least two row groups of a sane size is read where it lies (if there are 20 row groups or more,
else validation would take too large a share); all other files are split into documents and written once to parquet
shards beside the manifest, under `get_base_dir()/datasets/`.
"""

from __future__ import annotations

import random
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat import configurator
from nanochat.common import UserError, get_base_dir, print0
from nanochat.documents import row_group_texts
from nanochat.manifest import (
    VERSION,
    Entry,
    Manifest,
    as_now,
    changes,
    compare,
    load_manifest,
    printable,
    some_of,
    text_files,
    with_manifest,
)
from nanochat.sources import (
    Source,
    data_dir,
    fetch_missing,
    hub_manifest,
    hub_slug,
    listed,
    on_hub,
    parse_source,
    pocket_dir,
    remember,
    slug,
    wanted_files,
    with_listing,
)
from nanochat.split import (
    Pins,
    Shard,
    Unit,
    check_divided,
    choose,
    conversion,
    convert,
    digest,
    divide,
    forget_old_conversions,
    read_in_place,
    rewritten,
)

POCKET_BYTES = 30 << 20  # about what the pocket world takes

__all__ = ["Corpus", "Shard", "Unit", "corpus", "data_dir", "download_single_file", "list_parquet_files", "on_hub",
           "parquets_iter_batched", "prepare", "read_unit", "text_iterator"]


@dataclass(frozen=True)
class Corpus:
    """What a run reads: the manifest of one source, resolved.

    `fingerprint` is a function of the source files and of the pinned split alone; a loader's state carries it, so that
    a run is never resumed on other text without a word.
    """

    label: str  # "pocket", "fineweb-edu:8" or the folder's path, for prints and reports
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


def corpus(data: str | Path | Corpus = "pocket", *, verify: bool = False) -> Corpus:
    """The corpus that `data` names, fetched, checked and divided; cheap when nothing changed (one `stat` a file).

    A folder without a manifest is taken in as it is; afterwards a file that is missing, extra, truncated or altered is
    a `UserError` that names it. `verify`: hash every byte, however familiar the files look.
    A `Corpus` is handed back as it is: a run resolves its source once, and what changes later does not reach it.
    """
    if isinstance(data, Corpus):
        return data
    source = parse_source(data)
    if source.on_hub:
        return _hub_corpus(source, verify)
    return _folder_corpus(source.label, verify=verify)


def prepare(folder: str | Path) -> Corpus:
    """Take a folder into its manifest as it is now, and say what was added, removed and changed; validation stays."""
    return _folder_corpus(parse_source(Path(folder)).label, take=True)


# --------------------------------------------------------------------------- folders


def _folder_corpus(data: str, *, take: bool = False, verify: bool = False) -> Corpus:
    """The corpus of a folder, or of the pocket world; `take`: as the folder is now, else as its manifest says."""
    folder, path = _places(data)

    def resolve(manifest: Manifest) -> Corpus:
        before, names = manifest.files, text_files(folder)
        if take or not before or manifest.version < VERSION:
            manifest.need_lock()
            if manifest.version < VERSION:
                print0(f"note: {path} is of an older version: all files are hashed once more, the split is kept")
            manifest.files = as_now(folder, names, before)
            if lines := changes(before, manifest.files):
                print0("\n".join(lines))
        else:
            manifest.files, problems = compare(folder, before, verify=verify, held=manifest.held)
            problems += [f"extra {printable(name)}" for name in names if name not in before]
            _refuse(manifest, folder, problems, _remedy(data, path))
        manifest.source = str(folder.resolve())
        manifest.pins = manifest.pins or choose(folder, manifest.files)
        return _assemble(manifest, manifest.files, data, folder, verify)

    return with_manifest(path, resolve, alone=take)  # ranks and other processes wait for the first


def _places(data: str) -> tuple[Path, Path]:
    """Where a folder's text lies (its `corpus/`, if it has one), and where its manifest is or will be."""
    root = data_dir(data)
    inner, made = root / "corpus", (get_base_dir() / "datasets").resolve()
    folder, other = (inner, root) if inner.is_dir() else (root, inner)
    mine = folder.resolve()
    inside = made.is_relative_to(mine) and not any(part.startswith(".") for part in made.relative_to(mine).parts)
    if inside or mine.is_relative_to(made):
        raise UserError(f"{printable(folder)} holds files that nanochat makes itself ({made}): give a folder with your "
                        "text only")
    manifests = [made / slug(root.resolve().name, str(where.resolve())) / "manifest.json" for where in (folder, other)]
    if manifests[1].exists():
        raise UserError(f"{printable(other)} was taken in for {printable(data)}, which now means {printable(folder)}: "
                        f"rename or put back {printable(inner)}, or delete {manifests[1]} (then a new validation split "
                        "is pinned: results before and after do not compare)")
    return folder, manifests[0]


def _remedy(data: str, manifest: Path) -> str:
    if data == "pocket":  # nobody's text: it can be made again
        return f"delete {data_dir(data)} and {manifest.parent}"
    return f"take the folder as it is now with  python -m nanochat.dataset --from={shlex.quote(printable(data))}"


def _refuse(manifest: Manifest, folder: Path, problems: list[str], remedy: str) -> None:
    if problems:
        manifest.need_lock()  # another process may be about to take the folder in
        raise UserError(f"{printable(folder)} is not as its manifest says: {some_of(problems)}: put the right files "
                        f"back, or {remedy}")


# --------------------------------------------------------------------------- the hub


def _hub_corpus(source: Source, verify: bool = False) -> Corpus:
    """Validation is one file of the repository's folder, training text the next N, fetched if need be."""
    wanted = wanted_files(source, listed(source))
    folder = fetch_missing(source, wanted)

    def resolve(manifest: Manifest) -> Corpus:
        entries = {f.name: manifest.files[f.name] for f in wanted}
        files, problems = compare(folder, entries, verify=verify, held=manifest.held)
        known = {f.name for f in manifest.listing.files}
        problems += [f"extra {printable(name)}" for name in text_files(folder) if name not in known]
        _refuse(manifest, folder, problems, "delete the wrong ones there: they are fetched again")
        manifest.files |= files
        if manifest.pins is None:
            manifest.need_lock()
            manifest.pins = Pins(file=wanted[0].name) if len(known) > 1 else choose(folder, files)
        return _assemble(manifest, files, source.label, folder, verify)

    return with_manifest(hub_manifest(source), resolve)


def download_single_file(which: int | str, data: str = "fineweb-edu") -> Path:
    """One file of a hub source, by its number or name, fetched and verified if it is not there yet.

    `download_single_file(3)` is shard 3 of FineWeb-Edu.
    """
    source = parse_source(data)
    if not source.on_hub:
        raise UserError(f"{data} is not on the hub: give fineweb-edu or hub:OWNER/NAME")
    files = listed(source).listing.files
    chosen = [f for i, f in enumerate(files) if which in (i, f.name)]
    if not chosen:
        raise UserError(f"{source.repo} has no file {which}: give 0 to {len(files) - 1}, or one like {files[0].name}")
    return fetch_missing(source, chosen) / chosen[0].name


# --------------------------------------------------------------------------- what both have in common


def _assemble(manifest: Manifest, files: dict[str, Entry], label: str, folder: Path, verify: bool) -> Corpus:
    """Convert what cannot be read in place, divide, and then write the manifest: no unusable split is pinned."""
    shards = {name: Shard.of(folder / name, files[name]) for name in read_in_place(files, manifest.pins)}
    shards |= convert(manifest, files, folder, verify)
    train, val, gone = divide(shards, manifest.pins)
    check_divided(folder, manifest.path, train, val, gone)
    forget_old_conversions(manifest)
    manifest.save()
    return Corpus(label, folder, manifest.path, tuple(shards.values()), train, val, digest(files, manifest.pins))


# --------------------------------------------------------------------------- reading


def read_unit(unit: Unit) -> list[str]:
    """The documents of one unit; empty and null ones are left out. A damaged file is a `UserError` naming it, also one
    that was whole when the run began.
    """
    ours = [get_base_dir() / name for name in ("datasets", "hub_data")]
    if not unit.path.exists() and any(unit.path.is_relative_to(folder) for folder in ours):
        raise UserError(f"{unit.path} is gone: run the same command again, which makes or fetches it again")
    return row_group_texts(unit.path, unit.row_group, unit.crc32)


def list_parquet_files(data_dir: str | Path | None = None) -> list[Path]:
    """The parquet files below a folder, sorted; without one, those of the pocket corpus."""
    if data_dir is None:
        return [shard.path for shard in corpus("pocket").files]
    return sorted(p for p in Path(data_dir).rglob("*.parquet") if p.is_file())


def parquets_iter_batched(split: str, start: int = 0, step: int = 1,
                          data: str | Path | Corpus = "pocket") -> Iterator[list[str]]:
    """The documents of a split, a unit at a time, in canonical order: units `start, start + step, ...`.

    With `start=rank, step=world_size` the ranks share the split among them.
    """
    for unit in corpus(data).units(split)[start::step]:
        yield read_unit(unit)


def text_iterator(data: str | Path | Corpus, split: str = "train", max_chars: int | None = None,
                  doc_cap: int | None = None) -> Iterator[str]:
    """Documents for a tokenizer: each cut to `doc_cap` characters, until `max_chars` have been given.

    Units come in a fixed shuffled order, so that the first megabytes are a sample of the whole, not its first file.
    The same `data` gives the same texts, whatever else has been fetched of its source.
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
    """Prepare, fetch or check pretraining text."""

    folder: str = ""
    """A folder of txt, md, jsonl and parquet files to take in as it is now (usually spelled --from=FOLDER)."""
    source: str = ""
    """pocket (the default), fineweb-edu, or hub:OWNER/NAME[/FOLDER][@REVISION]."""
    shards: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 0
    """Training shards to have of a hub source (without --source: fineweb-edu). Default: as many as last time, or 8."""
    dry_run: bool = False
    """Only say what would be done, and the disk space that it needs."""
    verify: bool = False
    """Hash every byte again, also of files that look as they did."""


def describe_corpus(made: Corpus) -> Iterable[str]:
    """The lines that the command prints about a corpus."""
    yield f"corpus       {made.label} ({printable(made.folder)})"
    yield f"parquet      {len(made.files)} file(s), {sum(f.bytes for f in made.files) / 1e6:.1f} MB"
    for part in ("train", "val"):
        units = made.units(part)
        yield (f"{part:12} {sum(u.rows for u in units):,} documents in {len(units):,} row group(s), "
               f"{sum(u.bytes for u in units) / 1e6:.1f} MB of text")
    yield f"manifest     {made.manifest} (the validation split is pinned there, for this place)"
    yield f"fingerprint  {made.fingerprint}"


def chosen_data(config: Config) -> tuple[str | Path, Source]:
    """What the flags of the command name. `--source=hub:me/texts -n 3 -> "hub:me/texts:3"`, `--from=x -> Path("x")`"""
    if config.folder and config.source:
        raise UserError("--from and --source name two sources: give one of them")
    if config.shards < 0:
        raise UserError(f"-n {config.shards}: give the number of shards to fetch, 1 or more")
    name = config.source or ("fineweb-edu" if config.shards else "pocket")
    data = Path(config.folder) if config.folder else name
    source = parse_source(data)
    if not config.folder and not source.on_hub and name != "pocket":
        raise UserError(f"--source={name} is no source: give pocket, fineweb-edu or hub:OWNER/NAME; for a folder of "
                        f"your own --from={name}")
    if config.shards and not source.on_hub:
        raise UserError(f"-n {config.shards} goes with a hub source, not with {data}: leave it out")
    if config.shards and source.shards not in (0, config.shards):
        raise UserError(f"--source={name} and -n {config.shards} say two numbers: give one of them")
    if config.shards and not source.shards:
        return f"{data}:{config.shards}", parse_source(f"{data}:{config.shards}")
    return data, source


def dry_run(data: str | Path) -> Iterable[str]:
    """What `main` would do, in lines; nothing is written."""
    source = parse_source(data)
    if source.on_hub:
        manifest, folder = with_listing(source), get_base_dir() / "hub_data" / hub_slug(source)
        wanted = wanted_files(source, manifest)
        sizes = [f.bytes for f in wanted if not (folder / f.name).is_file()]
        what = f"fetch {len(sizes)} of {len(wanted)} file(s) of {source.repo} ({manifest.listing.revision[:12]})"
    elif source.label == "pocket" and not pocket_dir().is_dir():
        sizes, what = [POCKET_BYTES], "make the pocket world"
    else:
        folder, path = _places(source.label)
        manifest = load_manifest(path)
        files = as_now(folder, text_files(folder), manifest.files)
        yield from (f"would take in: {line}" for line in changes(manifest.files, files))
        pins = manifest.pins or Pins(rewrite=rewritten(files))
        names, name = conversion(pins, files)
        sizes = [] if manifest.pins and name in manifest.converted else [files[n].bytes for n in names]
        what = f"convert {len(sizes)} of {len(files)} file(s) of {printable(folder)}"
    yield f"would {what}: {sum(sizes):,} bytes"
    yield f"disk: {sum(sizes):,} bytes needed, {shutil.disk_usage(get_base_dir()).free:,} free in {get_base_dir()}"


def main(config: Config) -> None:
    data, source = chosen_data(config)
    if config.dry_run:
        print0("\n".join(dry_run(data)))
        return
    if source.on_hub and (n := config.shards or source.shards):
        remember(source, n)
    made = prepare(data) if config.folder and not config.verify else corpus(data, verify=config.verify)
    print0("\n".join(describe_corpus(made)))
    if config.verify:
        print0(f"verified     {len(made.files)} file(s): every byte is as the manifest says")
    if made.label != "pocket":
        print0(f"use it with  --data={shlex.quote(printable(made.label))}")


if __name__ == "__main__":
    import sys

    # `from` is a Python keyword and cannot name a field; on the command line it is the natural word
    sys.argv[1:] = [re.sub(r"^--from(?==|$)", "--folder", argument) for argument in sys.argv[1:]]
    configurator.main(main, Config)
