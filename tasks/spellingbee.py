"""Spelling: SimpleSpelling writes out a word's letters, SpellingBee also counts one letter, twice, by hand and by tool.

Models see tokens, not letters, so both must be learned. Generated from a word list (`words/words_alpha.txt`, a word a
line); a word is either a training or a test word for good (`is_test_word`). A row of SpellingBee:
    {"messages": [
      {"role": "user", "content": "How many r are in strawberry?"},
      {"role": "assistant", "content": [
        {"type": "text", "text": "strawberry: s t r a w b e r r y. Count r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3."},
        {"type": "python", "text": "'strawberry'.count('r')"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "#### 3"}]}]}
"""

from __future__ import annotations

import hashlib
import random
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from tasks.common import Conversation, Task
from tasks.gsm8k import final_number
from tasks.rows import task_dir

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
MIN_LETTERS, MAX_LETTERS = 3, 16  # a longer word's trace would not fit beside its question in a short context
ABSENT = 0.15  # how often the letter asked for is drawn from the whole alphabet: "none" must be an answer too

# {w} the word, {c} the letter, each in one of QUOTES. People type carelessly; so do these.
COUNT_PHRASES = (
    "How many {c} are in {w}?",
    "How many {c}s are in {w}?",
    "How many {c}'s are there in {w}?",
    "How many times does {c} appear in {w}?",
    "How many times does the letter {c} occur in the word {w}?",
    "How often does {c} show up in {w}?",
    "How often is the letter {c} used in {w}?",
    "Count the letter {c} in {w}.",
    "Count the {c}s in {w}.",
    "Please count how many {c} there are in {w}.",
    "Can you count the {c}'s in {w}?",
    "Could you tell me how many {c} the word {w} has?",
    "Tell me the number of {c} in {w}.",
    "What is the number of {c}s in {w}?",
    "What's the count of {c} in the word {w}?",
    "In the word {w}, how many {c} are there?",
    "In {w}, how often do you see the letter {c}?",
    "Look at the word {w}. How many {c} does it have?",
    "Here is a word: {w}. How many times does it contain {c}?",
    "I am writing {w}. How many {c} do I need?",
    "Spell {w} and count the {c}s.",
    "The word is {w}, the letter is {c}. How many?",
    "Give me the count of {c} in {w}.",
    "Find every {c} in {w}. How many did you find?",
    "Number of {c} in {w}?",
    "{w}: how many {c}?",
    "Does {w} have any {c}? How many?",
    "Letter {c}, word {w}, how many times?",
)
SPELL_PHRASES = (
    "Spell {w}.",
    "Spell the word {w}.",
    "Spell the word: {w}",
    "Please spell {w}.",
    "How do you spell {w}?",
    "How is {w} spelled?",
    "Can you spell {w}?",
    "Could you spell {w} for me?",
    "Write out the letters of {w}.",
    "Which letters are in {w}, in order?",
    "What are the letters of {w}?",
    "Give me {w} letter by letter.",
    "Say {w} one letter at a time.",
    "Break {w} into letters.",
    "Take the word {w} apart, letter by letter.",
    "Spelling of {w}?",
)
QUOTES = ("{}", "{}", "{}", "'{}'", '"{}"')


def is_test_word(word: str) -> bool:
    """A fixed tenth of all words belongs to the test, told by the word alone.

    `is_test_word("strawberry")` is the same in every run and for every word list: no seed decides it, so no seed can
    mix it up.
    """
    return int(hashlib.sha256(word.encode()).hexdigest(), 16) % 10 == 0


def spelled(word: str) -> str:
    """`"cab" -> "cab: c a b"`: one space before every letter, the first too, so that each is the same kind of token."""
    return f"{word}: {' '.join(word)}"


def count_trace(word: str, letter: str) -> str:
    """`("cabb", "b") -> "cabb: c a b b. Count b: c0 a0 b1 b2."`: spelling, then a running count behind each letter."""
    count, steps = 0, []
    for c in word:
        count += c == letter
        steps.append(f"{c}{count}")
    return f"{spelled(word)}. Count {letter}: {' '.join(steps)}."


class _WordTask(Task):
    """Draws one word of its split for each index. The generator of example i depends on task, split and i only."""

    eval_type = "generative"

    def __init__(self, size: int = 1000, split: str = "train", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        if split not in ("train", "test"):
            raise UserError(f'{type(self).__name__} has no split "{split}": choose train or test')
        if size < 1:
            raise UserError(f"{type(self).__name__} wants a size of at least 1, got {size}")
        self.size, self.split = size, split
        path = task_dir(data) / "words" / "words_alpha.txt"
        self.words = load_words(path)[split == "test"]
        if not self.words:
            raise UserError(f"{path} has no {split} word of {MIN_LETTERS} to {MAX_LETTERS} letters: give a longer list")

    @cached_property
    def content(self) -> str:
        return f"{self.size} {self.split} {hashlib.sha256(' '.join(self.words).encode()).hexdigest()}"

    def num_examples(self) -> int:
        return self.size

    def _random(self, index: int) -> random.Random:
        # a string seed is hashed whole: unlike seeds 1 and -1, no two of these strings make the same generator
        return random.Random(f"{type(self).__name__}/{self.split}/{index}")


class SpellingBee(_WordTask):
    """Count a letter in a word. Right means the exact trace *and* the number: the number alone is often luck."""

    def get_example(self, index: int) -> Conversation:
        rng = self._random(index)
        word = rng.choice(self.words)
        letter = rng.choice(ALPHABET if rng.random() < ABSENT else word)
        count = str(word.count(letter))
        parts = [
            {"type": "text", "text": count_trace(word, letter)},
            {"type": "python", "text": f"'{word}'.count('{letter}')"},
            {"type": "python_output", "text": count},
            {"type": "text", "text": f"#### {count}"},
        ]
        return {
            "messages": [
                {"role": "user", "content": phrase(rng, COUNT_PHRASES, w=word, c=letter)},
                {"role": "assistant", "content": parts},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        gold = conversation["messages"][-1]["content"]
        trace, final = gold[0]["text"], gold[-1]["text"]
        return completion.strip().startswith(trace) and final_number(completion) == final_number(final)


class SimpleSpelling(_WordTask):
    """Spell a word, nothing else: `"Spell cab."` -> `"cab: c a b"`, the words that SpellingBee's trace begins with."""

    def get_example(self, index: int) -> Conversation:
        rng = self._random(index)
        word = rng.choice(self.words)
        return {
            "messages": [
                {"role": "user", "content": phrase(rng, SPELL_PHRASES, w=word)},
                {"role": "assistant", "content": spelled(word)},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == conversation["messages"][-1]["content"]


def phrase(rng: random.Random, phrases: tuple[str, ...], **slots: str) -> str:
    """One phrasing, filled in, its letter case and final mark as people type them."""
    template = rng.choice(phrases)
    quote = "{}" if "}'s" in template else rng.choice(QUOTES)  # nobody writes 'r''s
    text = template.format(**{name: quote.format(value) for name, value in slots.items()})
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.")
    return text


@lru_cache(maxsize=4)
def load_words(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training words, test words) of a word list; lines that are not plain a-z words of a fit length are left out."""
    try:
        with open(path, encoding="utf-8") as f:
            lines = [line.strip() for line in f]
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}): the spelling tasks want a word list there") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8: save the word list as UTF-8") from e
    fit = [w for w in lines if MIN_LETTERS <= len(w) <= MAX_LETTERS and w.isascii() and w.isalpha() and w.islower()]
    train = tuple(w for w in fit if not is_test_word(w))
    return train, tuple(w for w in fit if is_test_word(w))
