"""The decode step of fixed shapes: the same logits as the plain model, few compilations, and, on a GPU, as a graph.

Run: python -m pytest tests/test_decode_graph.py
"""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.decode_graph import DecodeGraphs, key_bucket, row_bucket
from nanochat.torch_forward import TorchForward
from tests.test_cpu_forward import error, make_model, random_ids

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@given(st.integers(1, 10**6))
def test_buckets(n):
    assert row_bucket(n) >= n > row_bucket(n) // 2
    assert n <= key_bucket(n) <= max(n + 255, n + n // 8)


def compare(model, forward: TorchForward, lengths: list[int], steps: int) -> None:
    """Ragged prompts, then a token a row: against the full forward of each row."""
    vocab = model.config.vocab_size
    rows = [random_ids(n, vocab, seed=i) for i, n in enumerate(lengths)]
    cache = forward.new_cache(len(rows), 8)
    forward(rows, cache)
    for step in range(steps):
        new = [(step * 31 + i * 7) % vocab for i in range(len(rows))]
        logits = forward([[token] for token in new], cache)
        for row, token in zip(rows, new):
            row.append(token)
        for got, row in zip(logits, rows):
            want = model(torch.tensor([row], device=model.get_device()))[0, -1]
            assert error(got, want) <= (1e-5 if model.compute_dtype == torch.float32 else 0.03)
        assert cache.lengths.tolist() == cache.host_lengths == [len(row) for row in rows]


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_equals_the_model(device):
    """Any number of rows, over the edges of buckets; the memory of a cache that is gone is used again."""
    model = make_model(sequence_len=600).to(device)
    forward = TorchForward(model)
    forward.graphs = DecodeGraphs(model, compiled=False)
    addresses = set()
    for lengths in ([5], [254, 3], [1, 20, 7], [255, 250, 249], [511], [3] * 9, [4, 4]):
        compare(model, forward, lengths, steps=4)
        addresses.add(forward._store.data_ptr())
    assert len(addresses) <= 5  # grew a few times, and was otherwise taken over
    assert len(forward.graphs.steps) <= 3


@pytest.mark.parametrize("device", DEVICES)
def test_two_caches_at_once(device):
    """A cache that is in use keeps its memory to itself."""
    model = make_model().to(device)
    forward = TorchForward(model)
    forward.graphs = DecodeGraphs(model, compiled=False)
    a, b = forward.new_cache(1, 8), forward.new_cache(1, 8)
    assert a.store.data_ptr() != b.store.data_ptr()
    ids = random_ids(9)
    first = forward([[1]], forward.new_cache(1, 8))
    kept = first.clone()
    forward([[2]], forward.new_cache(1, 8))
    assert torch.equal(first, kept)  # the logits are the caller's: no later step writes into them
    forward([ids[:8]], a)
    forward([random_ids(8, seed=5)], b)
    for cache, row in ((a, ids[:8]), (b, random_ids(8, seed=5))):
        got = forward([[ids[8]]], cache)[0]
        assert error(got, model(torch.tensor([[*row, ids[8]]], device=device))[0, -1]) <= 1e-5


def test_one_token_for_some_rows():
    """Prompts of one token join beside a row that is there: no step of all rows, which would write into the first."""
    model = make_model()
    forward = plain_graphs(model)
    cache = forward.new_cache(3, 8)
    forward([random_ids(9), [1], [2]], cache)
    cache.set_lengths([9, 0, 0])
    logits = forward([[5], [6]], cache, first_row=1)
    assert cache.lengths.tolist() == [9, 1, 1]
    for got, token in zip(logits, (5, 6)):
        assert error(got, model(torch.tensor([[token]]))[0, -1]) <= 1e-5
    got = forward([[7], [8], [9]], cache)
    for row, ids in zip(got, ([*random_ids(9), 7], [5, 8], [6, 9])):
        assert error(row, model(torch.tensor([ids]))[0, -1]) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_compiled_a_few_times_for_all_shapes(device, monkeypatch):
    """One compilation for a single row, one for any number of rows, and one for a cache that is just full. On a CPU
    PyTorch traces and guards as it would on a GPU, but makes no kernels of it, which would take a minute."""
    if device == "cpu":
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model(sequence_len=600, n_layer=1).to(device)
    forward = TorchForward(model)
    forward.graphs = DecodeGraphs(model, compiled=True)
    for lengths in ([5], [300], [254, 3], [1, 20, 7], [511, 2, 2], [3] * 9, [9]):
        compare(model, forward, lengths, steps=3)
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def plain_graphs(model) -> TorchForward:
    forward = TorchForward(model)
    forward.graphs = DecodeGraphs(model, compiled=False)
    return forward


def test_memory_in_use_is_not_given_away():
    """Of two caches the younger goes while the older one is decoding: a third must not get the older one's memory."""
    forward = plain_graphs(make_model())
    a, b = forward.new_cache(2, 8), forward.new_cache(2, 8)
    for cache in (a, b, a):
        forward([[1], [2]], cache)
    del b, cache
    c = forward.new_cache(2, 8)
    assert c.store.data_ptr() != a.store.data_ptr()
    address = c.store.data_ptr()
    del a, c
    assert forward.new_cache(2, 8).store.data_ptr() == address  # the last one's is free


def recorded(forward: TorchForward, monkeypatch) -> list[tuple[int, int]]:
    """A list that grows by each step that is recorded."""
    steps, record = [], forward.graphs._record

    def note(store, rows, keys):
        steps.append((rows, keys))
        return record(store, rows, keys)

    monkeypatch.setattr(forward.graphs, "_record", note)
    return steps


def test_a_second_engine_leaves_the_first_ones_addresses_alone():
    """A recorded graph reads the rotary table where it was."""
    model = make_model()
    plain_graphs(model)
    table = model.cos
    plain_graphs(model)
    assert model.cos is table


@pytest.mark.parametrize("moves", ["table", "longer", "weights"])
def test_what_moved_is_recorded_anew(moves, monkeypatch):
    """The rotary table or the weights at another address: graphs of before would read what is there now."""
    model = make_model()
    forward = plain_graphs(model)
    steps = recorded(forward, monkeypatch)
    cache = forward.new_cache(1, 8)
    for token in (1, 2):
        forward([[token]], cache)
    assert len(steps) == 1
    if moves == "table":
        model._grow_rotary(model.cos.size(1))
    elif moves == "longer":
        model(torch.zeros(1, model.cos.size(1) + 1, dtype=torch.long))
    else:
        kept = [p.data for p in model.parameters()]  # so that the new ones stand elsewhere
        for p in model.parameters():
            p.data = p.data.clone()
        assert kept and not forward.refresh()  # they are what they were: keys and values stay good
    for token in (3, 4):
        forward([[token]], cache)
    assert len(steps) == 2


def test_memory_is_clean_when_weights_were_not():
    """Weights of NaN fill the memory with NaN; once they are mended, 0 · NaN must not poison what comes next."""
    model = make_model()
    forward = plain_graphs(model)
    good = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.fill_(float("nan"))
    ids = random_ids(20)
    assert forward([ids], forward.new_cache(1, 32)).isnan().all() and forward.refresh()
    for p, mended in zip(model.parameters(), good):
        p.copy_(mended)
    assert forward.refresh()
    compare(model, forward, [3], steps=3)
