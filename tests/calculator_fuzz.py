"""Random expressions through the calculator: valid, nearly valid, hostile, and no expression at all.

    python -m tests.chaos --calculator=100000

Of a generated expression the value is known twice: from the tree that it was written from, and from Python's parser
(reference/calculator.py); of every other text from the latter. Equal means equal as fractions, before formatting, and
as text after it. Meanwhile the parser is watched: tokens read, calls inside each other, digits of every number on the
way, and the memory that it takes, by tracemalloc.
"""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from nanochat import calculator
from tests.reference.calculator import shown, value_of

PEAK_BYTES = 100_000  # of one expression, whatever its length
CALLS = 3 * (calculator.MAX_DEPTH + 1)  # expression, term and factor, for each level of parentheses
CHUNK = 1000

Tree = tuple  # ("number", text) | ("count", haystack, needle) | ("sign", "-", tree) | ("+", tree, tree)


# ---------------------------------------------------------------------------------------------------- what is tried


def number(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return str(rng.randint(0, 10 ** rng.randint(1, 4)))
    if kind < 0.65:
        return f"{rng.randint(0, 10 ** rng.randint(3, 9)):,}"
    if kind < 0.85:
        return f"{rng.randint(0, 999)}.{rng.randint(0, 999)}"
    if kind < 0.97:
        return rng.choice(["0", "00", "007", "5.", ".5", "0.0", "1,2,3", "00.10", "0.00005", "20000", "3"])
    return "9" * rng.choice([15, 29, 30, 31, 40])


def quoted(rng: random.Random, size: int) -> str:
    return "".join(rng.choices("aab,' \"1(+é🙂", k=rng.randint(0, size)))


def tree(rng: random.Random, leaves: int) -> Tree:
    """A random expression with so many numbers in it."""
    if rng.random() < 0.12:
        return ("sign", rng.choice("+--"), tree(rng, leaves))
    if leaves > 1:
        left = rng.randint(1, leaves - 1)
        return (rng.choice("++--**//"), tree(rng, left), tree(rng, leaves - left))
    if rng.random() < 0.1:
        return ("count", quoted(rng, 12).replace('"', ""), quoted(rng, 2).replace('"', ""))
    return ("number", number(rng))


def exact(tree: Tree) -> Fraction | None:
    """Its value; None where it divides by zero."""
    kind, *rest = tree
    if kind == "number":
        return Fraction(rest[0].replace(",", ""))
    if kind == "count":
        return Fraction(rest[0].count(rest[1]))
    if kind == "sign":
        value = exact(rest[1])
        return -value if value is not None and rest[0] == "-" else value
    a, b = exact(rest[0]), exact(rest[1])
    if a is None or b is None or (kind == "/" and b == 0):
        return None
    return a / b if kind == "/" else {"+": a + b, "-": a - b, "*": a * b}[kind]


def written(tree: Tree, rng: random.Random) -> str:
    """As text, with parentheses where they are needed and sometimes where not, and spaces anywhere."""
    kind, *rest = tree
    space = rng.choice(["", "", " ", "\t", "\n"])
    if kind == "number":
        text = rest[0]
    elif kind == "count":
        text = f'"{rest[0]}"{space}.count({space}"{rest[1]}"{space})'
    elif kind == "sign":
        text = f"{rest[0]}{space}{inside(rest[1], rng, 3)}"
    else:
        level = 1 if kind in "+-" else 2
        text = f"{inside(rest[0], rng, level)}{space}{kind}{space}{inside(rest[1], rng, level + 1)}"
    return f"({space}{text})" if rng.random() < 0.05 else text


def inside(tree: Tree, rng: random.Random, level: int) -> str:
    """As part of something that binds so strongly."""
    own = 1 if tree[0] in "+-" else 2 if tree[0] in "*/" else 3
    text = written(tree, rng)
    return f"({text})" if own < level else text


FRAGMENTS = ("1", "12", "0", ".5", "5.", "1,000", ",", ".", "(", ")", "+", "-", "*", "/", "**", "//", "%", "=", "e9",
             "_", "'a'", '"a"', "'", '"', ".count(", ".count", "'ab'.count('b')", ".ljust(9)", "x", "１", "٣", "²",
             "\\", "#", " ", "\n", "\t", "\x00", "\f", "\u00a0", "\u2028", "\ud800", "🙂", "j", "[", "]", "{", "1e9")
HOSTILE = (
    "'a'.ljust(500000000).count('a')", "'a'.zfill(3000000000)", "9**9**9", "9**9**9**9", "１２+１", "'a'*99999999",
    "().__class__.__bases__[0].__subclasses__()", "'a'.count.__self__.__class__", "__import__('os').system('id')",
    "'a'.count('a').real.__class__", "exec('1')", "eval('1')", "1 if 1 else 2", "[1]*999999999", "1<<99999999",
    "10**100000000", "'{0.__class__}'.format(1)", "f'{9**9**9}'", "(lambda: 1)()", "1e999999999", "0x" + "f" * 99,
)


def hostile(rng: random.Random) -> str:
    """Long, deep, huge, or foreign; or just within a bound or just beyond."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(HOSTILE)
    if kind < 0.6:
        k = rng.randint(-1, 2)
        return rng.choice([
            "(" * (19 + k) + "1" + ")" * (19 + k), "-" * (198 + k) + "1", "-" * (98 + k) + "1" + "+1" * 50,
            "9" * (29 + k),
            "." + "1" * (28 + k), " " * (498 + k) + "1", "1" + " " * (498 + k), "'" + "a" * (486 + k) + "'.count('a')",
        ])
    n = rng.choice([50, 200, 250, 10_000, 100_000, 1_000_000])
    return rng.choice([
        "(" * n + "1" + ")" * n, "(" * n, ")" * n, "-" * n + "1", "1" + "+1" * n, "9" * n, " " * n + "1", "1" + " " * n,
        "1," * n + "1", "'" + "a" * n + "'.count('a')", "'" * n, "(1+" * n, "1" + "*99999999999999999999" * (n // 21),
        "1" + "/99999999999999999999" * (n // 21), "1" + "/" + "7" * 25 + "-1/" + "3" * 20, "0." + "0" * n + "1",
        "1" + "/.0000000000000001" * (n // 18), "+".join(f"1/{10**6 + 2 * i + 1}" for i in range(min(n, 500) // 10)),
        "'a'.count('a')" + ".count('a')" * (n // 10), "1" + ".1" * n,
    ])


class Case(NamedTuple):
    kind: str
    text: str
    tree: Tree | None = None


def case(seed: int) -> Case:
    rng = random.Random(f"calculator {seed}")
    kind = rng.choices(("valid", "nearly", "hostile", "random"), (50, 25, 10, 15))[0]
    if kind == "hostile":
        return Case(kind, hostile(rng))
    if kind == "random":
        if rng.random() < 0.5:
            return Case(kind, "".join(rng.choices(FRAGMENTS, k=rng.randint(0, 12))))
        return Case(kind, "".join(rng.choices("0123456789+-*/().,'\" acount", k=rng.randint(0, 20))))
    made = tree(rng, rng.choice([1, 2, 2, 3, 3, 4, 6, 10, 30, 70]))
    text = written(made, rng)
    if kind == "valid":
        return Case(kind, text, made)
    for _ in range(rng.randint(1, 2)):  # something is put in, something taken out
        begin = rng.choice([0, len(text), *([rng.randint(0, len(text))] * 6)])
        text = text[:begin] + rng.choice(("", *FRAGMENTS)) + text[begin + rng.choice([0, 0, 1, 2]):]
    return Case(kind, text)


# ------------------------------------------------------------------------------------------------------- the watch


class Watched(calculator._Parser):
    """The parser, telling how far it went."""

    tokens = calls = digits = 0  # the most of each, of all instances

    def __init__(self, tokens: list[tuple[str, str]]):
        super().__init__(tokens)
        Watched.tokens = max(Watched.tokens, len(tokens))
        self.open = 0

    def _watch(self, read) -> Fraction:
        self.open += 1
        Watched.calls = max(Watched.calls, self.open)
        value = read()
        self.open -= 1
        Watched.digits = max(Watched.digits, _digits(value.numerator), _digits(value.denominator))
        return value

    def expression(self) -> Fraction:
        return self._watch(super().expression)

    def term(self) -> Fraction:
        return self._watch(super().term)

    def factor(self) -> Fraction:
        return self._watch(super().factor)


def _digits(n: int) -> int:
    """At least the number of its decimal digits: `-999 -> 4` (3 is 10 bits' worth)."""
    return int(abs(n).bit_length() * 0.30103) + 1


class Outcome(NamedTuple):
    """What came of some expressions."""

    found: list[str]
    counts: Counter
    most: dict[str, int]  # tokens, calls, digits, bytes

    def __str__(self) -> str:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.counts.items()))
        return f"{kinds}; at most {', '.join(f'{n:,} {what}' for what, n in self.most.items())}"


