"""The forward pass for inference through PyTorch: CUDA, MPS, and CPUs without a compiler.

    forward = TorchForward(model)
    cache = forward.new_cache(rows=2, positions=256)
    logits = forward([[1, 5, 7], [1, 9]], cache)        # prompts, padded: logits (2, V) of their last tokens
    logits = forward([[3], [4]], cache)                 # one token more for each

`cpu_forward.CpuForward` is called alike. There is nothing to run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.kv_cache import KVCache


def fingerprint(model: Any) -> list[float]:
    """A few numbers of every matrix, to see cheaply that the weights were trained on: an optimizer moves them all."""
    return torch.stack([p.detach().flatten()[:: max(1, p.numel() // 16)][:16].float().sum()
                        for p in model.parameters()]).tolist()


class TorchForward:
    """A model, ready to be run token by token."""

    def __init__(self, model: Any):
        self.model = model
        self._fingerprint = fingerprint(model)

    def refresh(self) -> bool:
        """Whether the weights have changed since the last call; keys and values from before are worthless then."""
        before, self._fingerprint = self._fingerprint, fingerprint(self.model)
        return before != self._fingerprint

    def new_cache(self, rows: int, positions: int) -> KVCache:
        c = self.model.config
        return KVCache(rows, c.n_kv_head, positions, c.n_embd // c.n_head, c.n_layer,
                       dtype=self.model.compute_dtype, device=self.model.get_device())

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, first_row: int = 0) -> Tensor:
        """Add `ids[i]` (at least one token each) to row `first_row + i`; returns the logits at the ends (len(ids), V).

        The cache's lengths grow by as much. Causal masking keeps the padding unseen, and what follows overwrites it.
        """
        stop, counts = first_row + len(ids), [len(row) for row in ids]
        longest, lengths = max(counts), list(cache.host_lengths)
        cache.reserve(cache.batch_size, max(lengths[first_row:stop]) + longest)
        part = cache.part(first_row, stop) if len(ids) < cache.batch_size else cache
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=cache.lengths.device)
        at = torch.tensor([n - 1 for n in counts], device=padded.device) if longest > 1 else None
        logits = self.model(padded, kv_cache=part, at=at)[:, 0]  # (len(ids), V)
        if longest > 1 or part is not cache:
            lengths[first_row:stop] = [length + n for length, n in zip(lengths[first_row:stop], counts)]
            cache.set_lengths(lengths)
        return logits
