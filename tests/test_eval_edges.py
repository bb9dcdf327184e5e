"""Evaluations at their edges: tiny sets, empty and endless answers, long prompts, graders that fail, Ctrl-C; and the
same result at any batch size. (Several ranks: test_eval_ranks.py.)

Run: python -m pytest tests/test_eval_edges.py
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict

import pytest

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.eval_result import KEEP, EvalResult
from nanochat.sampling import stream_seed
from nanochat.task_eval import (
    run_categorical_eval,
    run_chat_eval,
    run_generative_eval,
    share,
    spread,
)
from scripts import chat_eval
from tasks import catalog
from tests.eval_parts import Choices, Guesses, Knows, Sums, answers_of, knowing, letter_tokenizer, random_model

CONTEXT = 256


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer):
    return Engine(random_model(), tokenizer)


# --------------------------------------------------------------------------- however the work is cut


class Echo(Sums):
    """Right is an answer that begins with an even character: about half of what a random model says."""

    def evaluate(self, conversation, completion):
        return bool(completion) and ord(completion[0]) % 2 == 0


SAMPLED = {"temperature": 1.0, "num_samples": 3, "max_new_tokens": 6}


# trap: tiny-eval
@pytest.mark.parametrize("n", [0, 1, 2, 3, 13])
def test_the_batch_size_changes_nothing(n, tokenizer, engine):
    written = [run_generative_eval(Echo(n), tokenizer, engine, batch_size=b, **SAMPLED) for b in (1, 2, 5, 64)]
    assert all(result == written[0] for result in written) and written[0].n == n
    chosen = [run_categorical_eval(Choices(n), tokenizer, engine.model, batch_size=b) for b in (1, 2, 5, 64)]
    assert all(result == chosen[0] for result in chosen) and chosen[0].n == n
    if n == 13:
        assert {1, 2} & set(written[0].right)  # answers to one problem differ
        assert len({sample["completion"] for sample in chosen[0].samples}) > 1


def test_what_is_said_to_a_problem_does_not_depend_on_which_others_are_asked(tokenizer, engine):
    everything = run_generative_eval(Echo(24), tokenizer, engine, **SAMPLED)
    some = run_generative_eval(Echo(24), tokenizer, engine, max_problems=7, **SAMPLED)
    assert some.right == [everything.right[i] for i in spread(24, 7)]
    other = run_generative_eval(Echo(24), tokenizer, engine, seed=43, **SAMPLED)
    assert other.right != everything.right
    few = run_generative_eval(Echo(24), tokenizer, engine, **{**SAMPLED, "num_samples": 1})
    assert not {(0, 3), (1, 0)} & set(zip(few.right, everything.right))  # it is the first of the three


def test_problems_have_streams_of_their_own(tokenizer, engine):
    class Same(Echo):
        """One question, thirty times: as many different answers as if it had thirty samples."""

        def get_example(self, index):
            return super().get_example(0)

    assert len(set(run_generative_eval(Same(30), tokenizer, engine, **SAMPLED).right)) > 1
    assert len({stream_seed(seed, index) for seed in (-1, 0, 1, 42, 2**64) for index in range(1000)}) == 5000 - 1000
    # (0 and 2**64 are one seed: 64 bits)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_each_problem_is_dealt_to_one_rank(n, ranks):
    dealt = [share(spread(20, n) if n else [], rank, ranks) for rank in range(ranks)]
    assert sorted(i for part in dealt for i in part) == (spread(20, n) if n else [])
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


# --------------------------------------------------------------------------- strange answers and prompts


def test_endless_and_empty_answers_end_and_are_graded(tokenizer):
    task = Sums(6)
    mute = Knows(tokenizer, dict.fromkeys(answers_of(task), ""))
    empty = run_generative_eval(task, tokenizer, Engine(mute, tokenizer))
    assert (empty.n, empty.correct, [s["completion"] for s in empty.samples]) == (6, 0, [""] * KEEP)
    model = Knows(tokenizer, {})  # says its first token for ever
    endless = run_generative_eval(task, tokenizer, Engine(model, tokenizer), max_new_tokens=50, batch_size=3)
    assert (endless.n, endless.correct, endless.ungraded) == (6, 0, 0)
    assert len(model.calls) <= 2 * 50 + 2 and all(sample["completion"] for sample in endless.samples)
    to_the_brim = run_generative_eval(Sums(2), tokenizer, Engine(model, tokenizer), max_new_tokens=10**6)
    assert to_the_brim.n == 2  # the context ends it


def test_answers_that_call_tools_without_end(tokenizer):
    """Nothing but calls of the calculator: there is no text to grade, and the limit holds for forced tokens too."""
    call = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}] * 30
    task = Sums(3)
    model = Knows(tokenizer, dict.fromkeys(answers_of(task), call))
    result = run_generative_eval(task, tokenizer, Engine(model, tokenizer), max_new_tokens=40)
    assert (result.n, result.correct) == (3, 0) and "⟨1+1⟩⟨=2⟩" in result.samples[0]["completion"]
    assert len(model.calls) <= 42


class Unequal(Choices):
    """Choices of one token and of many, and different from each other in length within a question."""

    def get_example(self, index):
        choices = ["a", "an answer " * (1 + index % 7), "", "é" * (index % 50), "1 2 3"][: 2 + index % 4]
        return self.conversation(f"question {index}", choices, index % 2)


def test_choices_of_unequal_length_are_weighed_by_their_letters_alone(tokenizer, engine):
    task = Unequal(40)
    assert all(len(tokenizer.encode(letter)) == 1 for letter in "ABCDEFGHIJ")
    result = run_categorical_eval(task, tokenizer, Knows(tokenizer, answers_of(task)), batch_size=7)
    assert (result.n, result.accuracy) == (40, 1.0)
    assert result.chance == pytest.approx(sum(1 / (2 + i % 4) for i in range(40)) / 40)
    assert run_chat_eval(task, engine.model, tokenizer, engine, batch_size=3) == run_categorical_eval(
        task, tokenizer, engine.model, batch_size=40)


# trap: context-end
@pytest.mark.parametrize("kind", ["categorical", "generative"])
def test_prompts_longer_than_the_context_lose_their_beginning_but_not_bos(kind, tokenizer):
    task = Choices(3, long=400) if kind == "categorical" else Long(3)
    model = Knows(tokenizer, {})
    result = run_chat_eval(task, model, tokenizer, Engine(model, tokenizer), max_new_tokens=16)
    assert (result.n, result.cropped) == (3, 1) and result.metrics()["cropped"] == 1
    room = CONTEXT if kind == "categorical" else CONTEXT - 16
    whole = tokenizer.render_for_completion(task[1])
    asked = next(row for call in model.calls for row in call if len(row) == room)
    assert list(asked) == [tokenizer.get_bos_token_id(), *whole[len(whole) - room + 1 :]] and len(whole) > CONTEXT


class Long(Sums):
    def get_example(self, index):
        example = super().get_example(index)
        example["messages"][0]["content"] += " and more" * (300 if index == 1 else 1)
        return example


# --------------------------------------------------------------------------- graders that fail


class Fragile(Sums):
    """The grader fails on problems 1 and 4, whatever was said."""

    error: Exception = ZeroDivisionError("division by zero")

    def evaluate(self, conversation, completion):
        if conversation["messages"][0]["content"].split("+")[0] in "14":
            raise self.error
        return super().evaluate(conversation, completion)


def test_an_answer_that_the_grader_fails_on_is_wrong_counted_and_told(tokenizer, engine):
    result = run_generative_eval(Fragile(6), tokenizer, knowing(tokenizer, Fragile(6)), max_new_tokens=20)
    assert (result.n, result.right, result.ungraded) == (6, [1, 0, 1, 1, 0, 1], 2)
    assert [s.get("grader") for s in result.samples if not s["right"]] == ["ZeroDivisionError: division by zero"] * 2
    assert result.metrics()["ungraded"] == 2
    assert "2 answers could not be graded" in chat_eval.told(result, 1.0)

    class FragileChoices(Choices):
        def evaluate(self, conversation, completion):
            raise KeyError("letters")

    choices = run_categorical_eval(FragileChoices(3), tokenizer, engine.model)
    assert (choices.n, choices.correct, choices.ungraded) == (3, 0, 3)


def test_what_a_person_can_mend_ends_the_evaluation(tokenizer):
    class Unanswered(Fragile):
        error = UserError('x.jsonl has rows without "answer"')

    threads = threading.active_count()
    with pytest.raises(UserError, match="without"):
        run_generative_eval(Unanswered(200), tokenizer, knowing(tokenizer, Unanswered(200)), batch_size=2)
    assert threading.active_count() == threads


def test_ctrl_c_ends_it_without_the_grades_that_have_not_begun(tokenizer):
    graded = []

    class Interrupted(Sums):
        def evaluate(self, conversation, completion):
            graded.append(completion)
            time.sleep(0.02)  # so that most of them wait
            return True

    def interrupt(done: int, total: int) -> None:
        assert total == 500
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_generative_eval(Interrupted(500), tokenizer, knowing(tokenizer, Interrupted(500)), batch_size=500,
                            tell=interrupt)
    assert 0 < len(graded) < 250 and threading.active_count() == threads


def test_progress_is_told_up_to_the_end(tokenizer, engine):
    told: list[tuple[int, int]] = []
    for task in (Sums(7), Choices(7)):
        told.clear()
        run_chat_eval(task, engine.model, tokenizer, engine, max_new_tokens=4, batch_size=2,
                      tell=lambda done, total: told.append((done, total)))
        assert told == sorted(told) and told[-1] == (7, 7) and all(total == 7 for _, total in told)


# --------------------------------------------------------------------------- the script


@pytest.fixture
def base(tmp_path, monkeypatch, tokenizer):
    """A base directory with a model of each stage, and data of two tasks; a task called humaneval that a test rules."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    model = random_model()
    for folder in ("base_checkpoints", "chatsft_checkpoints", "chatrl_checkpoints"):
        save_checkpoint(tmp_path / "base" / folder / "tiny", 3, model.state_dict(), None,
                        {"model_config": asdict(model.config)}, tokenizer=tokenizer)
    monkeypatch.setitem(catalog.TASKS, "humaneval", lambda split, data, **kw: Programs(2, **kw))
    monkeypatch.setitem(catalog.TASKS, "gsm8k", lambda split, data, **kw: Sums(3, **kw))
    monkeypatch.setattr(chat_eval, "POCKET_TASKS", ("gsm8k", "humaneval"))
    return tmp_path / "base"


