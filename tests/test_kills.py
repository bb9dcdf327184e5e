"""A sample of the trials that kill training processes, and proof that they see what they are to see.

Thousands of them: python -m tests.chaos --kills=1000. Run: python -m pytest tests/test_kills.py
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial

import pytest
from safetensors.torch import load_file

from nanochat.checkpoint_manager import load_meta, saved_steps
from tests.fork_server import SLOW
from tests.kills import STAGES, Outcome, Trial, World, announced, kill_trial, make_trials, term_trial, world
from tests.rank_kills import change_trial, hang_trial, left_over, rank_kill_trial, start_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared() -> Iterator[World]:
    """The corpus, the uninterrupted runs, and the process that forks: one for all tests here."""
    with world() as it:
        yield it
        assert left_over(it) == []


def test_killed_at_instants_and_at_io_calls_it_goes_on_as_if_it_had_not_been(prepared):
    outcome = make_trials(prepared, kill_trial, "kills", 8, "the suite")
    assert outcome.found == []
    assert 0 < outcome.counts["kills at an I/O call"] < outcome.counts["kills"] and outcome.hit


def test_asked_to_stop_it_saves_says_so_and_goes_on(prepared):
    outcome = make_trials(prepared, term_trial, "signals", 4, "the suite")
    assert outcome.found == [] and outcome.counts["stopped training"] > 0 and outcome.longest < 5


@pytest.mark.parametrize(("harm", "sign"), [
    ("meta_before_tensors", "is there and does not load"),
    ("said_too_soon", " was saved, there are "),
    ("losses_forgotten", ": losses is [], not ["),
])
def test_a_bug_in_saving_is_found(prepared, harm, sign):
    outcome = make_trials(prepared, kill_trial, "kills", 60, "the suite", harm, enough=1)
    assert any(sign in line for line in outcome.found)
    prepared.outcome = Outcome()  # all is well


def test_a_rank_is_killed_and_the_others_end_by_themselves(prepared):
    outcome = make_trials(prepared, rank_kill_trial, "rank kills", 1, "the suite")
    assert outcome.found == [] and outcome.longest > 0


def test_ranks_come_and_go_without_a_trace_in_the_weights(prepared):
    assert make_trials(prepared, change_trial, "changes", 2, "the suite").found == []


@pytest.mark.parametrize("what", ["loss", "alone"])
def test_who_hangs_is_named_and_the_run_ended(prepared, what):
    assert make_trials(prepared, partial(hang_trial, what=what), "hangs", 1, "the suite").found == []


# ------------------------------------------------------- reinforcement learning, in which what is trained on is sampled

CHAT_RL = STAGES[-1]


def test_reinforcement_that_is_killed_goes_on_with_the_same_answers(prepared):
    prepared.outcome = Outcome()
    trial = Trial(prepared, "killed after a save", CHAT_RL)
    child = trial.start(slow=SLOW)
    prepared.forks.until(lambda: announced(child.said()) or child.status is not None)
    child.send(signal.SIGKILL)
    trial.ended(child, -signal.SIGKILL)
    trial.check(child)
    assert 0 < trial.last < 12
    trial.finish()
    assert prepared.outcome.found == []


def same_files(trial: Trial) -> bool:
    """Whether every model that is there is, by its SHA-256, the one of the uninterrupted run."""
    names = [(step, f"model_{step:06d}.safetensors") for step in saved_steps(trial.directory)]
    return bool(names) and all(load_meta(trial.directory, step)["files"][name] ==
                               load_meta(trial.reference, step)["files"][name] for step, name in names)


def test_reinforcement_has_the_same_bits_on_one_two_and_four_ranks_and_from_two_to_one(prepared):
    prepared.outcome = Outcome()
    trial = Trial(prepared, "four ranks", CHAT_RL, one_rank=False)
    trial.finish(start_ranks(trial, 4)[0])
    assert prepared.outcome.found == [] and same_files(trial)

    trial = Trial(prepared, "two ranks, then one", CHAT_RL, one_rank=False)
    ranks = start_ranks(trial, 2, slow=SLOW)
    prepared.forks.until(lambda: announced(ranks[0].said()) or ranks[0].status is not None)
    ranks[1].send(signal.SIGTERM)
    prepared.forks.wait()
    assert [child.status for child in ranks] == [143, 143], ranks[0].complained()
    trial.check(ranks[0])
    assert trial.last < 12 and same_files(trial)
    trial.finish()
    assert prepared.outcome.found == [] and same_files(trial)


def test_reinforcement_with_more_ranks_than_problems_learns_what_one_rank_does(prepared):
    """Two problems a step, and one held out, for three ranks: uneven shares of rows, and ranks with nothing to ask."""
    flags = ("--no-deterministic", "--examples_per_step=2", "--num_samples=5", "--eval_examples=1", "--keep_last=0")
    found = []
    for n in (1, 3):
        trial = Trial(prepared, f"{n} ranks", CHAT_RL)
        ranks = start_ranks(trial, n, *flags)
        assert prepared.forks.wait() and {child.status for child in ranks} == {0}, ranks[-1].complained()
        records = (trial.directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
        logs = [{**json.loads(line), "tokens_per_second": 0} for line in records]
        models = [load_file(trial.directory / f"model_{step:06d}.safetensors") for step in (2, 12)]
        found.append((logs, models, load_meta(trial.directory, 12)["state"]))
    (one, models, state), (three, others, its) = found
    assert not models[0].keys() ^ models[1].keys() and any((models[0][k] != w).any() for k, w in models[1].items())
    for a, b in zip(models, others, strict=True):
        assert all((w - b[k]).norm() <= 1e-5 * w.norm() for k, w in a.items())
    for a, b in zip(one, three, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)  # rewards, lengths, norms
    assert state["supervised_tokens"] == its["supervised_tokens"] and state["exams"][0] == its["exams"][0]


def test_who_hangs_while_it_writes_answers_is_named(prepared):
    trial = partial(hang_trial, what="token")
    assert make_trials(prepared, trial, "hangs", 1, "the suite", stages=(CHAT_RL,)).found == []


def test_a_rank_that_fails_while_sampling_ends_all(prepared):
    trial = Trial(prepared, "a rank that cannot grade", CHAT_RL)
    ranks = start_ranks(trial, 2, ill=1, harm="grader_fails")
    assert prepared.forks.wait() and [child.status for child in ranks] == [1, 1]
    why = "ValueError: an answer that nobody foresaw"
    assert why in ranks[1].complained()
    assert f"stopped: rank 1 failed while sampling the answers of step 0: {why}" in ranks[0].complained()
    assert saved_steps(trial.directory) == []
