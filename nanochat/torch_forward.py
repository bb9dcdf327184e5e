"""The forward pass for inference through PyTorch: CUDA, MPS, and CPUs without a compiler.

    forward = TorchForward(model)
    cache = forward.new_cache(rows=2, positions=256)
    logits = forward([[1, 5, 7], [1, 9]], cache)        # prompts, padded: logits (2, V) of their last tokens
    logits = forward([[3], [4]], cache)                 # one token more for each

`cpu_forward.CpuForward` is called alike. There is nothing to run here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.common import compile_problem
from nanochat.decode_graph import DecodeGraphs, key_bucket, row_bucket
from nanochat.kv_cache import KVCache


def fingerprint(model: Any) -> tuple[list[float], list[int]]:
    """What tells cheaply that the weights have changed: a few numbers of every matrix, since an optimizer moves them
    all (through other names of the same memory, which are not counted), and how often each was written to by its own
    name."""
    parameters = list(model.parameters())
    numbers = torch.stack([p.detach().flatten()[:: max(1, p.numel() // 16)][:16].float().sum() for p in parameters])
    return numbers.tolist(), [0 if p.is_inference() else p._version for p in parameters]


class TorchForward:
    """A model, ready to be run token by token."""

    def __init__(self, model: Any):
        self.model = model
        self._fingerprint = fingerprint(model)
        device = model.get_device().type
        self.graphs = DecodeGraphs(model, compiled=compile_problem(device) is None) if device == "cuda" else None
        self._store: Tensor | None = None  # a cache's memory, for the next cache: graphs know it by its address
        self._user: Callable[[], KVCache | None] = lambda: None  # which cache uses it now
        self._addresses = [p.data_ptr() for p in model.parameters()]

    def refresh(self) -> bool:
        """Whether the weights have changed since the last call; keys and values from before are worthless then."""
        before, self._fingerprint = self._fingerprint, fingerprint(self.model)
        if self.graphs is not None:
            was_at, self._addresses = self._addresses, [p.data_ptr() for p in self.model.parameters()]
            if was_at != self._addresses:  # an optimizer took over their memory, say: graphs would read what was there
                self.graphs.steps.clear()
        if before == self._fingerprint:
            return False
        if self._store is not None and self._user() is None:
            with torch.inference_mode():
                self._store.zero_()  # weights of NaN may have filled it with NaN
        return True

    def new_cache(self, rows: int, positions: int) -> KVCache:
        """A cache of empty rows, with room for at least so many positions."""
        c = self.model.config
        shape = {"num_heads": c.n_kv_head, "head_dim": c.n_embd // c.n_head, "num_layers": c.n_layer,
                 "dtype": self.model.compute_dtype, "device": self.model.get_device()}
        if self.graphs is None:
            return KVCache(rows, seq_len=positions, **shape)
        cache = KVCache(0, seq_len=0, **shape)
        if self._store is not None and self._user() is None:
            cache.store = self._store
        cache.reserve(row_bucket(rows), key_bucket(positions))
        cache.add_rows(rows)
        self._store, self._user = cache.store, weakref.ref(cache)
        return cache

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, first_row: int = 0) -> Tensor:
        """Add `ids[i]` (at least one token each) to row `first_row + i`; returns the logits at the ends (len(ids), V).

        The cache's lengths grow by as much. Causal masking keeps the padding unseen, and what follows overwrites it.
        """
        if self.graphs is not None and len(ids) == cache.batch_size and all(len(row) == 1 for row in ids):
            logits = self.graphs([row[0] for row in ids], cache)
            self._store, self._user = cache.store, weakref.ref(cache)  # it may have grown, or not be the youngest
            return logits
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
