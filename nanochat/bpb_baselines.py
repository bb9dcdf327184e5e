"""What bits per byte are worth: gzip, xz and an n-gram model on the same bytes that a language model was measured on.

    model = NGramModel()
    model.learn(training_texts, NGRAM_BYTES)
    measure(documents, model)   -> {"gzip": 2.74, "xz": 2.38, "ngram": 2.12}

gzip and xz know nothing but the bytes themselves, one document after the other. The n-gram model has learnt from
training text (it says how many bytes), and starts each document anew, as a language model does. All of them predict
bytes, so that no tokenizer plays a part. There is nothing to run here: `python -m scripts.base_loss` shows them beside
a model.

The n-gram model: after a context of k bytes, seen C times and followed by T different bytes, byte b gets

    P_k(b) = (count of b + T * P_{k-1}(b)) / (C + T)        (Witten and Bell's interpolation; P_{-1} = 1/256)

where P_{k-1} is that of the context without its first byte, and P_k = P_{k-1} after a context never seen. Worked
example, from "abab" alone: of the first order, after "a" (C = 2, T = 1) b gets (2 + P_0(b)) / 3.
"""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER = 5  # bytes of context: with six, twenty megabytes of English are predicted no better, in twice the time
NGRAM_BYTES = 20_000_000  # of training text: some seconds of counting
PIECE = 1 << 21  # symbols worked on at once: memory is bounded by this and by how many different n-grams there are
START = 256  # the symbol before a document's first byte; contexts that reach further back have more of them
BITS = 9  # of a symbol
LAST = np.uint64((1 << BITS) - 1)  # where a key holds the byte that is predicted
Keys = NDArray[np.uint64]


def measure(documents: Sequence[bytes], model: NGramModel) -> dict[str, float]:
    """Bits per byte of `documents` by each baseline; infinite where there is no byte to measure."""
    together = b"".join(documents)
    bits = {"gzip": 8 * len(gzip.compress(together, 9, mtime=0)),
            "xz": 8 * len(lzma.compress(together, preset=9 | lzma.PRESET_EXTREME)),
            "ngram": model.bits(documents)}
    return {name: cost / len(together) if together else math.inf for name, cost in bits.items()}


def known_to(model: NGramModel) -> dict[str, str]:
    """What each baseline is, and what it knows."""
    return {"gzip": "gzip -9: nothing but these bytes", "xz": "xz -9e: nothing but these bytes",
            "ngram": f"{model.order} bytes of context: {model.train_bytes:,} bytes of training text"}


# --------------------------------------------------------------------------- the n-gram model


@dataclass(frozen=True)
class Counts:
    """How often each n-gram was seen: `keys` sorted, all different, and `counts` beside them."""

    keys: Keys
    counts: NDArray[np.int64]

    def of(self, keys: Keys) -> NDArray[np.int64]:
        """The count of each key, 0 for what was never seen."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)


def added_up(keys: Keys, counts: NDArray[np.int64]) -> Counts:
    """The same keys put together: `[5, 3, 5], [1, 2, 4] -> [3, 5], [2, 5]`."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = _firsts(keys)
    return Counts(keys[first], np.add.reduceat(counts, first) if len(first) else counts)


