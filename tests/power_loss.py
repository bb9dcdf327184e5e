"""Runs that lose power: what a process asked of the disk is recorded, and replayed as badly as POSIX allows.

    python -m tests.chaos --power-loss=5000 --full-disk

A run is recorded as it starts, saves, logs, rotates, saves a step again, is killed, resumes and is replaced. A trial
is a moment of it and a state of the disk that may be found after a power loss at that moment: of what was written to a
file since its last fsync each block is there, missing or torn, and its length an old or the new one; of the entries
made, renamed and removed in a directory since *its* last fsync any may be there. In this state, with the real code:
- the last step there is the last one whose save had returned, or a later one, and it is what was saved, to the bit;
- the run resumes, its log with it, and can save and load again.

Full disks too: a save fails at each of its calls in turn, as on a full disk, and on a real tmpfs that is too small.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from nanochat import checkpoint_manager as cm
from nanochat import files, resume, run
from nanochat.common import UserError
from tests.chaos import spread
from tests.helpers import byte_tokenizer, small_model

BLOCK = 512  # bytes that a disk writes at once, and may tear
PIECE = 4096  # bytes a write call, in what is recorded: several to a file
STATES = 25  # states of the disk to a recorded run
CPU = torch.device("cpu")
ROOT = 0  # the number of the directory that everything lies in

# ------------------------------------------------------------------------------------------------------ a disk's state


@dataclass(frozen=True)
class Entry:
    """A directory's entry made (`added` alone), taken away (`removed` alone) or renamed: one step, all or nothing."""

    node: int  # the directory's number
    removed: str = ""
    added: str = ""
    target: int = -1  # the number of what `added` names
    is_folder: bool = False

    def apply(self, entries: dict[str, int]) -> None:
        entries.pop(self.removed, None)
        if self.added:
            entries[self.added] = self.target


@dataclass(frozen=True)
class Change:
    """Bytes of a file written at `offset`, or (`data` is None) its length set to `offset`."""

    node: int
    offset: int
    data: bytes | None

    def apply(self, content: bytes) -> bytes:
        until = content[: self.offset].ljust(self.offset, b"\0")
        return until if self.data is None else until + self.data + content[self.offset + len(self.data) :]


@dataclass(frozen=True)
class Sync:
    node: int


@dataclass
class Folder:
    safe: dict[str, int] = field(default_factory=dict)
    pending: list[Entry] = field(default_factory=list)

    def survivor(self, rng: random.Random, chance: float) -> dict[str, int]:
        """Each change since the last fsync is there with this chance, whatever became of those before it."""
        entries = dict(self.safe)
        for entry in self.pending:
            if rng.random() < chance:
                entry.apply(entries)
        return entries


@dataclass
class File:
    safe: bytes = b""
    pending: list[Change] = field(default_factory=list)

    def survivor(self, rng: random.Random, chance: float) -> bytes:
        """Each block is, with this chance, as it was last written; else as it was at some time since the last fsync,
        or a piece of one and a piece of another. So is the length."""
        versions = list(itertools.accumulate(self.pending, lambda content, change: change.apply(content),
                                             initial=self.safe))
        if chance in (0.0, 1.0) or not self.pending:
            return versions[-1 if chance else 0]

        def pick() -> bytes:
            return versions[-1] if rng.random() < chance else rng.choice(versions[:-1])

        blocks = []
        for begin in range(0, max(map(len, versions)), BLOCK):
            one, other = (pick()[begin : begin + BLOCK].ljust(BLOCK, b"\0") for _ in range(2))
            torn = rng.randrange(BLOCK) if rng.random() < 0.1 else BLOCK
            blocks.append(one[:torn] + other[torn:])
        size = len(pick())
        return b"".join(blocks)[:size].ljust(size, b"\0")


Op = Entry | Change | Sync


class Disk:
    """What is safe and what is not, after some operations."""

    def __init__(self, operations: list[Op]):
        self.nodes: dict[int, Folder | File] = {ROOT: Folder()}
        always = random.Random()
        for op in operations:
            node = self.nodes[op.node]
            if isinstance(op, Sync):
                node.safe, node.pending = node.survivor(always, 1.0), []
                continue
            node.pending.append(op)
            if isinstance(op, Entry) and op.added and op.target not in self.nodes:
                self.nodes[op.target] = Folder() if op.is_folder else File()

    def write_survivor(self, path: Path, rng: random.Random, chance: float, number: int = ROOT) -> None:
        """Make a state that may be found after a power loss: what no surviving entry leads to is lost."""
        content = self.nodes[number].survivor(rng, chance)
        if isinstance(content, bytes):
            path.write_bytes(content)
            return
        path.mkdir()
        for name, target in content.items():
            self.write_survivor(path / name, rng, chance, target)


