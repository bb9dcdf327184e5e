"""The one training loop. Pretraining, midtraining and fine-tuning share it; it does not know which is which.

A stage brings a model, an optimizer, an iterator of `Batch`, a loss and hooks; `run_training` adds what every stage
needs around `train`: compiling, saving and resuming, signals, the metrics log. What a step computes is in
`train_step.py`; how its rows are cut, and whether they fit, in `batch_size.py`.

The same code runs on one rank and on many: each rank trains on its share of every step and decides by figures that are
the same on all of them. Rank 0 alone writes what a run has once (weights, meta, log, report).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.attention import kernel_name, packed_documents
from nanochat.batch_size import LossFn, choose_rows, fewer_rows, memory_named
from nanochat.checkpoint_manager import LOG, check_room, model_config_dict, rotate
from nanochat.common import (
    UserError,
    compile_problem,
    get_dist_info,
    measure_matmul_flops,
    peak_flops,
    peak_memory_bytes,
    print0,
)
from nanochat.dataloader import Batch, Loader
from nanochat.files import make_dirs
from nanochat.gpt import GPT
from nanochat.loss_eval import evaluate_bpb, first_rows
from nanochat.optim import Optimizer
from nanochat.ranks import OtherRankFailed, all_or_none, gather, on_rank0, rank_and_world, wire_device
from nanochat.report import get_git_info
from nanochat.resume import Identity, restore, resume_step
from nanochat.rng import untouched
from nanochat.run import MetricsLog, RunLock, StepLog, Stopped, StopSignals, TrainState, curve, rows_per_rank
from nanochat.saver import Saver
from nanochat.schedule import lr_multiplier, muon_momentum
from nanochat.stage_config import RunConfig, StageConfig
from nanochat.tokenizer import RustBPETokenizer
from nanochat.train_step import clip_factor, describe_nonfinite, global_gradient
from nanochat.watchdog import WAITS, Watchdog

SAVE_FAILED = 255  # a reason to stop, above the numbers of all signals: it goes first
MAX_SKIPS = 20  # steps in a row without a finite gradient: then it is not the batch, it is the weights


@dataclass
class Every:
    """Call `fn(state)` after each `n` steps (0: never on the way) and after the last. On all ranks alike.

    What it draws at random is its own: training goes on with the numbers that it would have had without it.
    """

    n: int
    fn: Callable[[TrainState], None]
    what: str = "an evaluation"  # said when it runs out of memory
    before: bool = False  # also before the first step of a run

    def due(self, step: int, last: bool) -> bool:
        return last or (self.n > 0 and step % self.n == 0)


def document_loss(bos: int) -> LossFn:
    """Summed loss of packed rows, in which no document sees its neighbour (a document starts at each BOS)."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        doc = packed_documents(batch.inputs, bos, model.compute_dtype)
        return model(batch.inputs, batch.targets, loss_reduction="sum", doc=doc, counts=batch.counts)

    return loss_fn


def make_optimizer(model: GPT, config: RunConfig) -> Optimizer:
    """The optimizer of a gradient stage, as its settings say."""
    return model.setup_optimizers(embedding_lr=config.embedding_lr, unembedding_lr=config.unembedding_lr,
                                  matrix_lr=config.matrix_lr, weight_decay=config.weight_decay,
                                  polar_express=config.polar_express, deterministic=config.deterministic)


@dataclass(frozen=True)
class Rows:
    """How many rows of `max_seq_len` tokens: of a step on each rank, and of a backward pass."""

    share: int
    micro: int


def check_sizes(config: StageConfig, max_seq_len: int) -> int:
    """The rows of a step on each rank; what does not fit together is refused (see `rows_per_rank`)."""
    return rows_per_rank(config.total_batch_size, config.device_batch_size, max_seq_len, get_dist_info()[3],
                         deterministic=config.deterministic)


def rows_of(config: StageConfig, max_seq_len: int, model: GPT, bos: int) -> Rows:
    """The rows of a stage, once its model and optimizer are made (which decides what memory is left)."""
    share = check_sizes(config, max_seq_len)
    return Rows(share, choose_rows(config.device_batch_size, share, max_seq_len, model, document_loss(bos)))


