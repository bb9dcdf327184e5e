"""What the report says of exams on the way: gains problem by problem, also when the number of answers has changed."""

from __future__ import annotations

import pytest

from nanochat.eval_result import EvalResult
from scripts.chat_rl import exam_record


def exam(step: int, right: list[int], num_samples: int) -> dict:
    result = EvalResult("sums", right, num_samples)
    return {"step": step, "metrics": {"sums": result.metrics()}, "right": {"sums": right}, "shown": []}


@pytest.mark.parametrize("after", [4, 2, 1])
def test_a_gain_is_one_of_shares_whatever_the_number_of_answers_was_before(after):
    record = exam_record([exam(0, [8, 4, 0], 8), exam(6, [after, after, 0], after)], after)
    ((name, before, now, gain, low, high, n),) = record["gain_table"]["rows"]
    assert (name, before, n) == ("sums", 0.5, 3)
    assert now == pytest.approx(2 / 3) and gain == pytest.approx(now - before) and low < gain < high


def test_other_problems_than_before_are_not_compared():
    assert exam_record([exam(0, [1, 0], 2), exam(6, [1, 0, 1], 2)], 2)["gain_table"]["rows"] == []
