"""Files that are whole or not there, whatever dies in between: every byte that we want to find again is written here.

    digest = write_file(path, pieces)     # temporary name, fsync, rename, fsync of the folder; the SHA-256 on the way
    atomic_write(path, "text or bytes")   # the same for what is small
    make_dirs(path)                       # a folder that a power loss does not take away again

POSIX promises that a rename is one step, but neither a file's bytes nor a folder's entries are on the disk before they
are fsynced (Pillai et al. 2014, "All file systems are not created equal", has what happens otherwise).
tests/power_loss.py replays what stands here with everything dropped that was not fsynced. (On macOS a drive may keep
what was fsynced in its own memory for a while.) There is nothing to run here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

PIECE = 8 << 20  # bytes a write call at most: between two of them a signal is seen, and a full disk
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or this person's share of it


def fsync_file(path: str | Path) -> None:
    """Make the bytes of a file durable that was written by other means (a log that grows by lines)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_dir(path: str | Path) -> None:
    """Make what was created, renamed and removed inside `path` durable (entries are data of the directory)."""
    try:
        fsync_file(path)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such call
            raise


def make_dirs(path: str | Path) -> Path:
    """`mkdir -p`, durable: a new directory is an entry of its parent, which is fsynced too."""
    path = Path(path)
    if not path.is_dir():
        make_dirs(path.parent)
        path.mkdir(exist_ok=True)  # another process may have been faster
        fsync_dir(path.parent)
    return path


def sync_parents(path: str | Path) -> None:
    """Make the entries that lead to a file durable: who made the folders may have been killed before coming to that."""
    for folder in Path(path).absolute().parents:
        try:
            fsync_dir(folder)
        except OSError:  # not ours to read, so not made by us
            return


def write_file(path: str | Path, pieces: Iterable[bytes | memoryview], mode: int = 0o644) -> str:
    """Write `pieces` so that `path` is either what it was or all of them. Returns the SHA-256 (hex) of what was given.

    `mode`: who may read it (0o600: what people have said is theirs alone). When it returns, the file is durable. The
    hash is of the bytes in memory: what a disk made of them is found out by comparing later. A full disk is an
    `OSError` that says how far it came and what is free.
    """
    path = Path(path)
    make_dirs(path.parent)
    digest, written = hashlib.sha256(), 0
    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            for piece in pieces:
                rest = memoryview(piece).cast("B")
                digest.update(rest)
                while rest:
                    rest = rest[(n := os.write(fd, rest[:PIECE])) :]
                    written += n
            os.fchmod(fd, mode)  # mkstemp makes 0600; our files are as readable as any other
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException as e:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno in FULL:
            free = shutil.disk_usage(path.parent).free  # after the part of a file was removed
            what = f"{os.strerror(e.errno)}: {written:,} bytes were written, {free:,} are free without them"
            raise OSError(e.errno, what, str(path)) from e
        raise
    fsync_dir(path.parent)
    return digest.hexdigest()


def atomic_write(path: str | Path, data: bytes | str, mode: int = 0o644) -> str:
    """`write_file` of one piece; text as UTF-8."""
    return write_file(path, [data.encode("utf-8") if isinstance(data, str) else data], mode)


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove files of a directory, durably; what is not there is as wanted."""
    names = list(names)
    for name in names:
        (directory / name).unlink(missing_ok=True)
    if names:
        fsync_dir(directory)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
