"""What surrounds a long run: its sizes, its state, its lock, signals that ask it to stop, a log that survives it.

    with StopSignals() as stop:
        while not stop.requested: ...          # the first Ctrl-C or SIGTERM asks, the second leaves at once

There is nothing to run here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import socket
import stat
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from filelock import FileLock, Timeout

from nanochat.common import UserError, check_at_least, mute, print0, say
from nanochat.files import atomic_write, make_dirs, sync_parents

LAUNCHER = os.getppid()  # under torchrun, the process that started this rank


@dataclass
class TrainState:
    """What must be saved, beside weights and optimizer, to go on as if nothing had happened. JSON; of all ranks."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: int = 0  # steps whose gradient was not finite
    train_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of the log
    figures: list[dict[str, float]] = field(default_factory=list)  # the same, of what their batches say of themselves
    logged: tuple[int, float] = (0, 0.0)  # tokens and train_seconds at that line
    changes: list[dict[str, Any]] = field(default_factory=list)  # settings changed on the way: {"step", "fields"}
    loader: dict[str, Any] | None = None
    evaluations: list[dict[str, float | None]] = field(default_factory=list)  # {"step": ..., "bpb": ...}
    core: list[dict[str, float | None]] = field(default_factory=list)  # {"step": ..., "core": ...}
    exams: list[dict[str, Any]] = field(default_factory=list)  # {"step": ..., and what a stage found}

    def best(self) -> dict[str, float | None] | None:
        """The evaluation with the fewest bits per byte so far."""
        measured = [e for e in self.evaluations if e["bpb"] is not None]
        return min(measured, key=lambda e: e["bpb"]) if measured else None


# Settings that may differ between a run and its continuation without changing what is computed.
FREE_FIELDS = {"resume", "changed", "overwrite", "model_tag", "save_every", "keep_last", "eval_every", "sample_every",
               "eval_tokens", "core_metric_every", "core_metric_max_per_task", "core", "log_every", "stall_seconds",
               "nonfinite", "device_batch_size", "eval_tasks", "eval_examples", "eval_samples", "rollout_rows",
               "collapse"}


def free_fields(settings: dict[str, Any]) -> set[str]:
    """`FREE_FIELDS`, but in deterministic mode what is summed first depends on the rows of a backward pass."""
    return FREE_FIELDS - {"device_batch_size"} if settings.get("deterministic") else FREE_FIELDS


def rows_per_rank(
    total_batch_size: int, device_batch_size: int | Literal["auto"], max_seq_len: int, world_size: int, *,
    deterministic: bool = False,
) -> int:
    """The rows of a step that each rank trains on: `total=8192, T=256` on 2 ranks -> 16.

    A share of fewer rows than `device_batch_size` is one backward pass. Sizes that do not fit together are refused with
    those nearby that do. So are, in deterministic mode, where the rows of a backward pass decide the bits, smaller
    shares, and numbers of ranks among which a binary tree of gradients cannot be shared.
    """
    rows = 1 if device_batch_size == "auto" else device_batch_size
    check_at_least(1, device_batch_size=rows, total_batch_size=total_batch_size, max_seq_len=max_seq_len)
    if deterministic:
        check_deterministic(device_batch_size, world_size)
    unit, token_rows = rows * max_seq_len * world_size, max_seq_len * world_size
    share, rest = divmod(total_batch_size, token_rows)
    if rest == 0 and share and (share % rows == 0 or (share < rows and not deterministic)):
        return share
    near = [n * unit for n in (total_batch_size // unit, total_batch_size // unit + 1) if n]
    advice = f"--total_batch_size={' or '.join(map(str, near))}"
    if rest == 0 and share:
        fitting = divisors(share)
        near = [d for d in fitting if d < rows][-1:] + [d for d in fitting if d > rows][:1]
        advice += f", or --device_batch_size={' or '.join(map(str, near))}"
    ranks = f" × {world_size} ranks" if world_size > 1 else ""
    raise UserError(f"--total_batch_size={total_batch_size} is not a multiple of --device_batch_size={rows} × "
                    f"--max_seq_len={max_seq_len}{ranks} (= {unit} tokens): these would fit: {advice}")


def check_deterministic(device_batch_size: int | Literal["auto"], world_size: int) -> None:
    """Refuse what cannot have the same bits on any number of ranks."""
    if device_batch_size == "auto":
        raise UserError("--deterministic needs a --device_batch_size: what is summed first depends on it")
    if world_size & (world_size - 1):
        raise UserError(f"--deterministic works on 1, 2, 4, 8, ... ranks, not on {world_size}")


def divisors(n: int) -> list[int]:
    """`12 -> [1, 2, 3, 4, 6, 12]`"""
    return [d for d in range(1, n + 1) if n % d == 0]


class RunLock:
    """A run's directory belongs to one process on each rank while this lives; the kernel frees it with its process.

    The lock file says who holds it: `{"pid", "host", "started", "command"}`. One that a dead process has left is no
    obstacle (the record is only read when the lock is held), but worth a line: that run did not end by itself. Every
    rank has a file of its own, for a rank that outlives the others may still be writing.
    """

    def __init__(self, directory: str | Path, rank: int = 0):
        self.path = Path(make_dirs(directory)) / (f".lock_rank{rank}" if rank else ".lock")
        self._lock = FileLock(self.path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{directory} is being trained by another process ({self._holder() or 'unknown'}): wait "
                            "for it, end it, or use --model_tag=NAME") from None
        sync_parents(self.path)  # here, once a process
        if holder := self._holder():
            print0(f"note: the last process in {directory} ({holder}) did not end by itself")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S"),
              "command": " ".join(" ".join(sys.orig_argv).split())[:200]}
        self._record(json.dumps(me))

    def _holder(self) -> str:
        """`pid 4711 on host x since 2026-11-28 01:02:03: python -m ...`, or "" where the file does not say."""
        try:
            him = json.loads(self.path.read_text(encoding="utf-8"))
            return f"pid {him['pid']} on {him['host']} since {him['started']}: {him['command']}"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _record(self, text: str) -> None:
        with open(self.path, "r+", encoding="utf-8") as f:  # the file that is locked, not another of its name
            f.truncate()
            f.write(text)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):  # the whole directory may be gone
                self._record("")
        finally:
            self._lock.release()