def validation(
    model: GPT, make_loader: Callable[[], Loader], tokenizer: RustBPETokenizer, eval_tokens: int
) -> Callable[[TrainState], None]:
    """A hook that measures bits per byte on the first `eval_tokens` tokens of `make_loader()`, shared by the ranks.

    On the plain model, not the compiled one: another shape or mode would be compiled anew.
    """
    token_bytes = torch.tensor(tokenizer.token_bytes(), device=model.get_device())

    def validate(state: TrainState) -> None:
        with make_loader() as loader:
            batches = first_rows(loader, max(1, eval_tokens // loader.T))
            bpb = evaluate_bpb(model, batches, token_bytes, bos=tokenizer.get_bos_token_id())
        earlier = [e for e in state.evaluations if e["step"] != state.step]
        finite = bpb if math.isfinite(bpb) else None  # no text to measure on, or a model that is lost: not for JSON
        state.evaluations = [*earlier, {"step": state.step, "bpb": finite}]
        best = state.best()
        so_far = f" (best: {best['bpb']:.4f} at step {best['step']})" if best and best["step"] != state.step else ""
        print0(f"step {state.step:5d} | validation {bpb:.4f} bits per byte{so_far}")

    return validate


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    config: RunConfig,
    state: TrainState,
    *,
    num_iterations: int,
    rows: int,
    loss_fn: LossFn,
    hooks: list[Every],
    on_step: Callable[[TrainState, dict[str, Any]], None] = lambda state, metrics: None,
    should_stop: Callable[[], int] = lambda: 0,
    place: Callable[[str], None] = lambda text: None,
) -> int:
    """Run from `state.step` to `num_iterations`, or until a rank's `should_stop` gives a reason: that ends all ranks,
    and is returned (the largest, if several do). 0: finished.

    A batch is this rank's share of a step; it is worked off `rows` rows at a time. `loss_fn(model, batch)` gives the
    loss *summed* over the batch's supervised tokens. `place` hears what is done next (the watchdog's).
    """
    world_size, skips = rank_and_world()[1], 0
    look = should_stop if world_size == 1 else lambda: 0  # several agree within the step; one alone can look again
    while state.step < num_iterations:
        place(f"the loader, which is to give the batch of step {state.step}")
        started, before, batch = time.perf_counter(), state.loader, next(batches)
        sizes = rows, batch.inputs.size(1), fewer_rows(rows, len(batch.inputs), config.deterministic)
        gradient = global_gradient(model, optimizer, batch, rows=rows, loss_fn=loss_fn, stop=should_stop(),
                                   deterministic=config.deterministic, place=place)
        multiplier = lr_multiplier(state.step, num_iterations, warmup_ratio=config.warmup_ratio,
                                   warmdown_ratio=config.warmdown_ratio, final_lr_frac=config.final_lr_frac)
        place(f"{WAITS}: the new weights")  # their updates included
        if gradient.finite:
            if gradient.norm > 0:  # a step that teaches nothing moves nothing: the momentum alone would, and how far
                with memory_named("the optimizer's update", *sizes):
                    optimizer.step(multiplier, muon_momentum(state.step), clip_factor(gradient.norm, config.grad_clip))
            skips = 0
        else:
            what = describe_nonfinite(model, optimizer, batch, gradient, rows=rows, loss_fn=loss_fn, before=before)
            skips, state.skipped = skips + 1, state.skipped + 1
            if config.nonfinite == "stop" or skips >= MAX_SKIPS:
                again = "" if skips == 1 else f", the {skips}th in a row"
                raise UserError(f"step {state.step}: {what}: stopped before the weights were touched{again}. The last "
                                "checkpoint is intact: --resume --nonfinite=skip goes on from it and leaves such steps "
                                "out, lower learning rates need a new run")
            print0(f"step {state.step:5d} | skipped: {what}")
        optimizer.zero_grad()
        seconds = time.perf_counter() - started

        state.step += 1
        tokens = batch.inputs.numel() * world_size
        state.tokens += tokens
        state.supervised_tokens += gradient.supervised
        state.train_seconds += seconds
        state.loader = batch.state
        on_step(state, {"loss": gradient.loss, "norm": gradient.norm, "lr": multiplier, "tokens": tokens,
                        "seconds": seconds, "figures": batch.figures})
        last = state.step == num_iterations
        if reason := 0 if last else gradient.stop or look():  # a resume makes up for the hooks that are due
            return reason
        call_due(hooks, state, num_iterations, *sizes, place=place)
        if reason := 0 if last else look():
            return reason
    return 0


def call_due(
    hooks: list[Every], state: TrainState, num_iterations: int, rows: int, max_seq_len: int, remedy: str,
    place: Callable[[str], None] = lambda text: None,
) -> None:
    """Call the hooks that are due after step `state.step`; sizes and remedy are for the line when memory runs out."""
    for hook in hooks:
        if hook.due(state.step, last=state.step == num_iterations):
            place(f"{hook.what} after step {state.step}")
            with memory_named(hook.what, rows, max_seq_len, remedy), untouched():
                hook.fn(state)


def run_training(
    *,
    model: GPT,
    tokenizer: RustBPETokenizer,
    optimizer: Optimizer,
    make_batches: Callable[[dict[str, Any] | None], Iterator[Batch]],
    config: RunConfig,
    num_iterations: int,
    rows: Rows,
    directory: Path,
    hooks: list[Every],
    parent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a stage into `directory`, from its start or its last checkpoint, and return the figures for the report.

    `make_batches(loader_state)` gives the batches after that state (None: from the start), each this rank's share of a
    step. Saving comes before the other hooks, so that an evaluation that fails costs no training. On SIGINT, SIGTERM or
    SIGHUP at any rank: save, then `Stopped` on all.
    """
    settings = {**asdict(config), "dtype": str(model.compute_dtype).removeprefix("torch.")}  # what "auto" came to
    if config.deterministic:
        settings["threads"] = torch.get_num_threads()  # a sum cut in two threads may round otherwise
    settings = json.loads(json.dumps(settings))  # as it will be read again: a tuple is a list then
    identity = Identity(settings, model_config_dict(model), tokenizer.fingerprint(), parent)
    rank, world_size = rank_and_world()
    T = model.config.sequence_len
    sizes = rows.micro, T, fewer_rows(rows.micro, rows.share, config.deterministic)
    with ExitStack() as stack:
        remedy = f"; the last checkpoint in {directory} is intact, --resume goes on from it"
        watchdog = stack.enter_context(Watchdog(config.stall_seconds, remedy))
        state, mark = start_run(stack, directory, identity, config, model, optimizer)
        if state.step > num_iterations:
            raise UserError(f"{directory} is at step {state.step} already: {num_iterations} steps are fewer")
        if resumed := state.step > 0:
            print0(f"resuming {directory} at step {state.step} of {num_iterations}")
            # its last step is whole: a kill may have come between that commit and the removal of old steps
            on_rank0(lambda: rotate(directory, config.keep_last))
        check_room(directory, model.state_dict(), optimizer.state_dict())  # now, and not after the first hours
        step_log, problem = announce(model, config, num_iterations, directory, mark)
        compiled = model if problem else model.compile_for_training()
        stop = stack.enter_context(StopSignals(speaks=rank == 0))
        saver = stack.enter_context(Saver(directory, tokenizer, config.keep_last))
        git = get_git_info() if rank == 0 else None  # rank 0 writes it

        def save(state: TrainState) -> None:
            meta = {"model_config": identity.model_config, "config": settings, "parent": parent, "state": asdict(state),
                    "log": step_log.metrics.mark() if step_log.metrics else None, "git": git}
            saver.save(state.step, model.state_dict(), optimizer.state_dict(), meta)

        if resumed:  # the save came before that step's other hooks: they may not have run
            call_due(hooks, state, num_iterations, *sizes, place=watchdog)
        else:
            call_due([replace(hook, n=1) for hook in hooks if hook.before], state, num_iterations, *sizes,
                     place=watchdog)
        reason = train(compiled, optimizer, make_batches(state.loader), config, state,
                       num_iterations=num_iterations, rows=rows.micro,
                       loss_fn=document_loss(tokenizer.get_bos_token_id()),
                       hooks=[Every(config.save_every, save, "saving"), *hooks],
                       on_step=step_log, should_stop=lambda: SAVE_FAILED if saver.failed else stop.requested,
                       place=watchdog)
        watchdog(f"the save of step {state.step}")
        if reason not in (0, SAVE_FAILED):
            save(state)
        saver.finish()
        if reason == SAVE_FAILED:
            raise OtherRankFailed(f"the save of step {saver.step} failed on another rank")
        if reason:
            raise Stopped(reason, state.step)
    return {
        "steps": state.step, "tokens": state.tokens, "supervised_tokens": state.supervised_tokens,
        "skipped_steps": state.skipped, "train_seconds": state.train_seconds, "parameters": model.num_parameters(),
        "ranks": world_size, "device_batch_rows": rows.micro, **step_log.figures(), "compiled": not problem,
        "dtype": settings["dtype"], "changes": state.changes,
        "peak_memory_bytes": peak_memory_bytes(), "curve": curve(directory / LOG, "loss"),
        "val_curve": {key: [e[key] for e in state.evaluations] for key in ("step", "bpb")},
        "core_curve": {key: [e[key] for e in state.core] for key in ("step", "core")},
        "val_bpb": state.evaluations[-1]["bpb"] if state.evaluations else None,
        "checkpoint": str(directory),
    }


def start_run(
    stack: ExitStack, directory: Path, identity: Identity, config: RunConfig, model: GPT, optimizer: Optimizer
) -> tuple[TrainState, dict[str, Any] | None]:
    """Lock the directory, decide where the run starts (`resume_step`), and put everything there.

    Returns its state and the mark of its metrics log. Rank 0 decides; every rank holds a lock of its own.
    """
    rank, _ = rank_and_world()

    with all_or_none("taking its lock"):  # all of them, before anything is removed
        stack.enter_context(RunLock(directory, rank))
    start = on_rank0(lambda: resume_step(directory, identity, resume=config.resume, overwrite=config.overwrite,
                                         changed=config.changed))
    state, mark = TrainState(), None
    if start is not None:
        step, changes = start
        with all_or_none("loading the checkpoint"):
            state, meta = restore(directory, step, model, optimizer)
        mark = meta["log"]
        state.changes += [{"step": step, "fields": changes}] if changes else []
    check_same_weights(model)
    return state, mark


def announce(
    model: GPT, config: RunConfig, num_iterations: int, directory: Path, mark: dict[str, Any] | None
) -> tuple[StepLog, str | None]:
    """Open the logs and say what is about to run. Also why it is not compiled, or None."""
    rank, world_size = rank_and_world()
    device, dtype = model.get_device(), str(model.compute_dtype).removeprefix("torch.")
    metrics = None
    with all_or_none("opening the log"):
        if rank == 0:
            metrics = MetricsLog(make_dirs(directory) / LOG, mark)
    with untouched():  # it multiplies random matrices, and `restore` has set the random state
        measured, published = matmul_rates(device, model.compute_dtype)
    problem = compile_problem(device.type) if config.compile else "switched off"
    print0(f"{model.num_parameters():,} parameters, {num_iterations} steps, "
           + (f"{world_size} ranks, " if world_size > 1 else "")
           + f"{device.type} ({torch.get_num_threads()} threads), {dtype}, attention by "
           f"{kernel_name(device.type, model.compute_dtype, model.config.sequence_len)}, "
           f"matmul rate {measured / 1e12:.2f} TFLOP/s, "
           + (f"not compiled: {problem}" if problem else "compiled (the first step takes a while)"))
    return StepLog(config.log_every, num_iterations, model.estimate_flops(), measured, published, metrics), problem


def matmul_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float | None]:
    """FLOP/s of matrix products that all ranks have together: measured here and now, and as published (or None)."""
    speeds = gather(torch.tensor([measure_matmul_flops(device, dtype)], device=wire_device()))
    published = peak_flops(device, dtype)
    return float(speeds.sum()), published and published * len(speeds)


def check_same_weights(model: GPT) -> None:
    """Refuse ranks that start from different weights: the first exchange would mix them without a word."""
    names = [name for name, _ in model.named_parameters()]
    sums = gather(torch.stack([p.detach().float().sum() for p in model.parameters()]))  # (ranks, parameters)
    differing = (sums != sums[0]).nonzero().tolist()
    if differing:
        rank, index = differing[0]
        raise UserError(f"rank {rank} starts from other weights than rank 0 (first: {names[index]}): they need the "
                        "same kind of device, the same torch and the same checkpoint")
