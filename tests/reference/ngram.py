"""Oracle for nanochat/bpb_baselines.py: the n-gram model as its formula says it, byte by byte, with dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

START = -1


class SlowNGramModel:
    """Counts of (context, byte) for contexts of 0 to `order` symbols; a document begins with `order` START symbols."""

    def __init__(self, order: int, documents: Iterable[bytes]) -> None:
        self.order, self.counts = order, Counter()
        for document in documents:
            symbols = [START] * order + list(document)
            for i in range(order, len(symbols)):
                for k in range(order + 1):
                    self.counts[tuple(symbols[i - k : i]), symbols[i]] += 1

    def probability(self, context: Sequence[int], byte: int) -> float:
        """That of `byte` after the symbols of `context`, by Witten and Bell's interpolation."""
        shorter = self.probability(context[1:], byte) if context else 1 / 256
        followers = {b: n for (c, b), n in self.counts.items() if c == tuple(context)}
        if not followers:
            return shorter
        return (followers.get(byte, 0) + len(followers) * shorter) / (sum(followers.values()) + len(followers))

    def after(self, text: bytes, byte: int) -> float:
        """That of `byte` after a document's first bytes `text`."""
        symbols = [START] * self.order + list(text)
        return self.probability(symbols[len(symbols) - self.order :], byte)
