"""Which Python runs in the sandbox, and the files that it needs to start: no others are shown to it.

    find_python()     # Python(executable=/usr/bin/python3.11, version="3.11.2", binds=(...), links=(...), hidden=(...))

The executable, its standard library and the shared libraries that the two need are bound read-only under the paths
that they have here. What they are, that Python itself says (guests/libraries.py). There is nothing to run here.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

GUESTS = Path(__file__).resolve().parent / "guests"  # the programs that run inside
OLDEST = (3, 10)


@dataclass(frozen=True)
class Python:
    """An interpreter and what must be there for it to start, under the same paths as outside."""

    executable: Path
    version: str
    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]  # other names of those: (name, path)
    hidden: tuple[str, ...]  # folders inside what is bound that are covered by empty ones


def _open_to_all(path: Path) -> bool:
    """Whether any user may read it: root's own Python is often below /root, where nobody else may go."""
    try:
        path = path.resolve(strict=True)
        return bool(path.stat().st_mode & stat.S_IROTH) and all(p.stat().st_mode & stat.S_IXOTH for p in path.parents)
    except OSError:
        return False


@functools.cache
def find_python() -> Python | None:
    """The interpreter for the sandbox: ours, or as root one that a user without rights may read."""
    own = getattr(sys, "_base_executable", sys.executable)
    for name in (own, "/usr/bin/python3", "/usr/local/bin/python3"):
        executable = Path(name).resolve()
        if executable.is_file() and _readable([executable]) and (python := _examined(executable)):
            return python
    return None


def _readable(paths: Sequence[Path]) -> bool:
    """Whether the sandbox may read them: as root it runs as another user."""
    return os.geteuid() != 0 or all(map(_open_to_all, paths))


def _examined(executable: Path) -> Python | None:
    """What an interpreter says that it needs; None where it is too old, says nothing or needs what is not readable."""
    asked = subprocess.run([executable, "-I", "-S", GUESTS / "libraries.py"], stdin=subprocess.DEVNULL,
                           capture_output=True, env={}, timeout=60)
    version, *paths = asked.stdout.decode("utf-8", "surrogateescape").splitlines() or [""]
    if not version or tuple(map(int, version.split(".")[:2])) < OLDEST or not _readable([*map(Path, paths)]):
        return None
    libraries = [path for path in map(Path, paths) if ".so" in path.name]
    folders = [path for path in map(Path, paths) if path not in libraries]
    others = [path for path in libraries if not any(folder in path.parents for folder in folders)]
    links = {name: str(path) for path in others for name in _names_of(path, others) if name != str(path)}
    hidden = [str(f / n) for f in folders for n in ("site-packages", "dist-packages", "test") if (f / n).is_dir()]
    binds = [str(path) for path in (executable, *folders, *others)]
    return Python(executable, version, tuple(binds), tuple((links | _loader(executable)).items()), tuple(hidden))


def _names_of(library: Path, libraries: Sequence[Path]) -> Iterator[str]:
    """Where a library is looked for: under all names that it has, in its own folder and in the C library's.

    `/usr/lib/x86_64-linux-gnu/libffi.so.8.1.2 -> ".../libffi.so.8.1.2", ".../libffi.so.8"`. The loader has no cache
    inside, so that it searches its own folders only; the C library is surely in one of them.
    """
    standard = next((p.parent for p in libraries if re.match(r"libc[.-]|ld-musl", p.name)), library.parent)
    names = {library.name}
    with os.scandir(library.parent) as entries:
        stem = library.name.split(".so")[0]
        names |= {e.name for e in entries if e.name.startswith(stem) and e.is_symlink()
                  and os.path.realpath(e.path) == str(library)}
    for name in names:
        yield str(library.parent / name)
        yield str(standard / name)


def _loader(executable: Path) -> dict[str, str]:
    """The name that the executable has for the dynamic loader (in its ELF header), and the path that is.

    `{"/usr/lib64/ld-linux-x86-64.so.2": "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"}` for /lib64/ld-..., since
    /lib64 is a link inside if it is one here (_layout).
    """
    with open(executable, "rb") as f:
        found = re.search(rb"\0(/[ -~]*/ld[ -~]*)\0", f.read(1 << 16))
    if not found or not os.path.exists(found[1]):
        return {}
    folder, name = os.path.split(found[1].decode())
    inside, path = os.path.join(os.path.realpath(folder), name), os.path.realpath(found[1].decode())
    return {} if inside == path else {inside: path}
