"""The stage as a person starts it, on a tiny model: what it logs and reports, what it refuses, how it stops.

Run: python -m pytest tests/test_chat_rl.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nanochat.train
from nanochat.checkpoint_manager import find_last_step, model_config_dict, save_checkpoint
from nanochat.common import UserError
from nanochat.eval_result import EvalResult
from nanochat.report import get_report
from nanochat.run import read_metrics
from scripts.chat_rl import Config, exam_record, main, told
from tests.helpers import byte_tokenizer
from tests.toy_policy import ANSWERS, QUESTIONS, chat, guesses, taught

T = 32


@pytest.fixture(scope="module")
def policy():
    return taught(guesses(), T=T)


@pytest.fixture
def base(tmp_path, monkeypatch, policy) -> Path:
    """A base folder with a fine-tuned model that guesses, and tasks to learn."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(nanochat.train, "measure_matmul_flops", lambda device, dtype: 1e12)  # takes half a second
    save_checkpoint(tmp_path / "base/chatsft_checkpoints/d1", 7, policy.state_dict(), None,
                    {"model_config": model_config_dict(policy), "config": {}}, tokenizer=byte_tokenizer())
    write_task(tmp_path / "cipher.jsonl", lambda i: [ANSWERS[i % 4]])
    write_task(tmp_path / "others.jsonl", lambda i: ["w", "x"])
    for name in ("cipher", "others"):
        rows = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}_test.jsonl").write_text("".join(rows[::-1]), encoding="utf-8")  # the toy knows no others
    write_task(tmp_path / "hopeless.jsonl", lambda i: ["nobody says this"])
    return tmp_path


