"""Processes for code that nobody has read: under bubblewrap, or without it where that is asked for by name.

    sandbox.problem()                     # "" or why there is no sandbox here, with the remedy
    sandbox.describe()                    # "bubblewrap 0.8.0, Python 3.11.2, memory of all processes by cgroup v1"
    child = sandbox.start("program.py", [], {"solution.py": b"print(1)"}, Limits(), stdout=fd)
    ...
    child.end()                           # whatever it has started is dead when this returns

Inside there is: a Python with its standard library and the shared libraries that it needs, read-only; /dev/null; the
folder /work, a small memory file system, where memory is bounded by a control group (else nothing can be written);
our guest program and the code. No other file, no /proc, no network, no environment, no other process, no capability;
the user is one that owns nothing, also when we are root. It all ends with process 1 of its process namespace, which
ends when we do. What this does not hold back: a bug in the kernel, and what can be learned from timing.

`unsafe`: a process of the same user in a session of its own with limits for each process, nothing else. It can read
and write what we can, and what leaves its session lives on. There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from nanochat.cgroup import MemoryGroup, memory_folder
from nanochat.common import UserError
from nanochat.sandbox_python import GUESTS, find_python
from nanochat.seccomp import system_call_filter

OPTIONS = ("-I", "-S", "-B", "-u", "-X", "utf8")  # no environment, no site-packages, no .pyc, unbuffered, UTF-8
OLDEST = (0, 8)  # bubblewrap: it can bound a file system and forbid user namespaces inside
INSTALL = "install it (on Debian: apt-get install bubblewrap)"


@dataclass(frozen=True)
class Limits:
    """What one run may take. Bytes, seconds, numbers."""

    seconds: float = 10.0  # of the clock, from the start of the first process to the verdict
    cpu_seconds: int = 10  # of each process
    memory_bytes: int = 512 << 20  # of all processes together by a control group, and of each one in any case
    processes: int = 16  # and threads
    file_bytes: int = 4 << 20  # of one file
    disk_bytes: int = 16 << 20  # of all files
    open_files: int = 64
    output_bytes: int = 1 << 20  # printed; more ends the run
    source_bytes: int = 1 << 20  # of a program

    def of_a_process(self) -> str:
        """For `confine` of guests/channel.py."""
        return (f"cpu={self.cpu_seconds},as={self.memory_bytes},nproc={self.processes},fsize={self.file_bytes},"
                f"nofile={self.open_files}")


# --------------------------------------------------------------------------- what there is on this machine


@functools.cache
def _layout() -> tuple[str, ...]:
    """The options of bubblewrap that are the same for every run."""
    python = find_python()
    assert python is not None
    options = ["--unshare-user", "--unshare-all", "--disable-userns", "--uid", "65534", "--gid", "65534",
               "--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for path in python.binds:
        options += ["--ro-bind", path, path]
    for name, path in python.links:
        options += ["--symlink", path, name]
    for name in ("/lib", "/lib64", "/bin"):
        if os.path.islink(name):
            options += ["--symlink", os.readlink(name), name]
    for folder in python.hidden:
        options += ["--tmpfs", folder, "--remount-ro", folder]
    return (*options, "--dev-bind", "/dev/null", "/dev/null")


def _user() -> int | None:
    """As root: a number that owns nothing, another one each time (processes are counted by user). Else None."""
    if os.geteuid() != 0:
        return None
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    top = max(int(start) + int(size) for start, _, size in map(str.split, lines))
    return min(top, 2_000_000_000) - 2 - next(_users) % 10_000


_users = count(os.getpid() * 97)


@functools.cache
def version() -> str:
    """Of bubblewrap, "" where there is none: `"0.8.0"`."""
    path = shutil.which("bwrap")
    if path is None:
        return ""
    try:
        said = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):  # for another processor, for example
        return ""
    found = re.search(rb"[0-9]+(\.[0-9]+)+", said)
    return found[0].decode() if found else ""


@functools.cache
def problem() -> str:
    """"" when a sandboxed program runs here (one is run), else why not and what helps, in one line."""
    if not sys.platform.startswith("linux"):
        return "bubblewrap is for Linux only: run this there, or in a Linux container"
    if not version():
        return f"bubblewrap is not installed: {INSTALL}"
    if tuple(map(int, version().split(".")[:2])) < OLDEST:
        return f"bubblewrap {version()} is too old, 0.8 or newer is needed: {INSTALL}"
    if find_python() is None:
        return ("root's Python is below a folder that only root may enter, and there is no other (3.10 or newer): "
                "install one (on Debian: apt-get install python3)")
    said, failure = _trial()
    if said == "works" and not failure:
        return ""
    last = said.splitlines()[-1] if said else failure or "it said nothing"  # bubblewrap's own words know more than ours
    return (f"bubblewrap does not work here ({last}): allow user namespaces (sysctl "
            "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; start a container "
            "with --security-opt seccomp=unconfined)")


def _trial() -> tuple[str, str]:
    """`(what it printed, why it failed)` of a sandboxed program: `("works", "")`."""
    reading, writing = os.pipe()
    child, failure = None, ""
    with open(reading, "rb") as f:
        try:
            child = start("program.py", [], {"solution.py": b"print('works')"}, Limits(), stdout=writing,
                          stderr=writing, trial=True)
        except (OSError, UserError) as e:
            failure = str(e)
        finally:
            os.close(writing)
        said = f.read(4096).decode("utf-8", "replace").strip()
        if child:
            child.end()
    return said, failure


def describe(unsafe: bool = False) -> str:
    """For reports: what holds the code that is run."""
    if unsafe:
        return "UNSAFE: without a sandbox"
    if problem():
        return f"none: {problem()}"
    place, python, bound = memory_folder(), find_python(), Limits()
    memory = f"all processes by cgroup v{place[1]}" if place else f"each of {bound.processes} processes by rlimit"
    filtered = "" if system_call_filter() else ", no filter of system calls"
    return f"bubblewrap {version()}, Python {python.version if python else '?'}, memory of {memory}{filtered}"


def require(unsafe: bool = False) -> None:
    """Refuse to go on without a sandbox, unless that was asked for."""
    if not unsafe and problem():
        raise UserError(f"model-written code is not run without a sandbox, and {problem()}; or ask for it by name, on "
                        "a machine that has nothing to lose: --unsafe_execution")


# --------------------------------------------------------------------------- a process


@dataclass
class Child:
    """A running guest. `end()` must be called."""

    process: subprocess.Popen
    pidfd: int = -1  # of process 1 of its namespace
    group: MemoryGroup | None = None
    folder: Path | None = None  # without a sandbox: where its files are
    out_of_memory: bool = False

    def end(self) -> int:
        """Kill all of it, wait until it is gone, and tidy up. Its exit status: 128 + n where a signal ended it."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(10)  # bubblewrap ends when its process 1 has, which is the last of its namespace
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.group:
            self.out_of_memory = self.group.exceeded()
            self.group.remove()
            self.group = None
        if self.folder:
            remove_tree(self.folder)
            self.folder = None
        status = self.process.returncode
        return 128 - status if status < 0 else status


