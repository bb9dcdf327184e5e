"""Keys and values of past positions, kept so that a new token costs one position and not all of them.

Rows have lengths of their own, so prompts of different lengths share a batch; rows leave and join. A pure part (floor
1): the model and the engine know it, it knows neither. `nanochat.engine` exports it; there is nothing to run here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROWTH = 256  # a cache that is full grows by so many positions


class KVCache:
    """Keys and values of every layer, with a length for each row.

    `lengths` (B,) says how many positions of a row are filled; new tokens go right behind. What lies beyond is garbage
    that the model masks, but finite garbage: memory is zeroed once, since 0 · NaN would poison a masked sum.

        cache = KVCache(batch_size=2, num_heads=4, seq_len=256, head_dim=64, num_layers=4, dtype=..., device=...)
        model(padded_prompts, kv_cache=cache)     # lengths [7, 7]
        cache.truncate([7, 5])                    # the second prompt was two tokens shorter
        model(next_tokens, kv_cache=cache)        # (2, 1) at positions 7 and 5; lengths [8, 6]
        cache.keep([1])                           # row 0 is done; lengths [6]
    """

    def __init__(self, batch_size: int, num_heads: int, seq_len: int, head_dim: int, num_layers: int,
                 dtype: torch.dtype, device: torch.device | str):
        # (key or value, layer, row, key head, position, head dim): rows and positions may be more than are in use
        self.store = torch.zeros(2, num_layers, batch_size, num_heads, seq_len, head_dim, dtype=dtype, device=device)
        self._set_lengths([0] * batch_size)

    def _set_lengths(self, lengths: list[int]) -> None:
        self._host = lengths  # the same numbers on the host: asking the device each step would wait for it
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.store.device)

    @property
    def batch_size(self) -> int:
        """Rows in use."""
        return len(self._host)

    @property
    def used(self) -> int:
        """The longest row."""
        return max(self._host, default=0)

    def positions(self, T: int) -> Tensor:
        """Where the next T tokens of each row will stand: (B, T). `lengths=[7, 5], T=2 -> [[7, 8], [5, 6]]`"""
        return self.lengths[:, None] + torch.arange(T, device=self.lengths.device)

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H_kv, T, D) behind each row of this layer; return all keys and values (B, H_kv, used + T, D).

        The lengths move only with `advance`, after the last layer.
        """
        B, T, end = k.size(0), k.size(2), self.used + k.size(2)
        self._reserve(B, end)
        keys, values = self.store[0, layer_idx, :B], self.store[1, layer_idx, :B]  # (B, H_kv, seq_len, D)
        if min(self._host) == self.used:  # all rows equally long: a plain slice, several times faster
            keys[:, :, end - T : end] = k
            values[:, :, end - T : end] = v
        else:
            at = torch.arange(B, device=k.device)[:, None], slice(None), self.positions(T)
            keys[at] = k.transpose(1, 2)  # index tensors on both sides of a slice come first: (B, T, H_kv, D)
            values[at] = v.transpose(1, 2)
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, T: int) -> None:
        """All rows became T longer."""
        self._host = [n + T for n in self._host]
        self.lengths = self.lengths + T

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything behind these lengths, for instance the padding of a ragged prefill."""
        if len(lengths) != self.batch_size or any(not 0 <= new <= old for new, old in zip(lengths, self._host)):
            raise ValueError(f"cannot truncate rows of {self._host} to {list(lengths)}")
        self._set_lengths(list(lengths))

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; the others leave. Only rows that change place are copied."""
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            new, old = (list(x) for x in zip(*moved))
            self.store[:, :, new, :, : self.used] = self.store[:, :, old, :, : self.used]  # the right side is a copy
        self._set_lengths([self._host[row] for row in rows])

    def append(self, other: KVCache, rows: Sequence[int]) -> None:
        """Add rows of another cache behind ours (the same row may be added several times)."""
        B, n = self.batch_size, other.used
        self._reserve(B + len(rows), n)
        self.store[:, :, B : B + len(rows), :, :n] = other.store[:, :, list(rows), :, :n]
        self._set_lengths(self._host + [other._host[row] for row in rows])

    def _reserve(self, rows: int, positions: int) -> None:
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