# ---------------------------------------------------------------------------------------------------------- recording


class Killed(BaseException):
    """SIGKILL: nothing that the process would still have done is done, whatever it catches."""


@contextlib.contextmanager
def replaced(**functions: Callable) -> Iterator[None]:
    """Functions of `os` replaced (`open_file`: the built-in `open`), for as long as the block lasts."""
    places: list[tuple[Any, str, Callable]] = []
    for name, function in functions.items():
        if name == "open_file":
            places += [(sys.modules["builtins"], "open", function), (io, "open", function)]
            continue
        places.append((os, name, function))
        if hasattr(pathlib, "_normal_accessor"):  # Python 3.10's pathlib keeps functions of its own
            places.append((pathlib._normal_accessor, name, function))
    before = [getattr(place, name, None) for place, name, _ in places]
    try:
        for place, name, function in places:
            setattr(place, name, function)
        yield
    finally:
        for (place, name, _), function in zip(places, before, strict=True):
            setattr(place, name, function)


class RawFile(io.RawIOBase):
    """`io.FileIO` by the functions of `os`, where they can be watched; its own go past them."""

    def __init__(self, path: str, flags: int):
        self._fd = os.open(path, flags | os.O_RDWR, 0o666)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def readinto(self, buffer: memoryview) -> int:
        data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: memoryview) -> int:
        return os.write(self._fd, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return os.lseek(self._fd, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self._fd, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def below(folder: str, path: Any) -> str:
    """The absolute path of what lies in a folder; "" for all else, file descriptors too."""
    if isinstance(path, int) or path is None:
        return ""
    full = os.path.abspath(os.fsdecode(path))
    return full if full == folder or full.startswith(folder + os.sep) else ""


_active: Recorder | None = None


def _audit(event: str, args: tuple) -> None:
    if _active is not None:
        _active.audit(event, args)


sys.addaudithook(_audit)  # for good: Python has no way to take one away


class Recorder:
    """While entered, everything that changes files below `folder` is done, and recorded in `operations`.

    fsyncs are only recorded: nothing here must outlive this process. What changes something in ways that are not
    recorded is an AssertionError: Python tells of all that it opens, renames and removes (`sys.addaudithook`).
    """

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")

    def __init__(self, folder: Path):
        self.folder = os.path.abspath(folder)
        self.operations: list[Op] = []
        self.kill_at = -1  # the operation that is not done any more, nor any after it; -1: all are done
        self._numbers = {self.folder: ROOT}
        self._count = itertools.count(ROOT + 1)
        self._fds: dict[int, int] = {}  # file descriptor -> number of the file or directory
        self._doing = False  # something that is recorded
        self._unseen: list[str] = []

    @property
    def dead(self) -> bool:
        return 0 <= self.kill_at <= len(self.operations)

    def __enter__(self) -> Recorder:
        global _active
        names = "open write fsync replace unlink mkdir rmdir fchmod ftruncate close".split()
        self._os = {name: getattr(os, name) for name in names}
        self._open_file = open
        self._stack = contextlib.ExitStack()
        ours = {name: getattr(self, f"_{name}") for name in self._os}
        self._stack.enter_context(replaced(**ours, rename=self._replace, remove=self._unlink, open_file=self._file))
        assert _active is None
        _active = self
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = None
        self._stack.close()
        assert not self._unseen, f"not recorded: {self._unseen}"

    def audit(self, event: str, args: tuple) -> None:
        changed = args[:1] if event == "open" and args[2] & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC) else ()
        changed = args[:2] if event in self.CHANGES else changed
        if not self._doing:
            self._unseen += [f"{event} {path}" for path in changed if below(self.folder, path)]

    def _do(self, name: str, *args: Any) -> Any:
        if self.dead:
            raise Killed
        self._doing = True
        try:
            return self._os[name](*args)
        finally:
            self._doing = False

    def _entry(self, folder_of: str, **what: Any) -> None:
        self.operations.append(Entry(self._numbers[os.path.dirname(folder_of)], **what))

    # the functions of `os`, by their own names

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        full = below(self.folder, path)
        if not full:
            return self._os["open"](path, flags, mode, dir_fd=dir_fd)
        assert dir_fd is None
        fd = self._do("open", path, flags, mode)
        if full not in self._numbers:
            self._numbers[full] = next(self._count)
            self._entry(full, added=os.path.basename(full), target=self._numbers[full])
        elif flags & os.O_TRUNC:
            self.operations.append(Change(self._numbers[full], 0, None))
        self._fds[fd] = self._numbers[full]
        return fd

    def _close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        self._os["close"](fd)

    def _write(self, fd: int, data: Any) -> int:
        if fd not in self._fds:
            return self._os["write"](fd, data)
        n = self._do("write", fd, data)
        offset = os.lseek(fd, 0, os.SEEK_CUR) - n
        self.operations.append(Change(self._fds[fd], offset, bytes(data[:n])))
        return n

    def _ftruncate(self, fd: int, size: int) -> None:
        self._do("ftruncate", fd, size)
        self.operations.append(Change(self._fds[fd], size, None))

    def _fsync(self, fd: int) -> None:
        if self.dead:
            raise Killed
        if fd in self._fds:  # else of a directory above, which was there before
            self.operations.append(Sync(self._fds[fd]))

    def _fchmod(self, fd: int, mode: int) -> None:
        self._do("fchmod", fd, mode)  # no trial asks who may read

    def _replace(self, source: Any, target: Any) -> None:
        old, new = below(self.folder, source), below(self.folder, target)
        assert os.path.dirname(old) == os.path.dirname(new), "the model knows no renames from folder to folder"
        self._do("replace", source, target)
        self._numbers[new] = self._numbers.pop(old)
        self._entry(new, removed=os.path.basename(old), added=os.path.basename(new), target=self._numbers[new])

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def _remove(self, name: str, path: Any, dir_fd: int | None) -> None:
        full = below(self.folder, path)
        if not full:
            return self._os[name](path, dir_fd=dir_fd)
        self._do(name, path)
        del self._numbers[full]
        self._entry(full, removed=os.path.basename(full))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        full = below(self.folder, path)
        if not full:
            return self._os["mkdir"](path, mode, dir_fd=dir_fd)
        self._do("mkdir", path, mode)
        self._numbers[full] = next(self._count)
        self._entry(full, added=os.path.basename(full), target=self._numbers[full], is_folder=True)

    def _file(self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *args: Any,
              **more: Any) -> Any:
        full = below(self.folder, file)
        if not full or not set(mode) & set("wax+"):
            return self._open_file(file, mode, buffering, encoding, *args, **more)
        flags = {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL}
        raw = RawFile(full, flags[mode.strip("bt+")])
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, *args, **more)


