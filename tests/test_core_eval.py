"""CORE's scores against the plain reference; what guessing and knowing everything reach; sets and texts at the edge.

Run: NANOCHAT_TEST_DATA=FOLDER python -m pytest tests/test_core_eval.py     (FOLDER has the bundle as core/)
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanochat.core_eval import (
    Prompt,
    Question,
    core_metric,
    evaluate_core,
    evaluate_example,
    evaluate_task,
    make_question,
    make_questions,
    predict,
    render_prompts,
    score,
)
from nanochat.core_eval import Score as S
from nanochat.hf_model import HFModel
from tasks.core_bundle import CoreTask, load_bundle
from tests.core_trials import KINDS, Guesses, knows, random_task, unambiguous
from tests.helpers import small_model, small_tokenizer
from tests.reference import core as reference

DATA = os.environ.get("NANOCHAT_TEST_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="NANOCHAT_TEST_DATA names no folder")


@cache
def tokenizer():
    return small_tokenizer()


@cache
def model(sequence_len: int):
    return small_model(tokenizer(), sequence_len=sequence_len).eval()


class Transformer(nn.Module):
    """Our model as one of `transformers` looks, one that computes all logits, always."""

    def __init__(self, gpt):
        super().__init__()
        self.gpt, self.device, self.asked = gpt, gpt.get_device(), 0

    def forward(self, input_ids, use_cache):
        self.asked += 1
        return SimpleNamespace(logits=self.gpt(input_ids))


class Keeping(Transformer):
    """One that can be told which are wanted."""

    def forward(self, input_ids, use_cache, logits_to_keep=0):
        logits = super().forward(input_ids, use_cache).logits
        return SimpleNamespace(logits=logits[:, logits_to_keep])


# --------------------------------------------------------------------------- the reference


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from([16, 48, 160]))
def test_all_ways_find_what_the_reference_finds(seed, kind, sequence_len):
    """Random tasks, one prompt after the other with a plain softmax: the same tokens, nats and predictions, whatever is
    computed together, and through a model of `transformers` too."""
    task, gpt = random_task(random.Random(seed), kind), model(sequence_len)
    everything = range(len(task.rows))
    expected = [reference.scores(gpt, task, i, tokenizer(), sequence_len) for i in everything]
    questions = make_questions([render_prompts(task, i) for i in everything], tokenizer(), sequence_len)
    ways = [score(gpt, questions, batch_tokens) for batch_tokens in (1, 300, 16384)]
    ways += [score(HFModel(cls(gpt), sequence_len), questions, 300) for cls in (Transformer, Keeping)]
    for found in ways:
        for ours, theirs in zip(found, expected, strict=True):
            assert [s.tokens for s in ours] == [tokens for _, tokens, _ in theirs]
            assert [s.nats for s in ours] == pytest.approx([nats for nats, _, _ in theirs], abs=1e-4)
            assert [s.greedy for s in ours] == [greedy for _, _, greedy in theirs]
    right = [reference.is_right(gpt, task, i, tokenizer(), sequence_len) for i in everything]
    assert evaluate_task(gpt, tokenizer(), task, batch_tokens=300).right == right
    result = evaluate_task(gpt, tokenizer(), task)
    assert result.right == right == [evaluate_example(i, gpt, tokenizer(), task) for i in everything]
    assert result.cropped == sum(reference.prompts(task, i, tokenizer(), sequence_len)[1] for i in everything)
    assert result.centered == pytest.approx(reference.centred(sum(right) / len(right), task.baseline))


def test_core_is_the_mean_of_the_centred():
    tasks = [random_task(random.Random(seed), kind, rows=4) for seed, kind in enumerate(KINDS)]
    gpt = model(160).train()
    results = list(evaluate_core(gpt, tokenizer(), tasks))
    assert gpt.training and not gpt.eval().training  # as it came
    right = [[reference.is_right(gpt, task, i, tokenizer(), 160) for i in range(4)] for task in tasks]
    assert core_metric(results) == pytest.approx(sum(reference.centred(sum(r) / 4, 0.25) for r in right) / 3)


def test_a_model_that_keeps_logits_makes_only_those():
    calls = []

    class Watching(Keeping):
        def forward(self, input_ids, use_cache, logits_to_keep=0):
            out = super().forward(input_ids, use_cache, logits_to_keep)
            calls.append((input_ids.shape, out.logits.shape))
            return out

    task = random_task(random.Random(2), "multiple_choice", rows=3, least=1)
    evaluate_task(HFModel(Watching(model(160)), 160), tokenizer(), task)
    assert calls and all(kept[1] < ids[1] for ids, kept in calls)


# --------------------------------------------------------------------------- prompts


ROWS = [{"query": f" {i} + {i} is ", "choices": ["5 ", f" {2 * i}"], "gold": 1} for i in range(4)]


@pytest.mark.parametrize(("delimiter", "expected"), [
    (" ", [("SHOTS3 + 3 is", " 5"), ("SHOTS3 + 3 is", " 6")]),
    ("\nAnswer: ", [("SHOTS3 + 3 is\nAnswer:", " 5"), ("SHOTS3 + 3 is\nAnswer:", " 6")]),
    ("\n", [("SHOTS3 + 3 is", "\n5"), ("SHOTS3 + 3 is", "\n6")]),
])
def test_prompts_are_dclms(delimiter, expected):
    """Stripped, an example a line with its right answer, the last blank of the delimiter with what is scored."""
    task = CoreTask("sums", "multiple_choice", 2, delimiter, 0.5, ROWS)
    prompts = render_prompts(task, 3)
    shots = [f"{i} + {i} is{delimiter}{2 * i}" for i in random.Random(1234 + 3).sample([0, 1, 2], 2)]
    before = "".join(f"{shot}\n" for shot in shots)
    assert prompts == [Prompt(context.replace("SHOTS", before), answer) for context, answer in expected]


def test_no_question_is_its_own_example_and_there_are_never_more_than_others():  # trap: few-shot
    for n in (1, 2, 5):
        task = CoreTask("sums", "multiple_choice", 3, " ", 0.5, [
            {"query": f"question{i}", "choices": ["a", "b"], "gold": 0} for i in range(n)])
        for i in range(n):
            [context, _], other = render_prompts(task, i)
            assert context == other.context and context.endswith(f"\nquestion{i}" if n > 1 else f"question{i}")
            assert context.count(f"question{i}") == 1 and context.count("\n") == min(3, n - 1)


def test_examples_do_not_depend_on_what_else_is_asked():
    task = random_task(random.Random(5), "multiple_choice", rows=5, least=1)
    task = replace(task, num_fewshot=2)
    gpt, whole = model(160), evaluate_task(model(160), tokenizer(), task).right
    assert evaluate_task(gpt, tokenizer(), task, max_examples=3).right == [whole[0], whole[1], whole[3]]


# --------------------------------------------------------------------------- edges


def test_a_prompt_that_is_too_long_loses_the_oldest_and_keeps_bos():
    """Of all choices equally much, so that they have the same context; T + 1 tokens fit, the last is not read."""
    given = [0, 1, 2, 3, 4]
    pairs = [(given, [*given, 9]), (given, [*given, 8, 7])]
    assert make_question(pairs, 6) == Question([0, 1, 2, 3], [[4, 9], [4, 8, 7]], [1, 2], False)
    assert make_question(pairs, 5) == Question([0, 2, 3], [[4, 9], [4, 8, 7]], [1, 2], True)
    assert make_question(pairs, 3) == Question([0], [[4, 9], [4, 8, 7]], [1, 2], True)
    assert make_question(pairs, 2) == Question([], [[0, 9], [0, 8, 7]], [1, 2], True)
    assert make_question(pairs, 1) == Question([], [[0, 9], [0, 7]], [1, 1], True)  # an answer that alone is too long
    assert make_question([([0, 1], [0, 1, *range(5, 10)])], 3) == Question([], [[0, 7, 8, 9]], [3], True)


def test_something_is_scored_whatever_is_empty():
    assert make_question([([0], [0])], 8) == Question([], [[0, 0]], [1], False)  # no text at all: that it ends
    assert make_question([([0, 1, 2], [0, 1, 2])], 8).scored == [1]  # no answer: the last of what stands before
    assert make_question([([0, 1, 2], [0, 1, 3, 4])], 8).scored == [2]  # the blank is one token with what precedes
    task = CoreTask("empty", "multiple_choice", 1, "", 0.5, [{"query": "", "choices": ["", ""], "gold": 0}] * 2)
    assert evaluate_task(model(16), tokenizer(), task).right == [True, True]  # equal choices: the first


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_one_row_and_texts_longer_than_the_context(kind):  # trap: tiny-eval
    for rows in (1, 2):
        task = replace(random_task(random.Random(1), kind, rows=rows, least=25), num_fewshot=10)
        result = evaluate_task(model(16), tokenizer(), task)
        assert result.n == rows == result.cropped
    empty = evaluate_task(model(16), tokenizer(), replace(task, rows=[]))
    assert (empty.n, empty.accuracy, empty.cropped, empty.chance) == (0, 0.0, 0, 0.0)


def test_the_first_of_equals_wins_and_nan_chooses_nothing():
    assert predict([S(2.0, 1, False), S(3.0, 2, False), S(3.0 + 1e-6, 2, False)]) == 1  # the mean counts, not the sum
    assert predict([S(3.00001, 2, False), S(3.0, 2, False), S(1.0, 1, False)]) == 2
    assert predict([S(float("nan"), 1, False), S(float("nan"), 1, False)]) == 0
    assert predict([S(3.0, 2, False), S(1.5 + 5e-6, 1, False), S(1.5 - 5e-6, 1, False)]) == 0


# --------------------------------------------------------------------------- guessing and knowing


def check_guessing(task: CoreTask, seed: int, max_examples: int = -1) -> None:
    """The right answers of a blind model are as many as chance gives, within the 99% interval."""
    vocab_size = tokenizer().get_vocab_size() + 1
    result = evaluate_task(Guesses(vocab_size, seed), tokenizer(), task, max_examples=max_examples)
    asked = [len(render_prompts(task, i)) for i in range(len(task.rows))] if max_examples < 0 else None
    if asked:
        assert result.chance == pytest.approx(sum(1 / n for n in asked) / len(asked))
    spread = (result.chance * (1 - result.chance) / result.n) ** 0.5  # at most: the numbers of choices differ
    assert abs(result.accuracy - result.chance) <= 2.576 * spread + 0.5 / result.n, (task.label, result.metrics())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_guessing_reaches_one_in_the_number_of_choices(kind):
    """One seed in a hundred must fail (1 did); over 50 others together the guesser was 1.25 deviations below chance."""
    check_guessing(random_task(random.Random(3), kind, rows=400), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_knowing_reaches_all(kind):
    for seed in range(2):
        task = unambiguous(random_task(random.Random(seed), kind, rows=40, least=1))
        for row in task.rows:  # of equal choices none can be known to be the right one
            for key in row.keys() & {"choices", "context_options"}:
                row[key] = [f"{text.strip()} {i}" for i, text in enumerate(row[key])]
        result = evaluate_task(knows(task, tokenizer()), tokenizer(), task)
        assert result.n > 10 and result.accuracy == 1.0 == result.centered
    wrong = evaluate_task(knows(replace(task, rows=task.rows[:5]), tokenizer()), tokenizer(), task)
    assert wrong.accuracy < 1  # of what it does not know


@cache
def bundle() -> list[CoreTask]:
    return load_bundle(DATA)


@needs_data
def test_guessing_on_every_task_of_the_bundle():
    """With one example before each question: to the guesser all prompts are alike, and long ones take long."""
    for seed, task in enumerate(bundle()):
        if task.kind != "language_modeling":
            check_guessing(replace(task, num_fewshot=min(1, task.num_fewshot)), seed, max_examples=100)


@needs_data
def test_knowing_on_every_task_of_the_bundle():
    for task in map(unambiguous, bundle()):
        result = evaluate_task(knows(task, tokenizer(), 8), tokenizer(), task, max_examples=8)
        assert (result.n, result.accuracy, result.cropped) == (8, 1.0, 0), task.label


@torch.inference_mode()
def test_all_logits_of_a_model_of_transformers():
    hf = HFModel(Transformer(model(16)), 16)
    assert torch.equal(hf(torch.tensor([[1, 2]])), model(16)(torch.tensor([[1, 2]])).float())
