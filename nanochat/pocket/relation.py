"""What a kind of fact is: how it is said and asked. The tables are relations_people.py and relations_places.py.

Each `Relation` has ways to state it (documents), to ask it (train), to ask it that are kept for tests only, one
canonical answer, and questions in the other direction (ARC-Challenge style). `{e}` is the entity, `{v}` the value.
Sample: `Relation("town", ...)`: "Mira lives in Tarn." / "Where does Mira live?" / "Who lives in Tarn?"
"""

from __future__ import annotations

from dataclasses import dataclass


def lines(text: str) -> tuple[str, ...]:
    """The phrasings of a block of text, one a line."""
    return tuple(line.strip() for line in text.strip().splitlines())


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
    questions: tuple[str, ...]
    """Questions that training may ask."""
    test_questions: tuple[str, ...]
    """Questions that only tests ask."""
    reverse: tuple[str, ...]
    """Questions from the value to the entity, for training."""
    reverse_test: tuple[str, ...]
    """The same, for tests only."""
    group: str = ""
    """One sentence for all entities of a value: `{es} live in {v}.`"""
