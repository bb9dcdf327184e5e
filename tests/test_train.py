"""The training loop: the same gradient however a batch is cut, exact resume, no NaN, signals."""

from __future__ import annotations

import copy
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

import nanochat.train
from nanochat.checkpoint_manager import find_last_step, load_meta
from nanochat.common import UserError, measure_matmul_flops
from nanochat.dataloader import Batch
from nanochat.run import MetricsLog, read_metrics
from nanochat.stage_config import StageConfig
from nanochat.train import (
    MAX_SKIPS,
    Every,
    StepLog,
    TrainState,
    document_loss,
    matmul_rates,
    train,
    validation,
)
from nanochat.train_step import clip_factor
from scripts import base_train
from tests.helpers import small_model, small_tokenizer, write_corpus
from tests.tiny_run import Small, fit, random_batches


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def weights_after(rows: int, steps: int, tokenizer, total: int = 8, dtype: torch.dtype = torch.float64,
                  masked_from: int | None = None) -> dict[str, torch.Tensor]:
    model = small_model(tokenizer).to(dtype)
    model.compute_dtype = dtype
    optimizer = model.setup_optimizers()
    batches = (b for seed in range(steps)
               for b in random_batches(total, total, tokenizer.get_vocab_size(), seed, masked_from))
    assert train(model, optimizer, batches, StageConfig(), TrainState(), num_iterations=steps, rows=rows,
                 loss_fn=document_loss(tokenizer.get_bos_token_id()), hooks=[]) == 0
    return model.state_dict()


def test_micro_batches_do_not_matter(tokenizer):  # trap: token-mean
    """The same 8 rows as 1, 2, 4 or 8 micro-batches, with uneven supervision: one gradient."""

    def gradient(rows: int) -> dict[str, torch.Tensor]:
        model = small_model(tokenizer).double()
        model.compute_dtype = torch.float64
        loss_fn = document_loss(tokenizer.get_bos_token_id())
        micro = random_batches(rows, 8, tokenizer.get_vocab_size())
        n = sum(int((b.targets >= 0).sum()) for b in micro)
        for b in micro:
            (loss_fn(model, b) / n).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    whole = gradient(8)
    for rows in (1, 2, 4):
        for name, g in gradient(rows).items():
            assert (g - whole[name]).norm() <= 1e-10 * whole[name].norm()


def test_weights_after_steps_do_not_depend_on_the_micro_batch(tokenizer):
    """The loop itself, Muon and clipping included, in float64."""
    whole, cut = weights_after(8, 20, tokenizer), weights_after(2, 20, tokenizer)
    for name in whole:
        assert (whole[name] - cut[name]).norm() <= 1e-8 * whole[name].norm()


def test_a_wholly_masked_micro_batch_counts_for_nothing(tokenizer):  # trap: all-masked
    weights = weights_after(2, 2, tokenizer, masked_from=4)
    alone = weights_after(8, 2, tokenizer, masked_from=4)
    for name, w in weights.items():
        assert torch.isfinite(w).all()
        assert (w - alone[name]).norm() <= 1e-8 * w.norm()


def test_logged_loss_is_of_the_whole_batch(tokenizer):  # trap: last-micro-loss
    seen = []
    model = small_model(tokenizer)
    micro = random_batches(2, 8, tokenizer.get_vocab_size())
    n = sum(int((b.targets >= 0).sum()) for b in micro)
    loss_fn = document_loss(tokenizer.get_bos_token_id())
    expected = sum(float(loss_fn(model, b).detach()) for b in micro) / n
    whole = random_batches(8, 8, tokenizer.get_vocab_size())
    train(model, model.setup_optimizers(), iter(whole), StageConfig(), TrainState(), num_iterations=1, rows=2,
          loss_fn=loss_fn, hooks=[], on_step=lambda state, m: seen.append((m["loss"], state.tokens)))
    assert seen[0][0] == pytest.approx(expected, rel=1e-6)
    assert seen[0][1] == 8 * 16  # trap: tok-per-sec (all micro-batches count)


