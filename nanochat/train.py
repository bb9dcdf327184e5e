"""The one training loop. Pretraining, midtraining and fine-tuning share it; it does not know which is which.

A stage brings a model, an optimizer, an iterator of `Batch`, a loss and hooks; `run_training` adds what every stage
needs around `train`: compiling, saving and resuming, signals, the metrics log.

The loss of a step is the sum over all supervised tokens of its micro-batches divided by their number, so how a batch
is cut into micro-batches does not matter, and one without supervised tokens counts for nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.attention import kernel_name
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
    peak_memory_bytes,
    print0,
)
from nanochat.dataloader import Batch
from nanochat.gpt import GPT
from nanochat.loss_eval import evaluate_bpb
from nanochat.optim import Optimizer
from nanochat.report import get_git_info
from nanochat.run import MetricsLog, StopSignals, lock_run, read_metrics
from nanochat.schedule import lr_multiplier, muon_momentum
from nanochat.tokenizer import RustBPETokenizer


@dataclass
class StageConfig:
    """The settings that every gradient stage has; a stage's `Config` adds its own and changes defaults."""

    data: str = "pocket"
    """Where data comes from: pocket, hub, or a folder of your own."""
    num_iterations: int = -1
    """Optimizer steps (-1: the stage decides)."""
    device_batch_size: int = 32
    """Rows a micro-batch: lower it when memory runs out, the result stays the same."""
    total_batch_size: int = 524288
    """Tokens a step, over all micro-batches."""
    embedding_lr: float = 0.2
    """AdamW rate of the token embedding (at width 768)."""
    unembedding_lr: float = 0.004
    """AdamW rate of the output head (at width 768)."""
    matrix_lr: float = 0.02
    """Muon rate of the matrices."""
    weight_decay: float = 0.0
    """Decoupled weight decay of embedding and head."""
    warmup_ratio: float = 0.0
    """Share of the steps in which the rate rises."""
    warmdown_ratio: float = 0.2
    """Share of the steps in which the rate falls."""
    final_lr_frac: float = 0.0
    """The rate at the end, as a share of the full rate."""
    grad_clip: float = 1.0
    """Clip the gradient's norm (0: never)."""
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
        check_at_least(1, device_batch_size=self.device_batch_size, total_batch_size=self.total_batch_size)
        check_at_least(0, embedding_lr=self.embedding_lr, unembedding_lr=self.unembedding_lr, matrix_lr=self.matrix_lr,
                       weight_decay=self.weight_decay, warmup_ratio=self.warmup_ratio, grad_clip=self.grad_clip,
                       warmdown_ratio=self.warmdown_ratio, final_lr_frac=self.final_lr_frac, log_every=self.log_every,
                       eval_every=self.eval_every, eval_tokens=self.eval_tokens, save_every=self.save_every)


@dataclass
class TrainState:
    """What must be saved, beside weights and optimizer, to go on as if nothing had happened. JSON."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    train_seconds: float = 0.0
    loader: dict[str, Any] | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)  # {"step": ..., "bpb": ...}


@dataclass
class Every:
    """Call `fn(state)` after each `n` steps (0: never on the way) and after the last."""

    n: int
    fn: Callable[[TrainState], None]

    def due(self, step: int, last: bool) -> bool:
        return last or (self.n > 0 and step % self.n == 0)


LossFn = Callable[[nn.Module, Batch], Tensor]


def document_loss(bos: int) -> LossFn:
    """Summed loss of packed rows, in which no document sees its neighbour (a document starts at each BOS)."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        doc = (batch.inputs == bos).cumsum(1)  # (B, T)
        return model(batch.inputs, batch.targets, loss_reduction="sum", doc=doc)

    return loss_fn


def validation(
    model: GPT, val_batches: Callable[[], Iterator[Batch]], tokenizer: RustBPETokenizer, max_batches: int
) -> Callable[[TrainState], None]:
    """A hook that measures bits per byte on the first `max_batches` of `val_batches()`.

    On the plain model, not the compiled one: another shape or mode would be compiled anew.
    """
    token_bytes = torch.tensor(tokenizer.token_bytes(), device=model.get_device())

    def validate(state: TrainState) -> None:
        first = (batch for _, batch in zip(range(max_batches), val_batches(), strict=False))
        bpb = evaluate_bpb(model, first, token_bytes, bos=tokenizer.get_bos_token_id())
        earlier = [e for e in state.evaluations if e["step"] != state.step]
        state.evaluations = [*earlier, {"step": state.step, "bpb": bpb}]
        print0(f"step {state.step:5d} | validation {bpb:.4f} bits per byte")

    return validate


