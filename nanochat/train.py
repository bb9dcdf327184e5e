"""The one training loop. Pretraining, midtraining and fine-tuning share it; it does not know which is which.

A stage brings a model, an optimizer, an iterator of `Batch`, a loss and hooks; `run_training` adds what every stage
needs around `train`: compiling, saving and resuming, signals, the metrics log. What a step computes is in
`train_step.py`; how its rows are cut, and whether they fit, in `batch_size.py`.

The same code runs on one rank and on many: each rank trains on its share of every step and decides by figures that are
the same on all of them. Rank 0 alone writes what a run has once (weights, meta, log, report).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor, nn

from nanochat.attention import kernel_name, packed_documents
from nanochat.batch_size import LossFn, choose_rows, fewer_rows, memory_named
from nanochat.checkpoint_manager import (
    load_checkpoint,
    load_weights,
    model_config_dict,
    resume_step,
    save_checkpoint,
)
from nanochat.common import (
    UserError,
    check_at_least,
    compile_problem,
    get_dist_info,
    measure_matmul_flops,
    peak_flops,
    peak_memory_bytes,
    print0,
)
from nanochat.dataloader import Batch, Loader
from nanochat.gpt import GPT
from nanochat.loss_eval import evaluate_bpb, first_rows
from nanochat.optim import Optimizer
from nanochat.ranks import gather, on_rank0, rank_and_world, wire_device
from nanochat.report import get_git_info
from nanochat.run import MetricsLog, StepLog, StopSignals, TrainState, lock_run, loss_curve, rows_per_rank
from nanochat.schedule import lr_multiplier, muon_momentum
from nanochat.tokenizer import RustBPETokenizer
from nanochat.train_step import clip_factor, describe_nonfinite, global_gradient

MAX_SKIPS = 20  # steps in a row without a finite gradient: then it is not the batch, it is the weights


@dataclass
class StageConfig:
    """The settings that every gradient stage has; a stage's `Config` adds its own and changes defaults."""

    data: str = "pocket"
    """Where data comes from: pocket, fineweb-edu:N, hub:OWNER/NAME:N, or a folder of your own."""
    num_iterations: int = -1
    """Optimizer steps (-1: the stage decides)."""
    device_batch_size: int | Literal["auto"] = 32
    """Rows of a backward pass: lower it when memory runs out, the result stays the same; auto: the most that fit."""
    total_batch_size: int = 524288
    """Tokens a step, over all micro-batches and ranks."""
    embedding_lr: float = 0.2
    """AdamW rate of the token embedding (at width 768)."""
    unembedding_lr: float = 0.004
    """AdamW rate of the output head (at width 768)."""
    matrix_lr: float = 0.02
    """Muon rate of the matrices."""
    weight_decay: float = 0.0
    """Decoupled weight decay of embedding and head."""
    polar_express: bool = False
    """Muon by the Polar Express polynomials instead of one quintic."""
    warmup_ratio: float = 0.0
    """Share of the steps in which the rate rises."""
    warmdown_ratio: float = 0.2
    """Share of the steps in which the rate falls."""
    final_lr_frac: float = 0.0
    """The rate at the end, as a share of the full rate."""
    grad_clip: float = 1.0
    """Clip the gradient's norm (0: never)."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is not finite: stop before the weights change, or skip the step and count it."""
    deterministic: bool = False
    """The same weights to the bit on 1, 2, 4, ... ranks, for one device_batch_size and thread count (CPU; slower)."""
    eval_every: int = 250
    """Steps between validations in bits per byte (0: only at the end)."""
    eval_tokens: int = 500_000
    """Tokens a validation reads at most."""
    save_every: int = 500
    """Steps between checkpoints (0: only at the end)."""
    log_every: int = 10
    """Steps between lines of the log."""
    resume: bool = False
    """Go on from the last checkpoint of this run, if there is one."""
    overwrite: bool = False
    """Replace a run of the same name."""
    compile: bool = True
    """Compile the model where that is possible."""
    model_tag: str = ""
    """Name of the run's directory (default: d<depth>, or the name of the model that it starts from)."""
    dtype: str = "auto"
    """Compute dtype: auto, bfloat16 or float32."""
    device_type: str = ""
    """cpu, cuda or mps (default: the best there is)."""
    seed: int = 42
    """Seed of the weights and of the order of the data."""

    def __post_init__(self) -> None:
        rows = 1 if self.device_batch_size == "auto" else self.device_batch_size
        check_at_least(1, device_batch_size=rows, total_batch_size=self.total_batch_size)
        check_at_least(0, embedding_lr=self.embedding_lr, unembedding_lr=self.unembedding_lr, matrix_lr=self.matrix_lr,
                       weight_decay=self.weight_decay, warmup_ratio=self.warmup_ratio, grad_clip=self.grad_clip,
                       warmdown_ratio=self.warmdown_ratio, final_lr_frac=self.final_lr_frac, log_every=self.log_every,
                       eval_every=self.eval_every, eval_tokens=self.eval_tokens, save_every=self.save_every)


