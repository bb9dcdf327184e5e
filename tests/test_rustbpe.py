"""The Rust crate against its oracles (blackboard BPE, the regex engine, tiktoken), and its manners: streaming, the GIL,
Ctrl-C, bad input, linear time. The millions of cases are in tests/chaos.py, which runs here with a share of them."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat.tokenizer import SPLIT_PATTERN, RustBPETokenizer
from tests import chaos
from tests.reference import bpe, splitter

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built (no Rust toolchain)")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built: only its source folder is here", allow_module_level=True)

TEST_DATA = os.environ.get("NANOCHAT_TEST_DATA")
WHOLE = r"(?s).+"  # the text is one word

# Few letters, so that pairs repeat, overlap and tie; some that take two and four bytes, and every kind of separator.
texts = st.lists(st.text(alphabet="aab  c1\n'sé🙂.", max_size=60), max_size=8)


def trained(corpus, vocab_size, pattern=None):
    tokenizer = rustbpe.Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small corpora run out of pairs
        tokenizer.train_from_iterator(corpus, vocab_size, pattern=pattern)
    return tokenizer


def rows(tokenizer, corpus, **options):
    """What `encode_batch` gives, as lists."""
    ids, offsets = tokenizer.encode_batch(corpus, **options)
    ids = np.frombuffer(ids, np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32).tolist()
    bounds = np.frombuffer(offsets, np.int64).tolist()
    assert bounds[-1] == len(ids)
    return [ids[begin:end] for begin, end in zip(bounds, bounds[1:])]


class most_threads:
    """How many threads this process had at most inside of the block, those of Rust too (where there is /proc)."""

    def __enter__(self):
        self.threads, self.over = 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def watch(self):
        while not self.over.wait(0.0005):
            self.threads = max(self.threads, thread_count() - 1)

    def __exit__(self, *_):
        self.over.set()
        self.watcher.join()
        if not Path("/proc/self/task").is_dir():
            self.threads = 2


def thread_count():
    return len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else 1


def tiktoken_of(tokenizer):
    ranks = dict(tokenizer.get_mergeable_ranks())
    return tiktoken.Encoding("same", pat_str=tokenizer.get_pattern(), mergeable_ranks=ranks, special_tokens={})


# -------------------------------------------------------------------------------------------------------- training


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


def test_trainer_equals_oracle_on_random_corpora():
    assert chaos.trainer_differences(2000, seed=2) == []


def test_larger_corpus_in_any_number_of_texts():
    """Several buffers and threads: the same result however the words are dealt out to texts."""
    rng = random.Random(1)
    words = [" " + "".join(rng.choices("etaoinshr", k=rng.randint(1, 7))) for _ in range(2000)]
    corpus = rng.choices(words, k=20_000)
    learned = bpe.ranks(bpe.train(["".join(corpus)], 300, SPLIT_PATTERN))
    for share in (1, 7, 20_000):
        parts = ["".join(corpus[i : i + share]) for i in range(0, len(corpus), share)] * 25  # over two megabytes
        with most_threads() as most:
            assert trained(parts, 300).get_mergeable_ranks() == learned
        assert most.threads > 1


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
        (ZeroDivisionError, ((1 / n for n in [0]), 300)),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(error, arguments):
    tokenizer = trained(["abab"], 258)
    before = tokenizer.get_mergeable_ranks()
    with pytest.raises(error):
        tokenizer.train_from_iterator(*arguments)
    assert tokenizer.get_mergeable_ranks() == before


def test_lone_surrogates_become_replacement_characters():
    broken = json.loads('"a\\ud800b \\ud83d\\ude42"') + chr(0xD83D) + chr(0xDE42) + chr(0xDC00)
    mended = "a\ufffdb 🙂🙂\ufffd"
    tokenizer = trained([broken] * 3, 262)
    assert tokenizer.get_mergeable_ranks() == trained([mended] * 3, 262).get_mergeable_ranks()
    assert tokenizer.encode(broken) == tokenizer.encode(mended)
    assert rows(tokenizer, [broken, mended]) == [tokenizer.encode(mended)] * 2
    assert "".join(tokenizer.split(broken)) == mended


def test_progress():
    heard = []
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=20)) for _ in range(20_000)]
    rustbpe.Tokenizer().train_from_iterator([" ".join(words)], 3000, progress=lambda *a: heard.append(a))
    assert [stage for stage, _ in itertools.groupby(heard, key=lambda a: a[0])] == ["counting", "merging"]
    for stage, last in (("counting", (20_000, None)), ("merging", (2744, 2744))):
        of_stage = [a[1:] for a in heard if a[0] == stage]
        assert of_stage == sorted(of_stage) and of_stage[-1] == last
    tokenizer = rustbpe.Tokenizer()
    with pytest.raises(ZeroDivisionError):
        tokenizer.train_from_iterator([" ".join(words)], 3000, progress=lambda *a: 1 / 0)
    assert tokenizer.vocab_size == 256


def test_the_iterator_is_streamed():
    """400 MB of text through a process whose memory must not grow with it."""
    code = """if True:
        import resource, sys, rustbpe
        texts = ("word " * 200_000 for _ in range(400))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rustbpe.Tokenizer().train_from_iterator(texts, 258)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(grown if sys.platform == "darwin" else 1024 * grown)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert int(done.stdout) < 100_000_000


