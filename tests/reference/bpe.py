"""Oracle: byte-pair encoding as one would write it on a blackboard. Recounts everything for every merge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import regex

Pair = tuple[int, int]


def replace(ids: list[int], pair: Pair, new: int) -> list[int]:
    """ids=[1, 2, 3, 1, 2], pair=(1, 2), new=4 -> [4, 3, 4]"""
    out: list[int] = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def train(texts: Iterable[str], vocab_size: int, pattern: str) -> list[Pair]:
    """Merges in order; fewer than `vocab_size - 256` when no pair is left. Ties: the smallest (left id, right id)."""
    words = Counter(word for text in texts for word in regex.findall(pattern, text))
    split = {word: list(word.encode("utf-8")) for word in words}
    merges: list[Pair] = []
    while 256 + len(merges) < vocab_size:
        counts: Counter[Pair] = Counter()
        for word, ids in split.items():
            for pair in zip(ids, ids[1:]):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        split = {word: replace(ids, best, 256 + len(merges)) for word, ids in split.items()}
        merges.append(best)
    return merges


def ranks(merges: list[Pair]) -> list[tuple[bytes, int]]:
    """`[(bytes, rank)]`: the 256 bytes, then what each merge spells."""
    tokens = [bytes([b]) for b in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return [(token, rank) for rank, token in enumerate(tokens)]


def encode(text: str, merges: list[Pair], pattern: str) -> list[int]:
    """Apply the merges to every word in the order in which they were learned."""
    out: list[int] = []
    for word in regex.findall(pattern, text):
        ids = list(word.encode("utf-8"))
        for k, pair in enumerate(merges):
            ids = replace(ids, pair, 256 + k)
        out += ids
    return out
