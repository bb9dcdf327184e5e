"""AdamW for embeddings and the head: a pure update rule (Loshchilov & Hutter 2019, algorithm 2)."""

from __future__ import annotations

from torch import Tensor


def adamw_update(
    p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *,
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:
    """One step in place; all tensors of one shape, all float32 (or float64). `step` counts from 1.

    Weight decay is decoupled; epsilon is added after the bias correction (before it, early steps would be damped).
    At the first step every element moves by lr against the sign of its gradient, however small that gradient is.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    rms = exp_avg_sq.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
    if weight_decay:
        p.mul_(1 - lr * weight_decay)
    p.addcdiv_(exp_avg, rms, value=-lr / (1 - beta1**step))
