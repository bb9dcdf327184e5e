"""nanochat/eval_result.py: intervals, pass@k, ChatCORE, and results put together from the outcomes of ranks.

Run: python -m pytest tests/test_eval_result.py
"""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.eval_result import (
    KEEP,
    EvalResult,
    Outcome,
    centred,
    chatcore,
    pass_at_k,
    readable,
    thin,
    transcript,
    wilson,
)


def test_wilson_known_values():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case):
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n + 1e-12 and correct / n - 1e-12 <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(wilson(n - correct, n))


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        picks = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, picks)) / len(picks), abs=1e-12)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_grows_with_k_from_the_share_to_whether_any_is_right(case):
    n, c, k = case
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == (c > 0)
    assert pass_at_k(n, c, 1) - 1e-12 <= pass_at_k(n, c, k) <= 1
    assert pass_at_k(n, c, k) <= pass_at_k(n, c, min(n, k + 1)) + 1e-12


def test_centred_puts_chance_at_zero():
    assert (centred(0.25, 0.25), centred(1, 0.25), centred(0.625, 0.25)) == (0, 1, 0.5)
    assert centred(0.0, 0.5) == -1  # worse than chance is less than nothing: it must be able to cancel luck
    assert centred(0.3, 0) == 0.3


def test_chatcore_is_the_mean_of_its_tasks_and_blank_without_one_of_them():
    results = [EvalResult("mc", [1, 1, 0, 0], chance=0.25), EvalResult("words", [1, 0]), EvalResult("other", [0])]
    assert chatcore(results, ["mc", "words"]) == pytest.approx(((0.5 - 0.25) / 0.75 + 0.5) / 2)
    assert chatcore(results, ["words"]) == 0.5
    assert chatcore(results, ["mc", "words", "absent"]) is None and chatcore(results, []) is None
    assert chatcore([*results, EvalResult("none asked", [])], ["words", "none asked"]) is None  # no 0% of nothing


def test_several_answers_to_a_problem():
    result = EvalResult("x", [0, 1, 4, 3], num_samples=4)
    assert (result.n, result.correct, result.accuracy) == (4, 8, 0.5)
    assert result.ci95 == wilson(2, 4)  # four problems, not sixteen
    metrics = json.loads(json.dumps(result.metrics()))
    assert list(metrics["pass_at"]) == ["1", "2", "4"] and metrics["num_samples"] == 4
    assert metrics["pass_at"]["1"]["accuracy"] == metrics["accuracy"] == 0.5
    assert metrics["pass_at"]["2"]["accuracy"] == pytest.approx((0 + 1 / 2 + 1 + 1) / 4)
    assert metrics["pass_at"]["4"] == {"accuracy": 0.75, "ci95": list(wilson(3, 4))}
    assert list(EvalResult("x", [0, 5, 6], num_samples=6).metrics()["pass_at"]) == ["1", "2", "4", "6"]
    alone = EvalResult("x", [0, 1]).metrics()
    assert "pass_at" not in alone and alone["accuracy"] == 0.5


def test_nothing_asked_is_no_division_by_zero():
    result = EvalResult.of("x", [])
    assert (result.n, result.accuracy, result.ci95, result.chance, result.samples) == (0, 0.0, (0.0, 1.0), 0.0, [])
    assert EvalResult.of("x", [], num_samples=3).metrics()["pass_at"]["3"]["accuracy"] == 0.0


OUTCOMES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(2, 5), st.booleans()), max_size=40)


@given(OUTCOMES, st.integers(1, 5), st.randoms())
def test_the_whole_is_the_same_however_it_was_dealt(rows, ranks, random):
    def outcomes() -> list[Outcome]:
        return [Outcome(i, right, choices, cropped, ungraded, {"user": str(i), "right": right > 0})
                for i, (right, ungraded, choices, cropped) in enumerate(rows)]

    dealt = outcomes()
    random.shuffle(dealt)
    parts = [thin(dealt[rank::ranks]) for rank in range(ranks)]
    together = EvalResult.of("x", [o for part in parts for o in part], 2)
    assert together == EvalResult.of("x", outcomes(), 2)
    assert together.right == [right for right, *_ in rows]
    assert together.cropped == sum(cropped for *_, cropped in rows)
    if rows:
        assert together.chance == pytest.approx(sum(1 / choices for _, _, choices, _ in rows) / len(rows))
    shown = [int(sample["user"]) for sample in together.samples]
    assert shown == sorted(shown)
    for kind in ("right", "wrong", "ungraded"):
        of_kind = [o.index for o in outcomes() if o.kind == kind]
        assert [i for i in shown if outcomes()[i].kind == kind] == of_kind[:KEEP]


def test_readable_and_transcript():
    parts = [{"type": "text", "text": "né "}, {"type": "python", "text": "2*3"},
             {"type": "python_output", "text": "6"}, {"type": "text", "text": "6"}]  # fmt: skip
    assert readable(parts) == "né ⟨2*3⟩⟨=6⟩6"
    assert readable("as it is") == "as it is" and readable(["a", "b"]) == "a | b" and readable([]) == ""
    conversation = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert transcript(conversation, parts, True) == {
        "user": "q", "expected": "a", "completion": "né ⟨2*3⟩⟨=6⟩6", "right": True}
    assert transcript(conversation | {"answer": ["a", "b"]}, [], False, "TypeError: x") == {
        "user": "q", "expected": "a | b", "completion": "", "right": False, "grader": "TypeError: x"}
