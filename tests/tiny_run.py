"""A run of a tiny model through the real `run_training`, in this process: for tests of what surrounds the steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import torch

import nanochat.train
from nanochat.dataloader import Batch
from nanochat.stage_config import StageConfig
from nanochat.train import Every, Rows, TrainState, run_training
from tests.helpers import small_model


def random_batches(rows: int, total: int, vocab: int, seed: int = 0, masked_from: int | None = None) -> list[Batch]:
    """`total` rows of 16 tokens in micro-batches of `rows`; from row `masked_from` on without supervision."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, vocab, (total, 16), generator=generator)
    y = torch.randint(0, vocab, (total, 16), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.4] = -1  # uneven: each row has another number of targets
    if masked_from is not None:
        y[masked_from:] = -1
    return [Batch(x[i : i + rows], y[i : i + rows], {"row": i}) for i in range(0, total, rows)]


@dataclass
class Small(StageConfig):
    total_batch_size: int = 64
    device_batch_size: int = 4
    compile: bool = False
    log_every: int = 1
    mixture: tuple[str, ...] = ()


def interrupt(state: TrainState) -> None:
    """A hook: asks this run to stop."""
    os.kill(os.getpid(), signal.SIGTERM)


def fit(tokenizer, directory, until: int, *, stop_at: int | None = None, hooks: list[Every] | None = None,
        model_sizes: dict[str, int] | None = None, **changes) -> dict:
    """Train a small model to step `until`; `stop_at` sends ourselves a SIGTERM after that step. `changes`: settings."""

    def batches(state) -> Iterator[Batch]:
        for i in range(0 if state is None else state["i"] + 1, 1000):
            (batch,) = random_batches(4, 4, tokenizer.get_vocab_size(), seed=i)
            batch.state = {"i": i}
            yield batch

    def hook(state: TrainState) -> None:
        if state.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    model = small_model(tokenizer, **(model_sizes or {}))
    quick = lambda device, dtype: 1e12 + float(torch.rand(()))  # noqa: E731 (the real one takes half a second; it draws)
    with mock.patch.object(nanochat.train, "measure_matmul_flops", quick):
        return run_training(model=model, tokenizer=tokenizer, optimizer=model.setup_optimizers(), make_batches=batches,
                            config=Small(**changes), num_iterations=until, rows=Rows(4, 4), directory=directory,
                            hooks=hooks or [Every(1, hook)])
