"""packing.py against tests/reference/packing.py: the same pieces, the same economy, nothing lost."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.packing import best_fit_decreasing, cut_documents, pack_conversations, pack_documents
from tests.reference import packing as reference

BOS = 1000
documents_and_T = st.tuples(st.lists(st.integers(1, 60), max_size=40), st.integers(2, 24))


def unique_documents(sizes: list[int]) -> list[list[int]]:
    """No token occurs twice, so one that is lost, doubled or moved cannot hide behind another."""
    ends = np.cumsum(sizes)
    return [[BOS + 1 + i for i in range(end - size, end)] for size, end in zip(sizes, ends, strict=True)]


@settings(deadline=None, max_examples=150)
@given(documents_and_T)
def test_documents_become_exactly_the_reference_pieces(case):
    sizes, T = case
    documents = unique_documents(sizes)
    packed = pack_documents([np.array(d) for d in documents], BOS, T)
    expected = Counter(p for d in documents for p in reference.document_pieces(d, BOS, T))
    assert reference.pieces_in(packed.inputs.tolist(), packed.targets.tolist(), BOS) == expected
    assert packed.used == sum(len(inputs) * n for (inputs, _), n in expected.items())
    supervised = packed.targets[packed.targets >= 0]
    assert Counter(supervised[supervised != BOS].tolist()) == Counter(t for d in documents for t in d)  # each once
    assert (supervised == BOS).sum() == len(documents)  # and each document's end


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 32), max_size=120), st.integers(32, 40))
def test_bucketed_best_fit_wastes_as_the_scan_does(lengths, T):
    row, offset, rows = best_fit_decreasing(np.array(lengths, np.int64), T)
    taken = [[False] * T for _ in range(rows)]
    for length, r, o in zip(lengths, row, offset, strict=True):
        assert o + length <= T and not any(taken[r][o : o + length])
        taken[r][o : o + length] = [True] * length
    by_scan = reference.scan_pack(lengths, T)
    assert sorted(sum(r) for r in taken) == sorted(sum(lengths[i] for i in r) for r in by_scan)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(2, 24))
def test_conversation_targets_are_the_supervised_next_ids(data, T):
    sizes = data.draw(st.lists(st.integers(1, T), max_size=30))
    rendered = [([BOS, *d[1:]], data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
                for d, n in zip(unique_documents(sizes), sizes, strict=True)]
    packed = pack_conversations(rendered, BOS, T)
    # a conversation of one BOS is told from padding by nobody, the model included
    pieces = (reference.conversation_piece(ids, mask, T) for ids, mask in rendered)
    expected = Counter(p for p in pieces if p != ((BOS,), (-1,)))
    assert reference.pieces_in(packed.inputs.tolist(), packed.targets.tolist(), BOS) == expected


def test_worked_examples_of_the_docstrings():
    pieces = cut_documents(np.array([6, 2]), 4)
    assert (pieces.start.tolist(), pieces.size.tolist(), pieces.lead.tolist()) == ([0, 4, 6], [4, 2, 2], [0, 1, 0])
    row, offset, rows = best_fit_decreasing(np.array([3, 1, 2, 2]), 4)
    assert (row.tolist(), offset.tolist(), rows) == ([0, 0, 1, 1], [0, 3, 0, 2], 2)
    packed = pack_documents([np.array([1, 2, 3, 4, 5])], BOS, 4)
    assert packed.inputs.tolist() == [[BOS, 1, 2, 3], [BOS, 4, 5, BOS]]
    assert packed.targets.tolist() == [[1, 2, 3, 4], [-1, 5, BOS, -1]]


@pytest.mark.parametrize(
    ("T", "mean", "spread"), [(2048, 7.8, 1.0), (2048, 6.4, 0.9), (2048, 4.4, 0.6), (256, 7.8, 1.0)])
def test_a_window_of_realistic_lengths_is_full(T, mean, spread):
    """Books, web pages, chats of about 100 tokens; lengths are log-normal, as measured ones nearly are."""
    lengths = np.random.default_rng(0).lognormal(mean, spread, 200_000).astype(np.int64) + 1
    lengths = np.minimum(lengths, 50_000)
    window = lengths[: np.searchsorted(np.cumsum(lengths), 2048 * T)]
    pieces = cut_documents(window, T).lengths
    _, _, rows = best_fit_decreasing(pieces, T)
    assert pieces.sum() / (rows * T) >= 0.995
