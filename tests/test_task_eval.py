"""nanochat/task_eval.py and scripts/chat_eval.py on the real tokenizer, model and engine.

Where the model's answers must be known, the model is a stub that knows them; how they are asked, batched, cropped and
graded is always the real code.
"""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.eval_result import EvalResult
from nanochat.task_eval import (
    completion_parts,
    crop,
    plain_text,
    run_categorical_eval,
    run_chat_eval,
    run_generative_eval,
    spread,
)
from tasks.common import Task
from tasks.spellingbee import SpellingBee
from tests.eval_parts import Choices, Knows, Sums, answers_of, knowing, letter_tokenizer, random_model

CONTEXT = 256


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


@pytest.fixture(scope="module")
def model():
    return random_model()


# --------------------------------------------------------------------------- what to ask


@given(n=st.integers(0, 300), most=st.integers(-1, 400))
def test_spread_asks_each_problem_once(n, most):
    chosen = spread(n, most)
    assert len(chosen) == (n if most < 1 else min(n, most)) == len(set(chosen))
    assert chosen == sorted(chosen) and all(0 <= i < n for i in chosen)
    if chosen:
        assert n - chosen[-1] <= -(-n // len(chosen))  # up to the end, not the first ones
    if len(chosen) > 1:
        gaps = [b - a for a, b in zip(chosen, chosen[1:])]
        assert max(gaps) - min(gaps) <= 1  # even: no part of a sorted file is favoured


def test_crop_keeps_bos_and_the_end():
    assert crop([0, 1, 2, 3, 4], 3) == [0, 3, 4] and crop([0, 1], 2) == [0, 1] and crop([0, 1, 2], 1) == [0]


# --------------------------------------------------------------------------- categorical


def one_by_one(task, tokenizer, model) -> list[str]:
    """The oracle: each prompt alone, unpadded."""
    chosen = []
    for conversation in task:
        ids = tokenizer.render_for_completion(conversation)
        logits = model(torch.tensor([ids]))[0, -1]
        letters = conversation["letters"]
        chosen.append(max(letters, key=lambda letter: logits[tokenizer.encode(letter)[0]].item()))
    return chosen


# trap: tiny-eval
@pytest.mark.parametrize("n, batch_size", [(0, 4), (1, 4), (3, 4), (4, 4), (11, 4), (11, 1), (11, 100)])
def test_batched_choices_are_those_of_each_question_alone(n, batch_size, tokenizer, model):
    task = Choices(n)
    want = one_by_one(task, tokenizer, model)
    result = run_categorical_eval(task, tokenizer, model, batch_size=batch_size)
    right = sum(letter == c["messages"][1]["content"] for letter, c in zip(want, task))
    assert (result.n, result.correct) == (n, right)
    assert {s["user"]: s["completion"] for s in result.samples}.items() <= {
        c["messages"][0]["content"]: letter for c, letter in zip(task, want)
    }.items()
    if n == 11:
        assert len(set(want)) > 1  # or batching could not be told from chance
        assert result.chance == pytest.approx(sum(1 / (2 + i % 4) for i in range(11)) / 11)


def test_a_model_that_knows_all_letters_gets_all(tokenizer):
    task = Choices(9)
    knows = Knows(tokenizer, answers_of(task))
    result = run_categorical_eval(task, tokenizer, knows, batch_size=4)
    assert (result.correct, result.n, result.accuracy, result.cropped) == (9, 9, 1.0, 0)
    prompts = {tuple(tokenizer.render_for_completion(c)) for c in task}
    asked = [row for call in knows.calls for row in call]
    assert [len(call) for call in knows.calls] == [4, 4, 1]
    assert len(asked) == 9 and all(sum(row[: len(p)] == p for row in asked) == 1 for p in prompts)  # none twice


def test_only_letters_on_offer_are_chosen(tokenizer):
    task = Choices(6)
    knows = Knows(tokenizer, {c["messages"][0]["content"]: "Z" for c in task})  # "Z" everywhere: never on offer
    result = run_categorical_eval(task, tokenizer, knows)
    assert result.n == 6 and {s["completion"] for s in result.samples} == {"A"}


# trap: context-end
def test_questions_longer_than_the_context_lose_their_beginning(tokenizer):
    knows = Knows(tokenizer, {})
    result = run_categorical_eval(Choices(3, long=400), tokenizer, knows)
    assert (result.n, result.cropped) == (3, 1)
    assert max(len(row) for call in knows.calls for row in call) == CONTEXT


# --------------------------------------------------------------------------- generative


# trap: tiny-eval
@pytest.mark.parametrize("n, batch_size", [(0, 4), (1, 4), (3, 4), (9, 4), (9, 1)])
def test_every_problem_is_asked_once_and_answers_stay_with_their_questions(n, batch_size, tokenizer):
    task = Sums(n)
    answers = answers_of(task)
    wrong = task[2]["messages"][0]["content"] if n > 2 else None
    engine = Engine(Knows(tokenizer, {**answers, **({wrong: "#### 77"} if wrong else {})}), tokenizer)
    result = run_generative_eval(task, tokenizer, engine, batch_size=batch_size, max_new_tokens=20)
    assert (result.n, result.correct) == (n, n - (wrong is not None))
    assert [s["user"] for s in result.samples if not s["right"]] == ([wrong] if wrong else [])
    assert all(s["completion"] == ("#### 77" if s["user"] == wrong else s["expected"]) for s in result.samples)


def test_max_problems_and_empty_answers(tokenizer):
    task = Sums(40)
    engine = Engine(Knows(tokenizer, {c["messages"][0]["content"]: "" for c in task}), tokenizer)
    result = run_generative_eval(task, tokenizer, engine, max_problems=5, max_new_tokens=8)
    assert (result.correct, result.n, result.accuracy) == (0, 5, 0.0)
    assert [s["completion"] for s in result.samples] == [""] * 4  # four transcripts are enough


def test_samples_stay_with_their_questions(tokenizer):
    task = Sums(5)
    engine = knowing(tokenizer, task)
    result = run_generative_eval(task, tokenizer, engine, num_samples=3, max_new_tokens=20, batch_size=2)
    assert (result.right, result.accuracy, result.num_samples) == ([3] * 5, 1.0, 3)


def test_any_sample_solves(tokenizer, model):
    """A random model at temperature 1: right means the first token is an even id; with 8 samples nearly always."""

    class Even(Sums):
        def evaluate(self, conversation, completion):
            return bool(completion) and ord(completion[0]) % 2 == 0

    engine = Engine(model, tokenizer)
    one, eight = (
        run_generative_eval(Even(20), tokenizer, engine, max_new_tokens=3, temperature=1.0, num_samples=k)
        for k in (1, 8)
    )
    assert one.accuracy < eight.pass_at(8) <= 1 and 0.2 < eight.accuracy < 0.8
    shown = [sample["completion"] for sample in eight.samples if sample["right"]]
    assert shown and all(ord(completion[0]) % 2 == 0 for completion in shown)  # the sample that was right


def test_tool_calls_are_answered_and_left_out_of_the_graded_text(tokenizer, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/words_alpha.txt").write_text("\n".join(["banana", "cherry", "plum"] * 9), encoding="utf-8")
    words = {w for split in ("train", "test") for w in _words(tmp_path, split)}
    assert words == {"banana", "cherry", "plum"}
    task = SpellingBee(12, "train", data=str(tmp_path))
    result = run_generative_eval(task, tokenizer, knowing(tokenizer, task), max_new_tokens=120)
    assert (result.correct, result.n) == (12, 12)
    assert "⟨'" in result.samples[0]["completion"] and result.samples[0]["completion"] == result.samples[0]["expected"]


def _words(folder, split) -> tuple[str, ...]:
    try:
        return SpellingBee(1, split, data=str(folder)).words
    except UserError:  # so few words that a split may have none
        return ()


# trap: context-end
def test_prompts_that_do_not_fit_are_cropped_and_counted(tokenizer, model):
    class Long(Sums):
        def get_example(self, index):
            example = super().get_example(index)
            example["messages"][0]["content"] += " and more" * (300 if index == 0 else 1)
            return example

    result = run_generative_eval(Long(3), tokenizer, Engine(model, tokenizer), max_new_tokens=CONTEXT)
    assert (result.n, result.cropped) == (3, 1)


def test_completion_parts(tokenizer):
    parts = [{"type": "text", "text": "né "}, {"type": "python", "text": "2*3"},
             {"type": "python_output", "text": "6"}, {"type": "text", "text": "6"}]  # fmt: skip
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]
    prompt = tokenizer.render_for_completion({"messages": messages})
    ids, _ = tokenizer.render_conversation({"messages": messages})
    assert completion_parts(tokenizer, ids[len(prompt):]) == parts
    assert plain_text(parts) == "né 6"
    assert completion_parts(tokenizer, []) == [] and plain_text([]) == ""


# --------------------------------------------------------------------------- the dispatcher


def test_run_chat_eval_by_name_and_kind(tokenizer, model, tmp_path):
    engine = Engine(model, tokenizer)
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}], "answer": ["a"]}
            for i in range(3)]  # fmt: skip
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run_chat_eval(str(path), model, tokenizer, engine, max_new_tokens=4, name="mine")
    assert (result.name, result.n, result.chance) == ("mine", 3, 0.0)
    metrics = run_chat_eval(Choices(5), model, tokenizer, engine, max_problems=2).metrics()
    assert metrics["n"] == 2 and set(metrics) >= {"accuracy", "n", "ci95"} and metrics["chance"] > 0
    json.dumps(metrics)
    with pytest.raises(UserError, match="training only"):
        run_chat_eval(Task(), model, tokenizer, engine)


