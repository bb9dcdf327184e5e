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
from nanochat.gpt import GPT, GPTConfig
from nanochat.task_eval import (
    EvalResult,
    completion_parts,
    crop,
    plain_text,
    readable,
    run_categorical_eval,
    run_chat_eval,
    run_generative_eval,
    spread,
    wilson,
)
from nanochat.tokenizer import HuggingFaceTokenizer
from tasks.common import MultipleChoice, Task
from tasks.spellingbee import SpellingBee

CONTEXT = 256


@pytest.fixture(scope="module")
def tokenizer():
    text = "Multiple choice question: what is the answer? Answer with the letter alone. #### 1 2 3"
    return HuggingFaceTokenizer.train_from_iterator([text] * 20, vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GPTConfig(sequence_len=CONTEXT, vocab_size=tokenizer.get_vocab_size(), n_layer=2, n_head=2, n_kv_head=1,
                       n_embd=32)  # fmt: skip
    model = GPT(config)
    model.init_weights(seed=0)
    for p in model.parameters():
        if not p.any():  # fresh projections and the head are zero, so that every logit ties: break that
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


class Choices(MultipleChoice):
    """Questions with 2 to 5 choices and very different lengths."""

    def __init__(self, n: int, long: int = 0, **slicing):
        super().__init__(**slicing)
        self.n, self.long = n, long

    def num_examples(self):
        return self.n

    def get_example(self, index):
        question = f"question {index} " + "word " * (index * 7 % 11) + "long " * (self.long if index == 1 else 0)
        return self.conversation(question, ["yes", "no", "red", "blue", "12"][: 2 + index % 4], index % 2)


class Sums(Task):
    """`0+1?` -> `#### 1`; right is any completion that names the sum."""

    eval_type = "generative"

    def __init__(self, n: int, **slicing):
        super().__init__(**slicing)
        self.n = n

    def num_examples(self):
        return self.n

    def get_example(self, index):
        text = f"{index}+1?" + " please" * (index % 5)
        return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"#### {index + 1}"}]}

    def evaluate(self, conversation, completion):
        return completion == conversation["messages"][1]["content"]


class Knows:
    """A model that answers `answers[the user's text]` token by token, and keeps what it was called with.

    With a cache, a row's tokens so far are kept in the cache itself, in place of keys: they move along with the row.
    """

    def __init__(self, tokenizer, answers: dict):
        self.config = GPTConfig(sequence_len=CONTEXT, vocab_size=tokenizer.get_vocab_size(), n_layer=1, n_head=1,
                                n_kv_head=1, n_embd=2)  # fmt: skip
        self.compute_dtype = torch.float32
        self.next_token: dict[tuple[int, ...], int] = {}
        for user, answer in answers.items():
            messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            prompt = tokenizer.render_for_completion({"messages": messages})
            whole, _ = tokenizer.render_conversation({"messages": messages})
            self.next_token |= {tuple(whole[:i]): whole[i] for i in range(len(prompt), len(whole))}
        self.calls: list[list[tuple[int, ...]]] = []

    def get_device(self):
        return torch.device("cpu")

    def parameters(self):
        return [torch.zeros(1)]

    def __call__(self, idx, kv_cache=None, at=None):
        self.calls.append([tuple(row) for row in idx.tolist()])
        B, T = idx.shape
        rows, before = idx.tolist(), [0] * B
        if kv_cache is not None:
            before = kv_cache.lengths.tolist()
            tokens = idx[:, None, :, None].expand(B, 1, T, 2).float()
            kv_cache.insert_kv(0, tokens, tokens)
            kv_cache.advance(T)
            rows = kv_cache.store[0, 0, :, 0, :, 0].long().tolist()
        logits = torch.zeros(B, T, self.config.vocab_size)
        for b in range(B):
            for t in range(T):
                token = self.next_token.get(tuple(rows[b][: before[b] + t + 1]))
                if token is not None:
                    logits[b, t, token] = 9.0
        return logits if at is None else logits[torch.arange(B), at][:, None]


# --------------------------------------------------------------------------- figures


def test_wilson_known_values():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case):
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n + 1e-12 and correct / n - 1e-12 <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(wilson(n - correct, n))


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
    answers = {c["messages"][0]["content"]: c["messages"][1]["content"] for c in task}
    knows = Knows(tokenizer, answers)
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
    answers = {c["messages"][0]["content"]: c["messages"][1]["content"] for c in task}
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
    answers = {c["messages"][0]["content"]: c["messages"][1]["content"] for c in task}
    engine = Engine(Knows(tokenizer, answers), tokenizer)
    assert run_generative_eval(task, tokenizer, engine, num_samples=3, max_new_tokens=20, batch_size=2).correct == 5


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
    assert one.correct < eight.correct <= 20
    shown = [sample["completion"] for sample in eight.samples if sample["right"]]
    assert shown and all(ord(completion[0]) % 2 == 0 for completion in shown)  # the sample that was right


def test_tool_calls_are_answered_and_left_out_of_the_graded_text(tokenizer, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/words_alpha.txt").write_text("\n".join(["banana", "cherry", "plum"] * 9), encoding="utf-8")
    words = {w for split in ("train", "test") for w in _words(tmp_path, split)}
    assert words == {"banana", "cherry", "plum"}
    task = SpellingBee(12, "train", data=str(tmp_path))
    answers = {c["messages"][0]["content"]: c["messages"][1]["content"] for c in task}
    engine = Engine(Knows(tokenizer, answers), tokenizer)
    result = run_generative_eval(task, tokenizer, engine, max_new_tokens=120)
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


def test_completion_parts_and_readable(tokenizer):
    parts = [{"type": "text", "text": "né "}, {"type": "python", "text": "2*3"},
             {"type": "python_output", "text": "6"}, {"type": "text", "text": "6"}]  # fmt: skip
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]
    prompt = tokenizer.render_for_completion({"messages": messages})
    ids, _ = tokenizer.render_conversation({"messages": messages})
    assert completion_parts(tokenizer, ids[len(prompt):]) == parts
    assert plain_text(parts) == "né 6" and readable(parts) == "né ⟨2*3⟩⟨=6⟩6"
    assert readable("as it is") == "as it is" and readable(["a", "b"]) == "a | b"
    assert completion_parts(tokenizer, []) == [] and plain_text([]) == "" == readable([])


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
    assert EvalResult("x", 0, 0).accuracy == 0.0
    assert capfd.readouterr() == ("", "")
