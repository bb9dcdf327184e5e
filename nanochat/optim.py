"""The optimizer: one class, one table with a row per parameter group, state keyed by parameter name.

    optimizer = Optimizer([Group("matrices", "muon", {...}, lr=0.02), Group("head", "adamw", {...}, lr=0.004)])
    optimizer.step(lr_scale=0.5, momentum=0.95)

The update rules are pure functions in `muon.py` and `adamw.py`; what is here is who gets which rule, and the state.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nanochat.adamw import adamw_update
from nanochat.common import UserError
from nanochat.muon import muon_update


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

    @property
    def slots(self) -> tuple[str, ...]:
        """The state tensors that each parameter of the group has."""
        return ("momentum",) if self.rule == "muon" else ("exp_avg", "exp_avg_sq")


class Optimizer:
    """All parameters of a model, each by its group's rule. State is made at once, in float32 or wider."""

    def __init__(self, groups: list[Group]):
        names = [name for g in groups for name in g.params]
        if len(names) != len(set(names)):
            raise ValueError("a parameter stands in two groups")
        self.groups = groups
        self.steps = 0
        self.state: dict[str, dict[str, Tensor]] = {
            name: {slot: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for slot in g.slots}
            for g in groups
            for name, p in g.params.items()
        }

    def parameters(self) -> list[nn.Parameter]:
        return [p for g in self.groups for p in g.params.values()]

    def scale_lr(self, factor: float) -> None:
        """Multiply every group's rate: midtraining and fine-tuning start lower."""
        for g in self.groups:
            g.lr *= factor

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0, momentum: float = 0.95) -> None:
        """One update of every parameter that has a gradient. `lr_scale` comes from the schedule, as does `momentum`."""
        self.steps += 1
        for g in self.groups:
            params = {name: p for name, p in g.params.items() if p.grad is not None}
            if g.rule == "adamw":
                for name, p in params.items():
                    s = self.state[name]
                    adamw_update(p, p.grad, s["exp_avg"], s["exp_avg_sq"], step=self.steps, lr=g.lr * lr_scale,
                                 betas=g.betas, eps=g.eps, weight_decay=g.weight_decay)
            else:
                self._muon_step(g, params, g.lr * lr_scale, momentum)

    def _muon_step(self, group: Group, params: dict[str, nn.Parameter], lr: float, momentum: float) -> None:
        """Same-shape matrices as one stack: copied in, updated together, copied back."""
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, p in params.items():
            by_shape[p.shape].append(name)
        for names in by_shape.values():
            stack = torch.stack([params[n] for n in names])
            buffers = torch.stack([self.state[n]["momentum"] for n in names])
            muon_update(stack, torch.stack([params[n].grad for n in names]), buffers, lr=lr, momentum=momentum,
                        weight_decay=group.weight_decay, dtype=group.dtype)
            for i, n in enumerate(names):
                params[n].copy_(stack[i])
                self.state[n]["momentum"].copy_(buffers[i])

    # ----------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Tensor]:
        """Flat and by name, for safetensors: `{"lm_head.weight/exp_avg": ..., "steps": tensor(7)}`."""
        flat = {f"{name}/{slot}": t for name, slots in self.state.items() for slot, t in slots.items()}
        return {**flat, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, flat: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`; another set of names or shapes is refused with the difference."""
        own = self.state_dict()
        if own.keys() != flat.keys():
            difference = sorted(own.keys() ^ flat.keys())
            raise UserError(f"the saved optimizer state belongs to another model: {len(difference)} names differ, "
                            f"first {difference[0]}")
        self.steps = int(flat["steps"])
        for name, slots in self.state.items():
            for slot, tensor in slots.items():
                saved = flat[f"{name}/{slot}"]
                if saved.shape != tensor.shape:
                    raise UserError(f"optimizer state {name}/{slot} is {tuple(saved.shape)}, "
                                    f"the model needs {tuple(tensor.shape)}")
                tensor.copy_(saved)


def Muon(params: dict[str, nn.Parameter], lr: float = 0.02) -> Optimizer:
    """The seed's name: an `Optimizer` of one Muon group."""
    return Optimizer([Group("muon", "muon", params, lr)])


def AdamW(
    params: dict[str, nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """The seed's name: an `Optimizer` of one AdamW group."""
    return Optimizer([Group("adamw", "adamw", params, lr, betas, eps, weight_decay)])
