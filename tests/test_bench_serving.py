"""bench/serving.py from end to end with a small model and few clients, and its arithmetic on made-up turns."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from nanochat.common import UserError


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module: it is a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("serving")


@pytest.mark.slow  # three processes, one after the other, import torch
def test_end_to_end(bench, capsys, monkeypatch):
    def engine_here(script, environment, **job):  # another process would import torch for seconds
        monkeypatch.setenv("NANOCHAT_BASE_DIR", environment["NANOCHAT_BASE_DIR"])
        found = importlib.import_module("_serving_engine").run({"num_words": bench.NUM_WORDS, **job})
        return type("Done", (), {"result": lambda self: found})()

    child = bench.Child
    monkeypatch.setattr(bench, "Child", lambda script, *args, **job: (
        engine_here if script == "_serving_engine.py" else child)(script, *args, **job))
    bench.main(bench.Config(depth=[2], seconds=2, rounds=1, clients=6, max_rows=3, max_queue=5, slow_sockets=9,
                            too_many=20, refuse_seconds=0.5, disconnects=24, samples=1, warm_up=0.3,
                            parrot_delay=0.01))
    *before, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert any(line.startswith("depth 2, round 1 of 1: ") for line in before)
    for name in ("health_p99_ms", "refused_p99_ms", "tokens_per_second", "engine_tokens_per_second", "ratio"):
        assert figures[name] > 0
    assert figures["leaked_rows"] == 0 and figures["tokens_after_leaving_max"] >= 0 and "rss_growth_mb" in figures
    d2 = figures["d2"]
    assert d2["same_texts"] and d2["health_wrong"] == d2["broken"] == d2["worker_restarts"] == 0
    assert d2["refused"] > 0 and d2["refused_without_retry_after"] == d2["accepted_unfinished"] == 0
    assert d2["leaving"]["seen"]["left"] + d2["leaving"]["seen"].get("broken", 0) == 24
    assert d2["slow_sockets"]["opened"] == 9 and d2["health_looks"] > 10
    assert {*d2["cores"]} == {"server", "worker", "clients", "slow sockets", "prober", "others"}
    assert len(figures["tokens_after_leaving"]) == 12  # streamed or not, two moments, three ways


def test_requests_are_the_same_ones_and_a_word_is_a_token(bench):
    tokenizer = bench.made_up_tokenizer()
    assert tokenizer.get_vocab_size() == bench.VOCAB
    r = bench.clients.request(7, bench.NUM_WORDS)
    assert r == bench.clients.request(7, bench.NUM_WORDS) != bench.clients.request(8, bench.NUM_WORDS)
    words = r["messages"][0]["content"].split()
    assert len(tokenizer.encode(r["messages"][0]["content"])) == len(words) and 8 <= len(words) <= 64


def test_the_arithmetic(bench):
    """Each turn of the server is compared with the engine's beside it; medians of the rounds."""
    def served(tokens, looks):
        return {"tokens": tokens, "seconds": 10.0, "cpu": {"server": 1.0}, "slow sockets": {"opened": 3},
                "prober": {"seconds": looks, "wrong": 0},
                "clients": {"first": [1.0], "gaps": [0.01], "broken": 0, "refused": []}}

    engine = [{"tokens": 10 * rate, "seconds": 10.0, "cpu": 20.0} for rate in (100, 200, 300, 300)]
    turns = [served(10 * rate, looks) for rate, looks in ((150, [0.001] * 98), (200, [0.5]), (150, [0.7]))]
    f = bench.summary(engine, turns)
    assert f["ratios"] == [1.0, 0.8, 0.5] and f["ratio"] == 0.8
    assert (f["tokens_per_second"], f["engine_tokens_per_second"], f["engine_cores"]) == (150, 250, 2)
    assert f["health_ms"] == {"p50": 1.0, "p99": 500.0, "max": 700.0} and f["health_looks"] == 100
    assert f["slow_sockets"] == {"opened": 9} and f["cores"]["server"] == 0.1


def test_percentiles(bench):
    assert bench.percentile(range(1, 101), 0.99) == 99 and bench.percentile(range(1, 101), 0.5) == 50
    assert bench.percentile([5], 0.99) == 5


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"clients": 0}, {"depth": [1]}, {"samples": 0}, {"depth": []}])
def test_impossible_settings(bench, wrong):
    with pytest.raises(UserError):
        bench.main(bench.Config(**wrong))