def interrupt_after(seconds):
    """Ctrl-C from another thread, which runs only if the trainer lets go of the GIL."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()


def test_ctrl_c_while_merging():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=30)) for _ in range(40_000)]

    def interrupt(stage, done, total):
        if stage == "merging" and done < total:
            os.kill(os.getpid(), signal.SIGINT)

    tokenizer = rustbpe.Tokenizer()
    with pytest.raises(KeyboardInterrupt):
        tokenizer.train_from_iterator([" ".join(words)], 2_000_000, progress=interrupt)
    assert tokenizer.vocab_size == 256


@pytest.mark.parametrize("text", ["", "x", "no end in sight " * 1000])
@pytest.mark.parametrize("call", ["encode_batch", "train_from_iterator"])
def test_ctrl_c_on_endless_texts(call, text):
    """Also on texts that never fill a batch, from an iterator that runs no Python code."""
    begin = time.monotonic()
    interrupt_after(0.2)
    with pytest.raises(KeyboardInterrupt):
        getattr(rustbpe.Tokenizer(), call)(itertools.repeat(text), *([300] if call.startswith("train") else []))
    assert time.monotonic() - begin < 20


def test_slow_iterators_hear_of_progress():
    heard = []

    def slow():
        for _ in range(8):
            time.sleep(0.06)
            yield "a word"

    trained_words = rustbpe.Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained_words.train_from_iterator(slow(), 260, progress=lambda *a: heard.append(a))
    assert len([a for a in heard if a[0] == "counting"]) >= 3


def test_a_tokenizer_is_used_while_it_is_trained():
    """By its own progress, by the iterator, and by another thread: the old vocabulary until the end."""
    tokenizer = trained(["abab"], 257)
    stop, seen = threading.Event(), []

    def use():
        while not stop.is_set():
            seen.append(tokenizer.encode("abcd"))

    thread = threading.Thread(target=use)
    thread.start()

    def corpus():
        for _ in range(2000):
            assert tokenizer.encode("ab") == [256]
            yield "cdcd " * 1000

    tokenizer.train_from_iterator(corpus(), 258, progress=lambda *a: tokenizer.vocab_size)
    stop.set()
    thread.join()
    assert [256, 99, 100] in seen
    assert tokenizer.encode("abcd") == [97, 98, 256]


def test_a_warning_that_is_an_error_changes_nothing():
    tokenizer = trained(["abab"], 257)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            tokenizer.train_from_iterator(["cd"], 2**32 - 1)  # and no memory is taken for what is only asked for
    assert tokenizer.encode("ab") == [256]


# ------------------------------------------------------------------------------------------------------- splitting


def test_splitter_equals_the_regex_engine_on_random_strings():
    assert chaos.splitter_differences(200_000, seed=4) == []


@pytest.mark.parametrize("name", splitter.PATTERNS)
def test_splitter_knows_every_character(name):
    """Each Unicode scalar between letters, digits, spaces and line breaks, in one text."""
    scalars = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    for before, after in (("", ""), ("a", "b"), (" ", "1"), ("'", "\n"), ("!", " ")):
        text = "".join(before + c + after for c in scalars)
        assert chaos.by_hand(name, text) == chaos.by_engine(name, text)


def test_unicode_version_is_stated():
    """A letter that came with 16.0 is one; one that came with 17.0 is not yet."""
    assert rustbpe.UNICODE_VERSION == "16.0.0"
    split = rustbpe.Tokenizer().split
    assert split("a\u1c89b") == ["a\u1c89b"]
    assert split("a\ua7ceb") == ["a", "\ua7ceb"]


@pytest.mark.parametrize("pattern", [SPLIT_PATTERN, *splitter.PATTERNS.values()])
def test_known_patterns_are_split_by_hand(pattern):
    """Without any limit; the engine's stack does not hold a run of white space that long, so there it is cut."""
    text = "a" + " " * 1_500_000 + "b"
    spaces = [" " * 1_499_999, " b"]
    engine = chaos.splits(f"(?:{pattern})")(text)
    assert chaos.splits(pattern)(text) == ["a", *spaces]
    assert len(engine) > 3 and "".join(engine) == text