def check(seeds: tuple[int, int]) -> list[Outcome]:
    """The expressions of the seeds `begin` to `end - 1`."""
    found: list[str] = []
    counts: Counter = Counter()
    Watched.tokens = Watched.calls = Watched.digits = 0
    peak = 0
    for seed in range(*seeds):
        made = case(seed)
        wrong, used, has_value = check_one(made)
        peak = max(peak, used)
        counts[made.kind] += 1
        counts["with a value"] += has_value
        found += [f"seed {seed}, {made.kind}: {ascii(made.text[:200])}: {what}" for what in wrong]
    most = {"tokens": Watched.tokens, "calls": Watched.calls, "digits": Watched.digits, "bytes": peak}
    bounds = {"tokens": calculator.MAX_STEPS, "calls": CALLS, "digits": calculator.MAX_CHARS + 1, "bytes": PEAK_BYTES}
    found += [f"seeds {seeds}: {n} {what}, allowed are {bounds[what]}" for what, n in most.items() if n > bounds[what]]
    return [Outcome(found, counts, most)]


def check_one(made: Case) -> tuple[list[str], int, bool]:
    """`(what is wrong, bytes taken, whether it has a value)`."""
    parser, calculator._Parser = calculator._Parser, Watched
    tracemalloc.start()
    try:
        value = calculator.evaluate(made.text)
        peak = tracemalloc.get_traced_memory()[1]
        said = calculator.use_calculator(made.text)
    except Exception as e:
        return [f"raised {type(e).__name__}: {e}"], 0, False
    finally:
        tracemalloc.stop()
        calculator._Parser = parser
    wanted = value_of(made.text)
    wrong = []
    if value != wanted or type(value) is not type(wanted):
        wrong.append(f"{value}, Python says {wanted}")
    if said != shown(value):
        wrong.append(f"{value} is shown as {said!r}, not {shown(value)!r}")
    if made.tree is not None and exact(made.tree) != value and (value is not None or within_bounds(made.text)):
        wrong.append(f"{value}, its tree says {exact(made.tree)}")
    return wrong, peak, wanted is not None


def within_bounds(text: str) -> bool:
    """Whether a valid expression is so small that no bound can be the reason to refuse it."""
    return len(text) <= 100 and text.count("(") <= calculator.MAX_DEPTH and "9" * 30 not in text


def calculator_trials(trials: int, seed: int, processes: int) -> Outcome:
    """For tests/chaos.py; `found` of what comes back is what failed."""
    from tests.chaos import spread

    cases = [(begin, min(begin + CHUNK, seed + trials)) for begin in range(seed, seed + trials, CHUNK)]
    outcomes = [outcome for part in spread(check, cases, processes) for outcome in part]
    most = {what: max(o.most[what] for o in outcomes) for what in outcomes[0].most}
    return Outcome([line for o in outcomes for line in o.found], sum((o.counts for o in outcomes), Counter()), most)