def grad_accum_steps(total_batch_size: int, device_batch_size: int, max_seq_len: int) -> int:
    """Micro-batches a step: `total=4096, rows=8, T=256 -> 2`. Sizes that do not divide are refused."""
    world_size = get_dist_info()[3]
    if world_size > 1:
        raise UserError("this version trains in one process: start it without torchrun")
    micro = device_batch_size * max_seq_len
    if min(total_batch_size, device_batch_size, max_seq_len) < 1 or total_batch_size % micro:
        raise UserError(f"--total_batch_size={total_batch_size} is not a multiple of --device_batch_size="
                        f"{device_batch_size} × --max_seq_len={max_seq_len} (= {micro} tokens)")
    return total_batch_size // micro


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    config: StageConfig,
    state: TrainState,
    *,
    num_iterations: int,
    accumulation: int,
    loss_fn: LossFn,
    hooks: list[Every],
    on_step: Callable[[TrainState, dict[str, float]], None] = lambda state, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run from `state.step` to `num_iterations`. Returns False if `should_stop` ended it early.

    `loss_fn(model, batch)` gives the loss *summed* over the batch's supervised tokens.
    """
    parameters = optimizer.parameters()
    while state.step < num_iterations:
        started = time.perf_counter()
        micro_batches = [next(batches) for _ in range(accumulation)]
        supervised = sum(int((b.targets >= 0).sum()) for b in micro_batches)
        losses = []
        for batch in micro_batches:
            loss = loss_fn(model, batch) / max(supervised, 1)
            loss.backward()
            losses.append(loss.detach())
        total_loss = float(torch.stack(losses).sum())  # read once a step: on a GPU each look waits for the device
        norm = float(nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf))
        if not math.isfinite(total_loss) or not math.isfinite(norm):
            raise UserError(f"loss {total_loss} and gradient norm {norm} at step {state.step}: stopped before the "
                            "weights were touched; lower the learning rates and --resume from the last checkpoint")
        multiplier = lr_multiplier(state.step, num_iterations, warmup_ratio=config.warmup_ratio,
                                   warmdown_ratio=config.warmdown_ratio, final_lr_frac=config.final_lr_frac)
        optimizer.step(multiplier, muon_momentum(state.step))
        optimizer.zero_grad()
        seconds = time.perf_counter() - started

        state.step += 1
        tokens = sum(b.inputs.numel() for b in micro_batches)
        state.tokens += tokens
        state.supervised_tokens += supervised
        state.train_seconds += seconds
        state.loader = micro_batches[-1].state
        on_step(state, {"loss": total_loss, "norm": norm, "lr": multiplier, "tokens": tokens, "seconds": seconds})
        for hook in hooks:
            if hook.due(state.step, last=state.step == num_iterations):
                hook.fn(state)
        if should_stop() and state.step < num_iterations:
            return False
    return True


@dataclass
class StepLog:
    """Prints a line and writes a metrics record every `every` steps, with averages over the steps since the last."""

    every: int
    num_iterations: int
    flops_per_token: int
    peak_flops: float
    metrics: MetricsLog
    rate: float = 0.0  # tokens a second in this process, without its first (compiling) step
    _losses: list[float] = field(default_factory=list)
    _from: tuple[int, float] | None = None  # tokens and seconds at the last line
    _first: tuple[int, float] | None = None  # the same after the first step of this process

    def __call__(self, state: TrainState, m: dict[str, float]) -> None:
        self._losses.append(m["loss"])
        now = state.tokens, state.train_seconds
        first, before = self._first is None, self._from or (now[0] - m["tokens"], now[1] - m["seconds"])
        self._first = self._first or now
        if not first and state.step != self.num_iterations and (self.every < 1 or state.step % self.every):
            return
        self._from = now
        loss, rate = sum(self._losses) / len(self._losses), (now[0] - before[0]) / (now[1] - before[1])
        self._losses.clear()
        if not first:
            self.rate = (now[0] - self._first[0]) / (now[1] - self._first[1])
        left = (self.num_iterations - state.step) * (state.tokens / state.step) / rate
        print0(f"step {state.step:5d}/{self.num_iterations} | loss {loss:.4f} | lr ×{m['lr']:.2f} | "
               f"norm {m['norm']:.2f} | {rate:,.0f} tok/s | {self.share(rate):.0%} of matmul rate | "
               f"{left / 60:.1f} min left")
        self.metrics.log(state.step, loss=loss, norm=m["norm"], lr=m["lr"], tokens_per_second=rate)

    def share(self, rate: float) -> float:
        """What part of the measured matrix-product rate a number of tokens a second is."""
        return rate * self.flops_per_token / self.peak_flops


def run_training(
    *,
    model: GPT,
    tokenizer: RustBPETokenizer,
    optimizer: Optimizer,
    make_batches: Callable[[dict[str, Any] | None], Iterator[Batch]],
    config: StageConfig,
    num_iterations: int,
    max_seq_len: int,
    directory: Path,
    hooks: list[Every],
    parent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a stage into `directory`, from its start or its last checkpoint, and return the figures for the report.

    `make_batches(loader_state)` gives the batches after that state (None: from the start). Saving comes before the
    other hooks, so that an evaluation that fails costs no training. On SIGINT or SIGTERM: save, then KeyboardInterrupt.
    """
    accumulation = grad_accum_steps(config.total_batch_size, config.device_batch_size, max_seq_len)
    lock = lock_run(directory)
    settings = {**asdict(config), "dtype": str(model.compute_dtype).removeprefix("torch.")}  # what "auto" came to
    state = TrainState()
    start = resume_step(directory, settings, parent, resume=config.resume, overwrite=config.overwrite)
    if start is not None:
        model_data, optimizer_data, meta = load_checkpoint(directory, start, model.get_device(), load_optimizer=True)
        load_weights(model, model_data, directory)
        optimizer.load_state_dict(optimizer_data)
        del model_data, optimizer_data  # else the device holds everything twice to the end of the run
        state = TrainState(**meta["state"])
        print0(f"resuming {directory} at step {start} of {num_iterations}")
    metrics = MetricsLog(directory / "log.jsonl", state.step)

    saved_step = start

    def save(state: TrainState) -> None:
        nonlocal saved_step
        if saved_step == state.step:
            return
        saved_step = state.step
        meta = {"model_config": model_config_dict(model), "config": settings, "parent": parent,
                "state": asdict(state), "git": get_git_info()}
        save_checkpoint(directory, state.step, model.state_dict(), optimizer.state_dict(), meta, tokenizer=tokenizer)
        print0(f"saved step {state.step} to {directory}")

    device_type = model.get_device().type
    peak = measure_matmul_flops(model.get_device(), model.compute_dtype)
    step_log = StepLog(config.log_every, num_iterations, model.estimate_flops(), peak, metrics)
    problem = compile_problem(device_type) if config.compile else "switched off"
    print0(f"{model.num_parameters():,} parameters, {num_iterations} steps, {device_type} "
           f"({torch.get_num_threads()} threads), {str(model.compute_dtype).removeprefix('torch.')}, attention by "
           f"{kernel_name(device_type, model.compute_dtype)}, matmul rate {peak / 1e12:.2f} TFLOP/s, "
           + (f"not compiled: {problem}" if problem else "compiled (the first step takes a while)"))
    compiled = model if problem else torch.compile(model, dynamic=False)
    if start is not None:  # the save came before that step's other hooks: they may not have run
        for hook in hooks:
            if hook.due(start, last=start == num_iterations):
                hook.fn(state)
    with StopSignals() as stop:
        finished = train(compiled, optimizer, make_batches(state.loader), config, state,
                         num_iterations=num_iterations, accumulation=accumulation,
                         loss_fn=document_loss(tokenizer.get_bos_token_id()),
                         hooks=[Every(config.save_every, save), *hooks],
                         on_step=step_log, should_stop=lambda: stop.requested)
    if not finished:
        save(state)
        raise KeyboardInterrupt
    lock.release()
    records = read_metrics(metrics.path)
    return {
        "steps": state.step, "tokens": state.tokens, "supervised_tokens": state.supervised_tokens,
        "train_seconds": state.train_seconds, "parameters": model.num_parameters(),
        "tokens_per_second": step_log.rate or None, "matmul_flops": peak,
        "matmul_share": step_log.share(step_log.rate) if step_log.rate else None, "compiled": not problem,
        "dtype": str(model.compute_dtype).removeprefix("torch."), "peak_memory_bytes": peak_memory_bytes(),
        "curve": {"step": [r["step"] for r in records], "loss": [r["loss"] for r in records]},
        "val_curve": {key: [e[key] for e in state.evaluations] for key in ("step", "bpb")},
        "val_bpb": state.evaluations[-1]["bpb"] if state.evaluations else None,
        "checkpoint": str(directory),
    }