def test_contractions_know_the_long_s():
    split = rustbpe.Tokenizer().split
    assert split("it'\u017f IT'S it'll IT'LL we'Ve they'rE 'samba") == [
        "it", "'\u017f", " IT", "'S", " it", "'ll", " IT", "'LL", " we", "'Ve", " they", "'rE", " '", "samba"]


# -------------------------------------------------------------------------------------------------------- encoding


@settings(max_examples=200)
@given(corpus=texts, merges=st.integers(0, 40), others=st.lists(st.text(), max_size=4))
def test_encoders_agree(corpus, merges, others):
    """One text, many texts, tiktoken on the same ranks; the bytes come back."""
    tokenizer = trained(iter(corpus), 256 + merges)
    tokens = [token for token, _ in tokenizer.get_mergeable_ranks()]
    again = rustbpe.Tokenizer.from_ranks(tokenizer.get_mergeable_ranks(), tokenizer.get_pattern())
    encoding = tiktoken_of(tokenizer)
    encoded = rows(tokenizer, corpus + others)
    assert encoded == rows(again, iter(corpus + others), num_threads=3)
    for text, ids in zip(corpus + others, encoded, strict=True):
        assert ids == tokenizer.encode(text) == encoding.encode_ordinary(text)
        assert b"".join(tokens[i] for i in ids) == text.encode("utf-8")


@settings(max_examples=200)
@given(data=st.data(), alphabet=st.sampled_from(["a", "ab", "aab", "abc", "é中a"]), merges=st.integers(1, 60))
def test_words_of_any_length(data, alphabet, merges):
    """Few letters and one long word: both ways of joining, for words of up to 48 bytes and for longer ones."""
    word = st.text(alphabet=alphabet, min_size=1, max_size=150)
    tokenizer = trained(data.draw(st.lists(word, min_size=1, max_size=3)), 256 + merges, WHOLE)
    encoding = tiktoken_of(tokenizer)
    for text in data.draw(st.lists(word, min_size=1, max_size=4)):
        assert tokenizer.encode(text) == encoding.encode_ordinary(text)


@settings(max_examples=100)
@given(tokens=st.sets(st.binary(min_size=2, max_size=5), max_size=40), text=st.text(alphabet="ab\x00é ", max_size=80),
       shuffled=st.randoms(), mixed=st.booleans())
