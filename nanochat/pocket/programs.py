"""Small Python functions to complete: problems in HumanEval's schema, and conversations that teach the same kind.

The families stand in program_families.py. What tests ask is held out three ways: its constants belong to the test side
(`is_test_constants`), its functions have names that training never uses, and some families only tests have.
Sample row of humaneval/HumanEval.jsonl.gz:
    {"task_id": "Pocket/0", "prompt": "def increase_by_9(n):\\n    \\"\\"\\"Return n plus 9.\\"\\"\\"\\n",
     "entry_point": "increase_by_9", "canonical_solution": "    return n + 9\\n",
     "test": "\\n\\ndef check(candidate):\\n    assert candidate(0) == 9\\n ..."}
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.pocket.draw import Deck, bucket, conversation, frames, is_test_numbers

PARAMETERS = {  # what a function takes, and what its parameters may be called
    "number": ("n", "x", "k", "num", "value"),
    "natural": ("n", "x", "k", "num", "value"),  # a number that is not negative
    "two numbers": ("a b", "x y", "m n", "left right"),
    "three numbers": ("a b c", "x y z"),
    "text": ("s", "text", "word", "line"),
    "numbers": ("xs", "nums", "values", "items"),
    "some numbers": ("xs", "nums", "values", "items"),  # at least one
}
TEXTS = (
    "apple", "banana", "level", "green tea", "noon", "Little Cat", "window", "a b c", "zoo", "the quick fox", "Hello",
    "paper", "extra jam", "kiwi", "very old map", "queue", "dodo", "rhythm", "big fish", "oxen",
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
ASSERTS = 8  # of each test; the edges come first
EXAMPLE_RATE = 0.25  # of the prompts show a call and its result, ...
EXAMPLE_CHARS = 14  # ... a short one: the prompt stands twice in the 256 tokens of a conversation

Range = tuple[int, int] | str
"""What a constant may be: from the first number to the second, or one of these letters."""


@dataclass(frozen=True)
class ProgramFamily:
    """One kind of function. In names, docs and body {p}, {q}, {r} are its parameters, {c} and {d} its constants."""

    key: str
    names: str
    """Function names, separated by spaces."""
    kept_names: str
    """The same, for tests only."""
    docs: str
    """What the docstring says, separated by bars; the last one is for tests only."""
    body: str
    """The lines of the solution, not yet indented."""
    takes: str
    """A key of PARAMETERS."""
    does: Callable[..., Any]
    """The same function again, for the results that tests want: `does(*arguments, *constants)`."""
    constants: tuple[Range, ...] = ()


@dataclass(frozen=True)
class Program:
    """One function to complete, and what proves that it is right."""

    family: str
    constants: tuple[int | str, ...]
    name: str
    prompt: str
    """From `def` to the end of the docstring."""
    solution: str
    """The lines after it."""
    test: str

    def problem(self, number: int) -> dict[str, str]:
        """A row in HumanEval's schema."""
        return {"task_id": f"Pocket/{number}", "prompt": self.prompt, "entry_point": self.name,
                "canonical_solution": self.solution, "test": self.test}

    def row(self) -> dict:
        """A conversation, in the form in which tasks/humaneval.py asks."""
        asked = f"Complete this Python function:\n```python\n{self.prompt}```"
        return conversation(asked, f"```python\n{self.prompt}{self.solution}```")


def is_test_constants(key: str, constants: Sequence[int | str]) -> bool:
    """Whether a family's constants belong to the test side: every fifth number or letter; of pairs, one in ten.

    Where the fives begin is the family's own, so `add_7` may be the test's and `minus_7` training's. Pairs are told
    apart as those of calculations are: `x * 3 + 5` would show training the sum of 3 and 5.
    """
    if len(constants) > 1:
        return is_test_numbers(constants)
    place = ord(constants[0]) if isinstance(constants[0], str) else constants[0]
    return (place + bucket(f"program {key}", 5)) % 5 == 0


def draw_constants(family: ProgramFamily, rng: random.Random, test: bool) -> tuple[int | str, ...]:
    """Constants on the wanted side of the split; none for a family that has none."""
    while True:
        drawn = tuple(rng.choice(r) if isinstance(r, str) else rng.randint(*r) for r in family.constants)
        if not drawn or is_test_constants(family.key, drawn) == test:
            return drawn


