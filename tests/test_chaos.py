"""tests/chaos.py sees a difference where there is one; its strings and corpora are the same each time."""

import random
from collections import Counter

import pytest

from tests import chaos
from tests.reference import bpe, splitter

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built (no Rust toolchain)")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built: only its source folder is here", allow_module_level=True)


def test_a_wrong_splitter_is_found_and_its_text_shrunk(monkeypatch):
    right = chaos.by_hand

    def wrong(name, text):  # takes U+0085 for no space, but only where a mark follows
        return [text] if "\x85\u0301" in text else right(name, text)

    assert chaos.splitter_differences(300, seed=3) == []
    monkeypatch.setattr(splitter, "hard_strings", lambda count, seed: ["fine", "ab cd \x85\u0301 ef 123", "fine too"])
    monkeypatch.setattr(chaos, "by_hand", wrong)
    found = chaos.splitter_differences(3)
    assert len(found) == len(splitter.PATTERNS)
    assert found[0].startswith(r"digits 1: '\x85\u0301' -> ['\x85\u0301'], engine ['\x85', '\u0301']")
    assert chaos.report("3 strings", found, 1.0) == 1


def test_a_wrong_trainer_is_found(monkeypatch):
    assert chaos.trainer_differences(20, seed=5) == []
    right = bpe.train
    monkeypatch.setattr(bpe, "train", lambda *a: right(*a)[:-1])
    assert 5 < len(chaos.trainer_differences(20, seed=5)) <= 20


def test_corpora_reach_the_floor_of_the_trainer():
    """Pairs below 1/1024 of the highest count are left out at first: many corpora must have some."""
    reached = 0
    for seed in range(100):
        texts, _, pattern = chaos.random_corpus(random.Random(seed))
        counts = Counter(word for text in texts for word in splitter.split(text, pattern) if len(word) > 1)
        reached += len(counts) > 1 and max(counts.values()) >= 2048 and min(counts.values()) <= 4
    assert reached > 10


def test_shrunk():
    assert chaos.shrunk("abcXdefX", lambda text: "X" in text) == "X"
    assert chaos.shrunk("a1b2c3", lambda text: "1" in text and "3" in text) == "13"
    assert chaos.shrunk("a", lambda text: True) == "a"


def test_strings_and_corpora_follow_from_the_seed():
    strings = list(splitter.hard_strings(3000, "0-0"))
    assert len(strings) == 3000 and all(strings)
    assert strings == list(splitter.hard_strings(3000, "0-0")) != list(splitter.hard_strings(3000, "0-1"))
    assert chaos.random_corpus(random.Random(1)) == chaos.random_corpus(random.Random(1))


def test_hard_strings_are_hard():
    """All that they are made of does occur, and the oracle loses nothing of it."""
    strings = list(splitter.hard_strings(60_000, 1))
    seen = set("".join(strings))
    alphabet = set("".join(splitter.SPACES + splitter.NO_SPACES + splitter.LETTERS + splitter.DIGITS + splitter.MARKS
                           + splitter.SYMBOLS + splitter.APOSTROPHES + splitter.ENDINGS))
    assert alphabet <= seen
    assert set(splitter.EDGES) <= {len(text) for text in strings}
    for pattern in splitter.PATTERNS.values():
        assert all("".join(splitter.split(text, pattern)) == text for text in strings[:2000])
