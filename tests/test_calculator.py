"""The calculator against Python's fractions, against attacks, and against GSM8K's own marks."""

from __future__ import annotations

import ast
import json
import operator
import os
import re
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import calculator
from nanochat.calculator import MAX_CHARS, MAX_DEPTH, MAX_DIGITS, MAX_STEPS, evaluate, format_number, use_calculator
from tests import calculator_fuzz, chaos
from tests.reference.calculator import LIMITS, shown, value_of


@pytest.mark.parametrize(("expr", "result"), [
    ("12/60", "0.2"),
    ("0.2*50", "10"),  # trap: calculator-format (not "10.0")
    ("10/2", "5"),  # trap: calculator-format
    ("28", "28"),
    ("2/3", "0.6667"),
    ("-2/3", "-0.6667"),
    (".5+.25", "0.75"),
    ("5.", "5"),
    ("1.10*3", "3.3"),  # floats would say 3.3000000000000003
    ("2-3*4", "-10"),
    ("(2-3)*4", "-4"),
    ("8/4/2", "1"),
    ("10-3-2", "5"),
    ("2*-3", "-6"),
    ("--3", "3"),
    ("-(1+1)", "-2"),
    (" 1 +\t2 ", "3"),
    ("1,250 * (3 - 0.5)", "3125"),
    ("1,000,000+1", "1000001"),
    ("1/20000", "0.0001"),  # 0.00005, a tie: away from zero
    ("-1/20000", "-0.0001"),
    ("-1/1000000", "0"),  # never "-0"
    ("'strawberry'.count('r')", "3"),
    ('"strawberry".count("rr")', "1"),
    ("'it'.count(\"t\")", "1"),
    ("\"it's\".count(\"'\")", "1"),
    ("'a,b,,c'.count(',')", "3"),  # trap: comma-strip
    ("'1,000'.count('1,0')", "1"),  # trap: comma-strip
    ("'café'.count('é')", "1"),
    ("'a'.count('a') + 'aa'.count('a') * 2", "5"),
])
def test_value(expr, result):
    assert use_calculator(expr) == result


@pytest.mark.parametrize("expr", [
    "", " ", "+", "1+", "*2", "(1", "1)", "()", "1 2", "(1)(2)", "1,", ",1", "1,,2", "1.2.3", ".", "1..2", "1e9",
    "1_000",
    "9**9**9",  # trap: tool-power
    "5%", "$5", "7//2", "7%2", "2**3", "2^3", "x", "1/0", "1/(2-2)", "0/0", "=5", "1=1", "1j", "0x10",
    "１+2", "٣+1", "1＋2", "²", "⅓",  # trap: tool-digits (ASCII digits and signs only)
    "'a'", "'a'.count", "'a'.count(", "'a'.count('a'", "'a'.count(1)", "'a'.count('a','b')", "'a''b'.count('a')",
    "'a'.count('a').count('a')", "'a\\'b'.count('b')", "'a\nb'.count('b')", "'a'*3", "'a.count('a')",
    "'a'.ljust(500000000).count('a')",  # trap: tool-ljust
    "'a'.zfill(3000000000)",  # trap: tool-zfill
    "('a'*10).count('a')",
    "().__class__.__bases__[0].__subclasses__()",  # trap: tool-attributes
    "'a'.__class__.count('a')", "__import__('os').system('true')",
    "exec('1')", "lambda: 1", "[1 for _ in range(9)]", "1 if 1 else 2", "f'{1}'.count('1')", "b'a'.count('a')",
])
def test_outside_the_grammar_is_none(expr):
    assert use_calculator(expr) is None


@pytest.mark.parametrize("expr", [
    "(" * 100_000 + "1" + ")" * 100_000,  # trap: tool-nesting
    "(" * 100_000,
    "-" * 100_000 + "1",
    "9" * 1_000_000,
    " " * 1_000_000 + "x",
    " " * 1_000_000 + "1",
    "1" + "*99999999999999999999" * 20,
    "1" + "/99999999999999999999" * 20 + "+" + "1+" * 20,
    "'" + "a" * 1_000_000 + "'.count('a')",
    "1," * 200_000,
    "'" * 400,
    "(((1+" * 90,
])
def test_attacks_are_cheap(expr):
    """Everything that a model may be talked into writing costs next to nothing."""
    start = time.perf_counter()
    result = use_calculator(expr)
    assert time.perf_counter() - start < 0.25
    assert result is None


