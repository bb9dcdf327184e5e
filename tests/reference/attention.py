"""Attention as the paper writes it: loops over rows, heads and positions, in float64. The oracle of attention.py."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_slowly(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """q (B, H, T, D); k, v (B, H_kv, S, D); allowed (B, T, S) bool -> (B, H, T, D) float64."""
    q, k, v = q.double(), k.double(), v.double()
    B, H, T, D = q.shape
    group = H // k.size(1)
    out = torch.zeros(B, H, T, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(k.size(2)) if allowed[b, t, s]]
                scores = torch.stack([q[b, h, t] @ k[b, h // group, s] / D**0.5 for s in seen])
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                out[b, h, t] = sum(w * v[b, h // group, s] for w, s in zip(weights, seen, strict=True))
    return out
