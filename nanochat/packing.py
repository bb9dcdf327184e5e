"""Documents and conversations → rows of exactly T positions: whole pieces, best-fit decreasing, no token lost.

A document `[t1 .. tn]` is read as `bos t1 .. tn` and learned as `t1 .. tn bos`. If that is longer than a row it is cut;
a continuation starts with BOS, after which nothing is learned, so that every token is a target exactly once:

    T=4, document 1 2 3 4 5      inputs  bos 1 2 3 | bos 4 5
                                 targets  1  2 3 4 |  -1 5 bos

Rows are filled with whole pieces (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"); what remains of a
row is BOS with target -1. A row is kept as T + 1 ids and, for each, whether it is learned as the target of the position
before it, for as long as possible: a quarter of the memory of two int64 arrays, and packing is little but copying.

    ids    bos 1 2 3 4 | bos 4 5 bos bos        inputs: the first T of them; targets: the last T, where `learn` is 1
    learn   .  1 1 1 1 |  .  0 1  1   0

Pure functions on numpy arrays; the oracle is tests/reference/packing.py, the benchmark bench/dataloader.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Piece = tuple[np.ndarray, np.ndarray]  # (ids, learn) of one stretch of a row, its BOS first


@dataclass(frozen=True)
class Packed:
    """Rows, and how many of their positions (of the first T columns) are not padding."""

    ids: np.ndarray  # (rows, T + 1), the dtype of the documents
    learn: np.ndarray  # (rows, T + 1) bool, or what each counts; column 0 is nobody's target and means nothing
    used: int


def to_inputs_and_targets(ids: np.ndarray, learn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(rows, T + 1)` ids and learn -> `(rows, T)` int64 inputs and targets, -1 = not supervised."""
    return ids[:, :-1].astype(np.int64), np.where(learn[:, 1:], ids[:, 1:].astype(np.int64), -1)


def best_fit_decreasing(lengths: np.ndarray, T: int) -> list[list[int]]:
    """Put pieces into rows of T: the longest first, each into the row that it leaves the least room in.

    Returns the pieces of each row, by index. `lengths=[3, 1, 2, 2], T=4 -> [[0, 1], [2, 3]]`.

    Open rows are kept in one bucket per free capacity, and an integer has bit c set where bucket c is not empty: the
    best fit is the lowest set bit from `length` up, so a piece costs the same however many rows are open.
    """
    order = np.argsort(-lengths, kind="stable")
    full = int((lengths == T).sum())  # these come first in this order and need no search
    rows = [[i] for i in order[:full].tolist()]
    buckets: list[list[list[int]]] = [[] for _ in range(T + 1)]
    occupied = 0
    for i, length in zip(order[full:].tolist(), lengths[order[full:]].tolist(), strict=True):
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bucket = buckets[room]
            row = bucket.pop()
            if not bucket:
                occupied ^= 1 << room
            row.append(i)
        else:
            room, row = T, [i]
            rows.append(row)
        room -= length
        if room:
            buckets[room].append(row)
            occupied |= 1 << room
    return rows


def pack_documents(
    documents: Sequence[np.ndarray], bos: int, T: int, shuffle: np.random.Generator | None = None
) -> Packed:
    """Token ids of documents (without BOS, all of one dtype that `bos` fits into) → rows of pretraining.

    `shuffle`: put the rows into random order; best-fit leaves them sorted, long documents first and crumbs last.
    """
    chunks: list[np.ndarray] = []  # BOS and a chunk are a piece
    continued: set[int] = set()
    for document in documents:
        if len(document) < T:
            chunks.append(document)
        else:  # T - 1 ids a piece, and one more that is its last target
            begins = range(0, len(document), T - 1)
            continued.update(range(len(chunks) + 1, len(chunks) + len(begins)))
            chunks += [document[begin : begin + T] for begin in begins]
    sizes = np.fromiter(map(len, chunks), np.int64, len(chunks)) + 1
    rows = _rows(sizes, T, shuffle)
    dtype = documents[0].dtype if len(documents) else np.uint16
    ids = _lay(rows, chunks, np.full(T + 1, bos, dtype), T, lead=np.full(1, bos, dtype))
    learn = np.ones(ids.shape, bool)
    sizes_of = sizes.tolist()
    for r, row in enumerate(rows):
        used = 0
        for i in row:
            if i in continued:
                learn[r, used + 1] = False  # this id was a target in the piece before
            used += sizes_of[i]
        learn[r, used + 1 :] = False  # the BOS right after the last document is still its end
    return Packed(ids, learn, int(np.minimum(sizes, T).sum()))