# ---------------------------------------------------------------------------------------------------- what is recorded


def checkpoints(folder: Path) -> Path:
    """The run's directory; like the base directory above it, it is made when it is asked for."""
    with mock.patch.dict(os.environ, NANOCHAT_BASE_DIR=str(folder / "base")):
        return cm.checkpoint_root("base") / "d1"


@cache
def plain() -> tuple[dict[str, Tensor], dict[str, Tensor], resume.Identity]:
    """Weights and optimizer of the smallest model, for their names and shapes, and what makes a run of it that run."""
    model = small_model(byte_tokenizer(), n_layer=1, n_embd=8, n_head=1, n_kv_head=1, sequence_len=8)
    identity = resume.Identity({"matrix_lr": 0.02}, cm.model_config_dict(model), byte_tokenizer().fingerprint(), None)
    return model.state_dict(), model.setup_optimizers().state_dict(), identity


@dataclass
class Saved:
    """The tensors of one save."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @classmethod
    def number(cls, n: int) -> Saved:
        """Numbers that no other save has."""
        generator = torch.Generator().manual_seed(n)

        def other(t: Tensor) -> Tensor:
            return torch.rand(t.shape, generator=generator) if t.is_floating_point() else torch.full_like(t, n)

        model, optimizer, _ = plain()
        return cls({k: other(t) for k, t in model.items()}, {k: other(t) for k, t in optimizer.items()})

    def write(self, directory: Path, step: int, number: int, keep: int, log: run.MetricsLog | None) -> None:
        """The real save; `number` goes into meta, and tells this save from all others of the step."""
        meta = {**asdict(plain()[2]), "state": asdict(run.TrainState(step)), "log": log.mark() if log else None,
                "number": number}
        cm.save_checkpoint(directory, step, self.model, self.optimizer, meta, tokenizer=byte_tokenizer(), keep=keep)

    def differs(self, directory: Path, step: int) -> str:
        """What of a step on the disk is not this, or cannot be loaded; "" is wanted."""
        model_data, optimizer_data, _ = cm.load_checkpoint(directory, step, CPU, load_optimizer=True)
        model, _, _ = cm.build_model(directory, step, CPU, "train")
        for what, mine, found in (("weights", self.model, model_data), ("optimizer", self.optimizer, optimizer_data),
                                  ("model", self.model, model.state_dict())):
            if mine.keys() != found.keys() or not all(torch.equal(t, found[k]) for k, t in mine.items()):
                return f"the {what} of step {step} are not those that were saved"
        return ""


@dataclass
class History:
    """What a run saved, and what it may be held to."""

    saves: list[Saved] = field(default_factory=list)
    promises: list[tuple[int, int]] = field(default_factory=lambda: [(0, -1)])  # (operations, number of the save)

    def promise(self, operations: int, number: int) -> None:
        """After so many operations, this save or a later one must be found; -1: there need not be any."""
        self.promises.append((operations, number))

    def promised(self, operations: int) -> int:
        return [number for after, number in self.promises if after <= operations][-1]


def one_process(rng: random.Random, directory: Path, keep: int, recorder: Recorder, history: History) -> None:
    """From the lock to the last save, as `run_training` does it."""
    lock = run.RunLock(directory)
    try:
        overwrite = rng.random() < 0.2
        if overwrite:
            history.promise(len(recorder.operations) + 1, -1)
        start = resume.resume_step(directory, plain()[2], resume=not overwrite, overwrite=overwrite)
        step, meta = 0, {"log": None}
        if start is not None:
            step, meta = start[0], cm.load_meta(directory, start[0])
        log = run.MetricsLog(files.make_dirs(directory) / cm.LOG, meta["log"])
        for _ in range(rng.randint(1, 4)):
            again = step > 0 and rng.random() < 0.2
            if again:  # the step goes away before it comes back: what is left is the one before
                before = [cm.load_meta(directory, s)["number"] for s in cm.saved_steps(directory) if s < step]
                history.promise(len(recorder.operations) + 1, before[-1] if before else -1)
            step += 0 if again else rng.choice([1, 5, 20])
            for _ in range(rng.randint(0, 4)):
                log.log(step, loss=rng.random(), text="x" * rng.choice([0, 10, BLOCK]))
            number = len(history.saves)
            history.saves.append(Saved.number(number))
            history.saves[number].write(directory, step, number, keep, log)
            history.promise(len(recorder.operations), number)
    finally:
        if recorder.dead:
            lock._lock.release()  # as the kernel does it
        else:
            lock.__exit__()


def record(rng: random.Random, folder: Path) -> tuple[list[Op], History, str]:
    """The operations of up to three processes, one after the other, some of them killed; and a name for it all."""
    history, keep = History(), rng.choice([0, 1, 2, 2, 3])
    processes, kills = rng.randint(1, 3), 0
    piece, files.PIECE = files.PIECE, PIECE
    try:
        with Recorder(folder) as recorder:
            for _ in range(processes):
                recorder.kill_at = len(recorder.operations) + rng.randint(0, 120) if rng.random() < 0.4 else -1
                try:
                    one_process(rng, checkpoints(folder), keep, recorder, history)
                except Killed:
                    kills += 1
    finally:
        files.PIECE = piece
    return recorder.operations, history, f"{processes} processes, {kills} killed, keep={keep}"


# -------------------------------------------------------------------------------------------------------------- trials


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Silent, and without the fsyncs of this machine, which no trial is about."""
    with replaced(fsync=lambda fd: None), contextlib.redirect_stdout(io.StringIO()):
        yield


