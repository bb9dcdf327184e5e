"""The calculator tool: a string such as `12/60` or `'strawberry'.count('r')` in, the answer as text out, or None.

What it understands, and nothing else:

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*
    factor     := ("+" | "-")* (number | "(" expression ")" | string ".count(" string ")")
    number     := digits with commas between them allowed, an optional decimal part: 7  1,250  0.5  .5  3.
    string     := '…' or "…" on one line, without backslashes (so that every reader reads it alike)

Why not `eval`: the text comes from a model. Own tokenizer, own parser, exact fractions, and bounds on length, depth,
digits and steps, so that no input costs more than a millisecond. No signals and no state: any thread may call it.

    python -c "from nanochat.calculator import use_calculator; print(use_calculator('1,250 * (3 - 0.5)'))"    # 3125
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 500  # of the whole expression: the longest of GSM8K's has 50, a sentence to count letters in 200
MAX_DEPTH = 20  # nested parentheses: well below Python's own recursion limit
MAX_DIGITS = 30  # of one number, and of the whole part of the result
MAX_STEPS = 200  # tokens read, hence operations done

# [0-9], not \d: \d also matches full-width and Arabic digits, which no training text of the tool has.
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
      (?P<number>(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+))
    | (?P<string>'[^'\\\r\n]*'|"[^"\\\r\n]*")
    | (?P<count>\.[ \t]*count[ \t]*\()
    | (?P<symbol>[-+*/()])
    )""",
    re.VERBOSE,
)


class _Outside(Exception):
    """The text is not in the grammar, or beyond a bound."""


def _tokenize(expr: str) -> list[tuple[str, str]]:
    """`"1,2*'a'.count('a')"` -> `[("number", "1,2"), ("symbol", "*"), ("string", "a"), ("count", …), …]`."""
    expr = expr.strip(" \t\r\n")
    if len(expr) > MAX_CHARS:
        raise _Outside
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
    97.06% of them; most of the others are written `4.00` or `.15`.)
    """
    scaled = abs(value) * 10_000
    units = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)  # floor(scaled + 1/2), in integers
    whole, decimals = divmod(units, 10_000)
    if whole >= 10**MAX_DIGITS:
        return None
    text = f"{whole}.{decimals:04d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and units else text  # never "-0"


def use_calculator(expr: str) -> str | None:
    """The value of `expr` as text, or None for whatever lies outside the grammar or the bounds, and for x / 0.

    `"12/60" -> "0.2"`, `"'hello'.count('l')" -> "2"`, `"9**9" -> None`, `"__import__('os')" -> None`
    """
    try:
        parser = _Parser(_tokenize(expr))
        value = parser.expression()
        if parser.peek()[0] != "end":
            return None  # something is left over: "1 2", "3)"
        return format_number(value)
    except (_Outside, ZeroDivisionError):
        return None
