"""packing.py against tests/reference/packing.py: the same pieces, the same economy, nothing lost."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.packing import Packed, best_fit_decreasing, cut, pack_documents, pack_pieces, to_inputs_and_targets
from tests.reference import packing as reference

BOS = 9000
documents_and_T = st.tuples(st.lists(st.integers(0, 60), max_size=40), st.integers(2, 24))


def unique_documents(sizes: list[int]) -> list[list[int]]:
    """No token occurs twice, so one that is lost, doubled or moved cannot hide behind another."""
    ends = np.cumsum(sizes)
    return [[*range(end - size, end)] for size, end in zip(sizes, ends, strict=True)]


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(d, np.uint16) for d in documents]


def pieces_of(packed: Packed) -> Counter:
    inputs, targets = to_inputs_and_targets(packed.ids, packed.learn)
    assert inputs.dtype == targets.dtype == np.int64
    return reference.pieces_in(inputs.tolist(), targets.tolist(), BOS)


@settings(deadline=None, max_examples=150)
@given(documents_and_T)
def test_documents_become_exactly_the_reference_pieces(case):
    sizes, T = case
    documents = unique_documents(sizes)
    packed = pack_documents(arrays(documents), BOS, T)
    expected = Counter(p for d in documents for p in reference.document_pieces(d, BOS, T))
    assert pieces_of(packed) == expected
    assert packed.used == sum(len(inputs) * n for (inputs, _), n in expected.items())
    _, targets = to_inputs_and_targets(packed.ids, packed.learn)
    supervised = targets[targets >= 0]
    assert Counter(supervised[supervised != BOS].tolist()) == Counter(t for d in documents for t in d)  # each once
    assert (supervised == BOS).sum() == len(documents)  # and each document's end


@settings(deadline=None, max_examples=150)
@given(documents_and_T, st.integers(1, 30), st.sampled_from([reference.plain_choice, reference.quick_choice]))
def test_the_plain_scan_packs_the_same_pieces(case, buffer, choose):
    """The benchmark compares packers: they must do the same job."""
    sizes, T = case
    documents = arrays(unique_documents([*sizes, 1]))
    ids, learn = (np.array(a) for a in zip(*reference.scan_buffer(documents, BOS, T, buffer, choose), strict=True))
    assert pieces_of(Packed(ids, learn, 0)) == pieces_of(pack_documents(documents, BOS, T))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 24), max_size=30), st.integers(1, 24))
def test_both_scans_choose_the_largest_that_fits(sizes, room):
    T, waiting = 24, [np.zeros(n, np.uint16) for n in sizes]
    chosen = [choose(waiting, room, T) for choose in (reference.plain_choice, reference.quick_choice)]
    taken = [None if i is None else min(len(waiting[i]) + 1, T) for i in chosen]
    assert taken[0] == taken[1] == max((s for n in sizes if (s := min(n + 1, T)) <= room), default=None)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 32), max_size=120), st.integers(32, 40))
def test_bucketed_best_fit_wastes_as_the_scan_does(lengths, T):
    rows = best_fit_decreasing(np.array(lengths, np.int64), T)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= T for row in rows)
    by_scan = reference.scan_pack(lengths, T)
    assert sorted(sum(lengths[i] for i in row) for row in rows) == sorted(sum(lengths[i] for i in r) for r in by_scan)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(2, 24))
def test_conversation_targets_are_the_supervised_next_ids(data, T):
    sizes = data.draw(st.lists(st.integers(1, T), max_size=30))
    rendered = [([BOS, *d[1:]], [0, *data.draw(st.lists(st.integers(0, 1), min_size=n - 1, max_size=n - 1))])
                for d, n in zip(unique_documents(sizes), sizes, strict=True)]
    packed = pack_pieces([(np.array(ids, np.uint16), np.array(mask, bool)) for ids, mask in rendered], BOS, T)
    # a conversation of one BOS is told from padding by nobody, the model included
    pieces = (reference.conversation_piece(ids, mask, T) for ids, mask in rendered)
    assert pieces_of(packed) == Counter(p for p in pieces if p != ((BOS,), (-1,)))
    assert packed.used == sum(sizes)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 90), st.integers(2, 24), st.randoms(use_true_random=False))
def test_a_cut_text_is_learned_once(size, T, random):
    ids = np.array([BOS, *range(size)], np.uint16)
    learn = np.array([False, *(random.random() < 0.7 for _ in range(size))])
    packed = pack_pieces(cut(ids, learn, T), BOS, T)
    inputs, targets = to_inputs_and_targets(packed.ids, packed.learn)
    seen = sorted(inputs[inputs != BOS].tolist())
    assert seen in ([*range(size)], [*range(size - 1)])  # the last may be a target only
    assert sorted(targets[targets >= 0].tolist()) == [i for i in range(size) if learn[i + 1]]
    after = inputs.copy()
    after[:, :-1], after[:, -1] = inputs[:, 1:], targets[:, -1]
    assert (targets == after)[targets >= 0].all()  # a target is what follows
    before_first = inputs[targets == 0]
    assert before_first.size == 0 or before_first.tolist() == [BOS]
    assert packed.used == (inputs != BOS).sum() + len(cut(ids, learn, T))


def test_a_whole_text_cut_is_itself():
    ids, learn = np.array([BOS, 1, 2, 3], np.uint16), np.array([0, 1, 0, 1], bool)
    for T in (3, 4, 5):
        (same, mask), = cut(ids, learn, T)
        assert same.tolist() == ids.tolist() and mask.tolist() == learn.tolist()


def test_worked_examples_of_the_docstrings():
    assert best_fit_decreasing(np.array([3, 1, 2, 2]), 4) == [[0, 1], [2, 3]]
    packed = pack_documents(arrays([[1, 2, 3, 4, 5]]), BOS, 4)
    assert packed.ids.tolist() == [[BOS, 1, 2, 3, 4], [BOS, 4, 5, BOS, BOS]]
    assert packed.learn[:, 1:].tolist() == [[1, 1, 1, 1], [0, 1, 1, 0]]
    inputs, targets = to_inputs_and_targets(packed.ids, packed.learn)
    assert inputs.tolist() == [[BOS, 1, 2, 3], [BOS, 4, 5, BOS]]
    assert targets.tolist() == [[1, 2, 3, 4], [-1, 5, BOS, -1]]
    pieces = cut(np.array([BOS, 1, 2, 3, 4, 5], np.uint16), np.array([0, 1, 1, 1, 1, 1], bool), 4)
    assert [(ids.tolist(), learn.tolist()) for ids, learn in pieces] == [
        ([BOS, 1, 2, 3, 4], [0, 1, 1, 1, 1]), ([BOS, 4, 5], [0, 0, 1])]


def test_nothing_packs_to_no_rows():
    for packed in (pack_documents([], BOS, 4), pack_pieces([], BOS, 4)):
        assert packed.ids.shape == packed.learn.shape == (0, 5) and packed.used == 0


def test_a_piece_too_long_is_refused():
    with pytest.raises(ValueError, match="does not fit into a row of 4"):
        pack_pieces([(np.zeros(6, np.uint16), np.zeros(6, bool))], BOS, 4)


def test_shuffled_rows_are_the_same_rows():
    documents = arrays(unique_documents([5, 9, 1, 3, 3, 7] * 20))
    plain = pack_documents(documents, BOS, 8)
    packed = [pack_documents(documents, BOS, 8, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (packed[0].ids == packed[1].ids).all() and (packed[0].ids != packed[2].ids).any()
    assert pieces_of(plain) == pieces_of(packed[0]) == pieces_of(packed[2])
    ids = packed[0].ids
    assert sorted(ids.tolist()) == sorted(plain.ids.tolist()) and (ids != plain.ids).any()


@pytest.mark.parametrize(
    ("T", "mean", "spread"), [(2048, 7.8, 1.0), (2048, 6.4, 0.9), (2048, 4.4, 0.6), (256, 7.8, 1.0)])
def test_a_window_of_realistic_lengths_is_full(T, mean, spread):
    """Books, web pages, chats of about 100 tokens; lengths are log-normal, as measured ones nearly are."""
    lengths = np.random.default_rng(0).lognormal(mean, spread, 200_000).astype(np.int64) + 1
    lengths = np.minimum(lengths, 50_000)
    window = lengths[: np.searchsorted(np.cumsum(lengths), 2048 * T)]
    packed = pack_documents([np.zeros(n, np.uint16) for n in window], BOS, T)
    assert packed.used / packed.ids[:, 1:].size >= 0.995
