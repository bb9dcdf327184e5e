"""bench/evaluation.py from end to end: a tiny model, a task of each kind."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from nanochat.core_eval import Score
from tasks.core_bundle import CoreTask
from tests.core_trials import write_bundle

TASKS = [
    CoreTask("choose", "multiple_choice", 2, "\nAnswer: ", 1 / 3, [
        {"query": f"{i} + {i} is", "choices": [str(2 * i), "not known to anybody", str(2 * i + 1)], "gold": i % 3}
        for i in range(12)]),
    CoreTask("which", "schema", 2, " ", 0.5, [
        {"context_options": [f"The fox ate {i} hens, so the fox", f"The fox ate {i} hens, so the dog"],
         "continuation": "was full.", "gold": i % 2} for i in range(9)]),
    CoreTask("go_on", "language_modeling", 2, " ", 0.0, [
        {"context": f"Count: {i} {i + 1} {i + 2}", "continuation": str(i + 3)} for i in range(7)]),
]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("evaluation")


def run(bench, capsys, folder) -> tuple[list[str], dict]:
    """`(lines before the last one, what that says)`."""
    bench.main(bench.Config(core=str(write_bundle(folder, TASKS)), examples=5, rounds=2, depth=1, vocab_size=300,
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
