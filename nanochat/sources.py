"""What the setting `--data` can name, one grammar everywhere, and where on this disk a source's files lie.

    pocket                                the generated world
    fineweb-edu[:N]                       FineWeb-Edu, shuffled; N training shards (`hub[:N]` is the same)
    hub:OWNER/NAME[/FOLDER][@REVISION][:N]
                                          parquet files with a `text` column of any dataset repository
    FOLDER                                one's own txt, md, jsonl and parquet files

Without `:N`: as many shards as `python -m nanochat.dataset -n N` last asked for, 8 if nobody did. A folder that is
called like one of the names is `./pocket`. What is missing of a hub source is fetched here, by hub.py.

There is nothing to run here: `python -m nanochat.dataset` does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanochat import hub
from nanochat.common import UserError, get_base_dir
from nanochat.documents import FORMATS, build_once
from nanochat.manifest import Manifest, describe, load_manifest, locked, looks_the_same, printable

FINEWEB_EDU = "karpathy/fineweb-edu-100b-shuffle"
DEFAULT_SHARDS = 8
GRAMMAR = "pocket, fineweb-edu[:N], hub:OWNER/NAME[/FOLDER][@REVISION][:N] or a folder"

_FINEWEB = re.compile(r"(?:fineweb-edu|hub)(?::(?P<shards>\d{1,9}))?", re.ASCII)
_HELD_OUT = re.compile(r"(?:val|valid|validation|test)(?:[-_.]|$)", re.IGNORECASE)
_REPOSITORY = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?P<under>(?:/[^/@:]+)*)/?"
                         r"(?:@(?P<revision>[^:@]+))?(?::(?P<shards>\d{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A parsed `--data`. `repo` is "" for the pocket world and for folders, `shards` 0 where none are asked for."""

    label: str  # as it was given: for prints and reports
    repo: str = ""
    under: str = ""  # a folder of the repository
    revision: str = "main"  # a branch, tag or commit of it
    shards: int = 0

    @property
    def on_hub(self) -> bool:
        return bool(self.repo)


def parse_source(data: str | Path) -> Source:
    """`"hub:me/texts/en@v2:3" -> Source(repo="me/texts", under="en", revision="v2", shards=3)`; see the header.

    A `Path` is always a folder, whatever it is called.
    """
    label, on_hub = str(data), re.match(r"(fineweb-edu|hub)(:|$)", str(data))
    if isinstance(data, Path):
        return Source(f"./{label}" if on_hub or label == "pocket" else label)
    if not on_hub:
        return Source(label)
    if match := _FINEWEB.fullmatch(label):
        found = {"repo": FINEWEB_EDU, **match.groupdict()}
    elif match := _REPOSITORY.fullmatch(label):
        found = match.groupdict()
    else:
        raise UserError(f"--data={label} is not understood: give {GRAMMAR}")
    if found["shards"] is not None and int(found["shards"]) < 1:
        raise UserError(f"--data={label}: give 1 training shard or more")
    return Source(label, found["repo"], (found.get("under") or "").strip("/"), found.get("revision") or "main",
                  int(found["shards"] or 0))


def on_hub(data: str | Path) -> bool:
    """Whether `data` names a dataset on the hub (or a mirror of it): `"hub"`, `"fineweb-edu:8"`, `"hub:me/texts"`."""
    return parse_source(data).on_hub


def slug(name: str, identity: str) -> str:
    """A name for a folder, readable and one of a kind: `"me/texts", "hub:…" -> "me--texts-1f0c9f4a21b7"`."""
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name.replace('/', '--'))[:40]}-{key}"


def hub_slug(source: Source) -> str:
    """The same for a hub source: each repository, folder and revision has its own files and its own manifest."""
    name = "/".join(filter(None, [source.repo, source.under]))
    return slug(name, f"hub:{source.repo}/{source.under}@{source.revision}")


# --------------------------------------------------------------------------- folders


