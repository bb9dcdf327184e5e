"""What surrounds a long run: its sizes, its state, signals that ask it to stop, a log of its metrics that survives it.

    with StopSignals() as stop:
        while not stop.requested: ...          # the first Ctrl-C or SIGTERM asks, the second leaves at once
"""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from filelock import FileLock, Timeout

from nanochat.common import UserError, atomic_write, check_at_least, print0

LAUNCHER = os.getppid()  # under torchrun, the process that started this rank


@dataclass
class TrainState:
    """What must be saved, beside weights and optimizer, to go on as if nothing had happened. JSON; of all ranks."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: int = 0  # steps whose gradient was not finite
    train_seconds: float = 0.0
    loader: dict[str, Any] | None = None
    evaluations: list[dict[str, float | None]] = field(default_factory=list)  # {"step": ..., "bpb": ...}


# Settings that may differ between a run and its continuation without changing what is computed.
FREE_FIELDS = {"resume", "overwrite", "save_every", "eval_every", "sample_every", "eval_tokens", "log_every",
               "nonfinite", "device_batch_size"}


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
    if deterministic and device_batch_size == "auto":
        raise UserError("--deterministic needs a --device_batch_size: what is summed first depends on it")
    if deterministic and world_size & (world_size - 1):
        raise UserError(f"--deterministic works on 1, 2, 4, 8, ... ranks, not on {world_size}")
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


def divisors(n: int) -> list[int]:
    """`12 -> [1, 2, 3, 4, 6, 12]`"""
    return [d for d in range(1, n + 1) if n % d == 0]


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
    """While entered, SIGINT, SIGTERM and SIGHUP set `requested`, so that a step can be finished and saved.

    A second signal raises `KeyboardInterrupt` at once; nothing half-written is ever taken for good, so that is safe.
    (Not a second SIGHUP: shell and kernel may both send one.) Off the main thread (tests, notebooks) signals cannot be
    caught and stay as they are. Under torchrun every rank gets the signal; `speaks` is for one of them. There the end
    of the launcher is a request too: nobody else would ever end this rank.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.signalled, self.speaks = False, speaks

    @property
    def requested(self) -> bool:
        if not self.signalled and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != LAUNCHER:
            self._ask("the launcher is gone: ")
        return self.signalled

    def _ask(self, why: str = "", how: str = "") -> None:
        self.signalled = True
        if self.speaks:
            print(f"\n{why}stopping after this step, then saving{how}", file=sys.stderr, flush=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        elif self.signalled:
            raise KeyboardInterrupt
        self._ask(how=" (again to leave at once)")

    def __enter__(self) -> StopSignals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """Let output go nowhere where it went to a terminal: that one is gone, and writing to it would be an error."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for fd in (1, 2):
            if stat.S_ISCHR(os.fstat(fd).st_mode):
                os.dup2(nowhere.fileno(), fd)


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