@dataclass
class Every:
    """Call `fn(state)` after each `n` steps (0: never on the way) and after the last. On all ranks alike."""

    n: int
    fn: Callable[[TrainState], None]
    what: str = "an evaluation"  # said when it runs out of memory

    def due(self, step: int, last: bool) -> bool:
        return last or (self.n > 0 and step % self.n == 0)


def document_loss(bos: int) -> LossFn:
    """Summed loss of packed rows, in which no document sees its neighbour (a document starts at each BOS)."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        doc = packed_documents(batch.inputs, bos, model.compute_dtype)
        return model(batch.inputs, batch.targets, loss_reduction="sum", doc=doc)

    return loss_fn


def make_optimizer(model: GPT, config: StageConfig) -> Optimizer:
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
        print0(f"step {state.step:5d} | validation {bpb:.4f} bits per byte")

    return validate


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    config: StageConfig,
    state: TrainState,
    *,
    num_iterations: int,
    rows: int,
    loss_fn: LossFn,
    hooks: list[Every],
    on_step: Callable[[TrainState, dict[str, float]], None] = lambda state, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run from `state.step` to `num_iterations`. Returns False if a rank's `should_stop` ended it early, on all ranks.

    A batch is this rank's share of a step; it is worked off `rows` rows at a time. `loss_fn(model, batch)` gives the
    loss *summed* over the batch's supervised tokens.
    """
    world_size, skips = rank_and_world()[1], 0
    while state.step < num_iterations:
        started, before, batch = time.perf_counter(), state.loader, next(batches)
        sizes = rows, batch.inputs.size(1), fewer_rows(rows, len(batch.inputs), config.deterministic)
        gradient = global_gradient(model, optimizer, batch, rows=rows, loss_fn=loss_fn, stop=should_stop(),
                                   deterministic=config.deterministic)
        multiplier = lr_multiplier(state.step, num_iterations, warmup_ratio=config.warmup_ratio,
                                   warmdown_ratio=config.warmdown_ratio, final_lr_frac=config.final_lr_frac)
        if gradient.finite:
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
                        "seconds": seconds})
        call_due(hooks, state, num_iterations, *sizes)
        # Several ranks agree within the step; one alone can look again, and need not wait for the next.
        if (gradient.stop or (world_size == 1 and should_stop())) and state.step < num_iterations:
            return False
    return True


def call_due(
    hooks: list[Every], state: TrainState, num_iterations: int, rows: int, max_seq_len: int, remedy: str
) -> None:
    """Call the hooks that are due after step `state.step`; the last three are for the line when memory runs out."""
    for hook in hooks:
        if hook.due(state.step, last=state.step == num_iterations):
            with memory_named(hook.what, rows, max_seq_len, remedy):
                hook.fn(state)


