"""One step's gradient, over any number of micro-batches and ranks, and what to do when it is not a number.

    gradient = global_gradient(model, optimizer, batch, rows=8, loss_fn=loss_fn)
    optimizer.step(lr_scale, momentum, clip_factor(gradient.norm, 1.0))

Every rank brings its share of the step's rows. The loss is the sum over the supervised tokens of *all* ranks divided by
their number (or by the one that the batches say), so neither how rows are cut into micro-batches nor on which rank they
are matters, and every rank gets the same figures, to the bit: what one decides by them, all decide.

Deterministic mode fixes the order of every sum: over micro-batches (the *grains*) in a binary tree that halves them at
the middle. A rank's grains are neighbours in the stream and the ranks a power of two, so each rank's part is a subtree:
the optimizer goes on with the same tree over ranks, and 1, 2 and 4 ranks get the same weights to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.batch_size import LossFn, fewer_rows, memory_named
from nanochat.bucket import tree_sum
from nanochat.dataloader import Batch
from nanochat.optim import Optimizer
from nanochat.ranks import gather, sum_over_ranks
from nanochat.watchdog import WAITS


@dataclass
class Gradient:
    """What all ranks know of a step before the weights change. The gradient itself is in the optimizer."""

    loss: float  # per supervised token of the global batch
    norm: float
    supervised: int  # tokens of the global batch that count
    stop: int  # why some rank wants to end; 0: none does
    losses: list[Tensor] = field(repr=False, default_factory=list)  # of this rank's micro-batches, to find the bad one

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def split_rows(batch: Batch, rows: int) -> list[Batch]:
    """`Batch` of 8 rows, `rows=4` -> two of 4 rows, in order."""
    counts = [None] * len(batch.inputs) if batch.counts is None else batch.counts.split(rows)
    parts = zip(batch.inputs.split(rows), batch.targets.split(rows), counts)
    return [Batch(inputs, targets, batch.state, by) for inputs, targets, by in parts]


def global_gradient(
    model: nn.Module, optimizer: Optimizer, batch: Batch, *, rows: int, loss_fn: LossFn, deterministic: bool = False,
    stop: int = 0, place: Callable[[str], None] = lambda text: None,
) -> Gradient:
    """Forward and backward of this rank's `batch` in micro-batches of `rows`, then the reduction over ranks.

    The host waits for the device when all is done, and on CUDA once a micro-batch, for the number of its documents
    (`attention.document_offsets`). `stop` is this rank's reason to end, shared with the others: the largest number is
    everybody's. `place` hears what is done now (the watchdog's).
    """
    place(f"{WAITS}: their count of tokens")
    mine = (batch.targets >= 0).sum()
    supervised = sum_over_ranks(mine if batch.tokens is None else torch.full_like(mine, batch.tokens))
    per_token = supervised.clamp(min=1)  # without supervised tokens: loss 0, not NaN

    sizes = rows, batch.inputs.size(1), fewer_rows(rows, len(batch.inputs), deterministic)

    def backward(micro: Batch) -> Tensor:
        with memory_named("the forward pass", *sizes):
            loss = loss_fn(model, micro) / per_token
        with memory_named("the backward pass", *sizes):
            loss.backward()
        return loss.detach()

    place("the forward and backward pass")
    micro_batches = split_rows(batch, rows)
    losses = _backward_tree(micro_batches, backward, optimizer) if deterministic else [*map(backward, micro_batches)]
    place(f"{WAITS}: the gradients")
    wide = torch.float32 if batch.inputs.device.type == "mps" else torch.float64
    loss = tree_sum([x.to(wide) for x in losses])
    table = gather(torch.stack([loss, torch.full_like(loss, stop), supervised.to(wide)]))  # (ranks, 3)
    with memory_named("the reduction of the gradient", *sizes):
        norm = optimizer.reduce()
    of_ranks = table.tolist()
    loss, stop = tree_sum([row[0] for row in of_ranks]), int(max(row[1] for row in of_ranks))
    return Gradient(loss, norm, int(of_ranks[0][2]), stop, losses)


def _backward_tree(micro_batches: list[Batch], backward: Any, optimizer: Optimizer) -> list[Tensor]:
    """`backward` on each, leaving in `.grad` the sum of their gradients in the order of `tree_sum`."""
    if len(micro_batches) == 1:
        return [backward(micro_batches[0])]
    middle = len(micro_batches) // 2
    left = _backward_tree(micro_batches[:middle], backward, optimizer)
    gradients = optimizer.take_gradients()
    right = _backward_tree(micro_batches[middle:], backward, optimizer)
    optimizer.add_gradients(gradients)
    return left + right


def clip_factor(norm: float, limit: float) -> float:
    """What to multiply a gradient of this norm with so that it has at most `limit` (0: no limit). `(4, 1) -> 0.25`"""
    return limit / norm if 0 < limit < norm else 1.0


# --------------------------------------------------------------------------- when it is not a number


def describe_nonfinite(
    model: nn.Module, optimizer: Optimizer, batch: Batch, gradient: Gradient, *, rows: int, loss_fn: LossFn,
    before: dict[str, Any] | None,
) -> str:
    """Where a loss or a gradient stopped being a number: the first rank and micro-batch that show it, and its rows.

    Looks at the losses; if those are sound, each micro-batch is computed once more and its gradient looked at. All
    ranks must call this, and all get the same line. `before` is the loader's state that gives this batch.
    """
    micro_batches = split_rows(batch, rows)
    first = next((i for i, loss in enumerate(gradient.losses) if not math.isfinite(loss)), -1)
    found = _of_all_ranks(first, batch)
    if max(found) < 0:
        found = _of_all_ranks(_first_bad_gradient(model, optimizer, micro_batches, loss_fn), batch)
    rank = next((r for r, index in enumerate(found) if index >= 0), None)
    where = "in no micro-batch alone, only in their sum"
    if rank is not None:
        index = found[rank]
        where = (f"first on rank {rank}, in micro-batch {index + 1} of {len(micro_batches)} (rows {index * rows} to "
                 f"{(index + 1) * rows - 1} of the rank's {len(batch.inputs)})")
    state = {k: v for k, v in (before or {}).items() if not isinstance(v, dict)}
    return (f"loss {gradient.loss:.6g} and gradient norm {gradient.norm:.6g}, {where}, of the batch after loader state "
            f"{json.dumps(state) if state else '(the start)'}")


def _of_all_ranks(index: int, batch: Batch) -> list[int]:
    return gather(torch.tensor([index], device=batch.inputs.device)).flatten().tolist()


def _first_bad_gradient(model: nn.Module, optimizer: Optimizer, micro_batches: list[Batch], loss_fn: LossFn) -> int:
    """The first micro-batch whose own gradient is not finite, or -1."""
    for index, micro in enumerate(micro_batches):
        optimizer.zero_grad()
        (loss_fn(model, micro) / max(1, int((micro.targets >= 0).sum()))).backward()
        gradients = [p.grad for p in optimizer.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            return index
    return -1
