"""bench/evaluation.py from end to end: a tiny model, two tasks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from tests.small_bundle import write_bundle


def test_end_to_end(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    bench = importlib.import_module("evaluation")
    bench.main(bench.Config(core=str(write_bundle(tmp_path)), examples=5, rounds=2, depth=1, vocab_size=300,
                            max_seq_len=64, dtype="float32"))
    *before, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["prediction_mismatches"] == 0 and figures["largest_difference_nats"] < 1e-4
    assert len(figures["ratios"]) == figures["rounds"] == 2 and set(figures["by_task"]) == {"choose", "which", "go_on"}
    assert figures["core_vs_one_at_a_time"] == pytest.approx(sum(figures["ratios"]) / 2)
    assert figures["examples"] == 15 and sum(line.startswith("round ") for line in before) == 2
