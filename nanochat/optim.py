"""The optimizer: one class, one table with a row per parameter group, on one rank or many.

    optimizer = Optimizer([Group("matrices", "muon", {...}, lr=0.02), Group("head", "adamw", {...}, lr=0.004)])
    loss.backward()                                     # each rank its rows, divided by the count of the global batch
    norm = optimizer.reduce()                           # gradients summed over ranks; their global norm
    optimizer.step(lr_scale=0.5, momentum=0.95, grad_scale=min(1.0, 1.0 / norm))

The update rules are pure functions in `muon.py` and `adamw.py`; `bucket.py` says who does which part. Each rank sums,
updates and keeps the state of its share, then all collect the new weights (ZeRO stage 2: Rajbhandari et al. 2020,
section 5). One rank owns everything and talks to nobody, by the same code.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.bucket import Group, make_buckets
from nanochat.common import UserError
from nanochat.ranks import gather, rank_and_world


class Optimizer:
    """All parameters of a model, each by its group's rule, shared out over the ranks of the process group.

    Make it last: it takes over the memory of the parameters (they stay the same `Parameter` objects). Every rank must
    start from the same weights. State is made at once, in float32 or wider; there is no float32 copy of a bfloat16
    parameter, so updates smaller than its rounding are lost: keep master weights in float32.

    Weights change in place, unseen by autograd: no backward pass may go over a forward pass from before `step()`.

    `deterministic` (CPU): the same bits for 1, 2, 4, ... ranks, as long as each rank sums the gradients of its rows in
    a binary tree too (`take_gradients`, `add_gradients`) and all have the same number of threads.
    """

    def __init__(self, groups: list[Group], *, deterministic: bool = False):
        self.groups = groups
        self.steps = 0
        rank, self.world_size = rank_and_world()
        params = self.parameters()
        if len({id(p) for p in params}) < len(params) or len({p.data_ptr() for p in params}) < len(params):
            raise ValueError("a parameter stands in two groups, or under two names")
        if deterministic and any(p.device.type != "cpu" for p in params):
            raise UserError("deterministic training needs --device_type=cpu: GPU kernels do not promise the same bits")
        if deterministic and self.world_size & (self.world_size - 1):
            raise UserError(f"deterministic training needs 1, 2, 4, 8, ... ranks, not {self.world_size}")
        buckets = [b for g in groups for b in make_buckets(g, rank, self.world_size, deterministic)]
        # The short updates first: their weights travel while Newton–Schulz is computed.
        self.buckets = sorted(buckets, key=lambda b: b.stacked)
        self._reduced = False

    def parameters(self) -> list[nn.Parameter]:
        return [p for g in self.groups for p in g.params.values()]

    def scale_lr(self, factor: float) -> None:
        """Multiply every group's rate: midtraining and fine-tuning start lower."""
        for g in self.groups:
            g.lr *= factor

    def zero_grad(self) -> None:
        """Forget all gradients, reduced ones too."""
        for p in self.parameters():
            p.grad = None
        for b in self.buckets:
            b.gradient = []
        self._reduced = False

    # ----------------------------------------------------------------- gradients over micro-batches

    def take_gradients(self) -> list[Tensor]:
        """The parameters' gradients (none counts as zero), which are theirs no longer."""
        taken = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()]
        self.zero_grad()
        return taken

    def add_gradients(self, taken: list[Tensor]) -> None:
        """Add gradients that were taken to those that came since: a node of the binary tree, `taken` its left child."""
        for p, left, right in zip(self.parameters(), taken, self.take_gradients(), strict=True):
            p.grad = left.add_(right)

    # ----------------------------------------------------------------- a step

    @torch.no_grad()
    def reduce(self) -> float:
        """Sum the gradients over ranks, each rank its share, and return the norm of the whole: the same on all ranks.

        The parameters' `.grad` are used up (None afterwards), the weights are not touched. A number that is not finite
        on any rank makes the norm not finite on all. Clip by `step(grad_scale=...)`, that is after summing.
        """
        if self._reduced:
            raise RuntimeError("the gradients are reduced already: call step() or zero_grad() first")
        for b in self.buckets:  # all of them before anything is sent
            b.check_storage()
        if all(p.grad is None for p in self.parameters()):
            raise RuntimeError("no parameter has a gradient: call backward() first; if that was done, the model has "
                               "new parameters since its optimizer was made (load_state_dict(assign=True) does that)")
        for b in self.buckets:
            b.start_reduce()
        norms = []
        for b in self.buckets:
            b.finish_reduce()
            norms.append(b.norms())
        self._reduced = True
        # In the order of units, without the zeros that were added: the sum is then the same for any number of ranks.
        by_bucket = gather(torch.cat(norms)).cpu().double().split([b.share for b in self.buckets], dim=1)
        units = [t.flatten()[: b.units] for b, t in zip(self.buckets, by_bucket)]
        return float(torch.cat(units).square().sum().sqrt())

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0, momentum: float = 0.95, grad_scale: float = 1.0) -> None:
        """Update all weights by the reduced gradients times `grad_scale`; reduces them itself if that was not done.

        `lr_scale` and `momentum` (Muon's) come from the schedule. Each rank updates its share of a bucket and sends it
        off while it works on the next.
        """
        if not self._reduced:
            self.reduce()
        self.steps += 1
        for b in self.buckets:
            b.update(step=self.steps, lr=b.group.lr * lr_scale, momentum=momentum, grad_scale=grad_scale)
            b.start_gather()
        for b in self.buckets:
            b.finish_gather()
        self._reduced = False

    # ----------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's part, flat and by name, for safetensors: `{"lm_head.weight/exp_avg": ..., "steps": tensor(7)}`.

        The whole of a matrix, or the rows that the rank owns: `merge_state_dicts` puts the parts together.
        """
        flat = {key: t for b in self.buckets for key, t in b.state_dict().items()}
        return {**flat, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, full: dict[str, Tensor]) -> None:
        """Take this rank's part out of the merged state of any number of ranks.

        Another set of names or shapes is refused with the difference.
        """
        shapes = {key: shape for b in self.buckets for key, shape in b.full_shapes().items()}
        difference = sorted(shapes.keys() ^ (full.keys() - {"steps"}))
        if difference or "steps" not in full:
            raise UserError(f"the saved optimizer state belongs to another model: {len(difference)} names differ, "
                            f"first {(difference or ['steps'])[0]}")
        for key, shape in shapes.items():
            if full[key].shape != shape:
                raise UserError(f"optimizer state {key} is {tuple(full[key].shape)}, the model needs {tuple(shape)}")
            if not full[key].is_floating_point():
                raise UserError(f"optimizer state {key} is {full[key].dtype}, the model needs another dtype")
        self.steps = int(full["steps"])
        for b in self.buckets:
            b.load_state_dict(full)


def merge_state_dicts(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The full state out of the parts of all ranks, in rank order: what stands in several is cut by rows."""
    steps = sorted({int(part["steps"]) for part in parts})
    if len(steps) != 1:
        raise UserError(f"the optimizer files of the ranks are of different steps: {steps}")
    keys = dict.fromkeys(key for part in parts for key in part if key != "steps")
    pieces = {key: [part[key] for part in parts if key in part] for key in keys}
    merged = {key: found[0] if len(found) == 1 else torch.cat(found) for key, found in pieces.items()}
    return {**merged, "steps": torch.tensor(steps[0])}


# --------------------------------------------------------------------------- the seed's names


def Muon(params: dict[str, nn.Parameter], lr: float = 0.02) -> Optimizer:
    """The seed's name: an `Optimizer` of one Muon group."""
    return Optimizer([Group("muon", "muon", params, lr)])


def AdamW(
    params: dict[str, nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """The seed's name: an `Optimizer` of one AdamW group."""
    return Optimizer([Group("adamw", "adamw", params, lr, betas, eps, weight_decay)])


def _need_process_group(name: str) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise UserError(f"{name} needs a process group: start with torchrun, or use {name.removeprefix('Dist')}")


def DistMuon(params: dict[str, nn.Parameter], lr: float = 0.02) -> Optimizer:
    """The seed's name: `Muon` where there must be a process group."""
    _need_process_group("DistMuon")
    return Muon(params, lr)


def DistAdamW(
    params: dict[str, nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """The seed's name: `AdamW` where there must be a process group."""
    _need_process_group("DistAdamW")
    return AdamW(params, lr, betas, eps, weight_decay)
