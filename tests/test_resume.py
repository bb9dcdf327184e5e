"""Where a run starts: on from its last checkpoint as if it had never stopped, or not at all: what differs is named."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import nanochat.resume
import nanochat.train
from nanochat.checkpoint_manager import find_last_step, load_checkpoint, load_meta, render_meta, saved_steps
from nanochat.common import UserError
from nanochat.rng import rng_state
from nanochat.run import MetricsLog, RunLock, StepLog, Stopped, read_metrics
from nanochat.train import Every, TrainState, document_loss
from nanochat.watchdog import STALLED
from tests.helpers import small_model, small_tokenizer
from tests.tiny_run import fit, interrupt


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def everything(directory: Path, step: int) -> tuple:
    """What a run has come to, but for the time that it took: weights, optimizer, state, log."""
    model, optimizer, meta = load_checkpoint(directory, step, torch.device("cpu"), load_optimizer=True)
    state = {k: v for k, v in meta["state"].items() if k not in ("train_seconds", "logged")}
    lines = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in read_metrics(directory / "log.jsonl")]
    return {k: t.tolist() for k, t in model.items()}, {k: t.tolist() for k, t in optimizer.items()}, state, lines


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_resume_is_bit_identical_and_sigterm_saves(tokenizer, tmp_path, log_every):  # trap: resume-missing
    """Also where the signal comes between two lines of the log: the averages go on."""
    sizes = {"save_every": 4, "log_every": log_every}
    fit(tokenizer, tmp_path / "whole", 9, **sizes)
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tmp_path / "cut", 9, stop_at=6, **sizes)
    assert find_last_step(tmp_path / "cut") == 6  # between two saves: the signal saved
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tmp_path / "cut", 9, stop_at=7, resume=True, **sizes)
    result = fit(tokenizer, tmp_path / "cut", 9, resume=True, **sizes)
    assert result["steps"] == 9
    assert everything(tmp_path / "whole", 9) == everything(tmp_path / "cut", 9)
    steps = [r["step"] for r in read_metrics(tmp_path / "cut" / "log.jsonl")]
    assert steps == {1: [1, 2, 3, 4, 5, 6, 7, 8, 9], 4: [1, 4, 8, 9], 100: [1, 9]}[log_every]


def test_random_numbers_go_on_where_they_were_and_evaluations_take_none(tokenizer, tmp_path, monkeypatch):
    """A loss that draws from all three generators, as dropout would, and evaluations that do too."""

    def noisy(bos: int):
        plain = document_loss(bos)
        return lambda model, batch: plain(model, batch) * float(
            1 + torch.rand(()) + random.random() + np.random.rand())

    monkeypatch.setattr(nanochat.train, "document_loss", noisy)

    def look(state: TrainState) -> None:
        torch.rand(3), random.random(), np.random.rand()

    def run(name: str, seed: int, **more) -> None:
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        fit(tokenizer, tmp_path / name, 8, save_every=3, **more)

    run("whole", 1)
    run("looked_at", 1, hooks=[Every(2, look)])
    with pytest.raises(KeyboardInterrupt):
        run("cut", 1, hooks=[Every(2, look), Every(4, interrupt)])
    run("cut", 2, resume=True, hooks=[Every(1, look)])
    run("other", 2)
    whole, looked_at, cut, other = (everything(tmp_path / d, 8) for d in ("whole", "looked_at", "cut", "other"))
    assert whole == looked_at == cut and whole[0] != other[0]


def test_an_evaluation_that_fails_costs_no_training(tokenizer, tmp_path):  # trap: eval-before-save
    def fail(state: TrainState) -> None:
        raise MemoryError("evaluation")

    with pytest.raises(UserError, match="out of memory in an evaluation"):
        fit(tokenizer, tmp_path / "run", 3, hooks=[Every(0, fail)])
    assert find_last_step(tmp_path / "run") == 3
    seen = []  # what was killed after its last save still gets its closing evaluation
    hooks = [Every(0, lambda state: seen.append(state.step))]
    assert fit(tokenizer, tmp_path / "run", 3, resume=True, hooks=hooks)["steps"] == 3 and seen == [3]


def test_what_the_closing_evaluation_of_a_resume_meets_is_caught_like_any_other(tokenizer, tmp_path):
    """Memory that runs out gets its line; a signal is answered by a save, not by the end of the process."""
    fit(tokenizer, tmp_path / "run", 3)

    def fail(state: TrainState) -> None:
        raise MemoryError

    with pytest.raises(UserError, match="out of memory in an evaluation"):
        fit(tokenizer, tmp_path / "run", 3, resume=True, hooks=[Every(0, fail)])
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tmp_path / "run", 9, resume=True, save_every=0,
            hooks=[Every(3, lambda state: os.kill(os.getpid(), signal.SIGINT))])  # due at 3, which was saved before
    assert find_last_step(tmp_path / "run") == 4


def test_a_run_is_never_mixed_with_another(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 2)
    with pytest.raises(UserError, match="--resume goes on"):
        fit(tokenizer, tmp_path / "run", 2)
    with pytest.raises(UserError, match="matrix_lr: 0.02 then, 0.5 now"):
        fit(tokenizer, tmp_path / "run", 2, resume=True, matrix_lr=0.5)
    fit(tokenizer, tmp_path / "run", 1, overwrite=True, matrix_lr=0.5)
    assert saved_steps(tmp_path / "run") == [1]
    both = {"resume": True, "overwrite": True}
    assert fit(tokenizer, tmp_path / "run", 3, matrix_lr=0.5, **both)["steps"] == 3
    assert saved_steps(tmp_path / "run") == [1, 3]  # the same run: gone on with
    fit(tokenizer, tmp_path / "run", 2, matrix_lr=0.25, **both)
    assert saved_steps(tmp_path / "run") == [2]  # another: replaced


def test_a_difference_that_is_named_is_allowed_and_remembered(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 2, num_iterations=2)
    two = {"num_iterations": 4, "matrix_lr": 0.5, "resume": True}
    with pytest.raises(UserError) as e:
        fit(tokenizer, tmp_path / "run", 4, changed=("matrix_lr",), **two)
    assert "num_iterations: 2 then, 4 now" in str(e.value) and "matrix_lr" not in str(e.value)
    assert "--changed num_iterations allows it" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="--changed matrixlr: there is no such setting; did you mean 'matrix_lr'"):
        fit(tokenizer, tmp_path / "run", 4, changed=("matrixlr",), **two)
    result = fit(tokenizer, tmp_path / "run", 4, changed=("matrix_lr", "num_iterations"), **two)
    assert result["changes"] == [{"step": 2, "fields": {"matrix_lr": [0.02, 0.5], "num_iterations": [2, 4]}}]
    assert fit(tokenizer, tmp_path / "run", 4, **two)["changes"] == result["changes"]  # from now on it is this run's


def test_another_tokenizer_or_model_is_no_continuation(tokenizer, tmp_path):  # trap: tokenizer-drift
    """Of the same size, so that all weights would fit."""
    fit(tokenizer, tmp_path / "run", 1)
    texts = ["completely other words, which merge in other ways: zebra zebra xylophone quartz"] * 30
    other = type(tokenizer).train_from_iterator(texts * 4 + [chr(200 + i) * 50 for i in range(60)], 320)
    assert other.get_vocab_size() == tokenizer.get_vocab_size()
    with pytest.raises(UserError, match=r"cannot resume .*tokenizer: '\w+' then, '\w+' now"):
        fit(other, tmp_path / "run", 2, resume=True)
    with pytest.raises(UserError, match="model.n_head: 2 then, 4 now"):  # as many weights, of the same shapes
        fit(tokenizer, tmp_path / "run", 2, resume=True, model_sizes={"n_head": 4, "n_kv_head": 4})


def test_fewer_steps_than_there_are_is_no_success(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 3)
    with pytest.raises(UserError, match="at step 3 already: 2 steps are fewer"):
        fit(tokenizer, tmp_path / "run", 2, resume=True)


def test_a_setting_of_several_values_comes_back_from_json_as_the_same(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 1, mixture=("gsm8k", "arc_easy"))
    with pytest.raises(UserError, match=r"mixture: \['gsm8k', 'arc_easy'\] then, \['gsm8k'\] now"):
        fit(tokenizer, tmp_path / "run", 2, resume=True, mixture=("gsm8k",))
    assert fit(tokenizer, tmp_path / "run", 2, resume=True, mixture=("gsm8k", "arc_easy"))["steps"] == 2


def test_a_request_to_stop_does_not_wait_for_evaluations_and_none_is_lost(tokenizer, tmp_path):
    """The signal comes while step 4 is trained: its evaluation is left to the resume."""
    seen = []

    def stop_in_step_4(state: TrainState, metrics: dict) -> None:
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    hooks = [Every(2, lambda state: seen.append(state.step))]
    with pytest.raises(Stopped), mock.patch.object(StepLog, "__call__", lambda self, *a: stop_in_step_4(*a)):
        fit(tokenizer, tmp_path / "run", 6, hooks=hooks)
    assert seen == [2] and find_last_step(tmp_path / "run") == 4
    fit(tokenizer, tmp_path / "run", 6, hooks=hooks, resume=True)
    assert seen == [2, 4, 6]


def test_a_save_that_fails_ends_the_run_within_two_steps(tokenizer, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", "model_000005.safetensors")

    monkeypatch.setattr("nanochat.saver.save_checkpoint", fail)
    steps = []

    def step(state: TrainState) -> None:
        steps.append(state.step)
        time.sleep(0.05)

    with pytest.raises(OSError):
        fit(tokenizer, tmp_path / "run", 100, save_every=5, hooks=[Every(1, step)])
    assert steps[-1] <= 7


def test_a_disk_without_room_is_told_before_the_first_step(tokenizer, tmp_path, monkeypatch):
    """Room for the model alone is not enough: it counts the optimizer too."""
    model = small_model(tokenizer)
    free = sum(p.nbytes for p in model.parameters()) + (1 << 20) + 1000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Disk", (), {"free": free})())
    with pytest.raises(UserError, match=r"a checkpoint in .* needs [\d,]+ bytes"):
        fit(tokenizer, tmp_path / "run", 3, hooks=[Every(1, lambda state: pytest.fail("it trained"))])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Disk", (), {"free": 10 * free})())
    assert fit(tokenizer, tmp_path / "run", 1)["steps"] == 1


def test_nothing_is_removed_before_all_ranks_have_their_lock_or_when_a_start_is_refused(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 2)
    (tmp_path / "run" / "model_000009.safetensors").write_bytes(b"its meta was moved aside by somebody")
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    with RunLock(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        fit(tokenizer, tmp_path / "run", 2, overwrite=True)
    for settings in ({}, {"resume": True, "matrix_lr": 0.5}):
        with pytest.raises(UserError):
            fit(tokenizer, tmp_path / "run", 3, **settings)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize(("rank", "which"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_each_rank_gets_its_random_state_and_a_new_one_that_of_another(tokenizer, tmp_path, monkeypatch, rank, which):
    fit(tokenizer, tmp_path / "run", 1)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(rng_state())
    path = tmp_path / "run" / "meta_000001.json"
    path.write_text(render_meta({**load_meta(tmp_path / "run", 1), "rng": states}), encoding="utf-8")
    monkeypatch.setattr(nanochat.resume, "rank_and_world", lambda: (rank, 4))
    model = small_model(tokenizer)
    nanochat.resume.restore(tmp_path / "run", 1, model, model.setup_optimizers())
    assert rng_state() == states[which]


def test_a_state_of_another_version_is_refused_and_memory_that_runs_out_is_not_that(tokenizer, tmp_path, monkeypatch):
    fit(tokenizer, tmp_path / "run", 1)
    path, meta = tmp_path / "run" / "meta_000001.json", load_meta(tmp_path / "run", 1)
    path.write_text(render_meta({**meta, "state": {**meta["state"], "ema": 0.5}}), encoding="utf-8")
    with pytest.raises(UserError, match="was not saved by this version of nanochat .TypeError.*ema"):
        fit(tokenizer, tmp_path / "run", 2, resume=True)
    path.write_text(render_meta(meta), encoding="utf-8")
    monkeypatch.setattr(nanochat.resume, "load_checkpoint", lambda *_, **__: torch.empty(1 << 50))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        fit(tokenizer, tmp_path / "run", 2, resume=True)


def test_the_best_evaluation():
    state = TrainState(evaluations=[{"step": 1, "bpb": 2.0}, {"step": 2, "bpb": None}, {"step": 3, "bpb": 1.0},
                                    {"step": 4, "bpb": 1.5}])
    assert state.best() == {"step": 3, "bpb": 1.0} and TrainState().best() is None


STALLS = """
import sys, time
from pathlib import Path
import tests.tiny_run as tiny
from tests.helpers import small_tokenizer
real = tiny.random_batches
def stalls(*a, seed, **kw):
    if seed == 3:
        time.sleep(1000)
    return real(*a, seed=seed, **kw)
