"""A share of the optimizer's work: what is communicated, updated and kept as one, and which part of it a rank has.

`optim.py` makes the buckets of every group and drives them: start_reduce → finish_reduce → norms → update →
start_gather → finish_gather. The two starts do not wait, so the next bucket is worked on while this one travels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.adamw import adamw_update
from nanochat.muon import POLAR_EXPRESS, QUINTIC, muon_update

# Elements that one call of an update rule works on. On a CPU its intermediate results then stay in the cache
# (dev/LOG.md), on a GPU they take some hundred megabytes instead of the size of the model.
BLOCK_ELEMENTS = {("cpu", "adamw"): 2**17, ("cpu", "muon"): 2**20}
BLOCK_ELEMENTS_ON_GPU = 2**26
DETERMINISTIC_ROWS = 64  # in that mode every call of AdamW gets this many rows, whoever owns them


@dataclass
class Group:
    """A row of the table: these parameters, by this rule, at this rate."""

    name: str
    rule: Literal["muon", "adamw"]
    params: dict[str, nn.Parameter]
    lr: float
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10
    weight_decay: float = 0.0
    dtype: torch.dtype = torch.float32  # of Newton–Schulz: the run's compute dtype
    polar_express: bool = False  # its coefficients instead of the quintic's

    @property
    def slots(self) -> tuple[str, ...]:
        """The state tensors that each parameter of the group has."""
        return ("momentum",) if self.rule == "muon" else ("exp_avg", "exp_avg_sq")


def tree_sum(terms: Sequence[Any]) -> Any:
    """The sum in a binary tree that halves at the middle: `[a, b, c, d, e] -> (a + b) + (c + (d + e))`.

    The order depends on the number of terms alone. If each term is itself such a tree over as many leaves, and there
    are 2ⁿ terms, the whole is the tree over all leaves: the bits do not depend on how leaves were dealt to ranks.
    """
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return tree_sum(terms[:middle]) + tree_sum(terms[middle:])


def all_gather(whole: Tensor, own: Tensor) -> dist.Work:
    """Collect every rank's `own` into `whole`, in rank order. Both contiguous; `own` may be its place in `whole`."""
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.14
    return collect(whole.view(-1), own.view(-1), async_op=True)