def test_the_whole_gradient_is_clipped_to_the_norm_that_is_logged(tokenizer):
    assert [clip_factor(norm, 1.0) for norm in (4.0, 1.0, 0.5, 0.0)] == [0.25, 1.0, 1.0, 1.0]
    assert clip_factor(4.0, 0.0) == 1.0
    model, norms, scales = small_model(tokenizer), [], []
    optimizer = model.setup_optimizers()
    step = optimizer.step
    optimizer.step = lambda lr, momentum, scale: (scales.append(scale), step(lr, momentum, scale))
    train(model, optimizer, iter(random_batches(8, 24, 320)), StageConfig(grad_clip=0.1), TrainState(),
          num_iterations=3, rows=2, loss_fn=document_loss(tokenizer.get_bos_token_id()), hooks=[],
          on_step=lambda state, m: norms.append(m["norm"]))
    assert scales == [0.1 / norm for norm in norms] and min(norms) > 0.1


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_weights_are_touched(tokenizer, how):
    """The line names step, rank, micro-batch and the loader's state that gives the batch again."""
    model = small_model(tokenizer)
    before = copy.deepcopy(model.state_dict())
    optimizer, seen = model.setup_optimizers(), []
    with pytest.raises(UserError) as e:
        train(model, optimizer, spoiled(tokenizer, bad_step=1), StageConfig(), TrainState(), num_iterations=3, rows=2,
              loss_fn=spoiling(tokenizer, how), hooks=[Every(1, lambda state: seen.append(weights(model)))])
    assert "step 1" in str(e.value) and "rank 0, in micro-batch 3 of 4 (rows 4 to 5" in str(e.value)
    assert '{"i": 0}' in str(e.value) and "--nonfinite=skip" in str(e.value) and "\n" not in str(e.value)
    assert len(seen) == 1 and all(torch.equal(w, seen[0][k]) for k, w in weights(model).items())
    assert not all(torch.equal(w, before[k]) for k, w in weights(model).items())  # the first step was taken


def test_steps_that_are_not_finite_can_be_skipped_and_are_counted(tokenizer, capsys):
    model, state, seen = small_model(tokenizer), TrainState(), []
    assert train(model, model.setup_optimizers(), spoiled(tokenizer, bad_step=1), StageConfig(nonfinite="skip"), state,
                 num_iterations=3, rows=2, loss_fn=spoiling(tokenizer, "gradient"),
                 hooks=[Every(1, lambda state: seen.append(weights(model)))]) == 0
    assert (state.step, state.skipped, state.tokens) == (3, 1, 3 * 8 * 16)  # the schedule goes on
    same = [all(torch.equal(seen[i][k], w) for k, w in seen[i + 1].items()) for i in (0, 1)]
    assert same == [True, False] and "skipped: " in capsys.readouterr().out
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")  # no batch can be good any more: then skipping has an end
    with pytest.raises(UserError, match="in a row"):
        train(model, model.setup_optimizers(), spoiled(tokenizer, bad_step=-1), StageConfig(nonfinite="skip"),
              TrainState(), num_iterations=100, rows=8, loss_fn=spoiling(tokenizer, "loss"), hooks=[])


def test_bad_steps_here_and_there_are_no_reason_to_stop(tokenizer):
    """More than MAX_SKIPS of them, but never two in a row."""
    model, state = small_model(tokenizer), TrainState()
    plain = document_loss(tokenizer.get_bos_token_id())

    def batches() -> Iterator[Batch]:
        for i in range(50):
            (batch,) = random_batches(2, 2, tokenizer.get_vocab_size(), seed=i)
            yield Batch(batch.inputs, batch.targets, {"i": i})

    def every_other(model, batch):
        return plain(model, batch) * (float("nan") if state.step % 2 else 1.0)

    assert train(model, model.setup_optimizers(), batches(), StageConfig(nonfinite="skip"), state, num_iterations=50,
                 rows=2, loss_fn=every_other, hooks=[]) == 0
    assert state.skipped == 25 > MAX_SKIPS