def wrong_after(folder: Path, history: History, promised: int, further: bool) -> str:
    """What is wrong with the files that a power loss has left; "" is wanted. `further`: save one more step too."""
    directory = checkpoints(folder)
    with run.RunLock(directory):
        steps = cm.saved_steps(directory)
        if promised >= 0 and not steps:
            return f"no checkpoint, but save {promised} had returned"
        mark = None
        if steps:
            meta = cm.load_meta(directory, steps[-1])
            number, mark = meta["number"], meta["log"]
            if number < promised:
                return f"the last step is of save {number}, but save {promised} had returned"
            if what := history.saves[number].differs(directory, cm.find_last_step(directory)):
                return what
            if mark["bytes"] and not (directory / cm.LOG).exists():
                return "the log is gone"
        start = resume.resume_step(directory, plain()[2], resume=True, overwrite=False)
        if start != ((steps[-1], {}) if steps else None):
            return f"resumes from {start}, not from {steps[-1:]}"
        log = run.MetricsLog(directory / cm.LOG, mark)
        if left := [p.name for p in folder.rglob("*.tmp")]:
            return f"not swept up: {left}"
        if further:
            step, number, saved = (steps or [0])[-1] + 1, len(history.saves), Saved.number(len(history.saves))
            log.log(step, loss=1.0)
            saved.write(directory, step, number, 2, log)
            return saved.differs(directory, step)
    return ""


