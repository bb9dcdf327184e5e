"""The Rust trainer against the oracle, and its manners: streaming, the GIL, Ctrl-C, bad input."""

import itertools
import os
import random
import signal
import threading
import time
import warnings
import weakref

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat.tokenizer import SPLIT_PATTERN, RustBPETokenizer
from tests.reference import bpe

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built (no Rust toolchain)")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built: only its source folder is here", allow_module_level=True)

# Few letters, so that pairs repeat, overlap and tie; some that take two and four bytes, and every kind of separator.
texts = st.lists(st.text(alphabet="aab  c1\n'sé🙂.", max_size=60), max_size=8)


def trained(corpus, vocab_size, pattern=None):
    tokenizer = rustbpe.Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small corpora run out of pairs
        tokenizer.train_from_iterator(corpus, vocab_size, pattern=pattern)
    return tokenizer


@settings(max_examples=150, deadline=None)
@given(corpus=texts, merges=st.integers(0, 40), other=st.text(alphabet="abc 1\n'sé🙂", max_size=40))
@example(corpus=["aaaa aaaaa aaa"], merges=5, other="aaaaaaa")
@example(corpus=["abab baba abba"], merges=9, other="abababa")
def test_equals_oracle(corpus, merges, other):
    tokenizer = trained(iter(corpus), 256 + merges)
    learned = bpe.train(corpus, 256 + merges, SPLIT_PATTERN)
    assert tokenizer.get_mergeable_ranks() == bpe.ranks(learned)
    assert tokenizer.vocab_size == 256 + len(learned)
    ours = RustBPETokenizer(dict(tokenizer.get_mergeable_ranks()), SPLIT_PATTERN, {})
    for text in [*corpus, other]:
        # three encoders: the crate's, tiktoken on the crate's ranks, the oracle's
        assert tokenizer.encode(text) == ours.encode(text) == bpe.encode(text, learned, SPLIT_PATTERN)


@settings(max_examples=30, deadline=None)
@given(corpus=st.lists(st.text(alphabet="ab,", max_size=30), max_size=5))
def test_other_pattern(corpus):
    pattern = r"[^,]+|,"
    assert trained(corpus, 270, pattern).get_mergeable_ranks() == bpe.ranks(bpe.train(corpus, 270, pattern))


def test_larger_corpus_in_any_number_of_texts():
    """Several buffers and threads: the same result however the words are dealt out to texts."""
    rng = random.Random(1)
    words = [" " + "".join(rng.choices("etaoinshr", k=rng.randint(1, 7))) for _ in range(2000)]
    corpus = rng.choices(words, k=20_000)
    learned = bpe.ranks(bpe.train(["".join(corpus)], 300, SPLIT_PATTERN))
    for share in (1, 7, 20_000):
        parts = ["".join(corpus[i : i + share]) for i in range(0, len(corpus), share)]
        assert trained(parts, 300).get_mergeable_ranks() == learned


def test_ties_go_to_the_smallest_pair():
    # "dc" and "ab" occur twice each: (97, 98) < (100, 99), though "dc" comes first in the text
    assert trained(["dc", "dc", "ab", "ab"], 258).get_mergeable_ranks()[256:] == [(b"ab", 256), (b"dc", 257)]


def test_untrained_knows_the_bytes():
    tokenizer = rustbpe.Tokenizer()
    assert tokenizer.get_pattern() == SPLIT_PATTERN
    assert tokenizer.vocab_size == 256
    assert tokenizer.encode("é") == [0xC3, 0xA9]


def test_too_small_corpus_gives_a_smaller_tokenizer_and_says_so():
    tokenizer = rustbpe.Tokenizer()
    with pytest.warns(UserWarning, match="2 merges learned instead of 744"):
        tokenizer.train_from_iterator(["abc"], 1000)
    assert tokenizer.get_mergeable_ranks()[256:] == [(b"ab", 256), (b"abc", 257)]
    assert tokenizer.encode("abcab") == [257, 256]
    assert trained([], 300).vocab_size == 256


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, (["a"], 255)),
        (ValueError, (["a"], -1)),
        (ValueError, (["a"], 300, "(unclosed")),
        (TypeError, ("one str", 300)),
        (TypeError, (["a", 3], 300)),
        (TypeError, (None, 300)),
        (UnicodeEncodeError, (["\ud800"], 300)),
        (ZeroDivisionError, ((1 / n for n in [0]), 300)),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(error, arguments):
    tokenizer = trained(["abab"], 258)
    before = tokenizer.get_mergeable_ranks()
    with pytest.raises(error):
        tokenizer.train_from_iterator(*arguments)
    assert tokenizer.get_mergeable_ranks() == before


def test_a_million_spaces():
    """`\\s+(?!\\S)` would overflow the regex engine's stack."""
    text = "start" + " " * 1_000_000 + "end " + "\t " * 500_000
    tokenizer = trained([text], 300)
    tokens = tokenizer.get_mergeable_ranks()
    assert b"".join(tokens[i][0] for i in tokenizer.encode(text)).decode("utf-8") == text


class Text(str):
    """A str that can be watched."""

    __hash__ = object.__hash__


def test_the_iterator_is_streamed():
    alive = weakref.WeakSet()
    most = 0

    def stream():
        nonlocal most
        for i in range(60):
            text = Text(f"{i} " + "x" * 1_000_000)
            alive.add(text)
            most = max(most, len(alive))
            yield text
            del text

    trained(stream(), 256)
    assert 2 <= most <= 20


def interrupt_after(seconds):
    """Ctrl-C from another thread, which runs only if the trainer lets go of the GIL."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()


def test_ctrl_c_while_reading():
    begin = time.monotonic()
    interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        rustbpe.Tokenizer().train_from_iterator(itertools.repeat("no end in sight " * 1000), 300)
    assert time.monotonic() - begin < 20


def test_ctrl_c_while_merging():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=30)) for _ in range(40_000)]

    def stream():
        yield " ".join(words)
        interrupt_after(0.4)  # by then the words are counted; merging 1.2 million letters takes seconds

    tokenizer = rustbpe.Tokenizer()
    with pytest.raises(KeyboardInterrupt):
        tokenizer.train_from_iterator(stream(), 2_000_000)
    assert tokenizer.vocab_size == 256