def weights(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def spoiled(tokenizer, bad_step: int) -> Iterator[Batch]:
    """Batches of 8 rows; in batch `bad_step`, row 5 begins with the token 7 and no other does."""
    for i in range(1000):
        (batch,) = random_batches(8, 8, tokenizer.get_vocab_size(), seed=i)
        batch.inputs[:, 0], batch.state = 8, {"i": i}
        if i == bad_step:
            batch.inputs[5, 0] = 7
        yield batch


def spoiling(tokenizer, how: str):
    """A loss that is NaN, or has a gradient that is, where a row begins with the token 7."""
    plain = document_loss(tokenizer.get_bos_token_id())

    def loss_fn(model, batch):
        loss = plain(model, batch)
        if not bool((batch.inputs[:, 0] == 7).any()):
            return loss
        return loss * float("nan") if how == "loss" else loss + (loss - loss.detach()).abs().sqrt()  # 0, slope infinite

    return loss_fn


def test_running_out_of_memory_is_one_line_with_the_phase_and_a_remedy(tokenizer):
    """The allocator's own error, of a petabyte that no machine has."""
    model = small_model(tokenizer)

    def forward(model, batch):
        return torch.empty(1 << 50).sum()

    class Huge(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient + torch.empty(1 << 50)

    def backward(model, batch):
        return Huge.apply(document_loss(tokenizer.get_bos_token_id())(model, batch))

    for loss_fn, rows, words in ((forward, 4, "in the forward pass, with --device_batch_size=4 (rows of 16 tokens)"),
                                 (backward, 8, "in the backward pass, with --device_batch_size=8"),
                                 (backward, 8, "try --device_batch_size=4 or auto"),
                                 (forward, 3, "try --device_batch_size=2 or auto"),
                                 (forward, 1, "a smaller --depth or --max_seq_len")):
        with pytest.raises(UserError) as e:
            train(model, model.setup_optimizers(), iter(random_batches(8, 8, 320)), StageConfig(), TrainState(),
                  num_iterations=1, rows=rows, loss_fn=loss_fn, hooks=[])
        assert words in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match="size"):  # another error stays what it is
        train(model, model.setup_optimizers(), iter(random_batches(8, 8, 320)), StageConfig(), TrainState(),
              num_iterations=1, rows=8, loss_fn=lambda model, batch: torch.ones(2) + torch.ones(3), hooks=[])


def test_hooks_are_due_when_they_say():
    every = Every(10, lambda state: None)
    assert [s for s in range(1, 26) if every.due(s, last=s == 25)] == [10, 20, 25]
    assert not Every(0, lambda state: None).due(7, last=False)


def test_a_validation_without_text_is_a_gap_and_no_obstacle_to_saving(tokenizer, tmp_path):
    """Not infinity: JSON has no word for it, and the next save would fail."""

    class NoRows:
        T, B, rows, rank = 16, 4, 4, 0

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None: ...

        def __next__(self):
            raise StopIteration

    hook = validation(small_model(tokenizer), NoRows, tokenizer, 100)
    result = fit(tokenizer, tmp_path / "run", 2, save_every=1, hooks=[Every(1, hook)])
    assert result["val_bpb"] is None and result["val_curve"] == {"step": [1, 2], "bpb": [None, None]}
    assert load_meta(tmp_path / "run", 2)["state"]["evaluations"] == [{"step": 1, "bpb": None}]


UNDER_A_TERMINAL = """
import sys, time
from nanochat.run import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("the step is finished", flush=True)
open(sys.argv[1], "w", encoding="utf-8").write("saved")
"""


def test_a_closed_terminal_is_a_reason_to_save(tmp_path):
    """A real terminal goes away: SIGHUP comes, and what is printed after it must not be the end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", UNDER_A_TERMINAL, str(tmp_path / "file")])
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 100)
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0 and (tmp_path / "file").read_text(encoding="utf-8") == "saved"


def test_utilisation_is_against_the_rate_measured_here_and_the_peak_of_this_device(tmp_path):  # trap: mfu-constant
    def log(measured: float, published: float | None) -> StepLog:
        return StepLog(1, 10, 6_000, measured, published, MetricsLog(tmp_path / "log.jsonl"))

    assert log(12e6, None).share(1_000) == 0.5 and log(24e6, None).share(1_000) == 0.25
    assert log(12e6, 60e6).mfu(1_000) == 0.1 and log(12e6, None).mfu(1_000) is None  # unknown: blank, not guessed
    assert measure_matmul_flops(torch.device("cpu"), torch.float32, seconds=0.01) > 1e8


def test_utilisation_is_against_the_devices_of_all_ranks_together(monkeypatch):
    """An H100 on each of two ranks, one measured at 1 TFLOP/s and one at 3."""
    monkeypatch.setattr(nanochat.train, "measure_matmul_flops", lambda device, dtype: 1e12)
    monkeypatch.setattr(nanochat.train, "peak_flops", lambda device, dtype: 989.4e12)
    assert matmul_rates(torch.device("cpu"), torch.float32) == pytest.approx((1e12, 989.4e12))
    monkeypatch.setattr(nanochat.train, "gather", lambda mine: torch.stack([mine, 3 * mine]))
    assert matmul_rates(torch.device("cpu"), torch.float32) == pytest.approx((4e12, 2 * 989.4e12))
    monkeypatch.setattr(nanochat.train, "peak_flops", lambda device, dtype: None)
    assert matmul_rates(torch.device("cpu"), torch.float32)[1] is None


def test_the_log_averages_over_steps_and_leaves_out_those_without_a_loss(tmp_path, capsys):
    log = StepLog(2, 6, 6_000, 12e6, 24e6, MetricsLog(tmp_path / "log.jsonl"))
    losses, state = [3.0, 2.0, 1.0, float("nan"), float("nan"), float("nan")], TrainState()
    for step, loss in enumerate(losses, start=1):
        state.step, state.tokens, state.train_seconds = step, 100 * step, float(step)
        log(state, {"loss": loss, "norm": loss, "lr": 1.0, "tokens": 100, "seconds": 1.0})
    records = read_metrics(tmp_path / "log.jsonl")
    assert [(r["step"], r["loss"]) for r in records] == [(1, 3.0), (2, 2.0), (4, 1.0), (6, None)]
    assert log.figures()["tokens_per_second"] == 100 and log.figures()["mfu"] == 0.025
    assert "MFU 2%" in capsys.readouterr().out


def test_steps_come_from_the_first_dial_that_is_set():  # trap: ratio-zero
    config = base_train.Config(total_batch_size=100, num_iterations=7, target_flops=6e6)
    assert base_train.steps_to_train(config, parameters=1_000, flops_per_token=6_000) == 7
    config.num_iterations = -1
    assert base_train.steps_to_train(config, 1_000, 6_000) == 10  # 6e6 / (6000 · 100)
    config.target_flops = -1
    assert base_train.steps_to_train(config, 1_000, 6_000) == 200  # 20 · 1000 / 100
    config.target_param_data_ratio = 0
    with pytest.raises(UserError, match="--target_param_data_ratio"):
        base_train.steps_to_train(config, 1_000, 6_000)


@pytest.mark.parametrize("bad", [{"grad_clip": -1}, {"device_batch_size": 0}, {"matrix_lr": -0.1}, {"log_every": -1}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(UserError, match=f"--{next(iter(bad))}=.* is impossible"):
        Small(**bad)
    Small(log_every=0)  # only the first and the last line
    with pytest.raises(UserError, match="--weight_decay=nan is impossible"):
        Small(weight_decay=float("nan"))


@pytest.mark.slow
def test_ctrl_c_on_the_real_script_saves_and_resumes(tmp_path):
    """base_train as a process: SIGINT, exit status 130, a checkpoint, and --resume to the end."""
    corpus = write_corpus(tmp_path / "corpus")
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base")}

    def script(name: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", f"scripts.{name}", f"--data={corpus}", *flags]

    subprocess.run(script("tok_train", "--vocab_size=320"), env=environment, check=True, capture_output=True)
    flags = ("--depth=1", "--head_dim=32", "--max_seq_len=32", "--device_batch_size=4", "--total_batch_size=128",
             "--num_iterations=3000", "--save_every=0", "--no-compile", "--eval_tokens=256", "--log_every=1")
    running = subprocess.Popen(script("base_train", *flags), env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in running.stdout:
        if line.startswith("step     5"):
            running.send_signal(signal.SIGINT)
            break
    started = time.monotonic()
    running.stdout.read()
    assert running.wait(timeout=60) == 130 and time.monotonic() - started < 50
    directory = tmp_path / "base" / "base_checkpoints" / "d1"
    step = find_last_step(directory)
    assert 5 <= step < 3000
    again = subprocess.Popen(script("base_train", *flags, "--resume"), env=environment, stdout=subprocess.PIPE,
                             text=True)
    seen = []
    for line in again.stdout:
        seen.append(line)
        if line.startswith(f"step {step + 2:5d}"):
            again.send_signal(signal.SIGINT)
            break
    again.stdout.read()
    again.wait(timeout=60)
    assert any(f"resuming {directory} at step {step}" in line for line in seen), seen
    assert not any(line.startswith(f"step {step:5d}/") for line in seen)
