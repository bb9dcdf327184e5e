"""A file of a hub repository: what the hub says of it, whether it may lie here, and whether a copy of it is right.

No network here: `hub.py` asks and fetches.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.files import sha256_file

MAX_BYTES = 1 << 50  # a petabyte: no size that is meant


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, and what proves that a copy is right.

    `sha256` (hex) is there for large files (LFS, Xet), which parquet files on the hub are. It is "" for small
    files that live in git itself: then `blob_id`, git's SHA-1 of the content with a header, is checked instead.
    """

    name: str
    bytes: int
    sha256: str
    blob_id: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a dataset repository at one commit (40 hex digits), sorted by name."""

    repo: str
    revision: str
    files: tuple[HubFile, ...]


def described(entry: dict[str, Any]) -> HubFile:
    """The file that an entry of the hub's tree is about. ValueError, KeyError or TypeError: it cannot be about one."""
    lfs = entry.get("lfs")  # absent or null: a file in git
    file = HubFile(entry["path"], entry["size"], lfs["oid"] if lfs else "", entry["oid"])
    if type(file.bytes) is not int or not 0 <= file.bytes < MAX_BYTES:
        raise ValueError(f"it says that {file.name!r} has {file.bytes!r} bytes")
    if not re.fullmatch("[0-9a-f]{64}" if lfs else "[0-9a-f]{40}", file.sha256 if lfs else file.blob_id):
        raise ValueError(f"it says that {file.name!r} has the hash {file.sha256 or file.blob_id!r}")
    return file


def may_lie_here(name: str) -> bool:
    """A repository is not trusted to choose where on this disk a file goes: below its folder, and not hidden there."""
    parts = name.split("/")
    return name.isprintable() and not {"\\", ":"} & set(name) and all(p and not p.startswith(".") for p in parts)


def size_of(path: Path) -> int:
    """The bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def what_is_wrong(path: Path, file: HubFile) -> str | None:
    """None if `path` holds exactly the bytes that the hub names, else what differs."""
    size = path.stat().st_size
    if size != file.bytes:
        return f"{size:,} bytes instead of {file.bytes:,}"
    if file.sha256:
        return None if sha256_file(path) == file.sha256 else "its SHA-256 is not the one that the hub names"
    digest = hashlib.sha1(b"blob %d\0" % size)  # a git object: small, and git knows no other name for it
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return None if digest.hexdigest() == file.blob_id else "its git id is not the one that the hub names"
