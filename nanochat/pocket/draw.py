"""Small tools that all generators of the pocket world share: random streams, decks, splits by hash, casual spelling.

Every split between train and test is a pure function of the thing itself (its SHA-256), so that two files made at
different times cannot disagree about it. Sample: `is_test_numbers((23, 17)) == is_test_numbers((17, 23))`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def stream(seed: int, name: str) -> random.Random:
    """An independent random stream per purpose: changing one generator does not shift the others.

    Seeded with text, not with `seed + n`: `random.Random(1)` and `random.Random(-1)` are the same generator.
    """
    return random.Random(f"pocket/{seed}/{name}")


def bucket(text: str, buckets: int = 10) -> int:
    """A stable bucket of a string: `int(sha256(text), 16) % buckets`."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % buckets


def is_test_numbers(numbers: Iterable[int | str]) -> bool:
    """Whether these operands, in any order, belong to the test side (one tuple in ten).

    `is_test_numbers((7, 12))` is `is_test_numbers(("12", "7"))`.
    """
    ordered = sorted(str(n) for n in numbers)
    return bucket("numbers " + " ".join(ordered)) == 0


class Deck(Generic[T]):
    """Draws in shuffled rounds: after k rounds every item was drawn exactly k times.

    Independent draws would leave some fact with half of the mentions of another.
    """

    def __init__(self, items: Sequence[T], rng: random.Random):
        self.items, self.rng, self.pile = list(items), rng, []

    def draw(self) -> T:
        if not self.pile:
            self.pile = self.items[:]
            self.rng.shuffle(self.pile)
        return self.pile.pop()

    def hand(self, n: int) -> list[T]:
        """n items, all different (a double at the seam of two rounds is put back). `n <= len(items)`."""
        drawn: list[T] = []
        put_back: list[T] = []
        while len(drawn) < n:
            item = self.draw()
            (put_back if item in drawn else drawn).append(item)
        self.pile.extend(put_back)
        return drawn


def frames(text: str) -> tuple[str, ...]:
    """The phrasings of a block of text, separated by bars: `"one | and two" -> ("one", "and two")`."""
    return tuple(" ".join(frame.split()) for frame in text.split("|") if frame.strip())


def normalise(text: str) -> str:
    """Lower case, words and numbers only: `"Hi! What's  your name?" -> "hi what s your name"`."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def casual(text: str, rng: random.Random, openings: Sequence[str] = (), rate: float = 0.4) -> str:
    """`text` as people type it: sometimes in lower case, without the question mark, or after an opening.

    `"Where does Mira live?" -> "where does mira live"` or `"Hi! Where does Mira live?"`.
    """
    if rng.random() >= rate:
        return text
    style = rng.randrange(5)
    if style == 0:
        return text.rstrip("?.")
    if style == 1:
        return text.lower()
    if style == 2 or not openings:
        return text.lower().rstrip("?.")
    opening = rng.choice(openings)
    return opening + (text if opening.endswith(("! ", ". ")) else text[0].lower() + text[1:])


def listing(items: Sequence[str]) -> str:
    """`["a", "b", "c"] -> "a, b and c"`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def conversation(*turns: str | list[dict]) -> dict:
    """`conversation("Hi", "Hello!")` -> `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}
