"""bench/reinforcement.py: what it makes of several runs. (The runs themselves are those of scripts/chat_rl.py.)"""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

from nanochat.eval_result import EvalResult, paired_gain


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("reinforcement")


def test_a_gain_over_seeds_is_the_mean_of_their_gains_problem_by_problem(bench):
    before = EvalResult("toy", [0, 1, 2, 0], num_samples=2)
    after = [EvalResult("toy", [2, 1, 2, 0], num_samples=2), EvalResult("toy", [1, 1, 2, 2], num_samples=2)]
    found = bench.compare(before, after)
    assert (found["before"], found["after"], found["n"]) == (3 / 8, [5 / 8, 6 / 8], 4)
    assert found["gain"] == pytest.approx((5 + 6) / 16 - 3 / 8)
    assert [run[0] for run in found["by_run"]] == pytest.approx([2 / 8, 3 / 8])
    low, high = found["ci95"]
    assert low < found["gain"] < high
    config = bench.Config(seeds=(3, 4))
    table = bench.view({"toy": found}, config, [61.0, 90.0])
    assert [column.header for column in table.columns][3:5] == ["seed 3", "seed 4"] and table.row_count == 1
    assert bench.tag(config, 3) == "d4_seed3"


def test_problems_that_stay_as_they_were_say_nothing_against_a_gain():
    """The interval of paired answers is narrow where the same problems stay right and wrong, and holds the truth."""
    same = [0] * 300 + [1] * 300
    assert paired_gain(same, same) == (0, 0, 0)
    rng, held = random.Random(1), 0
    for _ in range(400):
        after = [1 if right or rng.random() < 0.2 else 0 for right in same]  # the truth: half of 0.2
        gain, low, high = paired_gain(same, after)
        assert 0.03 < gain < 0.17 and high - low < 0.06  # of two independent halves it would be 0.11
        held += low <= 0.1 <= high
    assert 0.9 < held / 400 < 0.99
    with pytest.raises(ValueError):
        paired_gain([1, 0], [1])
