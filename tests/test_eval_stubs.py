"""Every graded task, through the real evaluation: one who guesses gets what chance gives, one who knows all gets all.

The pocket world's tasks always, the published ones where NANOCHAT_TEST_DATA names a folder with them.

Run: python -m pytest tests/test_eval_stubs.py
"""

from __future__ import annotations

import os

import pytest

from nanochat.engine import Engine
from nanochat.eval_result import wilson
from nanochat.task_eval import run_categorical_eval, run_chat_eval, run_generative_eval, spread
from tasks.catalog import TASKS, make_task
from tasks.common import Task
from tests.eval_parts import Guesses, Knows, answers_of
from tests.helpers import byte_tokenizer

REAL = os.environ.get("NANOCHAT_TEST_DATA")
Z99 = 2.5758
LONG = 16384  # tokens: the longest question of MMLU fits, a byte each
TASKS_WITHOUT_GRADES = {"smoltalk", "documents", "code"}  # training only
PUBLISHED = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "spellingbee", "simplespelling", "humaneval")
CASES = [*(("pocket", name) for name in TASKS if name not in TASKS_WITHOUT_GRADES),
         *(("real", name) for name in PUBLISHED if name in TASKS)]


@pytest.fixture
def graded(request, pocket_base, monkeypatch):
    """`graded(data, name)`: the task, or a skip that says why."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))

    def make(data: str, name: str) -> Task:
        if data == "real" and not REAL:
            pytest.skip("NANOCHAT_TEST_DATA is not set")
        task = make_task(name, data if data == "pocket" else REAL, "test")
        if why := task.obstacle():
            pytest.skip(why)
        return task

    return make


def test_no_graded_task_is_left_out(pocket_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    assert not [name for name in TASKS_WITHOUT_GRADES & set(TASKS) if make_task(name, "pocket", "train").eval_type]


@pytest.mark.parametrize(("data", "name"), CASES)
def test_guesses_are_right_as_often_as_chance_says(data, name, graded):
    """A hundred tests of 99% fail once for a correct program: so the guesses are the same each time."""
    task, tokenizer = graded(data, name), byte_tokenizer()
    model = Guesses(tokenizer, LONG)
    if task.eval_type == "categorical":
        result = run_categorical_eval(task, tokenizer, model, batch_size=256)
        assert result.n == len(task)
        assert result.chance == pytest.approx(sum(1 / len(c["letters"]) for c in task) / len(task))
        assert result.chance > 0.1
    else:
        n = 5 if name == "humaneval" else 20  # each program is run
        result = run_generative_eval(task, tokenizer, Engine(model, tokenizer), max_problems=n, max_new_tokens=8)
        assert (result.n, result.chance) == (n, 0.0)
    low, high = wilson(result.correct, result.n, Z99)
    print(f"{data} {name}: {result.correct}/{result.n}, chance {result.chance:.4f}, 99% {low:.4f} to {high:.4f}")
    assert low <= result.chance <= high and result.ungraded == result.cropped == 0


@pytest.mark.parametrize(("data", "name"), CASES)
def test_who_knows_all_answers_gets_all(data, name, graded):
    """Exactly 1.0, tool calls included: their output is not in what the model says, the engine must bring it."""
    task, tokenizer = graded(data, name), byte_tokenizer()
    most = 1200 if task.eval_type == "categorical" else 12 if name == "humaneval" else 60
    asked = [task[i] for i in spread(len(task), most)]
    model = Knows(tokenizer, answers_of(asked), LONG)
    result = run_chat_eval(task, model, tokenizer, Engine(model, tokenizer), batch_size=256, max_problems=most,
                           max_new_tokens=2000)
    wrong = [sample for sample in result.samples if not sample["right"]]
    assert result.accuracy == 1.0 and result.n == len(asked), (result.correct, result.n, wrong)
    assert result.ungraded == result.cropped == 0
