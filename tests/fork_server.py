"""A process that has imported everything once, and forks a training process for each attempt that somebody wants.

    forks = Forks()                                         # starts `python -m tests.fork_server`
    (child,) = forks.start(Attempt("base_train", [...], ...))
    forks.wait()                                            # child.status is what a shell would see

A child runs the real script through the real command line, but for what an `Attempt` changes about it: where it dies
(`die_at` counts its I/O calls), how slow it is, what hangs, which bug it has (`HARMS`, for trials that must see one).
kills.py and rank_kills.py make their trials of it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds for one attempt, then it counts as stuck
SLOW = 0.01  # seconds that a pass takes longer where a signal is to find it in one
HANGS = "harness: hanging"
SCRIPTS = ("base_train", "mid_train", "chat_sft", "chat_rl")


# ------------------------------------------------------------------------------------------- the process that forks


@dataclass(frozen=True)
class Attempt:
    """What a forked process is to do."""

    script: str
    arguments: list[str]
    environment: dict[str, str]
    out: str  # its stdout; the same name with .err: its stderr
    die: dict[str, Any] | None = None  # where it kills itself: the arguments of `die_at`
    harm: str = ""  # a bug to have: a name in HARMS
    slow: float = 0.0  # seconds that each backward pass, and each token of answers, takes longer
    hang: tuple[str, int] = ("", 0)  # "loss", "loader" or "token", and at which of its calls it stops for ever


def serve_forks() -> None:
    """For each line of stdin (a JSON list of attempts) one child each: their pids on stdout, then a line for each end.

    A line of an end: `{"child": 0, "status": 143, "time": ...}`, on the clock of `time.monotonic`. To be forked safely,
    this process has no threads (but one of pyarrow's allocator, which knows of forks), and computes nothing.
    """
    import torch

    torch.set_num_threads(1)
    for name in ("psutil", "tyro", "typeguard", "pyarrow.parquet", "tiktoken", "rustbpe", "safetensors.torch",
                 *(f"scripts.{script}" for script in SCRIPTS)):
        with suppress(ImportError):  # not all of them are everywhere
            importlib.import_module(name)  # here, once, for all children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        attempts = [Attempt(**{**one, "hang": tuple(one["hang"])}) for one in json.loads(line)]
        pids = []
        for attempt in attempts:
            if (pid := os.fork()) == 0:
                live(attempt)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        for _ in pids:
            pid, status = os.wait()
            ended = {"child": pids.index(pid), "status": os.waitstatus_to_exitcode(status), "time": time.monotonic()}
            print(json.dumps(ended), flush=True)


def live(attempt: Attempt) -> None:
    """A child's life: what `python -m scripts.base_train ...` does, with the harness's changes; it never returns."""
    status: Any = 1
    at_end: list[Callable[[], None]] = []
    try:
        for fd, name, flags in ((0, os.devnull, os.O_RDONLY), (1, attempt.out, os.O_WRONLY | os.O_CREAT),
                                (2, f"{attempt.out}.err", os.O_WRONLY | os.O_CREAT)):
            os.dup2(os.open(name, flags), fd)
        from nanochat import configurator

        os.environ.update(attempt.environment)
        sys.argv = [f"{attempt.script}.py", *attempt.arguments]
        sys.orig_argv = ["python", *sys.argv]
        at_end += change(attempt)
        script = importlib.import_module(f"scripts.{attempt.script}")
        configurator.main(script.main, script.Config, distributed=True)
        status = 0
    except SystemExit as e:
        status = e.code
    except KeyboardInterrupt:  # on the way to configurator.main, or back
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        for call in at_end:
            call()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing of the server's is to happen here


def change(attempt: Attempt) -> list[Callable[[], None]]:
    """Make a child quick where speed is not asked about, slow or ill where that is, and let it die where it should.

    What is returned is to be called at its end.
    """
    from nanochat import engine, train

    train.matmul_rates = lambda device, dtype: (1e9, None)  # the measurement takes as long as the run
    train.get_git_info = lambda: {}
    if attempt.harm:
        HARMS[attempt.harm]()
    document_loss, passes, batches, tokens = train.document_loss, *map(itertools.count, (1, 1, 1))

    def patient_loss(bos: int) -> Callable:
        loss_fn = document_loss(bos)

        def loss(*args: Any) -> Any:
            time.sleep(attempt.slow)
            if attempt.hang == ("loss", next(passes)):
                hang_for_ever()
            return loss_fn(*args)

        return loss

    def patient_train(model: Any, optimizer: Any, loader: Iterator, *args: Any, **kw: Any) -> int:
        def hanging() -> Iterator:
            for batch in loader:
                if attempt.hang == ("loader", next(batches)):
                    hang_for_ever()
                yield batch

        return run_train(model, optimizer, hanging(), *args, **kw)

    def patient_token(generation: Any) -> list:
        time.sleep(attempt.slow)
        if attempt.hang == ("token", next(tokens)):
            hang_for_ever()
        return one_token(generation)

    if attempt.slow or attempt.hang[0] in ("loss", "token"):
        train.document_loss = patient_loss
        one_token, engine.Generation.step = engine.Generation.step, patient_token
    if attempt.hang[0] == "loader":
        run_train, train.train = train.train, patient_train
    return [die_at(**attempt.die)] if attempt.die else []


def hang_for_ever() -> None:
    print(HANGS, flush=True)
    time.sleep(10 * PATIENCE)


def die_at(call: int, when: str, below: str, record: str) -> Callable[[], None]:
    """From now on, count the I/O calls on the checkpoints below a base directory; SIGKILL "before" or "after" number
    `call`, or "in" it (half of what it was to write is written). 0: never.

    The places around the calls go to the file `record` as JSON, until the last that was reached, as
    `"before write d1/.model_N.safetensors.tmp (2)"`: told apart within a save, not from one save to the next. What is
    returned writes it for a child that lives to its end.
    """
    paths: dict[int, str] = {}  # of open descriptors
    seen: Counter[tuple] = Counter()
    reached: list[str] = []
    real = {name: getattr(os, name) for name in ("open", "close", "write", "fsync", "replace", "unlink", "mkdir",
                                                 "rmdir")}

    def write_record() -> None:
        fd = real["open"](record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        real["write"](fd, json.dumps(reached).encode("utf-8"))
        real["close"](fd)

    def reach(place: str, here: bool) -> None:
        reached.append(place)
        if here:
            write_record()
            os.kill(os.getpid(), signal.SIGKILL)

    def place_of(kind: str, path: str) -> str:
        thread = threading.current_thread()
        saves = thread.name == "nanochat-saver"  # each save has one of its own
        name = re.sub(r"\d{6}", "N", re.sub(r"\.\w{8}\.tmp$", ".tmp", Path(path).relative_to(below).as_posix()))
        key = thread if saves else "the start", kind, name.split("/", 1)[-1]
        seen[key] += 1
        seen["calls"] += 1
        return f"{kind} {key[2]} ({seen[key]})" + ("" if saves else " at the start")

    def counted(kind: str) -> Callable:
        def wrapper(target: Any, *args: Any, **kw: Any) -> Any:
            path = paths.get(target, "") if isinstance(target, int) else os.fspath(target)
            if kind == "close":
                paths.pop(target, None)
            if kind == "close" or not re.match(rf"{re.escape(below)}/\w+_checkpoints(/|$)", path):
                return real[kind](target, *args, **kw)
            place = place_of(kind, path)
            here = seen["calls"] == call
            reach(f"before {place}", here and when == "before")
            if kind == "write":
                if here and when == "in":
                    real[kind](target, args[0][: len(args[0]) // 2])
                reach(f"in {place}", here and when == "in")
            result = real[kind](target, *args, **kw)
            if kind == "open":
                paths[result] = path
            reach(f"after {place}", here)
            return result

        return wrapper

    for kind in real:  # pathlib and tempfile look them up in `os` at every call (Python 3.10's pathlib does not)
        setattr(os, kind, counted(kind))
    return write_record


# ---------------------------------------------------------------- bugs that a child may be given: trials must see them


def meta_before_tensors() -> None:
    """The commit comes first, as if the files that it names were there."""
    from nanochat import checkpoint_manager, saver

    def save(directory: Path, step: int, model_data: dict, optimizer_data: dict, meta: dict, **kw: Any) -> None:
        name = f"meta_{step:06d}.json"
        right(directory, step, model_data, optimizer_data, meta, **(kw | {"keep": 0}))
        text = (directory / name).read_bytes()
        for kind in ("model", "optim"):
            for path in directory.glob(f"{kind}_{step:06d}*"):
                data = path.read_bytes()
                path.unlink()
                checkpoint_manager.atomic_write(directory / name, text)
                checkpoint_manager.atomic_write(path, data)
        checkpoint_manager.rotate(directory, kw["keep"])

    right, saver.save_checkpoint = saver.save_checkpoint, save


def files_in_place() -> None:
    """Written to their final names: what is half-written looks as if it was whole."""
    from nanochat import checkpoint_manager, tensor_file
    from nanochat.files import sha256_file

    def write(path: Path, pieces: Any) -> str:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for piece in pieces:
            os.write(fd, piece)
        os.close(fd)
        return sha256_file(path)

    def write_text(path: Path, text: str) -> str:
        return write(path, [text.encode("utf-8")])

    tensor_file.write_file = write
    checkpoint_manager.atomic_write = write_text


def tensors_rotated_first() -> None:
    """A step that is removed half-way is one whose files are gone, and which seems to be there."""
    from nanochat import checkpoint_manager as cm

    def rotate(directory: Path, keep: int) -> None:
        old = cm.saved_steps(directory)[:-keep]
        cm.remove_files(directory, cm._data_of(directory, old) if old else [])
        cm.remove_files(directory, map(cm._meta_name, old))

    cm.rotate = rotate


def said_too_soon() -> None:
    """"saved" stands there before it is."""
    from nanochat import saver

    def save(directory: Path, step: int, *args: Any, **kw: Any) -> None:
        saver.print0(f"saved step {step} to {directory}")
        right(directory, step, *args, **kw)

    right, saver.save_checkpoint = saver.save_checkpoint, save


def losses_forgotten() -> None:
    """A part of the state is not saved: the first line of the log after a resume averages over too few steps."""
    from nanochat import train

    train.asdict = lambda x: {k: [] if k == "losses" else v for k, v in right(x).items()}
    right = asdict


def grader_fails() -> None:
    """An answer that the task cannot grade."""
    from nanochat import rollouts

    def graded(*args: Any) -> None:
        raise ValueError("an answer that nobody foresaw")

    rollouts.graded = graded


HARMS: dict[str, Callable[[], None]] = {
    harm.__name__: harm
    for harm in (meta_before_tensors, files_in_place, tensors_rotated_first, said_too_soon, losses_forgotten,
                 grader_fails)
}


# --------------------------------------------------------------------------------------------------- the harness's side


@dataclass
class Child:
    """A process that the server has forked."""

    pid: int
    out: Path
    status: int | None = None  # -9: ended by signal 9
    ended: float = 0.0  # time.monotonic

    def send(self, number: int) -> None:
        if self.status is None:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self.pid, number)

    def said(self) -> str:
        """All of its stdout so far."""
        return self.out.read_text(encoding="utf-8") if self.out.exists() else ""

    def complained(self) -> str:
        """All of its stderr so far."""
        err = Path(f"{self.out}.err")
        return err.read_text(encoding="utf-8") if err.exists() else ""


class Forks:
    """`serve_forks` in a process of its own; one group of children at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "tests.fork_server"], cwd=ROOT, env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
                                        start_new_session=True)  # by which one finds all that come from it
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.children: list[Child] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)

    def start(self, *attempts: Attempt) -> list[Child]:
        self.process.stdin.write(json.dumps([asdict(attempt) for attempt in attempts]) + "\n")
        self.process.stdin.flush()
        pids = json.loads(self.lines.get(timeout=PATIENCE))
        self.children = [Child(pid, Path(attempt.out)) for pid, attempt in zip(pids, attempts, strict=True)]
        return self.children

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Until all children have ended, or so long; whether they have."""
        until = time.monotonic() + seconds
        while any(child.status is None for child in self.children):
            try:
                line = self.lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return False
            end = json.loads(line)
            child = self.children[end["child"]]
            child.status, child.ended = end["status"], end["time"]
        return True

    def kill(self) -> None:
        """End the children that are left."""
        self.wait(0)
        for child in self.children:
            child.send(signal.SIGKILL)
        self.wait()

    def until(self, true: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait until something is so, while the children run, or so long; whether it is."""
        end = time.monotonic() + seconds
        while not true() and time.monotonic() < end and not self.wait(0.002):
            pass
        return true()

    def close(self) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    serve_forks()
