"""bench/train_step.py from end to end at a tiny size, its arithmetic, and what it says when something cannot be.

The comparison is worth something only if both sides do the same work: after the same first update their losses agree.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from pathlib import Path

import pytest

from nanochat.common import UserError
from tests.helpers import write_corpus

pytest.importorskip("transformers.models.nanochat", reason="transformers is not installed, or older than this model")


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module: it is a script, and finds its parts beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    monkeypatch.delenv("NANOCHAT_TEST_DATA", raising=False)
    return importlib.import_module("train_step")


@pytest.fixture
def figures(bench):
    return importlib.import_module("_train_step_figures")


def tiny(bench, **changes):
    settings = {"sizes": ("tiny",), "head_dim": 64, "modes": ("eager",), "dtypes": ("float32",), "rounds": 1,
                "round_seconds": 0.01, "tokens": 128, "micro_tokens": 64, "curve_steps": 4, "device_type": "cpu"}
    return bench.Config(**{**settings, **changes})


def test_end_to_end(bench, tmp_path, monkeypatch, capsys):
    rows = [bench.Row(side, "eager", "float32") for side in ("ours", "theirs")]
    monkeypatch.setattr(bench.Bench, "step_rows", lambda self: rows)  # a process each; the others are tested below
    bench.main(tiny(bench, data=str(write_corpus(tmp_path / "data"))))
    last = capsys.readouterr().out.splitlines()[-1]
    found = json.loads(last)
    # without torch.compile, no figure about it is made up
    assert [found[name] for name in ("vs_transformers_compiled_fp32", "vs_transformers_compiled_bf16",
                                     "matmul_share")] == [None] * 3
    assert found["head_memory_ratio"] > 0 and found["head_time_ratio"] > 0
    assert found["vs_transformers_eager_fp32"] == found["like_for_like_eager_fp32"] > 0

    assert found["loss_gaps"].keys() == {"step tiny eager fp32", "head tiny eager fp32"}
    assert max(found["loss_gaps"].values()) < 1e-3  # the same work on both sides
    assert found["curve_gap_fp32"] < 1e-3
    assert found["curve_ends"].keys() == {"ours float32", "theirs float32"}
    first, smoothed = found["curve_ends"]["ours float32"]
    assert first == pytest.approx(math.log(320), abs=1e-3) and smoothed < first  # it has learned something

    assert {(m["kind"], m["side"]) for m in found["measurements"]} == {
        ("step", "ours"), ("step", "theirs"), ("head", "ours"), ("head", "plain")}
    for m in found["measurements"]:
        assert m["rounds"] == 1 and m["peak_mb"] > 0
        assert m["slowest_tokens_per_s"] <= m["tokens_per_s"] <= m["fastest_tokens_per_s"]


def test_the_rows(bench, tmp_path):
    """Every row is there, and does what its name says: in this process, where that is cheap."""
    made = bench.Bench(tiny(bench), tmp_path)
    worker = importlib.import_module("_train_step_worker")
    machine = worker.Machine("cpu", 0, as_is=False)
    losses = {}
    for row in made.step_rows():
        working = worker.StepWorker(made.job("tiny", "step", row), machine)
        losses[row.side, row.extra] = working.ready()["losses"]
        answer = working.round(0)
        assert (answer["steps"], answer["tokens"]) == (1, 128) and 0 < answer["update"] < answer["wall"]
        assert all(p.grad is None for p in working.step.model.parameters())  # nothing goes over into the next step
        documents = (working.batch[0] == worker.BOS).sum(1)  # in each of the 4 rows
        assert documents.tolist() == [0] * 4 or row.extra == "packed" and documents.min() >= 1 and documents.sum() > 4
    theirs = [("theirs", ""), ("theirs", "memory kept"), ("theirs", "plain attention")]
    assert losses.keys() == {("ours", ""), ("ours", "packed"), ("ours", "muon"), *theirs}
    first, second = losses["ours", ""]
    assert first == pytest.approx(math.log(320), abs=1e-3) and second < first - 0.01
    for other in theirs:
        assert losses[other] == pytest.approx([first, second], abs=1e-3 * (first - second))
    assert abs(losses["ours", "packed"][1] - second) > 1e-3 * (first - second)  # other rows, another mask
    assert losses["ours", "muon"][1] < second  # our rates are higher than those of the comparison
    both = bench.Bench(tiny(bench, modes=("eager", "compiled"), dtypes=("float32", "bfloat16")), tmp_path).step_rows()
    assert [row.mode for row in both] == ["eager"] * 4 + ["compiled"] * 8


def test_the_head_is_the_same_in_both_forms(bench, tmp_path):
    made = bench.Bench(tiny(bench), tmp_path)
    worker = importlib.import_module("_train_step_worker")
    machine = worker.Machine("cpu", 0, as_is=False)
    ours, plain = (worker.HeadWorker(made.job("tiny", "head", row), machine) for row in made.head_rows())
    assert ours.ready()["losses"] == pytest.approx(plain.ready()["losses"], rel=1e-5)
    assert ours.round(0)["passes"] == 1 and ours.x.grad is None  # what it holds is let go between the passes


@pytest.mark.parametrize("wrong, word", [
    ({"rounds": 0}, "rounds"), ({"sizes": ("tiny", "tiny")}, "sizes"), ({"modes": ()}, "modes"),
    ({"head_dim": 48}, "head_dim"), ({"micro_tokens": 48}, "micro_tokens"), ({"tokens": 160}, "tokens"),
])
def test_impossible_settings(bench, wrong, word):
    with pytest.raises(UserError, match=word):
        bench.resolve(tiny(bench, **wrong))


def test_what_is_missing_is_said_in_a_line(bench, monkeypatch):
    monkeypatch.setattr(bench, "compile_problem", lambda device_type: "no C++ compiler")
    bench.resolve(tiny(bench))  # nothing is compiled: no matter
    with pytest.raises(UserError, match=r"no C\+\+ compiler.*--modes eager"):
        bench.resolve(tiny(bench, modes=("compiled",)))

    def no_transformers(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", no_transformers)
    with pytest.raises(UserError, match="^transformers is missing.*setup.sh$"):
        bench.resolve(tiny(bench))


def test_a_worker_that_fails_says_why(bench, tmp_path):
    with bench.Worker("step nowhere", {"kind": "step", "side": "ours", "device_type": "abacus", "seed": 0},
                      tmp_path) as worker, pytest.raises(UserError, match="(?s)step nowhere failed.*abacus"):
        worker.answer()
    assert worker.process.returncode is not None


def test_the_order_rotates(bench, tmp_path, monkeypatch):
    asked = []

    class Asleep:
        def __init__(self, row):
            self.row = row

        def ask(self, **request):
            asked.append(self.row.extra)
            return {"tokens": 1, "wall": 1.0, "cpu": 1.0}

    monkeypatch.setattr(bench, "measure_matmul_flops", lambda device, dtype: 1.0)
    made = bench.Bench(tiny(bench, rounds=3), tmp_path)
    rows = [bench.Row("ours", "eager", "float32", extra) for extra in "abc"]
    made.rounds("tiny", "step", {row: Asleep(row) for row in rows})
    assert "".join(asked) == "abcbcacab"
    assert len(made.matmul["float32"]) == 3


def test_other_work_is_not_timed(bench):
    rows = [bench.Key("tiny", "step", bench.Row(side, "eager", "float32")) for side in ("ours", "theirs")]
    bench.check_same_work(dict(zip(rows, ({"losses": [5.0, 4.001]}, {"losses": [5.0, 4.0]}))))
    with pytest.raises(RuntimeError, match="step tiny eager fp32.*10.0%"):
        bench.check_same_work(dict(zip(rows, ({"losses": [5.0, 4.1]}, {"losses": [5.0, 4.0]}))))


def test_text_is_repeated_until_it_is_enough(bench, tmp_path):
    data = str(write_corpus(tmp_path / "data", documents=20))
    ids = bench.text_ids(data, 300, 5000)
    assert len(ids) == 5000 and ids.min() >= 0 and ids.max() < 300


# ------------------------------------------------------------------------------------------------ the arithmetic


def answers(*rates, update=0.1, tokens=1000, cpu=2.0, growth=0):
    """Rounds at so many tokens a second."""
    return [{"tokens": tokens, "wall": tokens / rate, "cpu": cpu * tokens / rate, "update": update, "steps": 1,
             "peak": growth + 5, "growth": growth} for rate in rates]


def test_ratios_are_of_medians_at_the_worst_size(figures):
    Key, Row = figures.Key, figures.Row
    ours, theirs = Row("ours", "compiled", "bfloat16"), Row("theirs", "compiled", "bfloat16")
    ours32, theirs32 = Row("ours", "compiled", "float32"), Row("theirs", "compiled", "float32")
    results = {
        Key("a", "step", ours): answers(300, 900, 310), Key("a", "step", theirs): answers(100, 200, 1),
        Key("a", "step", ours32): answers(90), Key("a", "step", theirs32): answers(60),
        Key("a", "step", theirs._replace(extra="plain attention")): answers(155),
        Key("a", "step", ours._replace(extra="muon")): answers(155, update=0.4),
        Key("b", "step", ours): answers(20), Key("b", "step", theirs): answers(10, cpu=4.0),
        Key("b", "step", theirs32): answers(1),
        Key("b", "head", Row("ours", "eager", "bfloat16")): answers(10, growth=100),
        Key("b", "head", Row("plain", "eager", "bfloat16")): answers(5, growth=700),
        Key("b", "head", Row("ours", "compiled", "bfloat16")): answers(10, growth=100),
        Key("b", "head", Row("plain", "compiled", "bfloat16")): answers(8, growth=900),
    }
    starts = {key: {"losses": [2.0, 1.5], "compile_s": 3.0, "flops_per_token": 10, "attention": "x", "parameters": 1}
              for key in results}
    starts[Key("b", "step", theirs)]["losses"] = [2.0, 1.0]
    matmul = {"bfloat16": [800.0, 1.0, 400.0], "float32": [100.0]}
    found = figures.summary(results, starts, ("a", "b"), "bfloat16", matmul)
    a, b = found["by_size"]["a"], found["by_size"]["b"]
    assert (a["vs_transformers_compiled_bf16"], b["vs_transformers_compiled_bf16"]) == (3.1, 2.0)
    assert found["vs_transformers_compiled_bf16"] == 2.0 and b["vs_transformers_compiled_bf16_cpu"] == 4.0
    assert a["vs_transformers_compiled_bf16_plain_attention"] == 2.0
    assert (a["vs_transformers_compiled_fp32"], a["like_for_like_compiled_fp32"]) == (5.167, 1.5)
    assert found["vs_transformers_compiled_fp32"] == 5.167 and "like_for_like_compiled_fp32" not in b
    assert found["matmul_share"] == b["matmul_share"] == 0.5  # 20 tokens/s of 10 FLOP each, 400 FLOP/s
    assert (a["muon_vs_plain"], a["muon_update_ms"], a["adamw_update_ms"]) == (0.5, 400.0, 100.0)
    assert (found["head_memory_ratio"], found["head_time_ratio"]) == (7.0, 1.25)
    assert found["loss_gaps"]["step b compiled bf16"] == 0.5 and found["loss_gaps"]["step a compiled bf16"] == 0
    json.dumps(found, allow_nan=False)


def test_the_gap_of_two_curves(figures):
    assert figures.moving_average([1, 2, 3, 4], 2) == [1.5, 2.5, 3.5]
    assert figures.moving_average([1, 2], 20) == [1.5]
    flat, spike = [1.0] * 40, [1.0] * 39 + [2.0]
    assert figures.curve_gap(flat, flat) == 0
    assert figures.curve_gap(flat, spike) == figures.curve_gap(spike, flat) == pytest.approx(1 / 20)
    found = figures.curve_figures({"ours bfloat16": flat, "theirs bfloat16": spike})
    assert found["curve_gap_bf16"] == pytest.approx(0.05) and "curve_gap_fp32" not in found
