"""What surrounds a long run: signals that ask it to stop, and a log of its metrics that survives it.

    with StopSignals() as stop:
        while not stop.requested: ...          # the first Ctrl-C or SIGTERM asks, the second leaves at once
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from nanochat.common import UserError, atomic_write

# Settings that may differ between a run and its continuation without changing what is computed.
FREE_FIELDS = {"resume", "overwrite", "save_every", "eval_every", "sample_every", "eval_tokens", "log_every",
               "device_batch_size"}


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
    Off the main thread (tests, notebooks) signals cannot be caught and stay as they are.
    """

    def __init__(self) -> None:
        self.requested = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
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
