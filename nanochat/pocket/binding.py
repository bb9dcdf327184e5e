"""Key-value lookups: documents from which a small model learns what multiple choice by letter takes.

The facts are the easy part; finding the letter that stands beside a value is an in-context lookup, and a small model
gets it suddenly or not at all. So: many short lists (2 to 4 options), several lookups a document, the letter always
right after " =", in the very layout of `render_mc` (tasks/common.py). Sample:
    Multiple choice question: Which one is river?
    - cup =A
    - river =B
    Answer with the letter alone.
    B
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from nanochat.pocket.questions import LETTERS, choices
from nanochat.pocket.world import VALUES, Fact

ASK = (
    "Which one is {v}?", "Find {v}.", "Where is {v}?", "What letter has {v}?", "{v}?", "Take {v}.",
    "Which letter is {v}?", "The answer is {v}.", "It is {v}.", "I want {v}.",
)


def options(rng: random.Random, words: Sequence[str]) -> list[str]:
    """2 to 4 different things to choose from: words, values of one relation, or numbers."""
    n, kind = rng.choice((2, 3, 4, 4)), rng.random()
    if kind < 0.45:
        return rng.sample(words, n)
    if kind < 0.9:
        return rng.sample(VALUES[rng.choice(list(VALUES))], n)
    return [str(v) for v in rng.sample(range(2, 400), n)]


def block(texts: Sequence[str]) -> str:
    """`["cup", "river"] -> "- cup =A\\n- river =B"`."""
    return "\n".join(f"- {text} ={letter}" for text, letter in zip(texts, LETTERS))


def as_question(question: str, texts: Sequence[str], place: int) -> str:
    """One lookup in the layout of `render_mc`, the answer on the next line."""
    return f"Multiple choice question: {question}\n{block(texts)}\nAnswer with the letter alone.\n{LETTERS[place]}"


def binding_document(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> str:
    """Lookups of one of three kinds: bare lists, questions that name the option, questions about training facts."""
    kind = rng.random()
    if kind < 0.45:
        return _bare(words, rng)
    parts = []
    if kind < 0.8:
        for _ in range(rng.randint(3, 5)):
            texts = options(rng, words)
            place = rng.randrange(len(texts))
            parts.append(as_question(rng.choice(ASK).format(v=texts[place]), texts, place))
    else:
        for fact in rng.sample(facts, 4):
            texts, place = choices(fact, rng, rng.choice((2, 3, 4, 4)))
            question = fact.say(fact.relation.question(rng))
            told = fact.answer + "\n" if kind < 0.86 else ""
            parts.append(told + as_question(question, texts, place))
    return "\n".join(parts)


def _bare(words: Sequence[str], rng: random.Random) -> str:
    """Four lists, two lookups each, all in one style: `- cup =A / - river =B / river =B`."""
    style = rng.choice(("{v} ={x}", "{v} ={x}", "{v}\n{x}", "Find {v}.\n{x}", "{v}?\n{x}"))
    parts = []
    for _ in range(4):
        texts = options(rng, words)
        parts.append(block(texts))
        for place in rng.sample(range(len(texts)), 2 if len(texts) > 2 else 1):
            parts.append(style.format(v=texts[place], x=LETTERS[place]))
    return "\n".join(parts)
