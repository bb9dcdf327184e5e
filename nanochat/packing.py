"""Documents and conversations → rows of exactly T positions: whole pieces, best-fit decreasing, no token lost.

A document `[t1 .. tn]` becomes inputs `[bos, t1 .. tn]` with targets `[t1 .. tn, bos]`. If that is longer than a row it
is cut; a continuation starts with BOS whose target is -1, so that every token is a target exactly once:

    T=4, document 1 2 3 4 5      inputs  bos 1 2 3 | bos 4 5
                                 targets  1  2 3 4 |  -1 5 bos

Rows are filled with whole pieces (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"); what remains of a
row is BOS with target -1. Pure functions on numpy arrays; the oracle is tests/reference/packing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pieces:
    """Piece i is `lead[i]` positions of BOS (0 or 1) and then `flat[start[i] : start[i] + size[i]]`."""

    start: np.ndarray
    size: np.ndarray
    lead: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.size + self.lead


@dataclass(frozen=True)
class Packed:
    """Rows, and how many of their positions are not padding."""

    inputs: np.ndarray  # (rows, T) int32
    targets: np.ndarray  # (rows, T) int32, -1 = not supervised
    used: int


def cut_documents(sizes: np.ndarray, T: int) -> Pieces:
    """Documents of `sizes` positions (their BOS counted), laid end to end, as pieces of at most T positions.

    `sizes=[6, 2], T=4 -> start=[0, 4, 6], size=[4, 2, 2], lead=[0, 1, 0]`: see the picture in the module header.
    """
    count = 1 + np.maximum(0, -((T - sizes) // (T - 1)))  # 1 + ceil((size - T) / (T - 1)): continuations hold T - 1
    first = np.cumsum(count) - count
    nth = np.arange(count.sum()) - np.repeat(first, count)  # which piece of its document
    begin = np.where(nth == 0, 0, T + (nth - 1) * (T - 1))  # position within the document
    lead = (nth > 0).astype(np.int64)
    size = np.minimum(T - lead, np.repeat(sizes, count) - begin)
    return Pieces(np.repeat(np.cumsum(sizes) - sizes, count) + begin, size, lead)


def best_fit_decreasing(lengths: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Put pieces into rows of T: the longest first, each into the row that it leaves the least room in.

    Returns the row and the offset of each piece, and the number of rows.
    `lengths=[3, 1, 2, 2], T=4 -> rows [0, 0, 1, 1], offsets [0, 3, 0, 2], 2`.

    Open rows are kept in one bucket per free capacity, and an integer has bit c set where bucket c is not empty: the
    best fit is the lowest set bit from `length` up, so a piece costs the same however many rows are open.
    """
    order = np.argsort(-lengths, kind="stable")
    row, offset = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows = int((lengths == T).sum())  # pieces that fill a row come first in this order and need no search
    row[order[:rows]] = np.arange(rows)
    buckets: list[list[int]] = [[] for _ in range(T + 1)]
    occupied = 0
    chosen_row, chosen_offset = [], []
    for length in lengths[order[rows:]].tolist():
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bucket = buckets[room]
            target = bucket.pop()
            if not bucket:
                occupied ^= 1 << room
        else:
            room, target = T, rows
            rows += 1
        chosen_row.append(target)
        chosen_offset.append(T - room)
        room -= length
        if room:
            buckets[room].append(target)
            occupied |= 1 << room
    full = len(lengths) - len(chosen_row)
    row[order[full:]], offset[order[full:]] = chosen_row, chosen_offset
    return row, offset, rows


def fill_rows(pieces: Pieces, flat_inputs: np.ndarray, flat_targets: np.ndarray, bos: int, T: int) -> Packed:
    """Pack `pieces` and copy their ids. Empty positions are BOS with target -1."""
    row, offset, rows = best_fit_decreasing(pieces.lengths, T)
    inputs, targets = np.full(rows * T, bos, np.int32), np.full(rows * T, -1, np.int32)
    # one index per copied id: its piece's place, plus its own place within the piece
    within = np.arange(pieces.size.sum()) - np.repeat(np.cumsum(pieces.size) - pieces.size, pieces.size)
    source = np.repeat(pieces.start, pieces.size) + within
    place = np.repeat(row * T + offset + pieces.lead, pieces.size) + within
    inputs[place], targets[place] = flat_inputs[source], flat_targets[source]
    return Packed(inputs.reshape(rows, T), targets.reshape(rows, T), int(pieces.lengths.sum()))


def pack_documents(documents: Sequence[np.ndarray], bos: int, T: int) -> Packed:
    """Token ids of documents (without BOS) → rows of pretraining."""
    sizes = np.array([len(d) + 1 for d in documents], np.int64)
    flat = np.full(sizes.sum() + 1, bos, np.int32)  # bos d1 bos d2 .. bos: shifted by one, it is its own targets
    ends = np.cumsum(sizes)
    for document, end in zip(documents, ends, strict=True):
        flat[end - len(document) : end] = document
    return fill_rows(cut_documents(sizes, T), flat[:-1], flat[1:], bos, T)


def pack_conversations(rendered: Sequence[tuple[list[int], list[int]]], bos: int, T: int) -> Packed:
    """Rendered `(ids, mask)` of at most T positions → rows whose targets are the supervised next ids, else -1.

    `ids=[bos, 5, 6], mask=[0, 0, 1] -> inputs [bos, 5, 6], targets [-1, 6, -1]`.
    """
    sizes = np.array([len(ids) for ids, _ in rendered], np.int64)
    flat = np.fromiter((i for ids, _ in rendered for i in ids), np.int32, sizes.sum())
    mask = np.fromiter((m for _, mask in rendered for m in mask), bool, sizes.sum())
    supervised = np.where(mask, flat, -1)
    targets = np.append(supervised[1:], -1).astype(np.int32)
    targets[np.cumsum(sizes) - 1] = -1  # the last position's next id belongs to another conversation
    return fill_rows(Pieces(np.cumsum(sizes) - sizes, sizes, np.zeros_like(sizes)), flat, targets, bos, T)
