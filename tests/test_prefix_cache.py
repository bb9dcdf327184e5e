"""Known beginnings: the longest is found, the oldest go first, and nothing is said that was not put in.

Run: python -m pytest tests/test_prefix_cache.py
"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.prefix_cache import PrefixCache, common_prefix

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def kv_of(ids: list[int]) -> torch.Tensor:
    """Stands for keys and values: what they are depends on all ids up to their place, as it does in a model."""
    codes, code = [], 0
    for token in ids:
        code = (code * 3 + token + 1) % 1_000_003
        codes.append(code)
    return torch.tensor(codes).view(1, 1, 1, -1, 1)


@given(st.lists(sequences, max_size=8), sequences)
def test_longest_against_a_search(known, prompt):
    prefixes = PrefixCache(capacity=10**6)
    for ids in known:
        prefixes.put(ids, kv_of(ids))
    want = max((min(common_prefix(ids, prompt), len(prompt) - 1) for ids in known), default=0)
    kv = prefixes.longest(prompt)
    assert (0 if kv is None else kv.size(3)) == want
    if kv is not None:
        assert torch.equal(kv, kv_of(prompt)[:, :, :, :want])


@given(st.lists(sequences, max_size=20), st.integers(0, 30))
def test_capacity_holds(known, capacity):
    prefixes = PrefixCache(capacity)
    for ids in known:
        prefixes.put(ids, kv_of(ids))
        assert len(prefixes) <= capacity


def test_the_least_used_goes_first():
    prefixes = PrefixCache(capacity=9)
    for ids in ([1] * 4, [2] * 4):
        prefixes.put(ids, kv_of(ids))
    assert prefixes.longest([1] * 5).size(3) == 4  # used now
    prefixes.put([3] * 4, kv_of([3] * 4))
    assert prefixes.longest([2] * 5) is None
    assert prefixes.longest([1] * 5).size(3) == prefixes.longest([3] * 5).size(3) == 4


def test_what_another_begins_with_takes_no_room():
    prefixes = PrefixCache(capacity=100)
    prefixes.put([1, 2], kv_of([1, 2]))
    prefixes.put([1, 2, 3], kv_of([1, 2, 3]))
    prefixes.put([1], kv_of([1]))
    assert len(prefixes) == 3


def test_what_has_no_room_drives_nobody_out():
    prefixes = PrefixCache(capacity=5)
    prefixes.put([1, 2, 3], kv_of([1, 2, 3]))
    prefixes.put([2] * 6, kv_of([2] * 6))
    assert len(prefixes) == 3 and prefixes.longest([1, 2, 3, 4]).size(3) == 3


def test_it_may_be_full_to_the_last_position():
    prefixes = PrefixCache(capacity=5)
    for ids in ([1, 2, 3], [4, 5]):
        prefixes.put(ids, kv_of(ids))
    assert len(prefixes) == 5
