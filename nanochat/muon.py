"""Muon: momentum whose update is made orthogonal, for the weight matrices of the blocks. Pure functions.

Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024). A stack of same-shape matrices
is updated together: one batched product instead of many small ones.

    W, momentum = torch.randn(12, 256, 1024), torch.zeros(12, 256, 1024)
    muon_update(W, gradients, momentum, lr=0.02, momentum=0.95, weight_decay=0.0, dtype=torch.bfloat16)
"""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

# Both are odd quintics a·x + b·x³ + c·x⁵ that push each singular value x towards 1: one row a step, the last one again
# for the steps after it. Jordan's is the same at each step, chosen for its slope at zero and not for convergence:
# after five steps, singular values between 0.01 and 1 lie in [0.68, 1.14].
QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),)

# Amsel, Persson, Musco, Gower, "The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon
# Algorithm" (2025), algorithm 1 with the numbers of section 4.4 and appendix G: each step has the best quintic for the
# interval that the steps before it leave of [0.001, 1]. All but the last are p(x / 1.01), so that a singular value that
# bfloat16 rounded up past the interval does not run away. tests/reference/optimizer.py derives every digit.
POLAR_EXPRESS: Coefficients = (
    (8.205160, -22.901935, 16.460725),
    (4.066395, -2.861154, 0.518400),
    (3.909595, -2.823352, 0.525037),
    (3.285564, -2.415302, 0.485294),
    (2.277873, -1.619822, 0.398481),
    (1.872576, -1.230704, 0.358516),
    (1.856437, -1.213239, 0.356800),
    (1.875000, -1.250000, 0.375000),
)


def zeropower_via_newtonschulz5(
    G: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32, coefficients: Coefficients = QUINTIC
) -> Tensor:
    """The nearest semi-orthogonal matrix U Vᵀ of each G = U S Vᵀ, roughly, by Newton–Schulz iteration.

    G (..., rows, cols) -> same shape and dtype; `dtype` is that of the iteration (bfloat16 is enough where native;
    float64 is never narrowed). A zero matrix stays zero.
    `steps=5`: a matrix of singular values [0.1, 1, 3] comes back with all of them between 0.5 and 1.3.
    """
    if G.dtype == torch.float64:
        dtype = torch.float64
    rows, cols = G.shape[-2:]
    X = G.reshape(-1, rows, cols)  # (N, rows, cols)
    X = (X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)  # spectral norm at most 1
    for i in range(steps):
        a, b, c = coefficients[min(i, len(coefficients) - 1)]
        A = torch.bmm(X.mT, X) if rows > cols else torch.bmm(X, X.mT)  # (N, short, short): the smaller Gram matrix
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b·A + c·A²
        X = torch.baddbmm(X, X, B, beta=a) if rows > cols else torch.baddbmm(X, B, X, beta=a)  # a·X + B·X
    return X.to(G.dtype).view(G.shape)


def muon_update(
    p: Tensor, grad: Tensor, momentum_buffer: Tensor, *,
    lr: float, momentum: float, weight_decay: float, dtype: torch.dtype, coefficients: Coefficients = QUINTIC,
) -> None:
    """One step in place on a stack of matrices: p, grad, momentum_buffer (N, rows, cols), all float32 (or float64).

    Nesterov momentum, orthogonalization, then a rate scaled by √max(1, rows/cols) so that tall matrices move as far.
    Weight decay is decoupled.
    """
    momentum_buffer.lerp_(grad, 1 - momentum)
    update = zeropower_via_newtonschulz5(grad.lerp(momentum_buffer, momentum), dtype=dtype, coefficients=coefficients)
    if weight_decay:
        p.mul_(1 - lr * weight_decay)
    p.add_(update, alpha=-lr * max(1.0, p.size(-2) / p.size(-1)) ** 0.5)
