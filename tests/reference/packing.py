"""The packer as anyone would write it first, and the way back from rows to pieces: slow, obvious, trusted.

A piece here is a pair of tuples `(inputs, targets)`. A row is a list of piece indices.
"""

from __future__ import annotations

from collections import Counter

Piece = tuple[tuple[int, ...], tuple[int, ...]]


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