def write_task(path: Path, accepted) -> None:
    rows = [{**chat(q, accepted(i)[0]), "answer": accepted(i)} for i, q in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(base: Path, *tasks: str, **settings) -> Config:
    return Config(**{
        "mixture": tuple(str(base / task) if ".jsonl" in task else task for task in tasks),
        "examples_per_step": 4, "num_samples": 4, "max_new_tokens": 3, "num_iterations": 4, "init_lr_frac": 0.5,
        "eval_every": 2, "eval_examples": 8, "eval_samples": 4, "device_batch_size": 2, "compile": False,
        "device_type": "cpu", "dtype": "float32", **settings})


def record_of(base: Path) -> dict:
    return json.loads((base / "base/report/chat_rl.json").read_text(encoding="utf-8"))


def test_a_run_leaves_its_figures_curves_gains_and_transcripts(base, capsys):
    main(config(base, "cipher.jsonl", "others.jsonl*2"))
    names = ["cipher", "others"]
    run = base / "base/chatrl_checkpoints/d1"
    assert find_last_step(run) == 4
    log = read_metrics(run / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    curves = ("reward", "length", "entropy", "flat", "tool", "unfinished")
    for line in log:
        assert set(curves) <= set(line) and 0 <= line["reward"] <= 1 and line["length"] <= 3 and line["entropy"] > 0
        assert any(f"reward {name}" in line for name in names)

    record = record_of(base)
    assert record["problems"] == 8 + 2 * 8 and record["steps"] == 4 and record["rollout_tokens_per_second"] > 0
    assert record["curve"]["reward"] == [line["reward"] for line in log]
    assert set(record["curve"]) == {"step", *curves, *(f"reward {name}" for name in names)}
    exams = record["exam_curve"]
    assert exams["step"] == [0, 2, 4]
    names = [f"{name}_test" for name in names]
    assert set(exams) == {"step", *(f"{name} pass@{k}" for name in names for k in (1, 4))}
    rows = record["gain_table"]["rows"]
    assert [row[0] for row in rows] == names and all(row[6] == 8 for row in rows)
    for name, before, after, gain, low, high, _ in rows:
        assert (before, after) == (exams[f"{name} pass@1"][0], exams[f"{name} pass@1"][-1])
        assert gain == pytest.approx(after - before) and low <= gain <= high
        assert all(one <= four for one, four in zip(exams[f"{name} pass@1"], exams[f"{name} pass@4"]))
    assert {sample["task"] for sample in record["samples"]} == set(names) and len(record["samples"]) == 6
    assert all(s["user"] in QUESTIONS and s["before"] and s["after"] and s["expected"] for s in record["samples"])
    said = capsys.readouterr().out
    assert said.count("held out: ") == 6 and said.index("step     0 | held") < said.index("step     1/4 | loss")

    get_report().generate(base)  # and all of it can be shown
    card = (base / "report.md").read_text(encoding="utf-8")
    assert "pass@1 on held-out problems, 4 answers to each at temperature 1" in card
    assert f"{rows[0][1]:.1%}" in card and record["samples"][0]["after"] in card


def test_a_run_goes_on_to_the_same_weights_and_exams(base):
    """Four steps, and two and two; exams may change on the way, and a gain is still one of shares."""
    settings = {"eval_every": 0, "save_every": 2}
    main(config(base, "cipher.jsonl", **settings))
    whole, run = record_of(base), base / "base/chatrl_checkpoints/d1"
    weights = load_file(run / "model_000004.safetensors")
    for path in run.glob("*_000004*"):
        path.unlink()
    assert find_last_step(run) == 2
    main(config(base, "cipher.jsonl", **settings, resume=True))
    again = record_of(base)
    for key in ("curve", "exam_curve", "gain_table", "samples", "supervised_tokens"):
        assert again[key] == whole[key], key
    assert len(again["gain_table"]["rows"]) == 1
    assert all(torch.equal(w, weights[name]) for name, w in load_file(run / "model_000004.safetensors").items())
    main(config(base, "cipher.jsonl", **settings, resume=True, eval_samples=8))
    (row,) = record_of(base)["gain_table"]["rows"]  # 4 answers to a problem then, 8 now
    assert row[3] == pytest.approx(row[2] - row[1])


def test_a_gain_is_one_of_shares():
    """Two of four are right before and four of eight after: that is no gain."""
    def exam(step: int, right: int, n: int) -> dict:
        result = EvalResult("toy", [right] * 3, n, 0.0, 0, 0, [])
        return {"step": step, "metrics": {"toy": result.metrics()}, "right": {"toy": [right] * 3}, "shown": []}

    assert exam_record([exam(0, 2, 4), exam(9, 4, 8)], 8)["gain_table"]["rows"] == [["toy", 0.5, 0.5, 0.0, 0.0, 0.0, 3]]
    (row,) = exam_record([exam(0, 2, 4), exam(9, 3, 4)], 4)["gain_table"]["rows"]
    assert row == ["toy", 0.5, 0.75, 0.25, 0.25, 0.25, 3]
    assert exam_record([exam(0, 1, 1)], 1)["gain_table"]["rows"] == [["toy", 1.0, 1.0, 0.0, 0.0, 0.0, 3]]
    assert told(EvalResult("toy", [1, 0, 2, 0], 2, 0.0, 0, 0, [])).startswith("toy: pass@1 37.5% (")
    assert "pass@2 50.0%, n=4" in told(EvalResult("toy", [1, 0, 2, 0], 2, 0.0, 0, 0, []))


def test_a_run_that_collapses_stops_by_name_or_goes_on(base, capsys):
    few = {"examples_per_step": 1, "num_samples": 2, "num_iterations": 22, "eval_examples": 1, "eval_every": 0,
           "save_every": 10}
    with pytest.raises(UserError, match="^step 20: no reward: not one answer was right") as e:
        main(config(base, "hopeless.jsonl", **few))
    assert "\n" not in str(e.value) and find_last_step(base / "base/chatrl_checkpoints/d1") == 20
    capsys.readouterr()
    main(config(base, "hopeless.jsonl", **few, resume=True, collapse="note"))
    assert capsys.readouterr().out.count("note: step 20: no reward") == 1
    assert record_of(base)["steps"] == 22


def test_nobody_is_examined_on_what_was_practised(base, capsys):
    """A file has no test split of its own rows: without another beside it there is no exam, and a line says so."""
    main(config(base, "hopeless.jsonl", num_iterations=1))
    said = capsys.readouterr().out
    assert said.count("note: nothing is held out of") == 1 and "there is no hopeless_test.jsonl beside it" in said
    assert "held out: " not in said and set(record_of(base)["exam_curve"]) == {"step"}
    get_report().generate(base)
    with pytest.raises(UserError, match="cipher is not held out, its rows are in the mixture"):
        main(config(base, "cipher.jsonl*2", eval_tasks=(str(base / "cipher.jsonl"),)))
    main(config(base, "hopeless.jsonl", num_iterations=1, overwrite=True, eval_tasks=(str(base / "cipher.jsonl"),)))
    assert capsys.readouterr().out.count("held out: cipher: ") == 2


def test_nothing_that_cannot_be_learned_is_begun(base):
    with pytest.raises(UserError, match="--num_samples=1 is impossible: an answer is judged against the others"):
        config(base, "cipher.jsonl", num_samples=1)
    question = {"id": "1", "question": "?", "answerKey": "A", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}
    for name, row in (("arc/arc_easy", question), ("code/", chat("q", "a"))):  # letters to choose; only to train on
        for split in ("train", "test"):
            path = base / "data" / (f"{name}_{split}.jsonl" if name[-1] != "/" else f"{name}{split}.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    for task in ("arc_easy", "code"):
        with pytest.raises(UserError, match=f"^{task} has no written answers that could be graded") as e:
            main(config(base, "cipher.jsonl", task, data=str(base / "data")))
        assert "\n" not in str(e.value) and "choose tasks such as gsm8k" in str(e.value)
    assert not (base / "base/chatrl_checkpoints").exists()


def test_without_a_fine_tuned_model_there_is_nothing_to_start_from(tmp_path):
    with pytest.raises(UserError, match="chat_sft") as e:
        main(config(tmp_path, "gsm8k"))
    assert "\n" not in str(e.value)
