"""Saving beside the training: the step pays for a copy of the tensors, a thread writes them.

    with Saver(directory, tokenizer, keep=2) as saver:
        saver.save(step, model.state_dict(), optimizer.state_dict(), meta)     # returns when all is copied
        ...                                                                    # training goes on
        saver.finish()                                                         # the step is on the disk, or this raises

One save at a time: the next one waits for the one before. The thread runs the same `save_checkpoint` as everybody, with
the ranks' words in a process group of their own, so what holds for a save holds for this one. There is nothing to run
here; `python bench/checkpoint.py` measures what it costs.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.common import print0
from nanochat.ranks import OtherRankFailed, apart, leave_group, new_group, rank_and_world
from nanochat.rng import rng_state
from nanochat.tokenizer import RustBPETokenizer


class Saver:
    """Saves the steps of one run into `directory`. Every rank must make one, and call it alike.

    An error in the thread is raised by the next `save` or `finish`, and `failed` says so before. Leaving the `with`
    block waits for a save that is under way, whatever the reason for leaving.
    """

    def __init__(self, directory: Path, tokenizer: RustBPETokenizer, keep: int):
        self.directory, self.tokenizer, self.keep = directory, tokenizer, keep
        self.step = -1  # saved or being saved
        self._group = new_group()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def save(
        self, step: int, model_data: dict[str, Tensor], optimizer_data: dict[str, Tensor], meta: dict[str, Any]
    ) -> None:
        """Copy all that this rank will write, and begin to write it; nothing, if the step is saved already."""
        if step == self.step:
            return
        self.finish()
        rank, _ = rank_and_world()
        model_data = _copies(model_data) if rank == 0 else {}  # the others have the same weights
        work = (step, model_data, _copies(optimizer_data), meta, rng_state())
        self.step = step
        # a daemon: a second Ctrl-C leaves at once, and what is half-written then is never taken for good
        self._thread = threading.Thread(target=self._write, args=work, daemon=True, name="nanochat-saver")
        self._thread.start()

    def _write(self, step: int, model_data: dict[str, Tensor], optimizer_data: dict[str, Tensor],
               meta: dict[str, Any], rng: dict[str, str]) -> None:
        try:
            with apart(self._group):
                save_checkpoint(self.directory, step, model_data, optimizer_data, meta, tokenizer=self.tokenizer,
                                rng=rng, keep=self.keep)
        except BaseException as e:
            self._error = e
        else:
            print0(f"saved step {step} to {self.directory}")

    def finish(self) -> None:
        """Wait for the save under way; raise what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        try:
            self.finish()
        except Exception as mine:
            if error is None or isinstance(error, OtherRankFailed):
                raise
            print0(f"note: besides, the save of step {self.step} failed: {mine}")
        finally:
            leave_group(self._group)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