def test_bounds():
    nested = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert use_calculator(nested) == "1"
    assert use_calculator(f"({nested})") is None
    assert use_calculator("9" * MAX_DIGITS) == "9" * MAX_DIGITS
    assert use_calculator("9" * (MAX_DIGITS + 1)) is None
    assert use_calculator("9" * MAX_DIGITS + "*10") is None  # the result has too many digits
    assert use_calculator("'" + "a" * (MAX_CHARS - 13) + "'.count('a')") == str(MAX_CHARS - 13)
    assert use_calculator("'" + "a" * (MAX_CHARS - 12) + "'.count('a')") is None
    assert use_calculator("1" + "+1" * 99) == "100"
    assert use_calculator("1" + "+1" * 100) is None  # too many steps
    assert use_calculator(" " * (MAX_CHARS - 1) + "1") == "1"
    assert use_calculator(" " * MAX_CHARS + "1") is None
    assert LIMITS == {"characters": MAX_CHARS, "pieces": MAX_STEPS, "depth": MAX_DEPTH, "digits": MAX_DIGITS}


def test_no_number_on_the_way_is_beyond_the_characters_read():
    """What the header proves, at what comes near to it: products and sums of fractions without a common factor."""
    sums = "+".join(f"1/{'9' * 20}{i}" for i in range(20))
    for text in ("*".join(["9" * 30] * 16), sums, "/".join(["." + "0" * 28 + "7"] * 16)):
        value = evaluate(text)
        assert value is not None
        assert 10**200 < max(abs(value.numerator), value.denominator) < 10 ** len(text)


# An expression as (text, exact value or None when it divides by zero).
_numbers = st.one_of(
    st.integers(0, 99_999).map(lambda n: (str(n), Fraction(n))),
    st.integers(1_000, 9_999_999).map(lambda n: (f"{n:,}", Fraction(n))),
    st.decimals(0, 1000, places=2).map(lambda d: (str(d), Fraction(d))),
    st.tuples(st.text("ab,'", max_size=6), st.sampled_from(["a", ",", "ab"])).map(
        lambda t: (f'"{t[0]}".count("{t[1]}")', Fraction(t[0].count(t[1])))),
)


def _apply(op, a, b):
    if a is None or b is None or (op == "/" and b == 0):
        return None
    return {"+": a + b, "-": a - b, "*": a * b}[op] if op != "/" else a / b


_expressions = st.recursive(_numbers, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from("+-*/"), inner, st.sampled_from(["", " "])).map(
        lambda t: (f"({t[0][0]}{t[3]}{t[1]}{t[3]}{t[2][0]})", _apply(t[1], t[0][1], t[2][1]))),
    inner.map(lambda t: (f"-{t[0]}", None if t[1] is None else -t[1])),
), max_leaves=6)