def make_program(family: ProgramFamily, rng: random.Random, test: bool) -> Program:
    """One function of the family, with constants, name and docstring of the wanted side."""
    constants = draw_constants(family, rng, test)
    docs = frames(family.docs)
    names = rng.choice(PARAMETERS[family.takes]).split()
    filled = dict(zip("pqr", names)) | dict(zip("cd", constants))
    name = rng.choice((family.kept_names if test else family.names).split()).format(**filled)
    doc = rng.choice(docs if test else docs[:-1]).format(**filled)
    calls = [(call, family.does(*call, *constants)) for call in calls_of(family.takes, constants, rng)]
    short = [(c, r) for c, r in calls if len(shown(c)) + len(repr(r)) <= EXAMPLE_CHARS]
    if short and rng.random() < EXAMPLE_RATE:
        call, result = rng.choice(short)
        doc += f"\n    >>> {name}({shown(call)})\n    {result!r}\n    "
    body = "".join(f"    {line}\n" for line in family.body.format(**filled).splitlines())
    asserts = "".join(f"    assert candidate({shown(call)}) == {result!r}\n" for call, result in calls)
    prompt = f'def {name}({", ".join(names)}):\n    """{doc}"""\n'
    return Program(family.key, constants, name, prompt, body, f"\n\ndef check(candidate):\n{asserts}")


def shown(call: Sequence[Any]) -> str:
    """Arguments as they stand in a call: `([1, 2], "a") -> "[1, 2], 'a'"`."""
    return ", ".join(map(repr, call))


def calls_of(takes: str, constants: Sequence[int | str], rng: random.Random) -> list[tuple]:
    """Arguments to test with, all different: the edges (zero, nothing, what lies around a constant), then any."""
    numbers = [c for c in constants if isinstance(c, int)]
    letters = [c for c in constants if isinstance(c, str)]
    small = [c for c in numbers if c <= len(ALPHABET) - 2]  # how many to take, to repeat: wants something longer
    edges: list[tuple]
    if takes in ("number", "natural"):
        edges = [(n,) for n in (0, 1, 2, *(n for c in numbers for n in (c, c + 1, c - 1)), -3)]
        edges = [edge for edge in edges if takes == "number" or edge[0] >= 0]
    elif takes in ("two numbers", "three numbers"):
        n = len(PARAMETERS[takes][0].split())
        edges = [(0,) * n, (5,) * n, tuple(range(1, n + 1)), tuple(range(n, 0, -1)), (-4, 3, 2)[:n]]
    elif takes == "text":
        edges = [("",), ("x",), ("Ab cA",), ("abba",), *((ALPHABET[: c + 2],) for c in small)]
        edges += [(text,) for c in letters for text in (c, f"ho{c}", f"{c}um", f"a{c}{c}i")]
    else:
        edges = [([],), ([4],), ([3, 1, 2],), *(([c + 1, c, c - 1, c],) for c in numbers)]
        edges = edges[takes == "some numbers" :] + [(list(range(c + 2, 0, -1)),) for c in small]
    calls = list({shown(call): call for call in edges[: ASSERTS - 1]}.values())
    while len(calls) < ASSERTS:
        call = tuple(_any(takes, rng) for _ in PARAMETERS[takes][0].split())
        if call not in calls:
            calls.append(call)
    return calls


def _any(takes: str, rng: random.Random) -> Any:
    """One argument as it comes."""
    if takes == "text":
        return rng.choice(TEXTS)
    if takes in ("numbers", "some numbers"):
        return [rng.randint(-9, 60) for _ in range(rng.randint(3, 5))]
    return rng.randint(0 if takes == "natural" else -9, 99)


def draw_programs(families: Sequence[ProgramFamily], rng: random.Random, test: bool, n: int) -> list[Program]:
    """n programs, the families in turn, no prompt twice."""
    deck = Deck(families, rng)
    programs: dict[str, Program] = {}
    while len(programs) < n:
        program = make_program(deck.draw(), rng, test)
        programs.setdefault(program.prompt, program)
    return list(programs.values())
