"""Keys and values of past positions, kept so that a new token costs one position and not all of them.

Rows have lengths of their own, so prompts of different lengths share a batch; rows leave and join. A pure part (floor
1): the model and the engine know it, it knows neither. `nanochat.engine` exports it; there is nothing to run here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.attention import cache_mask

GROWTH = 256  # a cache that is full grows by so many positions


class KVCache:
    """Keys and values of every layer, with a length for each row.

    `lengths` (B,) says how many positions of a row are filled; new tokens go right behind. What lies beyond is garbage
    that the model masks, but finite garbage: memory is zeroed once, since 0 · NaN would poison a masked sum.

        cache = KVCache(batch_size=2, num_heads=4, seq_len=256, head_dim=64, num_layers=4, dtype=..., device=...)
        model(padded_prompts, kv_cache=cache)     # lengths [7, 7]
        cache.set_lengths([7, 5])                 # the second prompt was two tokens shorter
        model(next_tokens, kv_cache=cache)        # (2, 1) at positions 7 and 5; lengths [8, 6]
        cache.keep([1])                           # row 0 is done; lengths [6]
        cache.add_rows(2)                         # lengths [6, 0, 0]
        model(prompt, kv_cache=cache.part(1, 2))  # only row 1
    """

    def __init__(self, batch_size: int, num_heads: int, seq_len: int, head_dim: int, num_layers: int,
                 dtype: torch.dtype, device: torch.device | str):
        # (key or value, layer, row, key head, position, head dim): rows and positions may be more than are in use
        self.store = torch.zeros(2, num_layers, batch_size, num_heads, seq_len, head_dim, dtype=dtype, device=device)
        self._set_lengths([0] * batch_size)

    def _set_lengths(self, lengths: list[int]) -> None:
        self.host_lengths = lengths  # on the host too: asking the device each step would wait for it
        self._lengths: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """The filled positions of each row: (B,) int64, on the device."""
        if self._lengths is None:
            self._lengths = torch.tensor(self.host_lengths, dtype=torch.long, device=self.store.device)
        return self._lengths

    @property
    def batch_size(self) -> int:
        """Rows in use."""
        return len(self.host_lengths)

    @property
    def used(self) -> int:
        """The longest row."""
        return max(self.host_lengths, default=0)

    def positions(self, T: int) -> Tensor:
        """Where the next T tokens of each row will stand: (B, T). `lengths=[7, 5], T=2 -> [[7, 8], [5, 6]]`"""
        return self.lengths[:, None] + torch.arange(T, device=self.lengths.device)

    def end(self, T: int) -> int:
        """One past the last position when T tokens more have come."""
        return self.used + T

    def mask(self, positions: Tensor) -> Tensor | None:
        """Who may see whom, for `attend`, when the next tokens stand at `positions` (B, T).

        In an empty cache that is plain causal attention, for which there are faster kernels than with a mask.
        """
        return cache_mask(positions, self.end(positions.size(1))) if self.used else None

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H_kv, T, D) behind each row of this layer; return all keys and values (B, H_kv, used + T, D).

        The lengths move only with `advance`, after the last layer.
        """
        B, T, end = k.size(0), k.size(2), self.used + k.size(2)
        self.reserve(B, end)
        keys, values = self.store[0, layer_idx, :B], self.store[1, layer_idx, :B]  # (B, H_kv, seq_len, D)
        if min(self.host_lengths) == self.used:  # all rows equally long: a plain slice, several times faster
            keys[:, :, end - T : end] = k
            values[:, :, end - T : end] = v
        else:
            at = torch.arange(B, device=k.device)[:, None], slice(None), self.positions(T)
            keys[at] = k.transpose(1, 2)  # index tensors on both sides of a slice come first: (B, T, H_kv, D)
            values[at] = v.transpose(1, 2)
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, T: int) -> None:
        """All rows became T longer."""
        lengths = self.lengths + T
        self._set_lengths([n + T for n in self.host_lengths])
        self._lengths = lengths  # counted on the device, so that nothing is copied there

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Row i is `lengths[i]` long now: what was written behind it counts, or what is behind is forgotten, such as
        the padding of a ragged prefill."""
        if len(lengths) > self.store.size(2) or any(not 0 <= n <= self.store.size(4) for n in lengths):
            raise ValueError(f"a cache of {self.store.size(2)} rows, {self.store.size(4)} positions has no {lengths}")
        self._set_lengths(list(lengths))

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; the others leave. Only rows that change place are copied."""
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            new, old = (list(x) for x in zip(*moved))
            end = max(self.host_lengths[row] for row in old)
            self.store[:, :, new, :, :end] = self.store[:, :, old, :, :end]  # the right side is a copy
        self._set_lengths([self.host_lengths[row] for row in rows])

    def add_rows(self, n: int) -> None:
        """n empty rows more."""
        self.reserve(self.batch_size + n, self.used)
        self._set_lengths(self.host_lengths + [0] * n)

    def part(self, start: int, stop: int) -> KVCache:
        """Rows start..stop as a cache of their own in the same memory. Its lengths are its own, and it must not grow:
        reserve first, `set_lengths` afterwards."""
        cache = KVCache.__new__(KVCache)
        cache.store = self.store[:, :, start:stop]
        cache._set_lengths(self.host_lengths[start:stop])
        return cache

    def read_row(self, row: int) -> Tensor:
        """A copy of a row's keys and values: (2, layers, H_kv, length, D)."""
        return self.store[:, :, row, :, : self.host_lengths[row]].clone()

    def write_row(self, row: int, kv: Tensor) -> None:
        """Make these the row's keys and values: (2, layers, H_kv, length, D)."""
        n = kv.size(3)
        self.reserve(self.batch_size, n)
        self.store[:, :, row, :, :n] = kv
        self._set_lengths([*self.host_lengths[:row], n, *self.host_lengths[row + 1 :]])

    def reserve(self, rows: int, positions: int) -> None:
        """Grow by allocating and copying: growing in place would put every row at a wrong offset."""
        _, _, B, _, T, _ = old_shape = self.store.shape
        if rows <= B and positions <= T:
            return
        shape = list(old_shape)
        shape[2] = max(B, rows)
        shape[4] = T if positions <= T else positions + GROWTH - 1 - (positions - 1) % GROWTH  # a multiple of GROWTH
        grown = self.store.new_zeros(shape)
        grown[:, :, :B, :, :T] = self.store
        self.store = grown