class Stopped(KeyboardInterrupt):
    """A run that was asked to end, and has saved. `status` is the shell's for that signal: SIGINT 130, SIGTERM 143."""

    def __init__(self, number: int, step: int):
        self.status = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, saved: --resume goes on")


# A child that a library forks has our handlers, and must not write its signals into our pipe.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopSignals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is kept in `requested` (else 0), so that a step can be
    finished and saved. The second SIGINT or SIGTERM leaves at once, with the status of a process that the signal ended.

    At once means at once: also when the main thread waits inside C++ for a rank that hangs, where no Python handler
    runs. So a thread counts the signals as the kernel delivers them. Nothing half-written is ever taken for good, which
    makes that safe. Within a second of the first it is the same request (torchrun and SLURM both pass it on), and
    SIGHUP is never a second: shell and kernel may both send one.

    Off the main thread (tests, notebooks) signals cannot be caught and stay as they are. Under torchrun every rank gets
    the signal; `speaks` is for one of them. There the end of the launcher is a request too: nobody else would ever end
    this rank.
    """

    AGAIN = 1.0  # seconds

    def __init__(self, speaks: bool = True) -> None:
        self.signalled, self.speaks = 0, speaks

    @property
    def requested(self) -> int:
        if not self.signalled and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != LAUNCHER:
            self._ask(signal.SIGTERM, "the launcher is gone: ")
        return self.signalled

    def _ask(self, number: int, why: str = "", how: str = "") -> None:
        self.signalled = self.signalled or int(number)
        if self.speaks:
            say(f"\n{why}stopping after this step, then saving{how}", file=sys.stderr)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # the terminal is gone, and writing to it would be an error
            mute(*(fd for fd in (1, 2) if stat.S_ISCHR(os.fstat(fd).st_mode)))
        if not self.signalled:
            self._ask(number, how=" (again to leave at once)")

    def _count(self) -> None:
        """In a thread: read a byte for each signal, leave on the second."""
        first = None
        while number := os.read(self._reader, 1)[0]:  # 0: the end
            if number in (signal.SIGINT, signal.SIGTERM):
                first = first or time.monotonic()
                if time.monotonic() - first > self.AGAIN:
                    os._exit(128 + number)

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._count, daemon=True, name="nanochat-signals")
            self._thread.start()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set by Python
        if hasattr(self, "_reader"):
            signal.set_wakeup_fd(self._wakeup)
            os.write(self._writer, b"\0")
            self._thread.join()
            os.close(self._reader)
            os.close(self._writer)


class MetricsLog:
    """`log.jsonl` beside the checkpoints: one JSON object a line, each with its step.

    A checkpoint holds the log's `mark()`: its length and hash at that step. A run that resumes gives it back, and the
    file reads as if it had never stopped: what came after is cut off, what came before is verified.
    """

    def __init__(self, path: str | Path, mark: dict[str, Any] | None = None):
        self.path = Path(path)
        kept = b""
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path} is no file: remove it")  # but a pipe, say, which would never end
        if mark and mark["bytes"] and not self.path.exists():
            print0(f"note: {self.path} is gone: the curve of this run begins anew")
        elif mark:
            kept = self.path.read_bytes()[: mark["bytes"]] if self.path.exists() else b""
            if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
                raise UserError(f"{self.path} is damaged: it is not what was written before the last checkpoint; "
                                "delete it to go on without the curve so far")
        atomic_write(self.path, kept)
        self._bytes, self._digest = len(kept), hashlib.sha256(kept)

    def log(self, step: int, **values: Any) -> None:
        """Append one line."""
        line = (json.dumps({"step": step, **values}) + "\n").encode("utf-8")
        with open(self.path, "ab") as f:
            f.write(line)
        self._bytes += len(line)
        self._digest.update(line)

    def mark(self) -> dict[str, Any]:
        """What a checkpoint must hold to come back to this very line."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics log; a torn last line (a kill while writing) is left out."""
    records = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