def test_ranks_that_no_training_gave(tokens, text, shuffled, mixed):
    """Any table: either as tiktoken has it, or refused because a token comes before its own parts."""
    tokens = [bytes([b]) for b in range(256)] * mixed + sorted(tokens)
    shuffled.shuffle(tokens)
    if not mixed:
        tokens = [bytes([b]) for b in shuffled.sample(range(256), 256)] + tokens
    ranks = list(zip(tokens, itertools.count()))
    try:
        tokenizer = rustbpe.Tokenizer.from_ranks(ranks, WHOLE)
    except ValueError as e:
        assert "comes before its own parts" in str(e)
        return
    assert tokenizer.encode(text) == tiktoken_of(tokenizer).encode_ordinary(text)


def test_a_vocabulary_beyond_16_bits():
    """All pairs of bytes are tokens: 65 792 ids, so the batch is of uint32."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    ranks = [*(bytes([b]) for b in range(256)), *reversed(pairs)]
    tokenizer = rustbpe.Tokenizer.from_ranks(list(zip(ranks, itertools.count())), SPLIT_PATTERN)
    assert tokenizer.vocab_size == 65_792
    corpus = ["grüße, мир", "", "世界 " * 50, "\x00a"]
    assert rows(tokenizer, corpus) == [tiktoken_of(tokenizer).encode_ordinary(text) for text in corpus]
    assert rows(tokenizer, ["\x00a"]) == [[65_791 - 97]]


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_batches_do_not_depend_on_threads(count):
    """Empty and large texts, several batches of a quarter of a megabyte; the order is that of the texts."""
    rng = random.Random(count)
    corpus = ["".join(rng.choices("abc de\n'1é世", k=rng.choice([0, 3, 300, 1500]))) for _ in range(count)]
    corpus += ["x y" * 400_000] * (count > 1)
    tokenizer = trained(corpus, 400)
    expected = [tokenizer.encode(text) for text in corpus]
    for threads in (1, 2, 5, 0):
        assert rows(tokenizer, iter(corpus), num_threads=threads) == expected


# trap: Tokenizer (1 000 000 spaces panics tiktoken's encoder)
@pytest.mark.parametrize("pattern", [SPLIT_PATTERN, splitter.PATTERNS["cl100k_base"], rf"(?:{SPLIT_PATTERN})"])
def test_never_panics(pattern):
    scalars = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    hard = ["start" + " " * 1_000_000 + "end " + "\t " * 500_000, "\n" * 1_000_000, "a" * 10_000_000, "ab" * 200_000,
            "\u0301" * 100_000, "\u200d\u0301", scalars, "'" * 100_000, "١" * 100_001, ""]
    tokenizer = trained([text[:20_000] for text in hard], 600, pattern)
    tokens = [token for token, _ in tokenizer.get_mergeable_ranks()]
    for text, ids in zip(hard, rows(tokenizer, hard)):
        assert b"".join(map(tokens.__getitem__, ids)).decode("utf-8") == text


@pytest.mark.parametrize("pattern", [WHOLE, SPLIT_PATTERN])
@pytest.mark.parametrize("unit", ["a", "ab", "aab", " ", "\r\n", "1", "random", "words"])
def test_encoding_takes_linear_time(pattern, unit):
    """Places looked at, for a text and one eight times as long."""

    def text(size):
        rng = random.Random(size)
        if unit == "random":
            return "".join(rng.choices("abcdef", k=size))
        if unit == "words":  # all different, so that no cache helps, and as long as the quadratic way may get
            return "".join(" " + "".join(rng.choices("abcdef", k=47)) for _ in range(size // 48))
        return (unit * size)[:size]

    tokenizer = trained([text(20_000)], 500, pattern)
    short, long = (tokenizer.encode_and_measure(text(size))[1] for size in (50_000, 400_000))
    assert long <= 8.2 * short + 1000
    assert long <= 48 * 400_000


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([(b"a", 0)], "the byte 0 is missing"),
        ([(bytes([b]), b) for b in range(255)], "the byte 255 is missing"),
        ([*((bytes([b]), b) for b in range(256)), (b"ab", 257)], "rank 257 occurs twice, or a rank below"),
        ([*((bytes([b]), b) for b in range(256)), (b"ab", 255)], "rank 255 occurs twice"),
        ([*((bytes([b]), b) for b in range(256)), (b"", 256)], "token 256 is empty"),
        ([*((bytes([b]), b) for b in range(256)), (b"ab", 256), (b"ab", 257)], "tokens 256 and 257 are the same"),
        ([*((bytes([b]), b) for b in range(256)), (b"abc", 256), (b"ab", 257)], "before its own parts, 257 and 99"),
    ],
)
def test_tables_that_are_none_are_refused(ranks, message):
    with pytest.raises(ValueError, match=message):
        rustbpe.Tokenizer.from_ranks(ranks, SPLIT_PATTERN)


@pytest.mark.parametrize(
    ("error", "corpus"),
    [(TypeError, "one str"), (TypeError, ["a", None]), (TypeError, None), (ZeroDivisionError, (1 / n for n in [0]))],
)
def test_bad_batches_are_refused(error, corpus):
    with pytest.raises(error):
        rustbpe.Tokenizer().encode_batch(corpus)


def test_errors_after_many_batches_end_the_threads():
    before = thread_count()
    with pytest.raises(TypeError, match="a text must be a str, not int"):
        rustbpe.Tokenizer().encode_batch(itertools.chain(["x " * 10_000] * 200, [7]))
    assert thread_count() == before


@pytest.mark.parametrize("threads", [10**6, 2**62])
def test_more_threads_than_there_are(threads):
    corpus = ["some words " * 1000] * 100
    assert rows(rustbpe.Tokenizer(), corpus, num_threads=threads) == rows(rustbpe.Tokenizer(), corpus)


def test_more_words_than_are_remembered():
    """Each thread remembers 32 MB of words and no more; the others are encoded anew each time."""
    text = "".join(f" {a}{b}x" for a in itertools.product("abcdefgh", repeat=3) for b in range(1200)).replace("'", "")
    text = text.translate(str.maketrans("", "", "(), "))[:6_000_000]
    tokenizer = rustbpe.Tokenizer.from_ranks(trained([text[:100_000]], 300).get_mergeable_ranks(), r"[a-z]+[0-9]*")
    first, again = rows(tokenizer, [text, text], num_threads=1)
    tokens = [token for token, _ in tokenizer.get_mergeable_ranks()]
    assert first == again == tokenizer.encode(text)
    assert b"".join(tokens[i] for i in first).decode("utf-8") == text


@pytest.mark.parametrize("pattern", [r"(?s).+", r"\S+\s*|\s+", r"[^,]+|,", r"a|^\s+|\s"])
def test_other_patterns_are_not_cut_where_the_engine_manages(pattern):
    tokens = [*(bytes([b]) for b in range(256)), b" \t"]
    tokenizer = rustbpe.Tokenizer.from_ranks(list(zip(tokens, itertools.count())), pattern)
    text = "a\t" + " \t" * 140_000 + "b"
    assert tokenizer.encode(text) == tiktoken_of(tokenizer).encode_ordinary(text)


@pytest.mark.skipif(not TEST_DATA, reason="NANOCHAT_TEST_DATA is not set")
def test_real_text_is_encoded_as_tiktoken_does():
    """Many scripts, with ranks trained on them; bench/tokenizer.py compares all of it and the whole corpus."""
    corpus = []
    for path in sorted((Path(TEST_DATA) / "tokenizer_text").glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()[:60]
        corpus += [json.loads(line)["text"][:20_000] for line in lines]
    assert len(corpus) > 300
    tokenizer = trained(corpus, 5000)
    encoding = tiktoken_of(tokenizer)
    assert rows(tokenizer, corpus) == encoding.encode_ordinary_batch(corpus, num_threads=2)
