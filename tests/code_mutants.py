"""Wrong programs by the thousand: the right answers of HumanEval with their results broken. Each must fail.

A mutant keeps the right function and does something to what it returns (`KINDS`) that no test of HumanEval may let
pass: that it is wrong follows from how it is made, without running it. (Operators swapped inside would not do: some
such programs are right, and some tests too weak.) For tests/test_execution.py and `python -m tests.chaos --mutants`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from nanochat.execution import Verdict, run_tests
from tasks.humaneval import HumanEval, tests_of

# What is returned instead of the right result r; the last is another program altogether, see `mutant`.
KINDS = {
    "nothing": "None",
    "another": '["wrong"]',
    "tuple": "(r,)",
    "list": "[r]",
    "dict": '{"r": r}',
    "text": '"<" + repr(r) + ">"',
    "off": "off(r)",
    "bytes": "repr(r).encode()",
    "raises": "1 // 0",
    "another name": "",
}
WRAPPER = '''

right_answer = {name}


def off(r):
    """The nearest wrong value of the same type."""
    if isinstance(r, bool):
        return not r
    if isinstance(r, (int, float)):
        return r + 1
    if isinstance(r, str):
        return r + "x"
    if isinstance(r, (list, tuple)):
        return r + type(r)([0])
    return {{**r, "x": 0}} if isinstance(r, dict) else 0


def {name}(*args, **kwargs):
    r = right_answer(*args, **kwargs)
    return {result}
'''


def mutant(problem: dict[str, str], kind: str) -> str:
    """A program that is wrong in this way."""
    program, name = problem["prompt"] + problem["canonical_solution"], problem["entry_point"]
    if kind == "another name":
        return program.replace(name, f"{name}_")
    return program + WRAPPER.format(name=name, result=KINDS[kind])


def problems(data: str) -> list[dict[str, str]]:
    return [row["problem"] for row in HumanEval("test", data=data)]


def judged(case: tuple[dict[str, str], str]) -> Verdict:
    problem, kind = case
    return run_tests(mutant(problem, kind), problem["entry_point"], tests_of(problem))


def passed(cases: list[tuple[dict[str, str], str]], processes: int) -> list[str]:
    """The mutants that pass, a line each; [] is wanted."""
    with ThreadPoolExecutor(processes) as pool:
        verdicts = list(pool.map(judged, cases))
    return [f"{problem['entry_point']}, {kind}: passed" for (problem, kind), v in zip(cases, verdicts) if v.passed]


def mutant_trials(trials: int, seed: int, processes: int) -> list[str]:
    """For tests/chaos.py: mutants `seed` to `seed + trials - 1`, a problem after the other, then the next kind."""
    asked = problems(os.environ["NANOCHAT_TEST_DATA"])
    cases = [(problem, kind) for kind in KINDS for problem in asked]
    return passed([cases[number % len(cases)] for number in range(seed, seed + trials)], processes)