def curve(path: str | Path, *names: str) -> dict[str, list]:
    """The metrics log as the report draws it: `{"step": [1, 10], "loss": [6.9, None]}`; None: no step had that."""
    records = read_metrics(path)
    return {key: [r.get(key) for r in records] for key in ("step", *names)}


def averages(records: list[dict[str, float]]) -> dict[str, float]:
    """Of each name, over the records that have it: `[{"a": 1, "b": 2}, {"a": 3}] -> {"a": 2, "b": 2}`"""
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


@dataclass
class StepLog:
    """Prints a line and writes a metrics record every `every` steps, with averages over the steps since the last.

    Tokens are those of all ranks, and so are the two rates that they are held against: of matrix products as measured
    here and now, and (None: not known) as published for the devices.
    """

    every: int
    num_iterations: int
    flops_per_token: int
    matmul_flops: float
    peak_flops: float | None
    metrics: MetricsLog | None  # None: on all ranks but one
    rate: float = 0.0  # tokens a second in this process, without its first (compiling) step
    _first: tuple[int, float] | None = None  # tokens and seconds after the first step of this process

    def __call__(self, state: TrainState, m: dict[str, Any]) -> None:
        if m.get("figures"):
            state.figures.append(m["figures"])
        if math.isfinite(m["loss"]) and math.isfinite(m["norm"]):  # a skipped step has taught nothing
            state.losses.append(m["loss"])
        now, first = (state.tokens, state.train_seconds), self._first is None
        self._first = self._first or now
        due = state.step in (1, self.num_iterations) or (self.every > 0 and state.step % self.every == 0)
        if not first and not due:
            return
        loss = sum(state.losses) / len(state.losses) if state.losses else None
        rate = (now[0] - state.logged[0]) / (now[1] - state.logged[1])
        if not first:
            self.rate = (now[0] - self._first[0]) / (now[1] - self._first[1])
        left = (self.num_iterations - state.step) * (state.tokens / state.step) / rate
        mfu = self.mfu(rate)
        figures = averages(state.figures)
        print0(f"step {state.step:5d}/{self.num_iterations} | loss {'-' if loss is None else f'{loss:.4f}'} | "
               f"lr ×{m['lr']:.2f} | norm {m['norm']:.2f} | "
               + "".join(f"{name} {value:.3g} | " for name, value in figures.items())
               + f"{rate:,.0f} tok/s | {self.share(rate):.0%} of matmul rate"
               + ("" if mfu is None else f", MFU {mfu:.0%}") + f" | {left / 60:.1f} min left")
        if not due:  # a sign of life after a resume: no line that the uninterrupted run would not have
            return
        state.losses, state.figures, state.logged = [], [], now
        if self.metrics:
            norm = m["norm"] if math.isfinite(m["norm"]) else None
            self.metrics.log(state.step, loss=loss, norm=norm, lr=m["lr"], tokens_per_second=rate, **figures)

    def share(self, rate: float) -> float:
        """What part of the measured matrix-product rate a number of tokens a second is."""
        return rate * self.flops_per_token / self.matmul_flops

    def mfu(self, rate: float) -> float | None:
        """Model FLOPs utilisation, against the published peak; None where that is not known."""
        return rate * self.flops_per_token / self.peak_flops if self.peak_flops else None

    def figures(self) -> dict[str, float | None]:
        """For the report; None where nothing was measured."""
        rate = self.rate or None
        return {"tokens_per_second": rate, "matmul_flops": self.matmul_flops, "peak_flops": self.peak_flops,
                "matmul_share": rate and self.share(rate), "mfu": rate and self.mfu(rate)}
