"""What surrounds a long run: its state, signals that ask it to stop, and a log of its metrics that survives it.

    with StopSignals() as stop:
        while not stop.requested: ...          # the first Ctrl-C or SIGTERM asks, the second leaves at once
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from nanochat.common import UserError, atomic_write, print0


@dataclass
class TrainState:
    """What must be saved, beside weights and optimizer, to go on as if nothing had happened. JSON; of all ranks."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: int = 0  # steps whose gradient was not finite
    train_seconds: float = 0.0
    loader: dict[str, Any] | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)  # {"step": ..., "bpb": ...}


# Settings that may differ between a run and its continuation without changing what is computed.
FREE_FIELDS = {"resume", "overwrite", "save_every", "eval_every", "sample_every", "eval_tokens", "log_every",
               "nonfinite", "device_batch_size"}


def free_fields(settings: dict[str, Any]) -> set[str]:
    """`FREE_FIELDS`, but in deterministic mode what is summed first depends on the rows of a backward pass."""
    return FREE_FIELDS - {"device_batch_size"} if settings.get("deterministic") else FREE_FIELDS


def lock_run(directory: str | Path) -> FileLock:
    """Hold a run's directory as long as the returned lock lives; a second process is refused. Dies with its process."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(directory) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory} is being trained by another process: wait for it, end it, or use "
                        "--model_tag=NAME") from None
    return lock


class StopSignals:
    """While entered, SIGINT and SIGTERM set `requested`, so that a step can be finished and saved.

    A second signal raises `KeyboardInterrupt` at once; nothing half-written is ever taken for good, so that is safe.
    Off the main thread (tests, notebooks) signals cannot be caught and stay as they are. Under torchrun every rank gets
    the signal; `speaks` is for one of them.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.requested, self.speaks = False, speaks

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.speaks:
            print("\nstopping after this step, then saving (again to leave at once)", file=sys.stderr, flush=True)

    def __enter__(self) -> StopSignals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class MetricsLog:
    """`log.jsonl` beside the checkpoints: one JSON object a line, each with its step.

    When a run resumes, lines after the step it resumes from are dropped: the file reads as if it had never stopped.
    """

    def __init__(self, path: str | Path, resume_step: int):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_metrics(self.path) if r["step"] <= resume_step]
        atomic_write(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def log(self, step: int, **values: Any) -> None:
        """Append one line."""
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")


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


def loss_curve(path: str | Path) -> dict[str, list]:
    """The metrics log as the report draws it: `{"step": [1, 10], "loss": [6.9, None]}`; None: no step had a loss."""
    records = read_metrics(path)
    return {key: [r[key] for r in records] for key in ("step", "loss")}


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
    _losses: list[float] = field(default_factory=list)
    _from: tuple[int, float] | None = None  # tokens and seconds at the last line
    _first: tuple[int, float] | None = None  # the same after the first step of this process

    def __call__(self, state: TrainState, m: dict[str, float]) -> None:
        if math.isfinite(m["loss"]) and math.isfinite(m["norm"]):  # a skipped step has taught nothing
            self._losses.append(m["loss"])
        now = state.tokens, state.train_seconds
        first, before = self._first is None, self._from or (now[0] - m["tokens"], now[1] - m["seconds"])
        self._first = self._first or now
        if not first and state.step != self.num_iterations and (self.every < 1 or state.step % self.every):
            return
        self._from = now
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        rate = (now[0] - before[0]) / (now[1] - before[1])
        self._losses.clear()
        if not first:
            self.rate = (now[0] - self._first[0]) / (now[1] - self._first[1])
        left = (self.num_iterations - state.step) * (state.tokens / state.step) / rate
        mfu = self.mfu(rate)
        print0(f"step {state.step:5d}/{self.num_iterations} | loss {'-' if loss is None else f'{loss:.4f}'} | "
               f"lr ×{m['lr']:.2f} | norm {m['norm']:.2f} | {rate:,.0f} tok/s | {self.share(rate):.0%} of matmul rate"
               + ("" if mfu is None else f", MFU {mfu:.0%}") + f" | {left / 60:.1f} min left")
        if self.metrics:
            norm = m["norm"] if math.isfinite(m["norm"]) else None
            self.metrics.log(state.step, loss=loss, norm=norm, lr=m["lr"], tokens_per_second=rate)

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
