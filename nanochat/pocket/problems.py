"""Word problems in GSM8K's own schema, made from families of templates with calculator marks.

The families stand in families.py. A problem belongs to the test when its operands do (`is_test_numbers`), and the
test's problems use other names. Sample row:
    {"question": "Anna has 48 pens. She buys 24 more. How many pens does she have now?",
     "answer": "Anna has <<48+24=72>>72 pens now.\\n#### 72"}
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from nanochat.pocket.draw import is_test_numbers

HER = (
    "Anna Clara Emma Grace Ida Kate Maria Olivia Rosa Tina Wendy Alice Carol Ella Helen Julia Laura Nora Ruth Vera Amy "
    "Betty Cora Dora Eva Flora Greta Irene Jane Lena".split()
)
HIM = (
    "Ben David Frank Henry Jack Leo Nick Paul Sam Victor Bob Dan George Ian Kevin Luke Oscar Peter Simon Tom Alan "
    "Boris Chris Derek Felix Gary Hugo Ivan Joel Max".split()
)
TEST_HER = "Bella Diana Fiona Hannah Jenny Nina Paula Sarah Tessa Zoe Vivian Monica".split()
TEST_HIM = "Adam Carlos Eric Greg Isaac Karl Martin Owen Robert Tony Walter Dennis".split()

ITEMS = (
    "apples pens books stamps shells coins marbles eggs cards stones flowers cookies pencils balls stickers buttons "
    "plums toys cups candies oranges ribbons leaves beads keys tickets photos nails seeds cakes".split()
)
EDIBLE = "apples eggs cookies plums candies oranges cakes nuts berries rolls".split()
HOLDERS = "boxes bags baskets jars packs trays drawers shelves crates rows".split()
REPEATED = (
    11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 101, 110, 111, 112, 121, 122, 200, 202, 220, 222, 300, 303, 311, 330,
    333, 400, 404, 440, 444, 500, 505, 550, 555, 600, 606, 660, 666, 700, 707, 770, 777, 800, 808, 880, 888, 900,
    909, 990, 999, 1000, 1001, 1010, 1011, 1100, 1111, 2000, 2002, 2020, 2200, 2222, 3000, 3003, 3300, 3333, 4004,
    4444, 5000, 5005, 5500, 5555, 6006, 6600, 6666, 7007, 7070, 7700, 7777, 8000, 8008, 8800, 8888, 9000, 9009,
    9090, 9900, 9999,
)


def number(rng: random.Random, low: int, high: int, repeated: float = 0.2) -> int:
    """A number from `low` to `high`; one in five has repeated digits (99, 100, 1001), which small models copy badly."""
    if rng.random() < repeated:
        fitting = [n for n in REPEATED if low <= n <= high]
        if fitting:
            return rng.choice(fitting)
    return rng.randint(low, high)


def plain(value: Fraction) -> str:
    """As the calculator prints (at most 4 decimals): `Fraction(10) -> "10"`, `Fraction(7, 2) -> "3.5"`.

    Only for values >= 0. What is kept in the data has a short exact form, so no rounding rule ever decides.
    """
    units = (2 * value.numerator * 10_000 + value.denominator) // (2 * value.denominator)
    whole, decimals = divmod(units, 10_000)
    return f"{whole}.{decimals:04d}".rstrip("0").rstrip(".")


def compute(left: Fraction, operator: str, right: Fraction) -> Fraction:
    """`compute(Fraction(7), "/", Fraction(2)) -> Fraction(7, 2)`."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


STEP = re.compile(r"\[(\w)=(\w+)([-+*/])(\w+)\]")  # [x=a*b]: compute a*b, call it x, print the mark and the result


@dataclass(frozen=True)
class Family:
    """One kind of word problem.

    `questions`: the wordings. `{n}` `{m}` two names, `{N}` `{ne}` `{ns}` She/she/her of the first, `{t}` a thing,
    `{h}` a holder, `{a}` ... the numbers, `<gains>` a verb from families.VERBS.
    `answer`: lines with steps such as `[x=a+b]`.
    `ranges`: low and high of each number. `given`: derived numbers, `p=q*b` makes exact divisions.
    """

    key: str
    questions: tuple[str, ...]
    answer: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]
    given: str = ""
    things: Sequence[str] = tuple(ITEMS)


