"""bench/evaluation.py from end to end: a tiny model, two tasks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from nanochat.core_eval import Score
from tests.small_bundle import write_bundle


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("evaluation")


def run(bench, capsys, folder) -> tuple[list[str], dict]:
    """`(lines before the last one, what that says)`."""
    bench.main(bench.Config(core=str(write_bundle(folder)), examples=5, rounds=2, depth=1, vocab_size=300,
                            max_seq_len=64, dtype="float32"))
    *before, last = capsys.readouterr().out.splitlines()
    return before, json.loads(last)


def test_two_wrong_answers_that_differ_are_a_mismatch(bench, capsys, tmp_path, monkeypatch):
    def choosing(choice: int, question) -> list[Score]:
        return [Score(float(i != choice), 1, False) for i in range(len(question.branches))]

    monkeypatch.setattr(bench, "score", lambda model, questions, *_: [choosing(0, q) for q in questions])
    monkeypatch.setattr(bench, "score_plainly", lambda model, question: choosing(1, question))
    _, figures = run(bench, capsys, tmp_path)
    assert figures["prediction_mismatches"] == 10  # all with choices, also those where another one is right


def test_end_to_end(bench, capsys, tmp_path):
    before, figures = run(bench, capsys, tmp_path)
    assert figures["prediction_mismatches"] == 0 and figures["largest_difference_nats"] < 1e-4
    assert len(figures["ratios"]) == figures["rounds"] == 2 and set(figures["by_task"]) == {"choose", "which", "go_on"}
    assert figures["core_vs_one_at_a_time"] == pytest.approx(sum(figures["ratios"]) / 2)
    assert figures["examples"] == 15 and sum(line.startswith("round ") for line in before) == 2