def run_training(
    *,
    model: GPT,
    tokenizer: RustBPETokenizer,
    optimizer: Optimizer,
    make_batches: Callable[[dict[str, Any] | None], Iterator[Batch]],
    config: StageConfig,
    num_iterations: int,
    rows: int,
    directory: Path,
    hooks: list[Every],
    parent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a stage into `directory`, from its start or its last checkpoint, and return the figures for the report.

    `make_batches(loader_state)` gives the batches after that state (None: from the start), each this rank's share of a
    step. Saving comes before the other hooks, so that an evaluation that fails costs no training. On SIGINT, SIGTERM or
    SIGHUP at any rank: save, then KeyboardInterrupt on all.
    """
    settings = {**asdict(config), "dtype": str(model.compute_dtype).removeprefix("torch.")}  # what "auto" came to
    if config.deterministic:
        settings["threads"] = torch.get_num_threads()  # a sum cut in two threads may round otherwise
    lock, start = start_run(directory, settings, parent, config)
    state = TrainState()
    if start is not None:
        model_data, optimizer_data, meta = load_checkpoint(directory, start, model.get_device(), load_optimizer=True)
        load_weights(model, model_data, directory)
        optimizer.load_state_dict(optimizer_data)
        del model_data, optimizer_data  # else the device holds everything twice to the end of the run
        state = TrainState(**meta["state"])
        print0(f"resuming {directory} at step {start} of {num_iterations}")
    check_same_weights(model)
    rank, world_size = rank_and_world()
    metrics = MetricsLog(directory / "log.jsonl", state.step) if rank == 0 else None

    saved_step = start

    def save(state: TrainState) -> None:
        nonlocal saved_step
        if saved_step == state.step:
            return
        saved_step = state.step
        meta = {"model_config": model_config_dict(model), "config": settings, "parent": parent,
                "state": asdict(state), "git": get_git_info() if rank == 0 else None}  # rank 0 writes it
        save_checkpoint(directory, state.step, model.state_dict(), optimizer.state_dict(), meta, tokenizer=tokenizer)
        print0(f"saved step {state.step} to {directory}")

    device, dtype = model.get_device(), settings["dtype"]
    measured, published = matmul_rates(device, model.compute_dtype)
    step_log = StepLog(config.log_every, num_iterations, model.estimate_flops(), measured, published, metrics)
    problem = compile_problem(device.type) if config.compile else "switched off"
    print0(f"{model.num_parameters():,} parameters, {num_iterations} steps, "
           + (f"{world_size} ranks, " if world_size > 1 else "")
           + f"{device.type} ({torch.get_num_threads()} threads), {dtype}, attention by "
           f"{kernel_name(device.type, model.compute_dtype, model.config.sequence_len)}, "
           f"matmul rate {measured / 1e12:.2f} TFLOP/s, "
           + (f"not compiled: {problem}" if problem else "compiled (the first step takes a while)"))
    compiled = model if problem else model.compile_for_training()
    with StopSignals(speaks=rank == 0) as stop:
        if start is not None:  # the save came before that step's other hooks: they may not have run
            T = model.config.sequence_len
            share = max(1, config.total_batch_size // (T * world_size))
            call_due(hooks, state, num_iterations, rows, T, fewer_rows(rows, share, config.deterministic))
        finished = train(compiled, optimizer, make_batches(state.loader), config, state,
                         num_iterations=num_iterations, rows=rows,
                         loss_fn=document_loss(tokenizer.get_bos_token_id()),
                         hooks=[Every(config.save_every, save, "saving"), *hooks],
                         on_step=step_log, should_stop=lambda: stop.requested)
    if not finished:
        save(state)
        raise KeyboardInterrupt
    if lock:
        lock.release()
    return {
        "steps": state.step, "tokens": state.tokens, "supervised_tokens": state.supervised_tokens,
        "skipped_steps": state.skipped, "train_seconds": state.train_seconds, "parameters": model.num_parameters(),
        "ranks": world_size, "device_batch_rows": rows, **step_log.figures(), "compiled": not problem, "dtype": dtype,
        "peak_memory_bytes": peak_memory_bytes(), "curve": loss_curve(directory / "log.jsonl"),
        "val_curve": {key: [e[key] for e in state.evaluations] for key in ("step", "bpb")},
        "val_bpb": state.evaluations[-1]["bpb"] if state.evaluations else None,
        "checkpoint": str(directory),
    }


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


def start_run(
    directory: Path, settings: dict[str, Any], parent: dict[str, Any] | None, config: StageConfig
) -> tuple[FileLock | None, int | None]:
    """Rank 0 takes the run's lock and decides where it starts (see `resume_step`); the others learn of it."""
    locks: list[FileLock] = []

    def begin() -> int | None:
        locks.append(lock_run(directory))
        return resume_step(directory, settings, parent, resume=config.resume, overwrite=config.overwrite)

    start = on_rank0(begin)
    return (locks[0] if locks else None), start
