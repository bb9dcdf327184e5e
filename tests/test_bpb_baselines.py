"""The baselines for bits per byte: honest probabilities, the numbers of a slow oracle, and figures one knows anyway."""

from __future__ import annotations

import gzip
import lzma
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import bpb_baselines
from nanochat.bpb_baselines import Counts, NGramModel, added_up, known_to, measure
from tests.reference.ngram import SlowNGramModel

TEXTS = st.lists(st.binary(max_size=12) | st.lists(st.sampled_from(b"ab\x00\xff"), max_size=25).map(bytes), max_size=5)


def learnt(documents: list[bytes], order: int = 5, max_bytes: int = 10**9) -> NGramModel:
    model = NGramModel(order)
    model.learn(documents, max_bytes)
    return model


def test_the_worked_example():
    p0 = (2 + 2 / 256) / (4 + 2)  # a and b twice each
    assert learnt([b"abab"], order=0).distribution(b"")[ord("b")] == pytest.approx(p0)
    assert learnt([b"abab"], order=1).distribution(b"a")[ord("b")] == pytest.approx((2 + p0) / 3)
    assert learnt([b"abab"], order=1).distribution(b"z")[ord("b")] == pytest.approx(p0)  # never seen: the shorter one


@settings(max_examples=60)
@given(TEXTS, st.binary(max_size=8) | st.text("ab", max_size=8).map(str.encode), st.integers(0, 6))
def test_probabilities_are_those_of_the_oracle_and_sum_to_one(documents, context, order):
    p = learnt(documents, order).distribution(context)
    assert p.shape == (256,) and (p > 0).all() and p.sum() == pytest.approx(1, abs=1e-12)
    slow = SlowNGramModel(order, documents)
    for byte in {*b"ab\x00\xff", *context, 77}:
        assert p[byte] == pytest.approx(slow.after(context, byte), rel=1e-9)


@settings(max_examples=60)
@given(TEXTS, TEXTS)
def test_bits_are_those_of_the_oracle_each_document_begun_anew(train, documents):
    model, slow = learnt(train, order=3), SlowNGramModel(3, train)
    bits = sum(-math.log2(slow.after(d[:i], d[i])) for d in documents for i in range(len(d)))
    assert model.bits(documents) == pytest.approx(bits, rel=1e-9)


def test_pieces_do_not_show(monkeypatch):
    """The arrays that are worked on are bounded; where they are cut is seen only within a document longer than one."""
    rng = random.Random(3)
    documents = [bytes(rng.choices(b"abcd ", k=rng.randrange(40))) for _ in range(60)]
    whole = learnt(documents)
    bits = whole.bits(documents)
    monkeypatch.setattr(bpb_baselines, "PIECE", 64)
    model = learnt(documents)
    assert [c.keys.tolist() for c in model.ngrams] == [c.keys.tolist() for c in whole.ngrams]
    assert [c.counts.tolist() for c in model.ngrams] == [c.counts.tolist() for c in whole.ngrams]
    assert model.bits(documents) == pytest.approx(bits, rel=1e-12)
    sizes = [len(text) for text, _ in bpb_baselines._pieces([b"x" * 200, *documents])]
    assert max(sizes) == 64 and sum(sizes) == 200 + sum(map(len, documents))


@given(TEXTS, st.integers(0, 60))
def test_no_more_is_learnt_than_is_said(documents, max_bytes):
    model, together = learnt(documents, 2, max_bytes), sum(map(len, documents))
    assert model.train_bytes == min(max_bytes, together) == model.ngrams[0].counts.sum()
    assert f"{model.train_bytes:,} bytes" in known_to(model)["ngram"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9))))
def test_counts(pairs):
    keys, counts = np.array([k for k, _ in pairs], np.uint64), np.array([n for _, n in pairs], np.int64)
    made = added_up(keys, counts)
    assert made.keys.tolist() == sorted({k for k, _ in pairs})
    asked = np.arange(7, dtype=np.uint64)
    assert made.of(asked).tolist() == [sum(n for k, n in pairs if k == i) for i in range(7)]
    assert Counts(keys[:0], counts[:0]).of(asked).tolist() == [0] * 7


def test_what_one_knows_anyway():
    noise = random.Random(1).randbytes(20_000)
    for bpb in measure([noise[:7000], noise[7000:]], learnt([random.Random(2).randbytes(20_000)])).values():
        assert 7.99 < bpb < 9  # nothing to find
    text = b"Mira lives in Tarn. " * 500
    found = measure([text], learnt([text]))
    assert all(0 < bpb < 0.2 for bpb in found.values()) and list(found) == list(known_to(learnt([])))
    assert found["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert found["xz"] <= 8 * len(lzma.compress(text, preset=9)) / len(text)
    assert set(measure([], learnt([])).values()) == {math.inf}  # trap: bpb-zero
    assert measure([b"abc"], learnt([]))["ngram"] == 8  # knows nothing
