"""One token for each row, with shapes that stay: compiled, and on CUDA recorded once and replayed as a graph.

    graphs = DecodeGraphs(model)
    logits = graphs([3, 4], cache)        # row 0 gets token 3, row 1 gets token 4: logits (2, V)

On a GPU a token of a small batch takes less time than it takes to launch its kernels one by one. A CUDA graph launches
them all at once, but its shapes and addresses are fixed. So rows are padded to a power of two (`row_bucket`), keys to
steps of an eighth (`key_bucket`), and there is a graph for each pair in use; all come from one compiled function in
which both sizes are symbols. Rows that only pad write into rows of the cache that nobody uses. On other devices the
same function runs without being recorded, which is how the tests see it. There is nothing to run here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.attention import cache_mask
from nanochat.kv_cache import GROWTH, KVCache


def row_bucket(rows: int) -> int:
    """The next power of two: `5 -> 8`."""
    return 1 << (rows - 1).bit_length()


def key_bucket(keys: int) -> int:
    """Room for at least so many keys, at most an eighth too much: or 256.

    `100 -> 256, 3000 -> 3072 (a multiple of 256), 5000 -> 5120 (of 512)`
    """
    step = max(GROWTH, 1 << max(0, (keys - 1).bit_length() - 4))
    return -(-keys // step) * step


class FixedCache:
    """What the model sees in place of a `KVCache`: one token a row, written by index, and always the same keys."""

    def __init__(self, store: Tensor, lengths: Tensor):
        self.store, self.lengths = store, lengths  # (2, layers, B, H_kv, keys, D), (B,)

    def end(self, T: int) -> int:
        return self.store.size(4)

    def positions(self, T: int) -> Tensor:
        return self.lengths[:, None]  # (B, 1)

    def mask(self, positions: Tensor) -> Tensor:
        return cache_mask(positions, self.end(1))

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H_kv, 1, D) at the rows' lengths; return all keys and values (B, H_kv, keys, D)."""
        rows = torch.arange(k.size(0), device=k.device)
        for which, new in enumerate((k, v)):
            self.store[which, layer_idx, rows, :, self.lengths] = new[:, :, 0]
        return self.store[0, layer_idx], self.store[1, layer_idx]

    def advance(self, T: int) -> None:
        pass  # the caller counts


@dataclass
class Step:
    """A recorded step: fill the first two, replay, read the third."""

    tokens: Tensor  # (B, 1)
    lengths: Tensor  # (B,)
    logits: Tensor  # (B, V)
    replay: Callable[[], None]


class DecodeGraphs:
    """Steps for one model, recorded when they are first needed."""

    def __init__(self, model: Any, compiled: bool):
        self.model = model
        self.function = torch.compile(self._step) if compiled else self._step
        self.steps: dict[tuple[int, int], Step] = {}
        self.address: tuple[int, ...] = ()  # of the memory that the steps were recorded with
        if model.cos.size(1) < key_bucket(model.config.sequence_len):  # else it may be in another's graphs
            model._grow_rotary(key_bucket(model.config.sequence_len))
        self.table: tuple[Tensor, ...] = ()  # the rotary table that they were recorded with

    def _step(self, tokens: Tensor, store: Tensor, lengths: Tensor, room: Tensor) -> Tensor:
        """tokens (B, 1), all of the cache's memory, lengths (B,), a tensor of as many elements as there are keys."""
        store = store[:, :, : tokens.size(0), :, : room.size(0)]
        return self.model(tokens, kv_cache=FixedCache(store, lengths))[:, 0]  # (B, V)

    def __call__(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """One token for every row of the cache, whose lengths grow by one: (B,) -> logits (B, V)."""
        n, rows, keys = len(tokens), row_bucket(len(tokens)), key_bucket(cache.used + 1)
        cache.reserve(max(2, rows), keys)  # two, since a size of one would be compiled for itself
        address = (cache.store.data_ptr(), *cache.store.shape)
        if keys > self.model.cos.size(1):
            self.model._grow_rotary(keys)  # here, and not while it is recorded
        if address != self.address or not self.table or self.table[0] is not self.model.cos:
            self.steps.clear()  # a graph knows addresses, not tensors
            self.address, self.table = address, (self.model.cos, self.model.sin)
        if (rows, keys) not in self.steps:
            self.steps[rows, keys] = self._record(cache.store, rows, keys)
        step = self.steps[rows, keys]
        step.tokens[:n, 0] = torch.tensor(tokens, device=step.tokens.device)
        step.lengths[:n] = cache.lengths
        step.lengths[n:] = 0
        step.replay()
        cache.advance(1)
        return step.logits[:n].clone()  # the next replay overwrites it

    def _record(self, store: Tensor, rows: int, keys: int) -> Step:
        tokens = torch.zeros(rows, 1, dtype=torch.long, device=store.device)
        lengths = torch.full((rows,), keys - 1, device=store.device)  # warming up writes behind what is in use
        room = torch.empty(keys, device=store.device)
        for tensor, dim in ((tokens, 0), (lengths, 0), (store, 2), (store, 4), (room, 0)):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        arguments = tokens, store, lengths, room
        if store.device.type != "cuda":
            step = Step(tokens, lengths, self.function(*arguments), lambda: None)

            def run() -> None:
                step.logits = self.function(*arguments)

            step.replay = run
            return step
        side = torch.cuda.Stream()  # warming up on another stream, as CUDA graphs want it
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.function(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may pin memory meanwhile
            logits = self.function(*arguments)
        return Step(tokens, lengths, logits, graph.replay)
