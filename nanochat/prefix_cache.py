"""Keys and values of sequences that were computed before, for prompts that begin alike: the next turn of a chat.

    prefixes = PrefixCache(capacity=8192)            # positions, all sequences together
    prefixes.put(ids, cache.read_row(row))
    kv = prefixes.longest(prompt)                    # (2, layers, H_kv, n, D): those of prompt[:n]; n may be 0

A pure part: what it holds is exact for as long as the weights stay; whoever changes them starts a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements at the front are equal: `[1, 2, 3], [1, 2, 4] -> 2`."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


class PrefixCache:
    """The sequences used last, at most `capacity` positions in all."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._entries: list[tuple[list[int], Tensor]] = []  # the most recent last

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self._entries)

    def put(self, ids: Sequence[int], kv: Tensor) -> None:
        """Remember the keys and values (2, layers, H_kv, len(ids), D) of a sequence. What it begins with needs no entry
        of its own, and what has no room drives nobody out."""
        ids = list(ids)
        if len(ids) > self.capacity or any(common_prefix(known, ids) == len(ids) for known, _ in self._entries):
            return
        self._entries = [e for e in self._entries if common_prefix(e[0], ids) < len(e[0])]
        self._entries.append((ids, kv))
        while len(self) > self.capacity:
            self._entries.pop(0)

    def longest(self, prompt: Sequence[int]) -> Tensor | None:
        """Those of the longest part at the prompt's front that is known, but for its last token, whose logits must be
        computed; None if not even one token is."""
        best, n = -1, 0
        for i, (ids, _) in enumerate(self._entries):
            if (common := min(common_prefix(ids, prompt), len(prompt) - 1)) > n:
                best, n = i, common
        if n == 0:
            return None
        self._entries.append(self._entries.pop(best))
        return self._entries[-1][1][:, :, :, :n]