class Bucket:
    """What is communicated and updated as one: an AdamW parameter cut by rows, or Muon's same-shape matrices, stacked.

    All its weights are one tensor `weights` (units, ...), of which the parameters are views, so that an update in place
    and a gather into it need no copies. A unit is a row or a matrix. Each rank has a share of them, and units of zeros
    are added where they do not divide: 7 matrices over 4 ranks are 2, 2, 2 and 1, in a tensor of 8.
    """

    def __init__(self, group: Group, params: dict[str, nn.Parameter], rank: int, world_size: int, deterministic: bool):
        self.group, self.params, self.world_size = group, params, world_size
        self.stacked = group.rule == "muon"
        first = next(iter(params.values()))
        self.shape = first.shape if self.stacked else first.shape[1:]  # of a unit
        self.units = len(params) if self.stacked else first.shape[0]
        self.device = first.device
        self.dtype = torch.promote_types(first.dtype, torch.float32)  # of gradients, state and arithmetic
        # A call of an update rule gets `block` units. No kernel promises the same bits for another number of them (as
        # a batch of products, or in the tail of a vector loop): in deterministic mode all calls are of one size.
        limit = BLOCK_ELEMENTS.get((self.device.type, group.rule), BLOCK_ELEMENTS_ON_GPU)
        self.block = max(1, limit // max(1, math.prod(self.shape)))
        if deterministic:
            self.block = 1 if self.stacked else DETERMINISTIC_ROWS
        align = self.block if deterministic else 1
        self.share = math.ceil(self.units / (align * world_size)) * align
        self.start = rank * self.share
        self.own = min(self.share, max(0, self.units - self.start))  # without the added zeros
        end = math.ceil(self.own / align) * align
        self.blocks = [slice(a, min(a + self.block, end)) for a in range(0, end, self.block)]  # of the own units
        self.weights = self._take_over()
        self.state = {slot: torch.zeros(self.share, *self.shape, dtype=self.dtype, device=self.device)
                      for slot in group.slots}
        self.gradient: Tensor | list[Tensor] = []  # of the own units, summed over ranks
        self._work: dist.Work | None = None
        self._sent = self._received = torch.empty(0)  # buffers of a collective that is under way

    def _take_over(self) -> Tensor:
        """One tensor for all weights (share · world_size, ...), and every parameter a view into it."""
        total = self.share * self.world_size
        first = next(iter(self.params.values()))
        if not self.stacked and total == self.units and first.is_contiguous():
            return first.data
        weights = torch.zeros(total, *self.shape, dtype=first.dtype, device=self.device)
        for i, p in enumerate(self.params.values()):
            view = weights[i] if self.stacked else weights[: self.units]
            view.copy_(p.data)
            p.data = view
        return weights

    def check_storage(self) -> None:
        """Refuse to train tensors that the model no longer uses (`model.to(...)` gives parameters new memory)."""
        for i, (name, p) in enumerate(self.params.items()):
            if p.data_ptr() != (self.weights[i] if self.stacked else self.weights).data_ptr():
                raise RuntimeError(f"{name} was moved after the optimizer was made: make the optimizer last")

    # ----------------------------------------------------------------- gradients

    def start_reduce(self) -> None:
        """Take the parameters' gradients (none counts as zero) and send each rank its share, without waiting."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params.values()]
        grads = [g.to(self.dtype) for g in grads]
        for p in self.params.values():
            p.grad = None
        if self.world_size == 1:
            self.gradient = grads if self.stacked else self._padded(grads)
            return
        self._sent = self._padded(grads)
        if self.device.type == "cpu":  # the pieces by all-to-all, to be summed here in a fixed order: see `tree_sum`
            self._received = torch.empty_like(self._sent)
            self._work = dist.all_to_all_single(self._received, self._sent, async_op=True)
        else:
            self._received = self._sent.new_empty(self.share, *self.shape)
            scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # as in `all_gather`
            self._work = scatter(self._received, self._sent, async_op=True)

    def _padded(self, grads: list[Tensor]) -> Tensor:
        """All gradients as one contiguous tensor (share · world_size, ...)."""
        missing = self.share * self.world_size - self.units
        if not self.stacked and not missing:
            return grads[0].contiguous()
        zeros = torch.zeros(missing, *self.shape, dtype=self.dtype, device=self.device)
        return torch.cat([*(g.unsqueeze(0) if self.stacked else g for g in grads), zeros])

    def finish_reduce(self) -> None:
        if self._work is not None:
            self._work.wait()
            if self.device.type == "cpu":
                self.gradient = tree_sum(self._received.view(self.world_size, self.share, *self.shape))
            else:
                self.gradient = self._received
        self._work, self._sent, self._received = None, torch.empty(0), torch.empty(0)

    def _gradient_of(self, block: slice) -> Tensor:
        """(units of the block, ...). Matrices that are not stacked yet are so now: a small copy stays in the cache."""
        g = self.gradient[block]
        return torch.stack(g) if isinstance(g, list) else g

    def norms(self) -> Tensor:
        """The norm of the gradient of each own unit, zero for added units: (share,).

        Of rows first, then of the rows' norms: a float32 sum over millions of elements is wrong in the fourth digit.
        """
        norms = torch.zeros(self.share, dtype=self.dtype, device=self.device)
        for block in self.blocks:
            g = self._gradient_of(block)
            rows = torch.linalg.vector_norm(g if self.stacked else g.reshape(len(g), -1), dim=-1)
            norms[block] = torch.linalg.vector_norm(rows, dim=-1) if self.stacked else rows
        return norms

    # ----------------------------------------------------------------- update

    def update(self, *, step: int, lr: float, momentum: float, grad_scale: float) -> None:
        """The rule on the own units. Arithmetic in float32 or wider; a narrower weight is rounded once, at the end."""
        g = self.group
        for block in self.blocks:
            weights = self.weights[self.start + block.start : self.start + block.stop]
            p = weights.to(self.dtype)  # itself, unless narrower
            grad = self._gradient_of(block)
            if grad_scale != 1.0:
                grad = grad * grad_scale
            state = [t[block] for t in self.state.values()]
            if g.rule == "adamw":
                adamw_update(p, grad, *state, step=step, lr=lr, betas=g.betas, eps=g.eps, weight_decay=g.weight_decay)
            else:
                muon_update(p, grad, *state, lr=lr, momentum=momentum, weight_decay=g.weight_decay, dtype=g.dtype,
                            coefficients=POLAR_EXPRESS if g.polar_express else QUINTIC)
            if p is not weights:
                weights.copy_(p)
        self.gradient = []

    def start_gather(self) -> None:
        if self.world_size > 1:
            self._work = all_gather(self.weights, self.weights[self.start : self.start + self.share])

    def finish_gather(self) -> None:
        if self._work is not None:
            self._work.wait()
        self._work = None

    # ----------------------------------------------------------------- state

    def full_shapes(self) -> dict[str, torch.Size]:
        return {f"{name}/{slot}": p.shape for name, p in self.params.items() for slot in self.state}

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's part: the matrices that it owns, or its rows of the one parameter; nothing if it has none."""
        names = list(self.params)
        if self.stacked:
            return {f"{names[self.start + i]}/{slot}": t[i] for slot, t in self.state.items() for i in range(self.own)}
        return {f"{names[0]}/{slot}": t[: self.own] for slot, t in self.state.items() if self.own}

    def load_state_dict(self, full: dict[str, Tensor]) -> None:
        for key, own in self.state_dict().items():
            own.copy_(full[key] if self.stacked else full[key][self.start : self.start + self.own])


def make_buckets(group: Group, rank: int, world_size: int, deterministic: bool) -> list[Bucket]:
    """One for each AdamW parameter; one for all matrices of a shape and dtype of a Muon group."""
    together: dict[object, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, p in group.params.items():
        if p.dim() != 2 if group.rule == "muon" else p.dim() < 1:
            raise ValueError(f"{name} has shape {tuple(p.shape)}: Muon is for matrices, AdamW for vectors and more")
        together[(p.shape, p.dtype, p.device) if group.rule == "muon" else name][name] = p
    return [Bucket(group, params, rank, world_size, deterministic) for params in together.values()]
