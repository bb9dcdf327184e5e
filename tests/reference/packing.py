"""The packer as anyone would write it first, and the way back from rows to pieces: slow, obvious, trusted.

A piece here is a pair of tuples `(inputs, targets)`. A row is a list of piece indices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

Piece = tuple[tuple[int, ...], tuple[int, ...]]
Choice = Callable[[list[np.ndarray], int, int], int | None]  # (waiting pieces, room, T) -> which of them, if any


def document_pieces(tokens: list[int], bos: int, T: int) -> list[Piece]:
    """`[1, 2, 3, 4, 5], bos=0, T=4 -> ((0, 1, 2, 3), (1, 2, 3, 4)), ((0, 4, 5), (-1, 5, 0))`."""
    inputs, targets = [bos, *tokens], [*tokens, bos]
    pieces = [(tuple(inputs[:T]), tuple(targets[:T]))]
    inputs, targets = inputs[T:], targets[T:]
    while inputs:
        pieces.append(((bos, *inputs[: T - 1]), (-1, *targets[: T - 1])))
        inputs, targets = inputs[T - 1 :], targets[T - 1 :]
    return pieces


def conversation_piece(ids: list[int], mask: list[int], T: int) -> Piece:
    """Position i learns the id after it, if that is supervised and still within the row."""
    ids, mask = ids[:T], mask[:T]
    targets = [ids[i + 1] if i + 1 < len(ids) and mask[i + 1] else -1 for i in range(len(ids))]
    return tuple(ids), tuple(targets)


def scan_pack(lengths: list[int], T: int) -> list[list[int]]:
    """Best-fit decreasing by looking at every row for every piece."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[i]]
        if fitting:
            best = min(fitting, key=lambda r: room[r])
        else:
            best = len(rows)
            rows.append([])
            room.append(T)
        rows[best].append(i)
        room[best] -= lengths[i]
    return rows


def plain_choice(waiting: list[np.ndarray], room: int, T: int) -> int | None:
    """The largest waiting piece that fits: look at each of them."""
    best, largest = None, 0
    for i, ids in enumerate(waiting):
        size = min(len(ids) + 1, T)
        if largest < size <= room:
            best, largest = i, size
    return best


def quick_choice(waiting: list[np.ndarray], room: int, T: int) -> int | None:
    """The same with the loops inside Python's own functions; of a full row's pieces, any will do."""
    sizes = list(map(len, waiting))
    if room == T and sizes and max(sizes) >= T - 1:
        return sizes.index(max(sizes))
    fitting = [size for size in sizes if size < room]
    return sizes.index(max(fitting)) if fitting else None


def scan_buffer(
    documents: Iterable[np.ndarray], bos: int, T: int, buffer: int = 1000, choose: Choice = plain_choice
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Best fit as a loader would first have it: look through a buffer of waiting pieces for the largest that fits.

    Documents of ids, without BOS → rows `(ids, learn)` of T + 1, as `nanochat.packing.Packed` has them. The buffer is
    kept full; what remains of a row into which nothing fits is padding.
    """
    pieces = ((d[a : a + T], a > 0) for d in documents for a in range(0, max(1, len(d)), T - 1))
    waiting: list[np.ndarray] = []
    continued: list[bool] = []
    while True:
        row, learn = np.full(T + 1, bos, np.uint16), np.zeros(T + 1, bool)
        used = 0
        while used < T:
            while len(waiting) < buffer and (piece := next(pieces, None)) is not None:
                waiting.append(piece[0])
                continued.append(piece[1])
            best = choose(waiting, T - used, T)
            if best is None:
                break
            ids, lead = waiting.pop(best), continued.pop(best)
            row[used + 1 : used + 1 + len(ids)] = ids
            learn[used + 1 + lead : used + 2 + len(ids)] = True  # and the BOS after it
            used += min(len(ids) + 1, T)
        if not used:
            return
        yield row, learn


def pieces_in(inputs: list[list[int]], targets: list[list[int]], bos: int) -> Counter[Piece]:
    """Rows taken apart at every BOS, padding (a BOS alone with target -1) left out. Fails if a row starts otherwise."""
    found: Counter[Piece] = Counter()
    for row_inputs, row_targets in zip(inputs, targets, strict=True):
        assert row_inputs[0] == bos, "a row must start with the BOS of a whole piece"
        starts = [i for i, token in enumerate(row_inputs) if token == bos] + [len(row_inputs)]
        for a, b in zip(starts, starts[1:], strict=False):
            piece = tuple(row_inputs[a:b]), tuple(row_targets[a:b])
            if piece != ((bos,), (-1,)):
                found[piece] += 1
    return found
