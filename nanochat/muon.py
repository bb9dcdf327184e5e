"""Muon: momentum whose update is made orthogonal, for the weight matrices of the blocks. Pure functions.

Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with the quintic coefficients
given there. A stack of same-shape matrices is updated together: one batched product instead of many small ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Chosen for slope at zero, not for convergence to exactly 1: singular values land in about [0.7, 1.2].
QUINTIC = (3.4445, -4.7750, 2.0315)


def zeropower_via_newtonschulz5(G: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrix U Vᵀ of each G = U S Vᵀ, roughly, by Newton–Schulz iteration.

    G (..., rows, cols) -> same shape and dtype; `dtype` is that of the iteration (bfloat16 is enough where native).
    `steps=5`: a matrix of singular values [0.1, 1, 3] comes back with all of them between 0.5 and 1.3.
    """
    a, b, c = QUINTIC
    X = G.to(dtype)
    tall = G.size(-2) > G.size(-1)
    if tall:  # the Gram matrix of the short side is the smaller one
        X = X.mT
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # spectral norm at most 1
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X.mT if tall else X).to(G.dtype)


def muon_update(
    p: Tensor, grad: Tensor, momentum_buffer: Tensor, *,
    lr: float, momentum: float, weight_decay: float, dtype: torch.dtype,
) -> None:
    """One step in place on a stack of matrices: p, grad, momentum_buffer (N, rows, cols) float32.

    Nesterov momentum, orthogonalization, then a rate scaled by √max(1, rows/cols) so that tall matrices move as far.
    """
    momentum_buffer.lerp_(grad, 1 - momentum)
    update = zeropower_via_newtonschulz5(grad.lerp(momentum_buffer, momentum), dtype=dtype)
    p.mul_(1 - lr * weight_decay)
    p.add_(update, alpha=-lr * max(1.0, p.size(-2) / p.size(-1)) ** 0.5)