@given(_expressions)
def test_against_fractions(expression):
    text, exact = expression
    result = use_calculator(text)
    if exact is None:
        assert result is None
    elif abs(exact) < 10**MAX_DIGITS - 1:
        assert result is not None
        assert abs(Fraction(result) - exact) <= Fraction(1, 20_000)
        assert re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]{0,3}[1-9])?", result) and result != "-0"
        if exact.denominator == 1:
            assert result == str(exact)


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def pythons_reading(node: ast.expr) -> Fraction:
    """The exact value of a syntax tree as Python's own parser has made it."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](pythons_reading(node.left), pythons_reading(node.right))
    return Fraction(node.value)


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from("+-*/")), min_size=1, max_size=12))
def test_precedence_against_python(terms):
    """Without parentheses: the same value as Python's own reading of the same text over Fractions."""
    text = "".join(f"{n}{op}" for n, op in terms) + "1"
    try:
        exact = pythons_reading(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        assert use_calculator(text) is None
        return
    assert use_calculator(text) == format_number(exact)


@given(st.text(max_size=60) | st.text("0123456789+-*/().,'\" acount", max_size=60))
def test_any_text_gives_text_or_none(text):
    result = use_calculator(text)
    assert result is None or re.fullmatch(r"-?[0-9]+(\.[0-9]{1,4})?", result)


def test_a_sample_of_the_fuzz():
    """tests/chaos.py --calculator=100000 is all of it."""
    outcome = calculator_fuzz.calculator_trials(2000, 10**6, 1)
    assert outcome.found == []
    assert {kind: n > least for (kind, n), least in zip(sorted(outcome.counts.items()), (100, 300, 200, 800, 600))} == (
        dict.fromkeys(("hostile", "nearly", "random", "valid", "with a value"), True))
    # the bounds are reached, so they are what holds
    assert outcome.most["tokens"] == MAX_STEPS and outcome.most["calls"] == calculator_fuzz.CALLS
    assert outcome.most["digits"] > 200


def doubled_sum(right):
    return lambda parser: right(parser) + (1 if ("symbol", "-") in parser.tokens and len(parser.tokens) > 8 else 0)


def no_sign_in_parentheses(right):
    return lambda parser: abs(right(parser)) if parser.depth else right(parser)


@pytest.mark.parametrize(("name", "wrong"), [
    ("_Parser.expression", doubled_sum),
    ("_Parser.factor", no_sign_in_parentheses),
    ("_Parser.number", lambda right: lambda parser: Fraction(float(right(parser)))),
    ("_Parser.count", lambda right: lambda parser: right(parser) + 1),
    ("format_number", lambda right: lambda value: f"{float(value):.4f}".rstrip("0").rstrip(".")),
    ("format_number", lambda right: lambda value: right(abs(value))),
    ("MAX_STEPS", lambda right: right + 1),
    ("MAX_STEPS", lambda right: right - 1),
    ("MAX_DEPTH", lambda right: right + 1),
    ("MAX_DEPTH", lambda right: right - 1),
    ("MAX_DIGITS", lambda right: right + 1),
    ("MAX_CHARS", lambda right: right + 1),
    ("_tokenize", lambda right: lambda text: right(text.strip())),  # also takes a form feed or a no-break space away
    ("_tokenize", lambda right: lambda text: right(text.replace("**", "*"))),
])
def test_a_wrong_calculator_is_found(monkeypatch, name, wrong):
    """The fuzz sees what it is there to see."""
    owner, _, attribute = f"calculator.{name}".rpartition(".")
    owner = calculator if owner == "calculator" else calculator._Parser
    monkeypatch.setattr(owner, attribute, wrong(getattr(owner, attribute)))
    assert any(calculator_fuzz.calculator_trials(200, seed, 1).found for seed in range(0, 4000, 200))


def test_a_calculator_that_costs_is_found(monkeypatch):
    right = calculator._tokenize
    monkeypatch.setattr(calculator, "_tokenize", lambda text: right((text + " ").strip(" ")[: MAX_CHARS + 1]))
    assert any("bytes" in line for line in calculator_fuzz.calculator_trials(300, 0, 1).found)


@pytest.mark.parametrize(("text", "value"), [
    ("1,250 * (3 - 0.5)", "3125"), ("007+.5", "15/2"), ("1,2", "12"), ("'a' .count ( 'a' )", "1"), ("1\n+\r1", "2"),
    (".5,3", None), ("1.5,3", None), ("('a').count('a')", None), ("'a'.count(('a'))", None), ("'a' 'b'", None),
    ("'a'.count('a',)", None), ("'a'.count(*'a')", None), ("1e5", None), ("1_0", None), ("0x1", None), ("2**3", None),
    ("1#", None), ("1;2", None), ("1)+(2", None), ("f'a'.count('a')", None), ("not 1", None), ("~1", None),
    ("1/0", None), ("'a'.ｃｏｕｎｔ('a')", None), ("'\0'.count('\0')", "1"),
    ("\"'\n\".count('a')", None), ("-" * 199 + "1", "-1"), ("-" * 200 + "1", None),
])
def test_the_oracle(text, value):
    """It has rules of its own, so it is checked by itself."""
    assert value_of(text) == (None if value is None else Fraction(value))


def test_the_oracle_rounds():
    assert [shown(Fraction(n, 20_000)) for n in (1, -1, 3, 0, -20_000)] == ["0.0001", "-0.0001", "0.0002", "0", "-1"]
    assert shown(Fraction(-1, 10**6)) == "0" and shown(Fraction(10**30)) is None and shown(Fraction(100)) == "100"
    assert shown(10**30 - Fraction(1, 20_000)) is None  # rounds up to it


def test_chaos_has_the_calculator(tmp_path, monkeypatch, capsys):
    counts = tmp_path / "counts.json"
    monkeypatch.setattr("sys.argv", ["chaos", "--calculator=60", f"--counts={counts}", "--processes=1"])
    assert chaos.main() == 0
    assert "60         0" in capsys.readouterr().out
    monkeypatch.setattr(calculator._Parser, "count", lambda self: 1 / 0)
    monkeypatch.setattr(calculator._Parser, "number", lambda self: Fraction(self.take("number").replace(",", "")) + 1)
    assert chaos.main() == 1


def test_off_the_main_thread():
    # trap: thread-signal
    results = []
    threads = [threading.Thread(target=lambda: results.append(use_calculator("9**9**9") or use_calculator("6*7")))
               for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=10)
    assert results == ["42"] * 4


def test_reproduces_gsm8k_marks():
    folder = os.environ.get("NANOCHAT_TEST_DATA")
    if not folder:
        pytest.skip("NANOCHAT_TEST_DATA is not set")
    marks = []
    for split in ("train", "test"):
        with open(Path(folder) / "gsm8k" / f"{split}.jsonl", encoding="utf-8") as f:
            for line in f:
                marks += re.findall(r"<<([^<>]*?)=([^<>=]*)>>", json.loads(line)["answer"])
    assert len(marks) > 20_000
    same = sum(use_calculator(expr) == value for expr, value in marks)
    close = sum((r := use_calculator(expr)) is not None and abs(float(r) - float(value.replace(",", ""))) < 1e-4
                for expr, value in marks if re.fullmatch(r"-?[0-9,]*\.?[0-9]+", value))
    figure = f"{same} of {len(marks)} marks reproduced to the letter ({same / len(marks):.2%}), {close} in value"
    print(figure)
    assert same / len(marks) >= 0.97, figure
