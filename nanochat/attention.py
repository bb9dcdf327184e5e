"""Causal attention, within documents, by the kernel that is fastest where we are.

One entry, `attend`; `kernel_name` says what it uses:

| device, dtype | one document a row | packed rows |
|---|---|---|
| CUDA, bfloat16 | cuDNN or Flash through SDPA, the faster here (`fastest_sdpa`) | `torch.nn.attention.varlen` |
| CPU, bfloat16, up to 2 048 keys | matrix products and a softmax, by blocks of queries | the same, with a mask |
| CUDA, one query a row (decoding) | the same, which `torch.compile` makes kernels of | |
| all else | SDPA | SDPA with a mask |

What was measured (dev/LOG.md): on a CPU with native bfloat16 torch's flash kernel gains nothing from it, and two
matrix products with a softmax between them take half its time, because oneDNN multiplies bfloat16 in hardware. There is
nothing to run here.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Keys above which the scores of the plain products cost more memory than their speed is worth.
PLAIN_MAX_KEYS = 2048
# Queries that are worked on at once: a quarter of a row, but no fewer than this.
MIN_QUERY_BLOCK = 128
# Room for documents in the list of where they start, as a share of all positions; where there are more, 4 times that.
POSITIONS_PER_DOCUMENT = 32


# --------------------------------------------------------------------------- who may see whom


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


def packed_documents(inputs: Tensor, bos: int, dtype: torch.dtype) -> Tensor:
    """The documents of packed rows, as `GPT.forward(doc=...)` and this device's kernel want them. inputs (B, T) ids.

    Where `varlen` runs: 1-D offsets (see `document_offsets`); how many there are depends on the data, so this is called
    outside of the compiled model. Elsewhere: document numbers (B, T), counted at each `bos`.
    """
    if uses_varlen(inputs.device.type, dtype):
        return document_offsets(inputs == bos)
    return (inputs == bos).cumsum(1)


def document_offsets(starts: Tensor) -> Tensor:
    """Where documents start, all rows behind each other, for varlen kernels: starts (B, T) bool -> int32 offsets.

    A row always starts one. What is left of the capacity are empty documents at the end, so that the shape changes
    rarely: `[[1,0,0,1], [0,1,0,0]] -> [0, 3, 4, 5, 8, 8, ...]`.
    """
    flat = starts.clone()
    flat[:, 0] = True
    at = flat.flatten().nonzero().squeeze(1)  # (documents,)
    capacity = max(1, flat.numel() // POSITIONS_PER_DOCUMENT)
    while capacity < len(at):
        capacity *= 4
    return F.pad(at, (0, capacity + 1 - len(at)), value=flat.numel()).to(torch.int32)


# --------------------------------------------------------------------------- which kernel


def uses_varlen(device_type: str, dtype: torch.dtype) -> bool:
    """Whether packed rows go through `torch.nn.attention.varlen`: Flash kernels, for half precision, from Ampere on."""
    if device_type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def _uses_products(device_type: str, dtype: torch.dtype, keys: int = 0) -> bool:
    return device_type == "cpu" and dtype == torch.bfloat16 and keys <= PLAIN_MAX_KEYS


def kernel_name(device_type: str, dtype: torch.dtype, sequence_len: int = 0) -> str:
    """What `attend` uses for rows of this length, for the log."""
    if _uses_products(device_type, dtype, sequence_len):
        return "matrix products"
    if uses_varlen(device_type, dtype):
        return f"{fastest_sdpa(dtype).name.lower().removesuffix('_attention')} (packed rows: varlen)"
    return "SDPA"


_fastest: dict[torch.dtype, SDPBackend] = {}  # what was measured; a plain dict, so that a compiled model can look it up


def fastest_sdpa(dtype: torch.dtype) -> SDPBackend:
    """cuDNN's or Flash's kernel on the current CUDA device: the faster over forward and backward, measured once.

    Until it was called (`kernel_name` does), and where neither can be timed, `attend` takes Flash.
    """
    if dtype not in _fastest:
        seconds = {}
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            try:
                seconds[backend] = _time_sdpa(backend, dtype)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # this kernel does not exist for this device
                continue
        _fastest[dtype] = min(seconds, key=seconds.__getitem__, default=SDPBackend.FLASH_ATTENTION)
    return _fastest[dtype]


def _time_sdpa(backend: SDPBackend, dtype: torch.dtype, rounds: int = 10) -> float:
    """Seconds of the fastest of some rounds at the shape of depth 12 at 2 048 tokens."""
    q, k, v = (torch.randn(8, 6, 2048, 128, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.enable_grad(), sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


# --------------------------------------------------------------------------- the one entry


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D + mask) v, with fewer key/value heads than query heads allowed (GQA).

    q (B, H, T, D); k, v (B, H_kv, S, D) with H a multiple of H_kv. `mask`: None = causal, T == S; bool
    (B or 1, 1, T, S), causal too if T == S; or 1-D offsets of documents (`document_offsets`), where `uses_varlen`.
    Returns (B, H, T, D) in q's dtype.
    """
    if mask is not None and mask.dim() == 1:
        return _attend_documents(q, k, v, mask)
    decoding = q.device.type == "cuda" and q.size(2) == 1
    if decoding or _uses_products(q.device.type, q.dtype, k.size(2)):
        return _attend_plain(q, k, v, mask)
    gqa = q.size(1) != k.size(1)
    if mask is None and uses_varlen(q.device.type, q.dtype):
        order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        if _fastest.get(q.dtype) == SDPBackend.CUDNN_ATTENTION:
            order.insert(0, SDPBackend.CUDNN_ATTENTION)
        with sdpa_kernel(order, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)


def _attend_documents(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Rows of documents by a kernel that skips what lies outside of a document. No document is longer than a row."""
    from torch.nn.attention.varlen import varlen_attn  # floor of torch: only where CUDA is

    B, H, T, D = q.shape
    if k.size(1) != H:  # its own GQA came after torch 2.11
        k, v = (x.repeat_interleave(H // k.size(1), dim=1) for x in (k, v))
    q, k, v = (F.pad(x.transpose(1, 2).reshape(B * T, H, D), (0, -D % 8)) for x in (q, k, v))  # heads of 8, 16, ...
    y = varlen_attn(q, k, v, offsets, offsets, T, T, scale=D**-0.5, window_size=(-1, 0))  # to the left: causal
    return y[..., :D].reshape(B, T, H, D).transpose(1, 2)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two matrix products in q's dtype, the softmax between them in float32.

    Where T == S a block of queries leaves out the keys behind it: with four blocks that is 62% of the products.
    """
    T, S = q.size(2), k.size(2)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T).view(1, 1, T, S)
    size = max(MIN_QUERY_BLOCK, -(-T // 4))
    if T != S or size >= T:
        return _products(q, k, v, mask)
    return torch.cat([_products(q[:, :, a : a + size], k[:, :, : a + size], v[:, :, : a + size],
                                mask[:, :, a : a + size, : a + size]) for a in range(0, T, size)], dim=2)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / √D, where mask) v: q (B, H, T, D); k, v (B, H_kv, S, D); mask (B or 1, 1, T, S)."""
    B, H, T, D = q.shape
    groups = H // k.size(1)
    if groups > 1:  # the queries that share a key head stand beside each other: (B, H_kv, G·T, D)
        q, mask = q.reshape(B, k.size(1), groups * T, D), mask.repeat(1, 1, groups, 1)
    scores = (q @ k.transpose(-1, -2)).float() * D**-0.5  # (B, H_kv, G·T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return (weights.to(v.dtype) @ v).reshape(B, H, T, D)
