"""The settings that every gradient stage has: what the `--help` of each shows first.

There is nothing to run here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nanochat.common import UserError, check_at_least


@dataclass
class RunConfig:
    """The settings that every gradient stage has; a stage's `Config` adds its own and changes defaults."""

    data: str = "pocket"
    """Where data comes from: pocket, fineweb-edu:N, hub:OWNER/NAME:N, or a folder of your own."""
    num_iterations: int = -1
    """Optimizer steps (-1: the stage decides)."""
    device_batch_size: int | Literal["auto"] = 32
    """Rows of a backward pass: lower it when memory runs out, the result stays the same; auto: the most that fit."""
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
    """Steps between evaluations on held-out data (0: only at the end)."""
    save_every: int = 500
    """Steps between checkpoints (0: only at the end)."""
    log_every: int = 10
    """Steps between lines of the log."""
    keep_last: int = 2
    """Checkpoints to keep: older ones are removed once a new one is whole (0: keep all)."""
    resume: bool = False
    """Go on from the last checkpoint of this run, if there is one."""
    changed: tuple[str, ...] = ()
    """With --resume: settings that may differ from what the run was started with, by name."""
    overwrite: bool = False
    """Replace a run of the same name."""
    stall_seconds: float = 1500.0
    """End the run, and say which rank hangs and where, when nothing has moved for so long (0: never)."""
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
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):  # no checkpoint could hold it
                raise UserError(f"--{name}={value} is impossible: it must be a finite number")
        rows = 1 if self.device_batch_size == "auto" else self.device_batch_size
        check_at_least(1, device_batch_size=rows)
        check_at_least(0, embedding_lr=self.embedding_lr, unembedding_lr=self.unembedding_lr, matrix_lr=self.matrix_lr,
                       weight_decay=self.weight_decay, warmup_ratio=self.warmup_ratio, grad_clip=self.grad_clip,
                       warmdown_ratio=self.warmdown_ratio, final_lr_frac=self.final_lr_frac, log_every=self.log_every,
                       eval_every=self.eval_every, save_every=self.save_every, keep_last=self.keep_last,
                       stall_seconds=self.stall_seconds)


@dataclass
class StageConfig(RunConfig):
    """Those of a stage that reads its batches from data, of a size of its choice."""

    total_batch_size: int = 524288
    """Tokens a step, over all micro-batches and ranks."""
    eval_tokens: int = 500_000
    """Tokens a validation, in bits per byte, reads at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, total_batch_size=self.total_batch_size)
        check_at_least(0, eval_tokens=self.eval_tokens)
