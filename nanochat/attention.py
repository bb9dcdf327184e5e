"""Causal attention, within documents, by the kernel that is fastest where we are.

One entry, `attend`. What was measured (dev/LOG.md, 2026-11-22): on a CPU with native bfloat16, forward and backward of
a (16, 4, 256, 64) attention take 28 ms through torch's flash kernel and 12 ms as two matrix products with a softmax
between them, because oneDNN multiplies bfloat16 in hardware and the flash kernel does not. So bfloat16 on CPU goes
through plain matrix products as long as the scores fit comfortably, everything else through SDPA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores above this many per (batch, head) row block cost more memory than the faster products are worth.
PLAIN_MAX_KEYS = 2048


def document_mask(doc: Tensor) -> Tensor:
    """Who may see whom in packed rows: earlier positions of the same document.

    `doc` (B, T) document numbers -> (B, 1, T, T) bool, True = may attend.
    `doc=[[1, 1, 2]] -> [[[[1,0,0], [1,1,0], [0,0,1]]]]`
    """
    T = doc.size(1)
    causal = torch.ones(T, T, dtype=torch.bool, device=doc.device).tril()
    return ((doc[:, :, None] == doc[:, None, :]) & causal)[:, None]


def cache_mask(positions: Tensor, n_keys: int) -> Tensor:
    """Who may see whom with a KV cache: keys up to the query's own position.

    `positions` (B, T) of the queries -> (B, 1, T, n_keys) bool. Cells beyond a row's length are never visible.
    """
    keys = torch.arange(n_keys, device=positions.device)
    return (keys[None, None, :] <= positions[:, :, None])[:, None]


def kernel_name(device_type: str, dtype: torch.dtype) -> str:
    """What `attend` will use, for the log."""
    return "matrix products" if device_type == "cpu" and dtype == torch.bfloat16 else "SDPA"


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D + mask) v, with fewer key/value heads than query heads allowed (GQA).

    q (B, H, T, D); k, v (B, H_kv, S, D) with H a multiple of H_kv; mask (B or 1, 1, T, S) bool, None = causal, T == S.
    Returns (B, H, T, D) in q's dtype.
    """
    plain = kernel_name(q.device.type, q.dtype) == "matrix products" and k.size(2) <= PLAIN_MAX_KEYS
    if plain:
        return _attend_plain(q, k, v, mask)
    gqa = q.size(1) != k.size(1)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two matrix products in q's dtype, the softmax between them in float32."""
    B, H, T, D = q.shape
    H_kv, S = k.size(1), k.size(2)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if H_kv != H:  # the queries that share a key head stand beside each other: (B, H_kv, G·T, D)
        q = q.reshape(B, H_kv, (H // H_kv) * T, D)
        mask = mask.expand(-1, -1, T, S).repeat(1, 1, H // H_kv, 1) if mask.dim() == 4 else mask.repeat(H // H_kv, 1)
    scores = (q @ k.transpose(-1, -2)).float() * D**-0.5  # (B, H_kv, G·T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return (weights.to(v.dtype) @ v).reshape(B, H, T, D)