def shown(op: Op | None, names: dict[int, str]) -> str:
    if isinstance(op, Entry):
        return f"{op.removed or 'nothing'} -> {op.added or 'nothing'}"
    return "the beginning" if op is None else f"{type(op).__name__.lower()} of {names.get(op.node, 'the root')}"


def check_recording(case: tuple[int, int, int]) -> list[str]:
    """`(seed, number, states)`: a recorded run, and a line for each state of the disk in which something is wrong."""
    seed, number, states = case
    wrong = []
    with tempfile.TemporaryDirectory(prefix="power_loss") as scratch, quick():
        folder = Path(scratch, "recorded")
        folder.mkdir()
        operations, history, name = record(random.Random(f"{seed}-{number}"), folder)
        names = {op.target: op.added for op in operations if isinstance(op, Entry) and op.added}
        for state in range(states):
            rng = random.Random(f"{seed}-{number}-{state}")
            crash = rng.randint(0, len(operations))
            chance = rng.choice([0.0, 1.0, 0.1, 0.5, 0.5, 0.9])
            left = Path(scratch, "left")
            Disk(operations[:crash]).write_survivor(left, rng, chance)
            try:
                what = wrong_after(left, history, history.promised(crash), further=state % 5 == 0)
            except Exception as e:
                what = f"{type(e).__name__}: {e}"
            if what:
                last = shown(operations[crash - 1] if crash else None, names)
                wrong.append(f"recording {number} of seed {seed} ({name}), state {state}: power lost after operation "
                             f"{crash} of {len(operations)} ({last}), unsynced changes kept: {chance:.0%}: {what}")
            shutil.rmtree(left)
    return wrong


def power_loss_trials(n: int, seed: int = 0, processes: int = 1) -> list[str]:
    """What went wrong in `n` states of the disk after a power loss, a line each; [] is wanted."""
    cases = [(seed, number, min(STATES, n - begin)) for number, begin in enumerate(range(0, n, STATES))]
    return sorted(itertools.chain.from_iterable(spread(check_recording, cases, processes)))


# --------------------------------------------------------------------------------------------------------- full disks


