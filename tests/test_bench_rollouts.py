"""bench/rollouts.py from end to end with a tiny stand-in; that all ways honour the tool; its arithmetic."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from nanochat.engine import Engine
from nanochat.sampling import Sampling
from tasks.common import Task
from tests.helpers import byte_tokenizer
from tests.parrot import Parrot, repeat


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module: it is a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("rollouts")


class Calls(Task):
    """The parrot calls the calculator and says "done", unless a drawn token takes it off its course."""

    def num_examples(self) -> int:
        return 100

    def get_example(self, index: int) -> dict:
        return {"messages": [{"role": "user", "content": f"calc: {10 ** (index % 3)}*3"},
                             {"role": "assistant", "content": "done"}]}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return completion == "done"


def test_end_to_end(bench, capsys):
    bench.main(bench.Config(depth=1, problems=3, num_samples=5, max_new_tokens=60, batch=3, max_rows=4, rounds=2))
    *before, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["rows"] == 30 and len(figures["ratios"]) == 2 and {*figures["ways"]} == {*bench.WAYS}
    assert figures["rows_that_differ"] == figures["rewards_that_differ"] == 0
    for name in ("rollouts_vs_fixed", "rollouts_vs_fixed_cpu", "rollouts_vs_fixed_same_kernel"):
        assert figures[name] > 0
    ours, plain, kernel = (figures["ways"][way] for way in bench.WAYS)
    assert ours["wasted"] == 0 < plain["wasted"] == kernel["wasted"] < 1
    assert figures["lengths"]["mean"] < figures["lengths"]["max"] <= 60
    assert 0 < figures["reward_mean"] < figures["ended"] < 1  # so that equal rewards say something
    assert sum(line.startswith("round ") for line in before) == 2


def test_all_ways_call_the_tool_and_tell_the_same(bench):
    tokenizer = byte_tokenizer()
    engine = Engine(Parrot(repeat(tokenizer), tokenizer.get_vocab_size()), tokenizer)
    config = bench.Config(problems=3, num_samples=4, batch=3, max_rows=5)
    problems = bench.make_problems(config, [Calls()], engine, 0)
    done = {way: bench.rollouts(config, engine, problems, way) for way in bench.WAYS}
    ours = done[bench.OURS]
    assert {sum(m == 0 for m in row.mask) for row in ours.rows} >= {3, 5}  # <|output_start|> 3 or 300 <|output_end|>
    assert 0 < sum(ours.rewards) < len(ours.rewards) == 12
    for other in done.values():
        assert [(row.ids, row.mask, row.finish) for row in other.rows] \
            == [(row.ids, row.mask, row.finish) for row in ours.rows] and other.rewards == ours.rewards


def test_the_arithmetic(bench):
    """Ratios are of tokens per second; medians of the rounds; what differs is counted, ours being the measure."""
    def made(wall: float, row_steps: int, last: int = 7) -> bench.Rollouts:
        rows = bench.Engine.make_rows(engine, [[1], [1]], 1, 9, Sampling(1.0), 0)
        for row, ids in zip(rows, ([5, 6], [5, 6, 8, last])):
            row.ids, row.mask = ids, [1] * len(ids)
        rows[1].finish = "stop"
        return bench.Rollouts(rows, [False, last == 7], row_steps, wall, 2 * wall, 0.0)

    engine = Engine(Parrot(lambda history: 0, 300), byte_tokenizer())
    walls = [(1.0, 4.0, 2.0), (1.0, 90.0, 3.0), (2.0, 12.0, 2.0)]
    rounds = [dict(zip(bench.WAYS, (made(a, 6), made(b, 12, 4 if a == 2 else 7), made(c, 12)))) for a, b, c in walls]
    figures = bench.summary(rounds)
    assert (figures["rollouts_vs_fixed"], figures["rollouts_vs_fixed_cpu"]) == (6, 6)
    assert figures["rollouts_vs_fixed_same_kernel"] == 2 and figures["ratios"] == [4, 90, 6]
    plain = figures["ways"][bench.PLAIN]
    assert (plain["tokens_per_s"], plain["rows_that_differ"], plain["rewards_that_differ"]) == (0.5, 1, 1)
    assert plain["wasted"] == 0.5 and figures["ways"][bench.OURS]["wasted"] == 0
    assert figures["rows_that_differ"] == figures["rewards_that_differ"] == 1 and figures["rows"] == 6
    assert figures["ended"] == 0.5 and figures["lengths"] == {"mean": 3, "median": 3, "p95": 4, "max": 4}
