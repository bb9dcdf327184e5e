"""An oracle for the calculator: Python's own parser, over fractions, with the grammar's rules checked on its tree.

    value_of("1,250 * (3 - 0.5)") -> Fraction(3125)

What the two languages spell differently is made alike before (commas, leading zeros, line breaks); what only Python has
(powers, names, 1e9, 'a' 'b', a trailing comma) is found in the tree or in the text that a node came from. `shown`
rounds by the decimal module. Nothing here is bounded but by what is counted first.
"""

from __future__ import annotations

import ast
import decimal
import re
import warnings
from fractions import Fraction

STRING = r"""'[^'\\\r\n]*'|"[^"\\\r\n]*\""""
COUNT = re.compile(rf"(?P<haystack>{STRING}) *\. *count *\( *(?P<needle>{STRING}) *\)")
PIECE = re.compile(rf"{STRING}|\. *count *\(|[0-9]+\.?[0-9]*|\.[0-9]+|[-+*/()]| +|.", re.DOTALL)
LIMITS = {"characters": 500, "pieces": 200, "depth": 20, "digits": 30}  # as README and header promise them


class NotInGrammar(Exception):
    pass


def value_of(text: str) -> Fraction | None:
    """The exact value, or None for what has none."""
    try:
        return _value(ast.parse(_as_python(text), mode="eval").body, _as_python(text))
    except (NotInGrammar, SyntaxError, ValueError, ZeroDivisionError):  # ValueError: NUL, half a character
        return None


def _as_python(text: str) -> str:
    """`text` as Python spells it, when it is within the limits and has none of Python's own punctuation."""
    if len(text) > LIMITS["characters"]:
        raise NotInGrammar
    apart = re.split(rf"({STRING})", text)  # what is not a string, a string, what is not, ...
    # Python's parser takes neither NUL nor half a character, not even in a string
    apart[1::2] = [part.replace("\0", "\ue000").replace("\ud800", "\ue001") for part in apart[1::2]]
    apart[::2] = [_numbers_as_python(re.sub(r"[ \t\r\n]", " ", part)) for part in apart[::2]]
    made = "".join(apart).strip(" ")
    pieces = [piece for piece in PIECE.findall(made) if piece.strip(" ")]
    depth = deepest = 0
    calls = []  # for each open parenthesis: is it that of a count
    for piece in pieces:
        if piece.endswith("(") and piece[0] not in "'\"":
            calls.append(len(piece) > 1)
            depth += not calls[-1]
        elif piece == ")" and calls:
            depth -= not calls.pop()
        deepest = max(deepest, depth)
    if len(pieces) > LIMITS["pieces"] or deepest > LIMITS["depth"]:
        raise NotInGrammar
    return made


def _numbers_as_python(part: str) -> str:
    """`"007 + 1,250" -> "7 + 1250"`: only digits may have commas between them, and not behind a decimal point."""
    part = re.sub(r"(?<![0-9.])[0-9]+(?:,[0-9]+)+", lambda m: m[0].replace(",", ""), part)
    numbers = re.findall(r"[0-9]+\.?[0-9]*|\.[0-9]+", part)
    if re.search(r"""[,#\\\f'"]""", part) or any(len(number) > LIMITS["digits"] for number in numbers):
        raise NotInGrammar
    return re.sub(r"(?<![0-9.])0+(?=[0-9])", "", part)


def _value(node: ast.expr, source: str) -> Fraction:
    text = ast.get_source_segment(source, node) or ""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
        a, b = _value(node.left, source), _value(node.right, source)
        if isinstance(node.op, ast.Div):
            return a / b
        return a * b if isinstance(node.op, ast.Mult) else a + b if isinstance(node.op, ast.Add) else a - b
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text):
        return Fraction(text)
    if isinstance(node, ast.Call) and (call := COUNT.fullmatch(text)):
        return Fraction(call["haystack"][1:-1].count(call["needle"][1:-1]))
    raise NotInGrammar


def shown(value: Fraction | None) -> str | None:
    """`Fraction(2, 3) -> "0.6667"`: at most four decimals, halves away from zero; None from 10^30 on."""
    if value is None:
        return None
    with decimal.localcontext() as context:
        context.prec = 1200  # more digits than separate a quotient of two numbers of 500 digits from a tie
        exact = decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)
        rounded = exact.quantize(decimal.Decimal("0.0001"), rounding=decimal.ROUND_HALF_UP)
        if abs(rounded) >= 10 ** LIMITS["digits"]:
            return None
    text = f"{rounded:f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


warnings.filterwarnings("ignore", category=SyntaxWarning)  # Python's remarks on "1()" and the like