def pack_pieces(pieces: Sequence[Piece], bos: int, T: int, shuffle: np.random.Generator | None = None) -> Packed:
    """`(ids, learn)` of conversations and cut texts → rows; `learn[i]`: id i is a target where it follows id i - 1.

    A piece starts with BOS (`learn[0]` False) and has at most T ids, or T + 1, of which the last is only a target.
    `learn` may be numbers instead: by how much each target counts, 0 = not at all.
    `ids=[bos, 5, 6], learn=[0, 0, 1] -> inputs [bos, 5, 6], targets [-1, 6, -1]`.
    """
    sizes = np.fromiter((len(ids) for ids, _ in pieces), np.int64, len(pieces))
    rows = _rows(sizes, T, shuffle)
    dtype, learn_dtype = (pieces[0][0].dtype, pieces[0][1].dtype) if len(pieces) else (np.uint32, bool)
    ids = _lay(rows, [ids for ids, _ in pieces], np.full(T + 1, bos, dtype), T)
    learn = _lay(rows, [learn for _, learn in pieces], np.zeros(T + 1, learn_dtype), T)
    return Packed(ids, learn, int(np.minimum(sizes, T).sum()))


def cut(ids: np.ndarray, learn: np.ndarray, T: int) -> list[Piece]:
    """One long `(ids, learn)` that starts with BOS as pieces for `pack_pieces`: each id is learned where it was, once.

    `ids=[bos, 1, 2, 3, 4, 5], learn=[0, 1, 1, 1, 1, 1], T=4 -> [bos, 1, 2, 3, 4], [0, 1, 1, 1, 1]` and
    `[bos, 4, 5], [0, 0, 1]`.
    """
    pieces = [(ids[: T + 1], learn[: T + 1])]
    for begin in range(T, len(ids) - 1, T - 1):  # nothing follows the last id: it need not begin a piece
        again = learn[begin - 1 : begin + T].copy()
        again[:2] = False  # BOS, and the id that was the last target of the piece before
        lead = np.concatenate([ids[:1], ids[begin : begin + T]])
        pieces.append((lead, again[: len(lead)]))
    return pieces


def _rows(sizes: np.ndarray, T: int, shuffle: np.random.Generator | None) -> list[list[int]]:
    if sizes.size and sizes.max() > T + 1:
        raise ValueError(f"a piece of {sizes.max()} ids does not fit into a row of {T}: cut it first")
    rows = best_fit_decreasing(np.minimum(sizes, T), T)
    return rows if shuffle is None else [rows[r] for r in shuffle.permutation(len(rows)).tolist()]


def _lay(rows: list[list[int]], pieces: list[np.ndarray], filler: np.ndarray, T: int,
         lead: np.ndarray | None = None) -> np.ndarray:
    """`(rows, T + 1)`: the pieces of each row end to end, `lead` before each, the rest `filler`; copied once, by C."""
    parts = [filler[:0]]  # so that no rows at all have a dtype, too
    for row in rows:
        left = T + 1
        for i in row:
            piece = pieces[i]
            if lead is not None:
                parts.append(lead)
                left -= 1
            parts.append(piece)
            left -= len(piece)
        parts.append(filler[:left])
    return np.concatenate(parts).reshape(len(rows), T + 1)
