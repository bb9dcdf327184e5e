"""Questions about Nano put together: a part that carries the intent in a shell that all intents share.

A shell tells nothing about the intent, so a model that wants the answer must read the part. What comes near a test
frame is left out. Sample: "your name" in "{}, please." is "your name, please.", in "{}?" it asks the same.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable
from functools import cache

from nanochat.pocket.draw import Deck, frames, normalise
from nanochat.pocket.intent_parts import PARTS
from nanochat.pocket.intents import INTENTS
from nanochat.pocket.relation import ARTICLES

NOUN_SHELLS = frames("""
    tell me about {}. | what about {}? | {}, please. | {}? | how about {}? | i am curious about {}. | i have a
    question about {}. | can you say something about {}? | i would like to hear about {}. | my topic is {}. | let us
    talk about {}. | i want to know more about {}. | my question is about {}. | and {}? | please explain {}. | could
    you give me details on {}? | say something about {}. | i wonder about {}. | information on {}, please. | is there
    anything to say about {}? | may i ask about {}? | {}: what is there to say? | nobody told me about {}.
""")
CLAUSE_SHELLS = frames("""
    do you know {}? | tell me {}. | could you tell me {}? | i would like to hear {}. | i wonder {}. | may i ask {}? |
    please say {}. | let me know {}. | i forgot {}. | nobody told me {}. | remind me {}. | any idea {}? | i am curious
    {}. | i am not sure {}. | my question is {}. | can you explain {}? | would you mind telling me {}? | i want to
    find out {}. | it is not clear to me {}. | i never heard {}. | i was asked {}. | can you say {}?
""")
STATEMENT_SHELLS = frames("""
    is it so that {}? | is it true that {}? | i heard that {}. | {}, right? | {}, is that so? | am i right that {}? |
    i guess {}. | somebody said that {}. | can it be that {}? | {}? | so {}? | i think {}, or not? | would you say
    that {}? | they say {}. is that so? | i read that {}. | i suppose {}.
""")
QUESTION_SHELLS = frames("""
    {}? | {}? | {}? | {}? | {}? | {}? | {}? | so {}? | now {}? | {}, nano? | {}, please? | but {}? | {}, i wonder. |
    let me ask: {}? | my question: {}? | by the way, {}? | i want to ask: {}? | {}? please say it. | just one thing:
    {}? | {}, tell me. | here is what i want to know: {}?
""")
SHELLS = (NOUN_SHELLS, CLAUSE_SHELLS, STATEMENT_SHELLS, QUESTION_SHELLS)
KIND_WEIGHTS = (20, 25, 15, 40)  # people mostly ask straight
AUXILIARIES = frozenset("are were can will could would should may must".split())


def expand(pattern: str) -> list[str]:
    """All choices of a pattern: `"who (made/built) you" -> ["who made you", "who built you"]`."""
    pieces = [piece.split("/") for piece in re.split(r"[()]", pattern)]
    return [" ".join("".join(choice).split()) for choice in itertools.product(*pieces)]


def straight(statement: str) -> str | None:
    """The question that a statement about "you" answers, or None: `"you can spell" -> "can you spell"`."""
    subject, verb, *rest = statement.split()
    if subject != "you":
        return None
    if verb in AUXILIARIES or (verb, *rest[:1]) == ("have", "read"):
        return " ".join((verb, "you", *rest))
    return " ".join(("do you", verb, *rest))


def _words(text: str) -> tuple[str, ...]:
    """As `relation.near` compares: without articles, "which" as "what"."""
    return tuple("what" if w == "which" else w for w in normalise(text).split() if w not in ARTICLES)


class Kept:
    """Tells what is near one of many wordings: `relation.near` for all of them at once, by look-up."""

    def __init__(self, wordings: Iterable[str]):
        kept = [_words(text) for text in wordings]
        self.whole = set(kept)
        self.lengths = {len(k) for k in kept}
        self.inside = {k[i:j] for k in kept for i in range(len(k)) for j in range(i + 1, len(k) + 1)}
        self.one_less = {shorter for k in kept for shorter in self._without_one(k)}
        self.holes = {hole for k in kept for hole in self._holes(k)}

    @staticmethod
    def _without_one(words: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [words[:i] + words[i + 1:] for i in range(len(words))]

    @staticmethod
    def _holes(words: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [(*words[:i], "_", *words[i + 1:]) for i in range(len(words))]

    def near(self, text: str) -> bool:
        """Whether one contains the other or a single word makes one of the other."""
        words = _words(text)
        runs = (words[i:i + n] for n in self.lengths for i in range(len(words) - n + 1))
        return (words in self.inside or words in self.one_less or any(run in self.whole for run in runs)
                or any(shorter in self.whole for shorter in self._without_one(words))
                or any(hole in self.holes for hole in self._holes(words)))


@cache
def kept_for_tests() -> Kept:
    """The test frames of all intents."""
    return Kept(frame for intent in INTENTS for frame in intent.test_frames)


@cache
def parts_of(key: str) -> tuple[tuple[list[str], ...], ...]:
    """For each kind of part its patterns, each as the list of its choices."""
    nouns, clauses, statements, questions = (tuple(map(expand, frames(block))) for block in PARTS[key])
    asked = ([question for question in map(straight, choices) if question] for choices in statements)
    return nouns, clauses, statements, (*questions, *filter(None, asked))


def composed(key: str) -> Iterable[str]:
    """All composed frames of an intent that are not near a test frame, in lower case with their final mark."""
    every = (shell.format(part) for patterns, shells in zip(parts_of(key), SHELLS, strict=True)
             for choices in patterns for part in choices for shell in shells)
    return (frame for frame in dict.fromkeys(every) if not kept_for_tests().near(frame))


class Composer:
    """Draws composed frames of one intent, every pattern of a kind equally often, however many choices it has.

    `Composer("name", rng).draw() -> "i wonder what people call you."`
    """

    def __init__(self, key: str, rng: random.Random):
        self.rng = rng
        self.decks = [(Deck(patterns, rng), shells) for patterns, shells in zip(parts_of(key), SHELLS, strict=True)]

    def draw(self) -> str:
        while True:
            deck, shells = self.rng.choices(self.decks, KIND_WEIGHTS)[0]
            frame = self.rng.choice(shells).format(self.rng.choice(deck.draw()))
            if not kept_for_tests().near(frame):
                return frame