tiny.random_batches = stalls
tiny.fit(small_tokenizer(), Path(sys.argv[1]), 9, save_every=2, stall_seconds=1)
"""


def test_a_loader_that_stalls_is_named_and_the_last_checkpoint_is_intact(tokenizer, tmp_path):
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STALLS, str(tmp_path / "run")], capture_output=True, encoding="utf-8",
                          timeout=120, cwd=Path(__file__).parents[1])
    assert done.returncode == STALLED and time.monotonic() - started < 60
    assert "no progress for 1 s: it hangs in: the loader, which is to give the batch of step 3" in done.stderr
    assert "--resume goes on from it" in done.stderr
    assert fit(tokenizer, tmp_path / "run", 4, resume=True, save_every=2)["steps"] == 4


def test_the_last_checkpoints_are_kept(tokenizer, tmp_path):
    for keep, steps in ((0, [1, 2, 3, 4, 5]), (1, [5]), (3, [3, 4, 5])):
        fit(tokenizer, tmp_path / str(keep), 5, save_every=1, keep_last=keep)
        assert saved_steps(tmp_path / str(keep)) == steps
        assert len(list((tmp_path / str(keep)).glob("*.safetensors"))) == 2 * len(steps)


def test_a_kill_between_the_last_commit_and_its_rotation_keeps_no_step_for_ever(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.checkpoint_manager.rotate", lambda directory, keep: None)
    fit(tokenizer, tmp_path / "run", 4, save_every=1)
    assert saved_steps(tmp_path / "run") == [1, 2, 3, 4]
    monkeypatch.undo()
    fit(tokenizer, tmp_path / "run", 4, save_every=1, resume=True)  # finished: nothing is left to be saved
    assert saved_steps(tmp_path / "run") == [3, 4]


def test_what_killed_saves_have_left_is_swept_up(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 2)
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    for name in ("model_000003.safetensors", "optim_000003_rank7.safetensors", ".model_000003.safetensors.ab12.tmp",
                 ".meta_000003.json.xyz.tmp", "tokenizer/.tokenizer.tiktoken.q.tmp", ".log.jsonl.z.tmp"):
        (tmp_path / "run" / name).write_bytes(b"half a fi")
    (tmp_path / "run" / "notes.txt").write_text("somebody's own", encoding="utf-8")
    (tmp_path / "run" / "model_000004.safetensors").mkdir()  # nothing of ours: left alone
    assert fit(tokenizer, tmp_path / "run", 2, resume=True)["steps"] == 2
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(
        [*before, "notes.txt", "model_000004.safetensors"])
    assert not list((tmp_path / "run" / "tokenizer").glob(".*"))


def test_a_damaged_log_is_refused_before_training(tokenizer, tmp_path):
    fit(tokenizer, tmp_path / "run", 3)
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b"loss", b"lose"))
    with pytest.raises(UserError, match=r"log.jsonl is damaged"):
        fit(tokenizer, tmp_path / "run", 4, resume=True)
    log.unlink()
    assert fit(tokenizer, tmp_path / "run", 4, resume=True)["curve"]["step"] == [4]


def test_what_may_change_on_a_resume(tokenizer, tmp_path):
    """How rows are cut, and what is done about a bad step; in deterministic mode all that decides the bits stays."""
    fit(tokenizer, tmp_path / "run", 1)
    assert fit(tokenizer, tmp_path / "run", 2, resume=True, device_batch_size=2, nonfinite="skip")["steps"] == 2
    fit(tokenizer, tmp_path / "exact", 1, deterministic=True)
    with pytest.raises(UserError, match="device_batch_size: 4 then, 2 now"):
        fit(tokenizer, tmp_path / "exact", 2, resume=True, deterministic=True, device_batch_size=2)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(UserError, match=f"threads: {before} then, {before + 1} now"):
            fit(tokenizer, tmp_path / "exact", 2, resume=True, deterministic=True)
    finally:
        torch.set_num_threads(before)
    assert fit(tokenizer, tmp_path / "exact", 2, resume=True, deterministic=True)["steps"] == 2


def test_one_process_a_run(tokenizer, tmp_path):
    with RunLock(tmp_path / "run"), pytest.raises(UserError, match=f"another process .pid {os.getpid()} on .* since"):
        fit(tokenizer, tmp_path / "run", 1)
    assert fit(tokenizer, tmp_path / "run", 1)["steps"] == 1


def test_no_evaluation_is_lost_by_a_resume(tokenizer, tmp_path):
    """The save at step 4 comes before the evaluation at step 4: a run killed in between makes up for it."""

    def evaluate(state: TrainState) -> None:
        state.evaluations = [e for e in state.evaluations if e["step"] != state.step]
        state.evaluations.append({"step": state.step, "bpb": 1.0 / state.step})

    hooks = [Every(2, evaluate)]
    with pytest.raises(KeyboardInterrupt):  # stops after step 4, whose evaluation is not in what was saved
        fit(tokenizer, tmp_path / "run", 6, save_every=4, hooks=[*hooks, Every(4, interrupt)])
    assert [e["step"] for e in load_meta(tmp_path / "run", 4)["state"]["evaluations"]] == [2]
    result = fit(tokenizer, tmp_path / "run", 6, save_every=4, resume=True, hooks=hooks)
    assert result["val_curve"] == {"step": [2, 4, 6], "bpb": [1 / 2, 1 / 4, 1 / 6]}


def test_metrics_log_drops_what_lies_after_the_resumed_step(tmp_path):
    log = MetricsLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.log(step, loss=float(step))
        if step == 2:
            mark = log.mark()
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 4, "lo')  # a kill in mid-write
    MetricsLog(tmp_path / "log.jsonl", mark)
    assert [r["step"] for r in read_metrics(tmp_path / "log.jsonl")] == [1, 2]
