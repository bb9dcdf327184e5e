"""Oracle for the splitter: the regular expression itself, run by Python's `regex`; and strings that are hard to split.

The pattern defines the words, so a second engine that runs it is a better oracle than a second splitter written by
hand. Where engines may differ is their Unicode version: the strings below hold long-assigned characters only.

`python -m tests.chaos splitter` compares millions of these strings.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import regex

from nanochat.tokenizer import split_pattern

CL100K = (  # as tiktoken runs it, possessive; and as it was published at first
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
CL100K_FIRST = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {
    "digits 1": split_pattern(1),
    "digits 2": split_pattern(2),
    "digits 3": split_pattern(3),
    "cl100k_base": CL100K,
    "cl100k_base at first": CL100K_FIRST,
}

# Whitespace is what the splitter looks at most closely. The last two rows are no whitespace to Unicode, though the
# first of them is to Python and the second looks like it.
SPACES = [" ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2000", "\u2003", "\u2009", "\u200a",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"]
NO_SPACES = ["\x1c", "\x1d", "\x1e", "\x1f", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u180e", "\xad"]
APOSTROPHES = ["'", "\u2019", "\u02bc", "\uff07", "`", "\u00b4"]
ENDINGS = ["s", "S", "\u017f", "d", "D", "m", "M", "t", "T", "ll", "LL", "lL", "Ll", "ve", "VE", "vE", "re", "RE", "rE",
           "l", "v", "r", "e", "x", "\u1e9b", "\u212a", "\u00df"]
LETTERS = [*"aAbzZeEilrstvdm", *"éÉñßøŁıİ", "ﬁ", "Ǆ", "ǅ", "ʰ", "ª", "º", *"бЖяαΩςאبخह", "क", "ๆ", "ไ", "ა", "Ა", "አ",
           "中", "の", "カ", "ー", "々", "한", "ᄀ", "ᅡ", "ﷲ", "ﾊ", "ℵ", "ⵣ", "Ꭰ", "\U00010400", "\U0001d49c",
           "\U00020000", "\U0001e900", "\U0002ceb0"]
DIGITS = [*"0123456789", "٣", "۴", "७", "๕", "༣", "５", "𝟗", "\U0001d7d8",  # Nd
          "Ⅷ", "ⅻ", "〇", "〡", "ᛮ", "\U00010140",  # Nl
          "½", "²", "¹", "₃", "①", "⓵", "㉈", "৴", "\U0001f101", "\U00010107"]  # No
MARKS = ["\u0300", "\u0301", "\u0308", "\u20e3", "\ufe0f", "\ufe0e", "\u093f", "\u094d", "\u0903", "\u0488", "\u05b0",
         "\u064b", "\u3099", "\U0001d165", "\U000e0100"]
SYMBOLS = [*"!\"#$%&()*+,-./:;<=>?@[]^_{|}~\\", "\0", "\x01", "\x7f", "\x80", "«", "·", "÷", "×", "—", "…", "€", "№",
           "∑", "。", "、", "👍", "👩", "🏽", "🇪", "🇺", "❤", "🙂", "\ue000", "\ufffd", "\uffff",
           "\U000f0000", "\U0010ffff"]
EDGES = [7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]  # where a loop over eight, sixteen or 64 bytes begins and ends


def _contractions(rng: random.Random) -> list[str]:
    after = ["", "", "a", "1", " ", "'", "\u0301"]
    return [rng.choice(APOSTROPHES[:2]) + ending + rng.choice(after) for ending in ENDINGS]


def _runs(rng: random.Random) -> list[str]:
    """One character, or a mix from one class, as long as the steps of a fast path; the classes that have one."""
    classes = (["a"], ["A"], [" "], ["\n"], ["\t"], ["1"], ["-"], ["é"], ["中"], list("abcXYZ"), list("0123456789"),
               list("etaoin "), [" ", "\n"], [" ", "\u00a0"], list("=-*#"), ["a", "é"], ["a", "\u0301"])
    return ["".join(rng.choices(one, k=length)) for one in classes for length in rng.sample(EDGES, 3)]


def _alphabet(rng: random.Random) -> list[str]:
    """What one batch of strings is made of: everything, or a few kinds, so that they meet often."""
    kinds = [SPACES, [" ", "\n", "\r", "\t"], NO_SPACES, APOSTROPHES[:1], APOSTROPHES, _contractions(rng), LETTERS,
             list("abcdeXYZ"), DIGITS, list("0123456789"), MARKS, SYMBOLS, SYMBOLS[:30], [" "], _runs(rng),
             [chr(c) for c in range(128)], [chr(c) for c in range(256)]]
    chosen = kinds if rng.random() < 0.25 else rng.sample(kinds, rng.randint(2, 5))
    size = 40  # every kind has the same share, however many members it has
    return [unit for kind in chosen for unit in rng.choices(kind, k=size)]


def hard_strings(count: int, seed: int | str) -> Iterator[str]:
    """`count` strings: most are 1 to 24 characters, some as long as an edge of a fast path, few several hundred."""
    rng = random.Random(seed)
    lengths = [*range(1, 25)] * 4 + EDGES + [100, 129, 300]
    while count > 0:
        text = "".join(rng.choices(_alphabet(rng), k=30_000))
        ends = [*itertools.accumulate(rng.choices(lengths, k=min(count, 1000)))]
        pieces = [text[begin:end] for begin, end in zip([0, *ends], ends)]
        pieces = [piece for piece in pieces if piece]
        yield from pieces
        count -= len(pieces)


def split(text: str, pattern: str) -> list[str]:
    """The words of `text`: `split("it's 123", split_pattern(2)) -> ["it", "'s", " ", "12", "3"]`"""
    return regex.findall(pattern, text)
