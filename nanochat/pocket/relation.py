"""What a kind of fact is: how it is said and asked. The tables are relations_*.py; how training asks, wordings_*.py.

Each `Relation` has ways to state it (documents), to ask it (train), to ask it that are kept for tests only, one
canonical answer, and questions in the other direction (ARC-Challenge style). `{e}` is the entity, `{v}` the value.
Sample: `Relation("town", ...)`: "Mira lives in Tarn." / "Where does Mira live?" / "Who lives in Tarn?"

A model understands a question about a fact that nobody ever asked only if it saw very many wordings. So an `Asking` has
whole questions and parts which are put together: "where {e} lives" after "Do you know", "I forgot", ...
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from nanochat.pocket.draw import normalise

CLAUSE_LEADS = (
    "Tell me {}.", "Do you know {}?", "Can you tell me {}?", "Could you tell me {}?", "Please tell me {}.",
    "I want to know {}.", "I would like to know {}.", "I need to know {}.", "I wonder {}.", "I am asking {}.",
    "Do you remember {}?", "Remind me {}.", "I forgot {}.", "I cannot remember {}.", "Any idea {}?",
    "Have you any idea {}?", "Let me know {}.", "Who can tell me {}?", "Would you know {}?", "Have you heard {}?",
    "Say {}.", "Please say {}.", "Did anybody say {}?", "Help me find out {}.", "Is it known {}?",
)
NOUN_LEADS = (
    "What is {}?", "What's {}?", "Name {}.", "Please name {}.", "Can you name {}?", "Give me {}.", "Tell me {}.",
    "Could you tell me {}?", "Do you know {}?", "I want to know {}.", "I would like to know {}.", "I need {}.",
    "I am looking for {}.", "{}?", "{} please", "{}, please.", "{}: what is it?", "What would be {}?",
    "What might {} be?", "Write down {}.", "I forgot {}.", "I am asking for {}.", "My question is about {}.",
    "So what is {}?", "Remind me of {}.",
)
TOPIC_LEADS = (  # none starts with {s}: "... lives in Tarn. What is sold there?" would ask about Tarn
    "About {x}: {s}?", "{x}: {s}?", "{x}, {s}?", "{x} - {s}?", "A question about {x}: {s}?", "It is about {x}: {s}?",
    "Regarding {x}, {s}?", "As for {x}, {s}?", "Well, {s}? I mean {x}.", "Now {s}? I am asking about {x}.",
    "Think of {x}: {s}?", "You surely know {x}: {s}?", "Take {x}: {s}?", "I am reading about {x}: {s}?",
    "When we talk of {x}, {s}?",
)
ARTICLES = ("the", "a", "an")


def lines(text: str) -> tuple[str, ...]:
    """The phrasings of a block of text, one a line."""
    return tuple(line.strip() for line in text.strip().splitlines())


def near(one: str, other: str) -> bool:
    """Whether two wordings are nearly the same: one inside the other, or only one word apart, articles aside.

    `near("What is the job of {e}?", "What is the work of {e}?")`; `near("Town of {e}?", "Which is the town of {e}?")`.
    """
    a, b = (["what" if w == "which" else w for w in normalise(text).split() if w not in ARTICLES]
            for text in (one, other))
    if f" {' '.join(a)} " in f" {' '.join(b)} " or f" {' '.join(b)} " in f" {' '.join(a)} ":
        return True
    if abs(len(a) - len(b)) > 1:
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    return any(a[start + i:] == b[start + j:] for i, j in ((1, 1), (1, 0), (0, 1)))


@dataclass(frozen=True)
class Asking:
    """How training asks for a relation."""

    whole: tuple[str, ...]
    """Questions as they are: "Where does {e} live?"."""
    clauses: tuple[str, ...]
    """Parts that follow "Do you know": "where {e} lives"."""
    nouns: tuple[str, ...]
    """Parts that follow "What is": "the town of {e}"."""
    topics: tuple[str, ...]
    """Questions that follow the entity: "which town is it"."""

    def kinds(self, subject: str, kept: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        """All questions, a tuple for each kind, of those put together only what is not near one of `kept` (tests)."""
        clauses = (lead.format(part) for part in self.clauses for lead in CLAUSE_LEADS)
        nouns = (lead.format(part) for part in self.nouns for lead in NOUN_LEADS)
        topics = (lead.format(x=subject, s=part) for part in self.topics for lead in TOPIC_LEADS)
        made = (dict.fromkeys(kind) for kind in (clauses, nouns, topics))
        return self.whole, *(tuple(q for q in kind if not any(near(q, k) for k in kept)) for kind in made)


KIND_WEIGHTS = (50, 20, 18, 12)  # whole questions, with clauses, with nouns, with topics


@dataclass(frozen=True)
class Relation:
    key: str
    """Unique name, for instance `town`."""
    kind: str
    """Which entities have it: person, town, animal, dish, thing."""
    answer: str
    """The sentence the assistant answers with; also the most frequent statement in documents."""
    statements: tuple[str, ...]
    """Further sentences that state the fact."""
    asking: Asking
    """How training may ask."""
    test_questions: tuple[str, ...]
    """Questions that only tests ask."""
    reverse: tuple[str, ...]
    """Questions from the value to the entity, for training."""
    reverse_test: tuple[str, ...]
    """The same, for tests only."""
    group: str = ""
    """One sentence for all entities of a value: `{es} live in {v}.`"""

    @cached_property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        subject = "the {e}" if self.kind in ("animal", "thing") else "{e}"
        return self.asking.kinds(subject, self.test_questions)

    @cached_property
    def questions(self) -> tuple[str, ...]:
        """Every question that training may ask (hundreds)."""
        return tuple(dict.fromkeys(q for kind in self.kinds for q in kind))

    def question(self, rng: random.Random) -> str:
        """One of them: half of the time a whole question, else one put together."""
        return rng.choice(rng.choices(self.kinds, KIND_WEIGHTS)[0])