def start(
    guest: str,
    arguments: Sequence[str],
    files: Mapping[str, bytes],
    limits: Limits,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int] = (),
    unsafe: bool = False,
    trial: bool = False,
) -> Child:
    """Start `guest` of guests/ with `files` beside it, and `limits` as its first argument.

    The descriptors are those of the caller, who closes them. `trial`: do not ask first whether a sandbox works here.
    """
    if not trial:
        require(unsafe)
    files = {name: (GUESTS / name).read_bytes() for name in ("channel.py", guest)} | dict(files)
    arguments = [*OPTIONS, "{}/" + guest, limits.of_a_process(), *arguments]
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    if unsafe:
        return _start_bare(arguments, files, streams, pass_fds)
    return _start_boxed(arguments, files, limits, streams, pass_fds)


def _start_bare(arguments, files, streams, pass_fds) -> Child:
    folder = Path(tempfile.mkdtemp(prefix="nanochat-unsafe-"))
    try:
        (folder / "box").mkdir()
        (folder / "work").mkdir()
        for name, data in files.items():
            (folder / "box" / name).write_bytes(data)
        python = getattr(sys, "_base_executable", sys.executable)
        command = [python, *(a.replace("{}", str(folder / "box")) for a in arguments)]
        process = subprocess.Popen(command, **streams, pass_fds=pass_fds, cwd=folder / "work", env={},
                                   start_new_session=True)
    except BaseException:
        remove_tree(folder)
        raise
    return Child(process, folder=folder)