class NGramModel:
    """Probabilities of the next byte after the `order` bytes before it (see the head of this file).

    `NGramModel(1)` after `learn([b"abab"])`: `distribution(b"a")` gives most to b.
    """

    def __init__(self, order: int = ORDER):
        assert 0 <= order <= 6, "a key of 64 bits holds seven symbols"
        self.order = order
        self.train_bytes = 0
        self.ngrams: list[Counts] = []  # by the length of the context
        self.contexts: list[tuple[Keys, NDArray[np.int64], NDArray[np.int64]]] = []  # (keys, C, T)

    def learn(self, documents: Iterable[bytes], max_bytes: int) -> None:
        """Count the first `max_bytes` of the documents; once, before anything is measured."""
        whole = Counts(np.empty(0, np.uint64), np.empty(0, np.int64))
        for text, starts in _pieces(_first(documents, max_bytes)):
            self.train_bytes += len(text)
            keys, counts = np.unique(self._windows(text, starts), return_counts=True)
            whole = added_up(np.concatenate([whole.keys, keys]), np.concatenate([whole.counts, counts]))
        for k in range(self.order + 1):  # those of a shorter context are sums over the bytes before it
            ngrams = added_up(whole.keys & self._mask(k), whole.counts)
            contexts = ngrams.keys & ~LAST
            first = _firsts(contexts)
            totals = np.add.reduceat(ngrams.counts, first) if len(first) else ngrams.counts
            self.ngrams.append(ngrams)
            self.contexts.append((contexts[first], totals, np.diff(np.append(first, len(contexts)))))

    def bits(self, documents: Iterable[bytes]) -> float:
        """How many bits the documents take, each begun anew: minus the sum of the base-2 logarithms."""
        total = 0.0
        for text, starts in _pieces(documents):
            windows, counts = np.unique(self._windows(text, starts), return_counts=True)
            total -= float(counts @ np.log2(self._probabilities(windows)))
        return total

    def distribution(self, context: bytes) -> NDArray[np.float64]:
        """The probability of each of the 256 bytes after a document's first bytes `context`."""
        nearest = [*reversed(context), *[START] * self.order][: self.order]
        key = sum(symbol << BITS * (self.order - i) for i, symbol in enumerate(nearest))
        return self._probabilities(np.uint64(key) | np.arange(256, dtype=np.uint64))

    def _windows(self, text: NDArray[np.uint8], starts: NDArray[np.int64]) -> Keys:
        """For each byte a key of 9 bits a symbol: the byte before it highest, the ones before that, itself lowest.

        In this order sorted keys are sorted by the contexts of any length, so that look-ups stay near one another.
        `starts`: for each byte, how many bytes of its document come before it.
        """
        windows = text.astype(np.uint64)
        for back in range(1, self.order + 1):
            symbols = np.full(len(text), START, np.uint64)
            symbols[back:] = text[:-back] if back < len(text) else 0
            symbols[starts < back] = START
            windows |= symbols << np.uint64(BITS * (self.order + 1 - back))
        return windows

    def _mask(self, k: int) -> np.uint64:
        """What of a window an n-gram with a context of k symbols keeps."""
        return np.uint64((1 << BITS * (self.order + 1)) - (1 << BITS * (self.order + 1 - k))) | LAST

    def _probabilities(self, windows: Keys) -> NDArray[np.float64]:
        """That of the last symbol of each window after the others; > 0 always."""
        p = np.full(len(windows), 1 / 256)
        for k, (ngrams, (keys, totals, kinds)) in enumerate(zip(self.ngrams, self.contexts, strict=True)):
            if not len(keys):
                continue
            window = windows & self._mask(k)
            context = window & ~LAST
            at = np.minimum(np.searchsorted(keys, context), len(keys) - 1)
            known = keys[at] == context
            C, T = totals[at], kinds[at]
            p = np.where(known, (ngrams.of(window) + T * p) / (C + T), p)
        return p


def _firsts(keys: Keys) -> NDArray[np.intp]:
    """Where each run of equal keys begins: `[3, 3, 5] -> [0, 2]`."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.intp)


def _first(documents: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """The documents until `max_bytes` have been given, the last one cut."""
    left = max_bytes
    for document in documents:
        if left <= 0:
            return
        yield document[:left]
        left -= len(document)


def _pieces(documents: Iterable[bytes]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Documents put together into arrays of bytes, and for each byte how many of its document come before it.

    Longer documents than PIECE go on in the next piece, where they begin anew. `[b"ab", b"c"] -> "abc", [0, 1, 0]`.
    """
    parts: list[bytes] = []
    size = 0
    for document in documents:
        for at in range(0, len(document), PIECE):
            part = document[at : at + PIECE]
            if size + len(part) > PIECE:
                yield _together(parts)
                parts, size = [], 0
            parts.append(part)
            size += len(part)
    if parts:
        yield _together(parts)


def _together(parts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.frombuffer(b"".join(parts), np.uint8), np.concatenate([np.arange(len(part)) for part in parts])
