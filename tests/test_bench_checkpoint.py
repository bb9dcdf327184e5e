"""bench/checkpoint.py from end to end with a few steps, and its arithmetic on made-up seconds."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module: it is a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("checkpoint")


def test_end_to_end(bench, capsys):
    bench.main(bench.Config(steps=2, rounds=2, depth=1, compile=False, dtype="float32"))
    *before, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["steps"] == figures["rounds"] == 2 and figures["step_ms"] > 0
    assert figures["bytes"] > 1e6 and figures["save_ms"] > figures["stall_ms"] > 0 and figures["load_ms"] > 0
    assert sum(line.startswith("saved step") for line in before) == 4  # two kinds save, in each of two rounds
    assert [sum(f", {kind}: " in line for line in before) for kind in bench.KINDS] == [2, 2, 2]


def test_an_overhead_is_the_median_of_differences_within_rounds(bench):
    seconds = {"no save": [(10.0, 20.0), (20.0, 40.0), (30.0, 60.0)],
               "beside": [(10.5, 21.0), (20.2, 40.4), (36.0, 60.1)],
               "waited for": [(11.0, 21.0), (21.0, 41.0), (31.0, 61.0)]}
    figures = bench.summary(seconds, steps=100, every=200)
    assert figures["step_ms"] == 200 and figures["overhead"] == pytest.approx(0.5 / 40)
    assert figures["overhead_cpu"] == pytest.approx(0.4 / 80) and figures["overhead_waited"] == pytest.approx(1 / 40)
