"""The calculator tool: a string such as `12/60` or `'strawberry'.count('r')` in, the answer as text out, or None.

What it understands, and nothing else:

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*
    factor     := ("+" | "-")* (number | "(" expression ")" | string ".count(" string ")")
    number     := digits with commas between them allowed, an optional decimal part: 7  1,250  0.5  .5  3.
    string     := '…' or "…" on one line, without backslashes (so that every reader reads it alike)

Why not `eval`: the text comes from a model. Own tokenizer, own parser, exact fractions, and bounds on length, depth,
digits and steps, so that no input costs more than a millisecond. No signals and no state: any thread may call it.

Numbers cannot explode either. Let h(p/q) = max(|p|, q). A literal of L characters has h <= 10^L; h(x ± y) is at most
2 h(x) h(y), h(x * y) and h(x / y) at most h(x) h(y). So each operator, a character itself, adds log10(2) < 1 digit, and
no numerator or denominator on the way is beyond 10^(characters read): 500 digits. (tests/calculator_fuzz.py watches.)

    python -c "from nanochat.calculator import use_calculator; print(use_calculator('1,250 * (3 - 0.5)'))"    # 3125
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 500  # of the whole text: the longest of GSM8K's has 50, a sentence to count letters in 200
MAX_DEPTH = 20  # nested parentheses: well below Python's own recursion limit
MAX_DIGITS = 30  # of one number, and of the whole part of the result
MAX_STEPS = 200  # tokens read, hence operations done

# [0-9], not \d: \d also matches full-width and Arabic digits, which no training text of the tool has.
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
      (?P<number>(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+))
    | (?P<string>'[^'\\\r\n]*'|"[^"\\\r\n]*")
    | (?P<count>\.[ \t\r\n]*count[ \t\r\n]*\()
    | (?P<symbol>[-+*/()])
    )""",
    re.VERBOSE,
)


class _Outside(Exception):
    """The text is not in the grammar, or beyond a bound."""


def _tokenize(expr: str) -> list[tuple[str, str]]:
    """`"1,2*'a'.count('a')"` -> `[("number", "1,2"), ("symbol", "*"), ("string", "a"), ("count", …), …]`."""
    if len(expr) > MAX_CHARS:  # before anything is done with it: nothing may cost memory that grows with the text
        raise _Outside
    expr = expr.strip(" \t\r\n")
    tokens, at = [], 0
    while at < len(expr):
        match = _TOKEN.match(expr, at)
        if match is None or len(tokens) == MAX_STEPS:
            raise _Outside
        kind = match.lastgroup or ""
        text = match.group(kind)
        tokens.append((kind, text[1:-1] if kind == "string" else text))
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent that computes as it reads; each method returns the exact value of what it read."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, kind: str, text: str | None = None) -> str:
        found_kind, found_text = self.peek()
        if found_kind != kind or (text is not None and found_text != text):
            raise _Outside
        self.at += 1
        return found_text

    def expression(self) -> Fraction:
        value = self.term()
        while self.peek() in (("symbol", "+"), ("symbol", "-")):
            minus = self.take("symbol") == "-"
            right = self.term()
            value = value - right if minus else value + right
        return value

    def term(self) -> Fraction:
        value = self.factor()
        while self.peek() in (("symbol", "*"), ("symbol", "/")):
            divide = self.take("symbol") == "/"
            right = self.factor()
            value = value / right if divide else value * right  # x / 0 raises ZeroDivisionError
        return value

    def factor(self) -> Fraction:
        sign = 1
        while self.peek() in (("symbol", "+"), ("symbol", "-")):
            if self.take("symbol") == "-":
                sign = -sign
        kind, _ = self.peek()
        if kind == "number":
            return sign * self.number()
        if kind == "string":
            return sign * self.count()
        self.take("symbol", "(")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Outside
        value = self.expression()
        self.take("symbol", ")")
        self.depth -= 1
        return sign * value

    def number(self) -> Fraction:
        text = self.take("number").replace(",", "")  # only inside a number token: strings keep their commas
        if len(text) > MAX_DIGITS:
            raise _Outside
        return Fraction(text)

    def count(self) -> Fraction:
        haystack = self.take("string")
        self.take("count")
        needle = self.take("string")
        self.take("symbol", ")")
        return Fraction(haystack.count(needle))


def format_number(value: Fraction) -> str | None:
    """`Fraction(10) -> "10"`, `Fraction(1, 5) -> "0.2"`, `Fraction(2, 3) -> "0.6667"`; None when absurdly large.

    At most 4 decimals, halves rounded away from zero (0.00005 -> 0.0001, -0.00005 -> -0.0001): that is how people
    round by hand, and people wrote GSM8K's marks. (None of its 27 998 marks is such a tie, so either rule reproduces
    97.05% of them; most of the others are written `4.00` or `.15`.)
    """
    scaled = abs(value) * 10_000
    units = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)  # floor(scaled + 1/2), in integers
    whole, decimals = divmod(units, 10_000)
    if whole >= 10**MAX_DIGITS:
        return None
    text = f"{whole}.{decimals:04d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and units else text  # never "-0"


def evaluate(expr: str) -> Fraction | None:
    """The exact value of `expr`, or None for whatever lies outside the grammar or the bounds, and for x / 0.

    `"2/3" -> Fraction(2, 3)`, `"'hello'.count('l')" -> Fraction(2)`, `"9**9" -> None`, `"__import__('os')" -> None`
    """
    try:
        parser = _Parser(_tokenize(expr))
        value = parser.expression()
        return value if parser.peek()[0] == "end" else None  # else something is left over: "1 2", "3)"
    except (_Outside, ZeroDivisionError):
        return None


def use_calculator(expr: str) -> str | None:
    """The value of `expr` as text, or None where it has none that can be shown: `"12/60" -> "0.2"`, `"1/0" -> None`"""
    value = evaluate(expr)
    return None if value is None else format_number(value)