def data_dir(data: str | Path) -> Path:
    """The folder that the setting `data` names.

    `"pocket"` is generated once (a second process waits for the first), a hub source is where its downloads are kept,
    anything else is a folder of one's own and must hold something.
    """
    source = parse_source(data)
    if source.on_hub:
        folder = get_base_dir() / "hub_data" / hub_slug(source)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot create {folder} ({e.strerror}): set NANOCHAT_BASE_DIR to a folder where you can "
                            "write") from e
        return folder
    if source.label == "pocket":
        return build_once(pocket_dir(), _generate)
    try:
        folder = Path(data).expanduser()
        if not folder.exists():
            repository = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(data), re.ASCII)
            hint = f" (for the dataset of that name on the hub: --data=hub:{data})" if repository else ""
            raise UserError(f"data folder {data} does not exist: give a folder of {FORMATS} files, or another source: "
                            f"{GRAMMAR.removesuffix(' or a folder')}{hint}")
        if not folder.is_dir():
            raise UserError(f"{data} is a file: give the folder that holds it")
        if not any(folder.iterdir()):
            raise UserError(f"data folder {data} is empty: put {FORMATS} files into it")
    except (OSError, RuntimeError) as e:  # RuntimeError: ~somebody whom nobody knows
        raise UserError(f"data folder {printable(str(data)[:200])} cannot be read ({getattr(e, 'strerror', '') or e}): "
                        "give one that you can read") from e
    return folder


def pocket_dir() -> Path:
    """Where the pocket world is, or will be once `data_dir("pocket")` has made it."""
    from nanochat import pocket

    return get_base_dir() / "pocket_data" / pocket.content_hash()[:16]


def _generate(folder: Path) -> None:
    from nanochat import pocket

    pocket.generate(folder)


# --------------------------------------------------------------------------- the hub


def hub_manifest(source: Source) -> Path:
    """Where the manifest of a hub source is or will be."""
    return get_base_dir() / "datasets" / hub_slug(source) / "manifest.json"


def with_listing(source: Source) -> Manifest:
    """The manifest of a hub source, with the listing; in memory only. The commit is that of the first time."""
    manifest = load_manifest(hub_manifest(source))
    if manifest.listing is None:
        manifest.source = source.repo
        manifest.listing = hub.list_files(source.repo, revision=source.revision, under=source.under)
    return manifest


def listed(source: Source) -> Manifest:
    """The same, kept: a source is listed once and stays at one commit for good."""
    manifest = load_manifest(hub_manifest(source))
    if manifest.listing is not None:
        return manifest
    found = with_listing(source)
    with locked(found.path) as manifest:
        if manifest.listing is None:
            manifest.source, manifest.listing = found.source, found.listing
            manifest.save()
    return manifest


def remember(source: Source, shards: int) -> None:
    """From now on the source without `:N` means so many training shards."""
    manifest = listed(source)
    wanted_files(source, manifest, shards)  # as many as there are?
    with locked(manifest.path) as manifest:
        manifest.asked = shards
        manifest.save()


def wanted_files(source: Source, manifest: Manifest, shards: int = 0) -> tuple[hub.HubFile, ...]:
    """The files that `source` means: the one for validation and the first N others."""
    files = in_reading_order(manifest.listing.files if manifest.listing else ())
    most = max(1, len(files) - 1)  # a single file is divided
    n = shards or source.shards or manifest.asked or min(DEFAULT_SHARDS, most)
    if n > most:
        raise UserError(f"{source.label}: {source.repo} has {len(files)} parquet file(s), one for validation: ask "
                        f"for at most {most} training shards instead of {n}")
    return files[: n + 1]


def in_reading_order(files: tuple[hub.HubFile, ...]) -> tuple[hub.HubFile, ...]:
    """The file for validation, then those for training: a repository that names such files means it.

    `test-0, train-0, train-1, validation-0, validation-1 -> validation-0, train-0, train-1`; `shard_0, shard_1` stay.
    """
    held_out = [f for f in files if any(map(_HELD_OUT.match, PurePosixPath(f.name).parts))]
    training = [f for f in files if f not in held_out]
    if not held_out or not training:
        return files
    return (next((f for f in held_out if "val" in f.name), held_out[0]), *training)


def fetch_missing(source: Source, wanted: Iterable[hub.HubFile]) -> Path:
    """See to it that the wanted files are there and in the manifest; returns the folder that holds them.

    The manifest is locked for moments only, not while files come: a run that needs 8 of them does not wait for a
    process that fetches 240. What another process has recorded meanwhile is not hashed again.
    """
    folder, manifest = data_dir(source.label), listed(source)
    missing = [f for f in wanted if f.name not in manifest.files or not (folder / f.name).is_file()]

    def recorded(file: hub.HubFile, path: Path) -> bool:
        entry = load_manifest(manifest.path).files.get(file.name)
        return entry is not None and looks_the_same(path, entry)

    def record(file: hub.HubFile, path: Path) -> None:
        if recorded(file, path):
            return
        entry = describe(path)
        with locked(manifest.path) as now:
            now.files[file.name] = entry
            now.save()

    if missing:
        hub.fetch(manifest.listing, missing, folder, landed=record, trusted=recorded)
    return folder