class Programs(Sums):
    """Its answers want a sandbox."""

    no_sandbox = ""

    def __init__(self, n: int, unsafe: bool = False, **slicing):
        super().__init__(n, **slicing)
        self.unsafe = unsafe

    @property
    def runs_in(self):
        return "UNSAFE: no sandbox" if self.unsafe else "bubblewrap 0.8.0"

    def obstacle(self):
        return "" if self.unsafe else self.no_sandbox


def evaluate(base, **settings) -> dict:
    source = settings.get("source", "sft")
    chat_eval.main(chat_eval.Config(max_new_tokens=4, device_type="cpu", dtype="float32", **settings))
    return json.loads((base / f"report/chat_eval_{source}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", ["base", "sft", "rl"])
def test_models_of_every_stage(base, source, capsys):
    record = evaluate(base, source=source)
    assert set(record["metrics"]) == {"gsm8k", "humaneval"} and record["chatcore"] == 0.0
    assert record["chatcore_tasks"] == ["gsm8k", "humaneval"] and record["programs_ran_in"] == "bubblewrap 0.8.0"
    assert (record["incomplete"], record["not_run"], record["data"]) == ([], {}, "pocket")
    assert "ChatCORE 0.0000" in capsys.readouterr().out


def test_programs_without_a_sandbox_are_left_out_or_refused_or_run_unsafely(base, monkeypatch, capsys):
    why = "bubblewrap is missing: apt-get install bubblewrap"
    monkeypatch.setattr(Programs, "no_sandbox", why)
    record = evaluate(base)
    assert set(record["metrics"]) == {"gsm8k"} and record["not_run"] == {"humaneval": why}
    assert record["chatcore"] is None and "programs_ran_in" not in record
    out = capsys.readouterr().out
    assert out.count(f"humaneval is left out: {why}") == 1 and "ChatCORE" not in out
    with pytest.raises(UserError, match="humaneval cannot run here: bubblewrap is missing.*--unsafe_execution"):
        evaluate(base, tasks=("gsm8k,humaneval",))
    assert evaluate(base, unsafe_execution=True)["programs_ran_in"] == "UNSAFE: no sandbox"
    assert evaluate(base, tasks=("gsm8k",))["chatcore"] is None  # not all of its tasks


def test_what_was_measured_before_the_end_is_kept(base, monkeypatch):
    monkeypatch.setattr(Programs, "evaluate", lambda *_: (_ for _ in ()).throw(UserError("the disk is full")))
    with pytest.raises(UserError, match="disk"):
        evaluate(base)
    record = json.loads((base / "report/chat_eval_sft.json").read_text(encoding="utf-8"))
    assert set(record["metrics"]) == {"gsm8k"} and record["incomplete"] == ["humaneval"]
    assert record["chatcore"] is None


def test_several_samples_in_the_record_and_the_table(base, capsys):
    record = evaluate(base, num_samples=4, temperature=1.0)
    assert list(record["metrics"]["gsm8k"]["pass_at"]) == ["1", "2", "4"]
    assert "pass@4" in capsys.readouterr().out
    with pytest.raises(UserError, match="temperature"):
        evaluate(base, num_samples=4)


def test_one_task_twice_is_refused(base):
    for twice in (("gsm8k", "gsm8k"), ("humaneval,gsm8k,humaneval",)):
        with pytest.raises(UserError, match="share the name"):
            evaluate(base, tasks=twice)


def test_random_answers_need_no_words(tokenizer):
    """A model whose every token is a guess: bytes that are no UTF-8, tool calls that never end, special tokens."""
    model = Guesses(tokenizer)
    result = run_generative_eval(Sums(30), tokenizer, Engine(model, tokenizer), max_new_tokens=40, batch_size=8)
    assert isinstance(result, EvalResult) and (result.n, result.correct, result.ungraded) == (30, 0, 0)