class FullDisk:
    """While entered, call number `after` (of those that need room below `folder`) and all later ones find it full.

    `short`: if that call writes, half of it is still written.
    """

    def __init__(self, folder: Path, after: int, number: int = errno.ENOSPC, short: bool = False):
        self.folder, self.after, self.number, self.short = os.path.abspath(folder), after, number, short
        self.calls: list[str] = []
        self._fds: set[int] = set()

    def __enter__(self) -> FullDisk:
        self._os = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "mkdir")}
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(replaced(**{name: partial(self._call, name) for name in self._os}))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _call(self, name: str, first: Any, *args: Any, **more: Any) -> Any:
        if name in ("write", "fsync"):
            needs_room = first in self._fds
        else:
            needs_room = below(self.folder, first) and (name != "open" or args[0] & os.O_CREAT)
        if needs_room:
            self.calls.append(name)
            if len(self.calls) > self.after:
                if name == "write" and self.short and len(self.calls) == self.after + 1 and len(args[0]) > 1:
                    return self._os[name](first, args[0][: len(args[0]) // 2])
                path = (first,) if isinstance(first, (str, Path)) else ()
                raise OSError(self.number, os.strerror(self.number), *path)
        result = self._os[name](first, *args, **more)
        if name == "open":  # a number that an earlier file had may be a directory's now, whose fsync needs none
            (self._fds.add if needs_room else self._fds.discard)(result)
        return result


def wrong_when_full(directory: Path, full: contextlib.AbstractContextManager, must_fail: bool = True) -> str:
    """Save on a full disk, then again when it is not full any more; what is wrong with that, "" is wanted."""
    before, step = cm.saved_steps(directory), 2
    saved = Saved.number(step)
    try:
        with full:
            saved.write(directory, step, step, 0, None)
        if must_fail:
            return "the save returned"
    except (OSError, UserError) as e:
        text = str(e)
        names = ("model_000002.safetensors", "optim_000002_rank0.safetensors", "meta_000002.json", "tokenizer")
        if not any(name in text for name in names):
            return f"the error names no file: {text}"
        if "mkdir" not in getattr(full, "calls", ["mkdir"])[-1:] and not ("written" in text and "free" in text):
            return f"the error does not say what was written and what is free: {text}"
        if cm.saved_steps(directory) != before:
            return f"steps {cm.saved_steps(directory)} are there, not {before}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    if left := [p.name for p in directory.rglob("*.tmp")]:
        return f"left behind: {left}"
    for old in before:
        if what := Saved.number(old).differs(directory, old):
            return what
    saved.write(directory, step, step, 0, None)
    return saved.differs(directory, step)


def full_at_each_call(scratch: Path, first: bool, every: int = 1) -> Iterator[str]:
    """A save that finds the disk full at each of its calls in turn: the first one of a run, or the second."""
    pristine = scratch / "pristine"
    pristine.mkdir()
    if not first:
        Saved.number(1).write(pristine, 1, 1, 0, None)
    directory = scratch / "run"
    shutil.copytree(pristine, directory)
    with FullDisk(directory, sys.maxsize) as counting:
        Saved.number(2).write(directory, 2, 2, 0, None)
    shutil.rmtree(directory)
    kinds = [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.ENOSPC, True)]
    trials = [(call, *kind) for call, name in enumerate(counting.calls) for kind in kinds
              if name == "write" or not kind[1]]
    for call, number, short in trials[::every]:
        shutil.copytree(pristine, directory)
        if what := wrong_when_full(directory, FullDisk(directory, call, number, short)):
            yield (f"{'first' if first else 'second'} save, {errno.errorcode[number]} at call {call} of "
                   f"{len(counting.calls)} ({counting.calls[call]}){', after half of it' if short else ''}: {what}")
        shutil.rmtree(directory)
    shutil.rmtree(pristine)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of 1 MiB on `folder`; False where this process may not mount one."""
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount is not None and os.geteuid() == 0 and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:  # lazily: whatever still holds a file of it, nothing is left mounted
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def ballast(directory: Path, free: int) -> Iterator[None]:
    """A file that leaves so many bytes of the disk, and goes when the block ends."""
    path = directory.parent / "ballast"
    size = shutil.disk_usage(directory).free - free
    path.write_bytes(bytes(max(0, size)))
    try:
        yield
    finally:
        path.unlink()


def full_for_real(scratch: Path, every: int = 1) -> Iterator[str]:
    """A save on a tmpfs with more and more room, from none to enough; nothing where none can be mounted."""
    with small_disk(scratch / "disk") as mounted:
        directory = scratch / "disk" / "run"
        for free in range(0, 112 * 1024, 4096 * every) if mounted else ():
            Saved.number(1).write(directory, 1, 1, 0, None)
            if what := wrong_when_full(directory, ballast(directory, free), must_fail=free <= 64 * 1024):
                yield f"a disk with {free} bytes free: {what}"
            shutil.rmtree(directory)


def full_disk_trials(n: int = 1, seed: int = 0, processes: int = 1, *, every: int = 1) -> list[str]:
    """What went wrong with saves on full disks, a line each; [] is wanted. `every`: only one in so many is tried.

    The other arguments are those of all trials, and unused: nothing here is drawn, so once is enough.
    """
    check, piece = cm.check_disk, files.PIECE
    cm.check_disk, files.PIECE = lambda *_: None, 16 * 1024  # it would refuse what is to fail here
    try:
        with tempfile.TemporaryDirectory(prefix="full_disk") as scratch, quick():
            folder = Path(scratch)
            return [*full_at_each_call(folder, True, every), *full_at_each_call(folder, False, every),
                    *full_for_real(folder, every)]
    finally:
        cm.check_disk, files.PIECE = check, piece