def _start_boxed(arguments, files, limits: Limits, streams, pass_fds) -> Child:
    python, user = find_python(), _user()
    assert python is not None
    options, held = list(_layout()), []

    def holding(data: bytes) -> str:
        held.append(os.memfd_create("nanochat"))
        with open(held[-1], "wb", closefd=False) as f:
            f.write(data)
        os.lseek(held[-1], 0, os.SEEK_SET)
        return str(held[-1])

    for name, data in files.items():
        options += ["--perms", "0444", "--file", holding(data), f"/box/{name}"]
    # without a control group, nothing would bound how many files there are in memory
    options += ["--size", str(limits.disk_bytes), "--tmpfs", "/work"] if memory_folder() else ["--dir", "/work"]
    if program := system_call_filter():
        options += ["--seccomp", holding(program)]
    told, telling = os.pipe()
    waiting, go = os.pipe()
    held += [telling, waiting]
    options += ["--remount-ro", "/", "--chdir", "/work", "--info-fd", str(telling), "--block-fd", str(waiting)]
    command = [shutil.which("bwrap"), *options, str(python.executable), *(a.replace("{}", "/box") for a in arguments)]
    rights = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    try:
        try:
            process = subprocess.Popen(command, **streams, pass_fds=[*pass_fds, *held], env={}, cwd="/",
                                       start_new_session=True, **rights)
        finally:
            for fd in held:
                os.close(fd)
        child = Child(process)
        try:
            _take_hold(child, told, limits)
        except BaseException:
            child.end()
            raise
    finally:
        os.close(told)
        os.close(go)  # now it goes on
    return child


def _take_hold(child: Child, told: int, limits: Limits) -> None:
    """Before anything runs inside: a handle on process 1 of the sandbox, and a bound on the memory of all of it."""
    said = b""
    while b"}" not in said and (part := os.read(told, 4096)):
        said += part
    try:
        pid = json.loads(said)["child-pid"]
        child.pidfd = os.pidfd_open(pid)
        if place := memory_folder():
            child.group = MemoryGroup(place, limits.memory_bytes)
            child.group.add(pid)
    except (ValueError, KeyError, OSError) as e:
        raise UserError(f"bubblewrap could not start a sandbox ({e or 'it ended'}): try again, and see whether this "
                        "machine has memory, processes and control groups left") from e


# --------------------------------------------------------------------------- folders that a program has made


def remove_tree(top: Path) -> None:
    """Remove a folder, however deep it is and whatever rights its folders have. Follows no link; raises nothing.

    Folders are moved up to one level before they are looked into, so that no path grows long and nothing recurses.
    """
    with contextlib.suppress(OSError):
        pool = Path(tempfile.mkdtemp(prefix="nanochat-removing-", dir=top.parent))
        try:
            _remove_by(pool, top)
        finally:
            os.rmdir(pool)


def _remove_by(pool: Path, top: Path) -> None:
    waiting, numbers = [pool / "0"], count(1)
    os.rename(top, waiting[0])
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):
            with os.scandir(folder) as entries:
                for entry in list(entries):
                    with contextlib.suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            os.chmod(entry.path, 0o700)
                            waiting.append(pool / str(next(numbers)))
                            os.rename(entry.path, waiting[-1])
                        else:
                            os.unlink(entry.path)
            os.rmdir(folder)
