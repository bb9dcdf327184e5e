"""Plain arithmetic through the calculator, and documents about numbers.

A pair of operands belongs to train or test by its hash, in either order. Sample row of calculator/train.jsonl:
    {"messages": [{"role": "user", "content": "What is 23 * 17?"},
                  {"role": "assistant", "content": [{"type": "python", "text": "23*17"},
                                                    {"type": "python_output", "text": "391"},
                                                    {"type": "text", "text": "The answer is 391."}]}],
     "answer": ["391"]}
"""

from __future__ import annotations

import random
from fractions import Fraction

from nanochat.pocket.draw import casual, conversation, is_test_numbers
from nanochat.pocket.problems import compute, number, plain

PHRASES = {
    "+": (
        "What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?",
        "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "How much is {a} + {b}?", "Calculate {a} + {b}.",
        "Please add {b} to {a}.", "Compute {a}+{b}.", "What do you get if you add {a} and {b}?",
        "Can you add {a} and {b}?",
        "{a} plus {b}?",
    ),
    "-": (
        "What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.",
        "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "How much is {a} - {b}?", "Calculate {a} - {b}.", "Compute {a}-{b}.",
        "What is the difference between {a} and {b}?", "What is left of {a} without {b}?", "{a} minus {b}?",
        "Can you subtract {b} from {a}?",
    ),
    "*": (
        "What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "What is the product of {a} and {b}?",
        "{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} * {b} = ?", "How much is {a} times {b}?", "Calculate {a} * {b}.",
        "Compute {a}*{b}.", "What do you get if you multiply {a} and {b}?", "Can you multiply {a} by {b}?",
        "{a} times {b}?",
    ),
    "/": (
        "What is {a} / {b}?", "What is {a} divided by {b}?", "Divide {a} by {b}.", "{a} / {b}", "{a}/{b}",
        "{a} / {b} = ?", "How much is {a} divided by {b}?", "Calculate {a} / {b}.", "Compute {a}/{b}.",
        "What is {a} over {b}?", "How many times does {b} go into {a}?", "Can you divide {a} by {b}?",
        "Split {a} into {b} equal parts.", "{a} divided by {b}?",
    ),
}
OPENINGS = ("Please tell me: ", "Hi! ", "Hello! ", "Tell me, ", "Quick question: ", "I need to know: ")


def draw_operands(rng: random.Random, test: bool) -> tuple[int, str, int]:
    """`(a, operator, b)` on the wanted side of the split, with a result >= 0 of at most two decimals."""
    while True:
        operator = rng.choice("+-*/")
        if operator == "/":
            b = number(rng, 2, 99)
            if rng.random() < 0.6:
                a = b * number(rng, 2, 99)
            else:
                b, a = rng.choice((2, 4, 5, 8, 10, 20, 25, 50)), number(rng, 1, 999)
            if a > 9999 or (a * 100) % b:
                continue
        else:
            a = number(rng, 1, rng.choice((9, 99, 999, 9999)), 0.3)
            b = number(rng, 1, rng.choice((9, 99, 999, 9999) if operator != "*" else (9, 99, 99)), 0.3)
            if operator == "-" and a < b:
                a, b = b, a
        if is_test_numbers((a, b)) == test:
            return a, operator, b


def calculation(rng: random.Random, test: bool) -> dict:
    """One conversation (see the head of this file)."""
    a, operator, b = draw_operands(rng, test)
    result = plain(compute(Fraction(a), operator, Fraction(b)))
    question = casual(rng.choice(PHRASES[operator]).format(a=a, b=b), rng, OPENINGS)
    answer = [
        {"type": "python", "text": f"{a}{operator}{b}"},
        {"type": "python_output", "text": result},
        {"type": "text", "text": f"The answer is {result}."},
    ]
    return {**conversation(question, answer), "answer": [result]}


# --------------------------------------------------------------------------- documents


def number_document(rng: random.Random) -> str:
    """Counting, comparing, digits, or sums written out."""
    return rng.choices((_sums, _digits, _counting, _comparing), (6, 2, 1, 1))[0](rng)


def _sums(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(4, 8)):
        a, operator, b = draw_operands(rng, test=False)
        result = plain(compute(Fraction(a), operator, Fraction(b)))
        question = rng.choice(PHRASES[operator]).format(a=a, b=b)
        parts.append(f"{question}\n{a}{operator}{b}={result}")
    return "\n".join(parts)


def _digits(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(4, 8)):
        n = number(rng, 10, 9999, 0.7)
        parts.append(rng.choice((
            f"The digits of {n} are {' '.join(str(n))}.",
            f"Write {n} again: {n}.",
            f"The number {n} has {len(str(n))} digits.",
            f"{' '.join(str(n))} makes {n}.",
            f"{n} comes before {n + 1}.",
        )))
    return " ".join(parts)


def _counting(rng: random.Random) -> str:
    start, step, length = rng.randint(0, 500), rng.choice((1, 1, 1, 2, 5, 10)), rng.randint(10, 25)
    numbers = [start + step * i for i in range(length)]
    if rng.random() < 0.3:
        numbers.reverse()
    return f"Counting from {numbers[0]} to {numbers[-1]}: " + ", ".join(map(str, numbers)) + "."


def _comparing(rng: random.Random) -> str:
    parts = []
    while len(parts) < 6:
        a, b = number(rng, 1, 999), number(rng, 1, 999)
        if a == b or is_test_numbers((a, b)):
            continue
        parts.append(rng.choice((
            f"{a} is {'more' if a > b else 'less'} than {b}.",
            f"The larger one of {a} and {b} is {max(a, b)}.",
            f"The smaller one of {a} and {b} is {min(a, b)}.",
        )))
    return " ".join(parts)