@dataclass(frozen=True)
class Problem:
    family: str
    question: str
    answer: str
    operands: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    """Left and right operand of each calculator call."""

    @property
    def row(self) -> dict:
        return {"question": self.question, "answer": self.answer}


def draw_numbers(family: Family, rng: random.Random) -> dict[str, int]:
    """The numbers of one problem: ranges first, then the derived ones (`"p=q*b"`)."""
    numbers = {name: number(rng, low, high) for name, (low, high) in family.ranges.items()}
    if family.given:
        target, left, operator, right = re.fullmatch(r"(\w)=(\w)([-+*/])(\w)", family.given).groups()
        numbers[target] = int(compute(Fraction(numbers[left]), operator, Fraction(numbers[right])))
    return numbers


def solve(family: Family, numbers: dict[str, int]) -> tuple[list[str], list[tuple[str, str]], list[Fraction]]:
    """The answer's lines with marks filled in, each call's operands, each call's result."""
    values = {name: Fraction(value) for name, value in numbers.items()}
    pairs: list[tuple[str, str]] = []
    results: list[Fraction] = []

    def mark(step: re.Match) -> str:
        name, left, operator, right = step.groups()
        operands = [values[side] if side in values else Fraction(side) for side in (left, right)]
        result = values[name] = compute(operands[0], operator, operands[1])
        results.append(result)
        texts = plain(operands[0]), plain(operands[1])
        pairs.append(texts)
        return f"<<{texts[0]}{operator}{texts[1]}={plain(result)}>>{plain(result)}"

    lines = [STEP.sub(mark, line) for line in family.answer]
    return lines, pairs, results


def good(results: Sequence[Fraction]) -> bool:
    """Whether all intermediate results are whole, positive and not huge (people, coins and pages are)."""
    return all(r.denominator == 1 and 0 < r < 100_000 for r in results)


def make_problem(family: Family, rng: random.Random, test: bool, verbs: dict[str, Sequence[str]]) -> Problem:
    """One problem of a family, drawn until its operands lie on the wanted side of the split.

    Training refuses a test pair in *any* of its calculator calls, so that no test sum is ever seen computed.
    """
    while True:
        numbers = draw_numbers(family, rng)
        question = rng.choice(family.questions)
        shown = tuple(numbers[name] for name in re.findall(r"\{([a-dp])\}", question))
        lines, pairs, results = solve(family, numbers)
        if not good(results):
            continue
        if test and is_test_numbers(shown):
            break
        if not test and not is_test_numbers(shown) and not any(map(is_test_numbers, pairs)):
            break
    her, him = (TEST_HER, TEST_HIM) if test else (HER, HIM)
    slots: dict[str, object] = dict(numbers)
    names = rng.sample(her + him, 2)
    for slot, name in zip("nm", names):
        slots[slot], slots[slot.upper()] = name, "She" if name in her else "He"
    slots["ne"] = str(slots["N"]).lower()
    slots["ns"] = "her" if slots["ne"] == "she" else "his"
    slots["t"], slots["h"] = rng.choice(family.things), rng.choice(HOLDERS)
    question = re.sub(r"<(\w+)>", lambda m: rng.choice(verbs[m[1]]), question)
    answer = "\n".join(lines).format(**slots) + f"\n#### {plain(results[-1])}"
    return Problem(family.key, question.format(**slots), answer, shown, tuple(pairs))


def prose(problem: Problem, rng: random.Random) -> str:
    """A problem as a document, the marks written out: `Anna has 48+24=72 pens now. The answer is 72.`"""
    solution = re.sub(r"<<([^<>]*)=([^<>=]*)>>[^ .]*", r"\1=\2", problem.answer)
    steps, final = solution.rsplit("\n#### ", 1)
    layout = rng.randrange(3)
    if layout == 0:
        return f"Question: {problem.question}\nAnswer: {steps}\n#### {final}"
    if layout == 1:
        return f"{problem.question} {' '.join(steps.splitlines())} The answer is {final}."
    return f"{problem.question}\n{steps}\n#### {final}"
