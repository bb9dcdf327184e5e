"""The loss head as the formula stands: all logits, soft cap, softmax, in float64. The oracle of loss_head.py."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_losses(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float) -> Tensor:
    """x (N, C), weight (>= vocab_size, C), targets (N,) -> (N,) float64 losses, 0 where the target is -1.

    Differentiable; gradients arrive in the dtypes of `x` and `weight`.
    """
    logits = cap * torch.tanh(x.double() @ weight[:vocab_size].double().T / cap)
    chosen = logits.log_softmax(1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(targets >= 0, -chosen, 0.0)
