"""AdamW for embeddings and the head: a pure update rule (Loshchilov & Hutter 2019, algorithm 2)."""

from __future__ import annotations

from torch import Tensor


def adamw_update(
    p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *,
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:
    """One step in place; all tensors of one shape, float32. `step` counts from 1.

    Weight decay is decoupled; epsilon is added after the bias correction (before it, early steps would be damped).
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.lerp_(grad.square(), 1 - beta2)
    mean = exp_avg / (1 - beta1**step)
    rms = (exp_avg_sq / (1 - beta2**step)).sqrt_()
    p.mul_(1 - lr * weight_decay)
    p.addcdiv_(mean, rms.add_(eps), value=-lr)
