"""A sample of the trials that kill training processes, and proof that they see what they are to see.

Thousands of them: python -m tests.chaos --kills=1000. Run: python -m pytest tests/test_kills.py
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.kills import Outcome, World, kill_trial, make_trials, term_trial, world
from tests.rank_kills import change_trial, hang_trial, left_over, rank_kill_trial

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
