"""Training that is killed for real: base_train, mid_train and chat_sft, SIGKILL and SIGTERM, and what is left of them.

    python -m tests.chaos --kills=1000 --terms=200

A trial is a run of 12 steps, saved every second one, that is ended by a signal again and again and goes on with
`--resume` until it finishes. A kill comes at a random instant, or right before, in the middle of or right after one of
the I/O calls of a save or a removal. After each, what was said to be saved is there and is, to the byte, what the run
that was never interrupted had at that step; the next attempt goes on from it; at the end nothing but times differs.

The processes are forked from one that has imported everything, and call what a command line calls: an attempt takes
tenths of a second. rank_kills.py does the same to runs of several ranks.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import spread

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds for one attempt, then it counts as stuck
LATEST = 5.0  # seconds from a signal to the end
STEPS, KEPT = 12, 2
SLOW = 0.01  # seconds that a pass takes longer where a signal is to find it in one
HANGS = "harness: hanging"


@dataclass(frozen=True)
class Stage:
    """A script, where it puts its model, and the flags that it has beside `COMMON`."""

    script: str
    root: str
    flags: tuple[str, ...]


COMMON = (f"--num_iterations={STEPS}", "--save_every=2", f"--keep_last={KEPT}", "--log_every=3", "--eval_every=5",
          "--eval_tokens=300", "--device_batch_size=2", "--total_batch_size=256", "--deterministic", "--no-compile",
          "--dtype=float32", "--device_type=cpu", "--data={base}/corpus", "--resume")
STAGES = (
    Stage("base_train", "base_checkpoints", ("--depth=1", "--head_dim=32", "--max_seq_len=32", "--sample_every=7")),
    Stage("mid_train", "mid_checkpoints", ("--mixture={base}/talk.jsonl",)),
    Stage("chat_sft", "chatsft_checkpoints", ("--mixture={base}/talk.jsonl*2",)),
)


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
    slow: float = 0.0  # seconds that each backward pass takes longer
    hang: tuple[str, int] = ("", 0)  # "loss" or "loader", and at which of its calls it stops for ever


def serve_forks() -> None:
    """For each line of stdin (a JSON list of attempts) one child each: their pids on stdout, then a line for each end.

    A line of an end: `{"child": 0, "status": 143, "time": ...}`, on the clock of `time.monotonic`. To be forked safely,
    this process has no threads (but one of pyarrow's allocator, which knows of forks), and computes nothing.
    """
    import torch

    torch.set_num_threads(1)
    for name in ("psutil", "tyro", "typeguard", "pyarrow.parquet", "tiktoken", "rustbpe", "safetensors.torch",
                 *(f"scripts.{stage.script}" for stage in STAGES)):
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
    from nanochat import train

    train.matmul_rates = lambda device, dtype: (1e9, None)  # the measurement takes as long as the run
    train.get_git_info = lambda: {}
    if attempt.harm:
        HARMS[attempt.harm]()
    document_loss, passes, batches = train.document_loss, itertools.count(1), itertools.count(1)

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

    if attempt.slow or attempt.hang[0] == "loss":
        train.document_loss = patient_loss
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


HARMS: dict[str, Callable[[], None]] = {
    harm.__name__: harm
    for harm in (meta_before_tensors, files_in_place, tensors_rotated_first, said_too_soon, losses_forgotten)
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
        self.process = subprocess.Popen([sys.executable, "-m", "tests.kills", "serve-forks"], cwd=ROOT, env=environment,
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


@dataclass
class Outcome:
    """What trials have found."""

    found: list[str] = field(default_factory=list)  # what went wrong, a line each
    counts: Counter[str] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)  # before, in and after the I/O calls of first and later saves
    hit: set[str] = field(default_factory=set)  # those of them at which a process died
    longest: float = 0.0  # seconds from a signal, or another's death, to the end

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.found + other.found, self.counts + other.counts, self.places | other.places,
                       self.hit | other.hit, max(self.longest, other.longest))

    def __str__(self) -> str:
        parts = [f"{n:,} {what}" for what, n in sorted(self.counts.items())]
        if self.hit:
            hit = self.hit & self.places
            parts.append(f"{len(hit)} of {len(self.places)} places around the I/O calls of a save hit")
        if self.longest:
            parts.append(f"at most {self.longest:.1f} s to the end")
        return ", ".join(parts)


@dataclass
class World:
    """A folder with a corpus, conversations and the uninterrupted run of each stage, in which trials are made."""

    folder: Path
    forks: Forks
    outcome: Outcome = field(default_factory=Outcome)
    seconds: dict[str, float] = field(default_factory=dict)  # of the uninterrupted run, by stage
    calls: int = 0  # I/O calls of a process that saves three times
    places: set[str] = field(default_factory=set)  # around those of saves
    attempts: int = 0

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    def prepare(self) -> None:
        """Make all that; every step of the reference is kept, to be compared with."""
        from tests.helpers import small_tokenizer, write_corpus

        small_tokenizer().save(self.reference / "tokenizer")
        write_corpus(self.folder / "corpus", 80)
        for name, first, n in (("talk.jsonl", 0, 90), ("talk_test.jsonl", 90, 20)):
            rows = [[{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": f"{2 * i}"}]
                    for i in range(first, first + n)]
            lines = [json.dumps({"messages": row}) + "\n" for row in rows]
            (self.folder / name).write_text("".join(lines), encoding="utf-8")
        for stage in STAGES:
            begun = time.monotonic()
            (child,) = self.forks.start(self.attempt(stage, self.reference, "--save_every=1", "--keep_last=0"))
            if not self.forks.wait() or child.status != 0:
                raise RuntimeError(f"the uninterrupted {stage.script}: {child.status}\n{child.complained()}")
            self.seconds[stage.script] = child.ended - begun
        record = self.folder / "calls.json"
        base = self.begin(STAGES[0])
        die = {"call": 0, "when": "", "below": str(base), "record": str(record)}
        self.forks.start(self.attempt(STAGES[0], base, die=die))
        self.forks.wait()
        reached = json.loads(record.read_text(encoding="utf-8"))
        self.calls = sum(place.startswith("before") for place in reached) // (STEPS // 2 // 3)
        self.places = {place for place in reached if "at the start" not in place}

    def last_step(self, directory: Path) -> int:
        """The last step on the disk; 0: none."""
        from nanochat.checkpoint_manager import saved_steps

        return max([0, *saved_steps(directory)])

    def attempt(self, stage: Stage, base: Path, *more: str, environment: dict[str, str] | None = None,
                **changes: Any) -> Attempt:
        """A process of `stage` in the base directory `base`."""
        self.attempts += 1
        arguments = [flag.format(base=self.folder) for flag in (*COMMON, *stage.flags, *more)]
        return Attempt(stage.script, arguments, {"NANOCHAT_BASE_DIR": str(base), **(environment or {})},
                       str(self.folder / f"{self.attempts}.out"), **changes)

    def begin(self, stage: Stage) -> Path:
        """A base directory in which that stage is next."""
        base = self.folder / "trial"
        shutil.rmtree(base, ignore_errors=True)
        gone = [later.root for later in STAGES[STAGES.index(stage) :]]
        older = [f"*_{step:06d}{end}" for step in range(STEPS) for end in (".*", "_rank*")]
        shutil.copytree(self.reference, base, ignore=shutil.ignore_patterns(*gone, *older))
        return base


@contextmanager
def world() -> Iterator[World]:
    """A prepared `World`; its folder goes with it, unless something went wrong in it."""
    folder, forks = Path(tempfile.mkdtemp(prefix="kills_")), Forks()
    try:
        it = World(folder, forks)
        it.prepare()
        yield it
    finally:
        forks.close()
    if not it.outcome.found:
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------- what must be there


def run_directory(base: Path, stage: Stage) -> Path:
    return base / stage.root / "d1"


def announced(said: str) -> list[int]:
    """The steps that a process says it has saved."""
    return [int(step) for step in re.findall(r"^saved step (\d+) to", said, re.MULTILINE)]


def resumed_at(said: str) -> int | None:
    """The step from which a process says that it goes on."""
    found = re.search(r"^resuming .* at step (\d+) of", said, re.MULTILINE)
    return int(found[1]) if found else None


def comparable(state: dict[str, Any], one_rank: bool) -> dict[str, Any]:
    """Without times, and without the step's own evaluation: a save comes before it, one by a signal after it.

    What several ranks evaluate together they add up in another order.
    """
    digits = 15 if one_rank else 9
    earlier = [{**e, "bpb": round(e["bpb"], digits)} for e in state["evaluations"] if e["step"] != state["step"]]
    return {**state, "train_seconds": None, "logged": state["logged"][0], "evaluations": earlier}


def check_steps(directory: Path, reference: Path, one_rank: bool = True) -> Iterator[str]:
    """What is wrong with the steps that are there: each must load, and be what the reference had at that step."""
    import torch

    from nanochat.checkpoint_manager import load_checkpoint, load_meta, saved_steps
    from nanochat.common import UserError

    cpu = torch.device("cpu")
    for step in saved_steps(directory):
        try:
            *tensors, meta = load_checkpoint(directory, step, cpu, load_optimizer=True)
        except UserError as e:
            yield f"step {step} is there and does not load: {e}"
            continue
        wanted = load_meta(reference, step)
        if one_rank:
            same = meta["files"] == wanted["files"] and meta["rng"] == wanted["rng"]  # by their hashes
        else:
            same = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in
                       zip(tensors, load_checkpoint(reference, step, cpu, load_optimizer=True)[:2], strict=True))
        if not same:
            yield f"step {step} has other tensors than the uninterrupted run"
        mine, its = comparable(meta["state"], one_rank), comparable(wanted["state"], one_rank)
        yield from (f"step {step}: {key} is {mine[key]}, not {its[key]}" for key in its if mine[key] != its[key])


def check_end(directory: Path, reference: Path, steps: list[int], one_rank: bool = True) -> Iterator[str]:
    """What differs between a finished run, which kept `steps`, and the reference: files, log, steps."""
    from nanochat.checkpoint_manager import LOG, saved_steps
    from nanochat.run import read_metrics

    if saved_steps(directory) != steps:
        yield f"the steps {saved_steps(directory)} were kept, not {steps}"
    there, wanted = (sorted(p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file())
                     for d in (directory, reference))
    wanted = [name for name in wanted if not (m := re.search(r"_(\d{6})", name)) or int(m[1]) in steps]
    if not one_rank:  # a file for each that there was
        there = sorted({re.sub(r"_rank\d+", "_rank0", name) for name in there} - {".lock_rank0"})
    if there != wanted:
        yield f"left behind: {sorted(set(there) - set(wanted))}, missing: {sorted(set(wanted) - set(there))}"
    logs = [[{key: r[key] for key in ("step", "loss", "norm", "lr")} for r in read_metrics(d / LOG)]
            for d in (directory, reference)]
    if logs[0] != logs[1]:
        yield f"another log: {logs[0]}, not {logs[1]}"
    yield from check_steps(directory, reference, one_rank)


# ------------------------------------------------------------------------------------------------------------ kills


class Wrong(Exception):
    """A trial cannot go on."""


@dataclass
class Trial:
    """One run of a stage, in as many processes as it takes."""

    world: World
    name: str
    stage: Stage
    harm: str = ""
    one_rank: bool = True  # never more than one
    last: int = 0  # the last step on the disk
    many: int = 0  # steps there, KEPT at most
    seen: set[int] = field(default_factory=lambda: set(range(2, STEPS + 1, 2)))  # steps that are saved some time
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = self.world.begin(self.stage)
        self.directory = run_directory(self.base, self.stage)
        self.reference = run_directory(self.world.reference, self.stage)

    def wrong(self, *whats: str) -> None:
        for what in whats:
            story = "; ".join([self.name, self.stage.script, *self.log])
            self.world.outcome.found.append(f"{story}: {what}")

    def start(self, *flags: str, **changes: Any) -> Child:
        """The next process."""
        attempt = self.world.attempt(self.stage, self.base, *flags, harm=self.harm, **changes)
        return self.world.forks.start(attempt)[0]

    def ended(self, child: Child, *statuses: int) -> None:
        """Wait for the end of all processes; if `child` ended with another status, or never, the trial is over."""
        if not self.world.forks.wait():
            self.world.forks.kill()
            raise Wrong(f"stuck after {child.said()[-300:]!r}")
        if child.status not in statuses:
            raise Wrong(f"it ended with {child.status}: {child.complained()[-500:]}")

    def check(self, child: Child) -> None:
        """After the end of a process: it went on from the last step, and what it said to be saved is there."""
        from nanochat.checkpoint_manager import saved_steps

        said = child.said()
        begun, trained = resumed_at(said), re.search(r"^step ", said, re.MULTILINE)
        if begun != (self.last or None) and (begun or trained):
            self.wrong(f"it began at step {begun}, the last one saved was {self.last}")
        steps = saved_steps(self.directory)
        promised = max([self.last, *announced(said)])
        if max([0, *steps]) < promised or len(steps) < self.many:
            self.wrong(f"step {promised} was saved, there are {steps}")
        self.seen |= {*steps}
        self.last, self.many = max([0, *steps]), min(KEPT, len(steps))
        self.wrong(*check_steps(self.directory, self.reference, self.one_rank))

    def finish(self, child: Child | None = None) -> None:
        """On to the end without an interruption (by a process that was started already, or a new one), and compare."""
        child = child or self.start()
        self.ended(child, 0)
        self.check(child)
        self.wrong(*check_end(self.directory, self.reference, sorted(self.seen)[-KEPT:], self.one_rank))


def kill_trial(trial: Trial, rng: random.Random) -> None:
    """A run that is killed up to eight times."""
    outcome = trial.world.outcome
    record = trial.world.folder / "calls.json"
    for _ in range(rng.randint(1, 8)):
        record.unlink(missing_ok=True)
        if rng.random() < 0.3:
            child = trial.start()
            trial.world.forks.wait(rng.uniform(0, trial.world.seconds[trial.stage.script]))
            child.send(signal.SIGKILL)
        else:
            child = trial.start(die={"call": rng.randint(1, trial.world.calls), "below": str(trial.base),
                                     "when": rng.choice(("before", "in", "after")), "record": str(record)})
        trial.ended(child, 0, -signal.SIGKILL)
        if child.status == 0:  # the call or the instant would have come later
            trial.check(child)
            break
        at_call = record.exists()
        place = json.loads(record.read_text(encoding="utf-8"))[-1] if at_call else "at an instant"
        trial.log.append(f"killed {place}")
        outcome.hit |= {place}
        outcome.counts["kills"] += 1
        outcome.counts["kills at an I/O call"] += at_call
        trial.check(child)
    trial.finish()


# ---------------------------------------------------------------------------------------------------------- signals


def term_trial(trial: Trial, rng: random.Random) -> None:
    """A run that is asked to stop up to three times, by SIGINT or SIGTERM."""
    for _ in range(rng.randint(1, 3)):
        number = rng.choice((signal.SIGINT, signal.SIGTERM))
        how = rng.choices((stopped_early, stopped_training, stopped_twice), (2, 7, 1))[0]
        child = how(trial, rng, number)
        trial.check(child)
        if child.status == 0:  # the signal came too late
            break
        trial.log.append(f"{how.__name__} by {number.name}")
        trial.world.outcome.counts["signals"] += 1
        trial.world.outcome.counts[how.__name__.replace("_", " ")] += 1
    trial.finish()


def stop(trial: Trial, child: Child, number: int, *statuses: int) -> None:
    """Send a signal; the end must come soon, with one of these statuses (or the run had just finished)."""
    sent = time.monotonic()
    child.send(number)
    trial.ended(child, 0, *statuses)
    trial.world.outcome.longest = max(trial.world.outcome.longest, took := child.ended - sent)
    if took > LATEST:
        trial.wrong(f"it took {took:.1f} s to end")


def stopped_early(trial: Trial, rng: random.Random, number: int) -> Child:
    """At an instant before the first step, or near it: it just ends, if it did not yet know of signals."""
    child = trial.start(slow=SLOW)
    trial.world.forks.wait(rng.uniform(0.0, 0.3))
    stop(trial, child, number, 128 + number, -number)
    return child


def stopped_training(trial: Trial, rng: random.Random, number: int) -> Child:
    """While it trains: it finishes the step, saves it, and says so."""
    child = trial.start(slow=SLOW)
    trial.world.forks.until(lambda: trains(child))
    trial.world.forks.wait(rng.uniform(0.0, SLOW * 4 * (STEPS - trial.last)))
    before = child.said()
    stop(trial, child, number, 128 + number, -number)
    step = trial.world.last_step(trial.directory)
    if step < STEPS:  # else all was done, and it was only writing its report
        said, complained = child.said(), child.complained()
        at_least = max(map(int, re.findall(r"^step +(\d+)[/ ]", before, re.MULTILINE)), default=0)
        if child.status != 128 + number or announced(said)[-1:] != [step] or step < at_least:
            trial.wrong(f"at step {at_least} it was to stop, step {step} is there, it ended with {child.status} and "
                        f"says {said[-300:]!r}")
        if complained.splitlines()[-1:] != [f"stopped by {signal.Signals(number).name} after step {step}, saved: "
                                            "--resume goes on"]:
            trial.wrong(f"it complains {complained!r}")
    return child


def stopped_twice(trial: Trial, rng: random.Random, number: int) -> Child:
    """While a step hangs: the first signal is heard, the second ends it at once."""
    child = trial.start(hang=("loss", rng.randint(1, 4 * (STEPS - trial.last))))
    if trial.world.forks.until(lambda: HANGS in child.said()):
        child.send(number)
        if trial.world.forks.wait(rng.uniform(1.2, 2.0)):
            trial.wrong(f"the first signal ended it while it hung, with {child.status}")
        if "(again to leave at once)" not in child.complained():
            trial.wrong(f"it does not say that it has heard: {child.complained()!r}")
        stop(trial, child, number, 128 + number)
    trial.ended(child, 0, 128 + number)
    return child


def trains(child: Child) -> bool:
    return bool(re.search(r"^step ", child.said(), re.MULTILINE)) or child.status is not None


# ---------------------------------------------------------------------------------------------------------- running


TrialOf = Callable[[Trial, random.Random], None]


def make_trials(world: World, trial_of: TrialOf, what: str, wanted: int, name: str, harm: str = "",
                enough: int = 20) -> Outcome:
    """Trials in a world until `wanted` of `what` were counted, or `enough` went wrong; `name` decides what is drawn."""
    world.outcome = Outcome(places=world.places)
    for i in itertools.count():
        if world.outcome.counts[what] >= wanted or len(world.outcome.found) >= enough:
            return world.outcome
        rng = random.Random(f"run {i} of {name}")
        trial = Trial(world, f"run {i} of {name}", rng.choice(STAGES), harm)
        try:
            trial_of(trial, rng)
        except Wrong as e:
            trial.wrong(str(e))
        world.outcome.counts["runs"] += 1
    raise AssertionError("never reached")


def check_share(trial_of: TrialOf, what: str, harm: str, share: tuple[int, int, int]) -> list[Outcome]:
    """A share `(seed, number, wanted)` of many trials, in a world of its own."""
    seed, number, wanted = share
    with world() as it:
        return [make_trials(it, trial_of, what, wanted, f"share {number} of seed {seed}", harm)]


def many_trials(trial_of: TrialOf, what: str, n: int, seed: int, processes: int, harm: str = "") -> Outcome:
    """At least `n` of `what`, shared by processes."""
    shares = [(seed, i, (n + processes - 1 - i) // processes) for i in range(processes)]
    outcomes = spread(partial(check_share, trial_of, what, harm), shares, processes)
    return sum(itertools.chain.from_iterable(outcomes), Outcome())


def kill_trials(kills: int, seed: int = 0, processes: int = 1, harm: str = "") -> Outcome:
    """At least so many kills of runs of one process; with a bug of `HARMS`, if one is named."""
    return many_trials(kill_trial, "kills", kills, seed, processes, harm)


def term_trials(signals: int, seed: int = 0, processes: int = 1) -> Outcome:
    """At least so many requests to stop."""
    return many_trials(term_trial, "signals", signals, seed, processes)


if __name__ == "__main__":
    if sys.argv[1:] != ["serve-forks"]:
        sys.exit("this is run by: python -m tests.chaos --kills=1000")
    serve_forks()