def test_the_script_grades_a_saved_model_and_writes_the_stage(tokenizer, model, tmp_path, monkeypatch, capsys):
    from dataclasses import asdict

    from nanochat.checkpoint_manager import save_checkpoint
    from scripts.chat_eval import Config, main

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    save_checkpoint(tmp_path / "base/chatsft_checkpoints/tiny", 3, model.state_dict(), None,
                    {"model_config": asdict(model.config)}, tokenizer=tokenizer)  # fmt: skip
    data = tmp_path / "data"
    (data / "words").mkdir(parents=True)
    (data / "words/words_alpha.txt").write_text("\n".join(f"{a}{b}{b}" for a in "abcdefgh" for b in "aeiou"))
    (data / "gsm8k").mkdir()
    (data / "gsm8k/test.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}))
    main(Config(tasks=("spellingbee,gsm8k",), data=str(data), max_problems=3, max_new_tokens=5, device_type="cpu",
                dtype="float32"))  # fmt: skip
    record = json.loads((tmp_path / "base/report/chat_eval_sft.json").read_text(encoding="utf-8"))
    assert {name: m["n"] for name, m in record["metrics"].items()} == {"spelling_bee": 3, "gsm8k": 1}
    assert record["data"] == str(data) and record["seconds"] > 0 and record["config"]["max_problems"] == 3
    assert record["metrics"]["gsm8k"]["accuracy"] in (0, 1) and len(record["samples"]) == 4
    assert {"task", "user", "expected", "completion", "right"} == set(record["samples"][0])
    assert "spelling_bee" in capsys.readouterr().out
    for bad in (Config(data=str(data), max_new_tokens=0), Config(data=str(data), tasks=("gsm9k",)),
                Config(data=str(data), tasks=("mmlu",)), Config(data=str(data), tasks=("gsm8k",), model_tag="no")):
        with pytest.raises(UserError):
            main(bad)


def test_nothing_is_printed(tokenizer, model, capfd):
    run_categorical_eval(Choices(3), tokenizer, model)
    run_generative_eval(Sums(3), tokenizer, Engine(model, tokenizer), max_new_tokens=4)
    assert EvalResult("x", []).accuracy == 0.0
    assert capfd.readouterr() == ("", "")
