"""A bound on the memory of all processes of a sandbox together, where this machine lets us write control groups.

    folder = memory_folder()                  # where groups of ours may stand, or None
    group = MemoryGroup(folder, 512 << 20)    # a group, with its bound
    group.add(pid)                            # that process, and all that it will start
    group.exceeded(); group.remove()

Both versions of the kernel's interface (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst). Groups are made
below the one that we are in (version 2, which wants no processes in inner nodes: beside it), so that bounds of ours
hold too. Nothing is switched on or changed that is there already. There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

NAME = re.compile(r"nanochat-(\d+)-(\d+)-\d+")
_numbers = itertools.count()


def _started(pid: int) -> str:
    """When a process was started, in ticks since boot: a number is given to another process later."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _own_folders() -> list[tuple[Path, int]]:
    """`(folder of the group that we are in, version)` of each hierarchy that may bound memory."""
    found = []
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, where = before.split(" ")[3:5]
        if kind == "cgroup" and "memory" in options.split(","):
            version = 1
        elif kind == "cgroup2":
            version = 2
        else:
            continue
        for group in groups:
            _, controllers, path = group.split(":", 2)
            if (version == 1 and "memory" in controllers.split(",")) or (version == 2 and not controllers):
                inside = path.removeprefix(root.rstrip("/")) if path.startswith(root.rstrip("/")) else "/"
                found.append((Path(where + inside), version))
    return found


@functools.cache
def memory_folder() -> tuple[Path, int] | None:
    """`(folder, version)` where a group with a bound can be made and filled (one is, and removed again), or None."""
    for own, version in _own_folders():
        for folder in (own, own.parent):
            if version == 2:
                try:
                    passed_on = (folder / "cgroup.subtree_control").read_text(encoding="ascii").split()
                except OSError:
                    continue
                if "memory" not in passed_on:
                    continue
            _sweep(folder)
            if _works((folder, version)):
                return folder, version
    return None


def _works(place: tuple[Path, int]) -> bool:
    """Whether a process can be put into a group there: to make one is often allowed where to fill it is not."""
    try:
        group = MemoryGroup(place, 64 << 20)
    except OSError:
        return False
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            group.add(process.pid)
            return True
        except OSError:
            return False
        finally:
            process.kill()
            process.wait()
            group.remove()


def _sweep(folder: Path) -> None:
    """Remove what processes of ours left that were killed; a group that is not empty cannot be removed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if (match := NAME.fullmatch(path.name)) and _started(int(match[1])) != match[2]:
                with contextlib.suppress(OSError):
                    path.rmdir()


class MemoryGroup:
    """One group below `place` (from `memory_folder`), bound to so many bytes. Raises OSError where that cannot be."""

    def __init__(self, place: tuple[Path, int], limit: int) -> None:
        folder, self.version = place
        self.path = folder / f"nanochat-{os.getpid()}-{_started(os.getpid()) or 0}-{next(_numbers)}"
        self.path.mkdir()
        try:
            if self.version == 1:
                self._write("memory.limit_in_bytes", limit)
                if (self.path / "memory.memsw.limit_in_bytes").exists():
                    self._write("memory.memsw.limit_in_bytes", limit)  # no swap beside it
            else:
                self._write("memory.max", limit)
                with contextlib.suppress(OSError):  # a kernel without swap has no such file
                    self._write("memory.swap.max", 0)
                with contextlib.suppress(OSError):
                    self._write("memory.oom.group", 1)
        except OSError:
            self.remove()
            raise

    def _write(self, name: str, value: int) -> None:
        with open(self.path / name, "r+", encoding="ascii") as f:  # "w" would make it in a folder that is no group
            f.write(str(value))

    def add(self, pid: int) -> None:
        self._write("cgroup.procs", pid)

    def exceeded(self) -> bool:
        """Whether the kernel has killed something in it for lack of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        try:
            text = (self.path / name).read_text(encoding="ascii")
        except OSError:
            return False
        return re.search(r"^oom_kill [1-9]", text, re.MULTILINE) is not None

    def remove(self) -> None:
        """Remove the group; its processes have ended, but the kernel may need an instant to see it empty."""
        for pause in (0.0, 0.001, 0.01, 0.1, 1.0):
            time.sleep(pause)
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                continue
            return
