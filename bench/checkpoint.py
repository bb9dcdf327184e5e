"""What a save costs the training that goes on beside it, and how fast saving and loading are.

    python bench/checkpoint.py                               # some minutes on two cores
    python bench/checkpoint.py --rounds=1 --steps=2 --no-compile

The pocket preset's model and batch (depth 4, width 256, 4 096 tokens a step) with its real optimizer, loop step and
`Saver`. A block is `--steps` steps, in which a save has ended long before the last. Blocks without a save, with one
beside the training and with one that is waited for alternate, so that each block with a save stands beside one without;
what a save costs is the median of the differences. The overhead is that as a share of `--every` steps: of a run that
saves so often. CPU seconds count all threads, the saver's too.

The last line printed is JSON; `overhead` is the one of saving beside the training.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.helpers: the installed project leaves it out

from nanochat import configurator
from nanochat.checkpoint_manager import find_last_step, load_checkpoint, model_config_dict
from nanochat.common import check_at_least, compile_problem, compute_init, print0, resolve_dtype
from nanochat.dataloader import Batch
from nanochat.files import sha256_file
from nanochat.gpt import GPT, config_for_depth
from nanochat.saver import Saver
from nanochat.tensor_file import tensor_bytes
from nanochat.train import document_loss
from nanochat.train_step import clip_factor, global_gradient
from tests.helpers import small_tokenizer

ROWS, T, VOCAB = 16, 256, 1024
KINDS = ("no save", "beside", "waited for")


@dataclass
class Config:
    """Measure what saving costs a run of the pocket preset's size."""

    steps: int = 4
    """Steps of a block; one save in each block that has one."""
    every: int = 100
    """Steps between two saves, for the overhead."""
    rounds: int = 7
    """Blocks of each kind."""
    depth: int = 4
    """Depth of the model (width 64 × depth)."""
    compile: bool = True
    """Compile the model."""
    dtype: str = "auto"
    """Compute dtype."""


class Training:
    """The steps of a run, without its data: random ids, so that nothing but the step is measured."""

    def __init__(self, config: Config):
        device = compute_init("cpu")[-1]
        with torch.device("meta"):
            self.model = GPT(config_for_depth(config.depth, vocab_size=VOCAB, head_dim=64, sequence_len=T,
                                             aspect_ratio=64))
        self.model.to_empty(device=device)
        self.model.init_weights(0)
        self.model.compute_dtype = resolve_dtype(config.dtype, "cpu")
        self.optimizer = self.model.setup_optimizers()
        problem = compile_problem("cpu") if config.compile else "switched off"
        self.run = self.model if problem else self.model.compile_for_training()
        ids = torch.randint(1, VOCAB, (ROWS, T + 1), generator=torch.Generator().manual_seed(0))
        self.batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), {})
        self.loss_fn = document_loss(bos=0)

    def step(self) -> None:
        gradient = global_gradient(self.run, self.optimizer, self.batch, rows=ROWS, loss_fn=self.loss_fn)
        self.optimizer.step(1.0, 0.95, clip_factor(gradient.norm, 1.0))
        self.optimizer.zero_grad()

    def block(self, steps: int, save: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """`(wall, CPU)` seconds of so many steps, with `save()` after the first of them."""
        wall, cpu = time.perf_counter(), time.process_time()
        for i in range(steps):
            self.step()
            if i == 0:
                save()
        return time.perf_counter() - wall, time.process_time() - cpu


def measure(config: Config, folder: Path) -> dict[str, Any]:
    """All figures. The blocks of a round follow one another; what is compared stands side by side."""
    training = Training(config)
    training.block(max(3, config.steps // 10))  # compiling, and memory
    stalls: list[float] = []
    waits: list[float] = []
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with Saver(folder, small_tokenizer(), keep=2) as saver:

        def save(number: int, wait: bool) -> None:
            meta = {"model_config": model_config_dict(training.model), "config": {}, "parent": None, "state": {}}
            begin = time.perf_counter()
            saver.save(number, training.model.state_dict(), training.optimizer.state_dict(), meta)
            stalls.append(time.perf_counter() - begin)
            if wait:
                saver.finish()
                waits.append(time.perf_counter() - begin)

        number = late = 0
        for r in range(config.rounds):
            for kind in (*KINDS[r % 3 :], *KINDS[: r % 3]):  # none is always the first
                number += 1
                hook = {"no save": lambda: None, "beside": lambda n=number: save(n, wait=False),
                        "waited for": lambda n=number: save(n, wait=True)}[kind]
                seconds[kind].append(training.block(config.steps, hook))
                late += saver.busy
                saver.finish()
                print0(f"round {r + 1} of {config.rounds}, {kind}: {seconds[kind][-1][0]:.2f} s")
    begin = time.perf_counter()
    model_data, optimizer_data, meta = load_checkpoint(folder, find_last_step(folder), torch.device("cpu"), True)
    load = time.perf_counter() - begin
    begin = time.perf_counter()
    for name in meta["files"]:
        sha256_file(folder / name)
    return summary(seconds, config.steps, config.every) | {
        "ended_after_their_block": late, "bytes": tensor_bytes(model_data) + tensor_bytes(optimizer_data or {}),
        "stall_ms": statistics.median(stalls) * 1e3, "save_ms": statistics.median(waits) * 1e3,
        "load_ms": load * 1e3, "hash_ms": (time.perf_counter() - begin) * 1e3}


def summary(seconds: dict[str, list[tuple[float, float]]], steps: int, every: int) -> dict[str, Any]:
    """Medians, and the overheads from the differences within rounds."""
    def median(kind: str, i: int) -> float:
        return statistics.median(pair[i] for pair in seconds[kind])

    def overhead(kind: str, i: int) -> float:
        rounds = zip(seconds[kind], seconds["no save"], strict=True)
        extra = [with_save[i] - without[i] for with_save, without in rounds]
        return statistics.median(extra) / (median("no save", i) / steps * every)

    return {
        "step_ms": median("no save", 0) / steps * 1e3,
        "overhead": overhead("beside", 0), "overhead_cpu": overhead("beside", 1),
        "overhead_waited": overhead("waited for", 0), "overhead_waited_cpu": overhead("waited for", 1),
        "block_seconds": {kind: median(kind, 0) for kind in KINDS}, "steps": steps,
        "every": every, "rounds": len(seconds["no save"])}


def table(figures: dict[str, Any]) -> Table:
    view = Table(title=f"A save every {figures['every']} steps of {figures['step_ms']:.0f} ms, "
                       f"{figures['bytes'] / 1e6:.1f} MB")
    for heading in ("save", "block, s", "overhead", "overhead, CPU s"):
        view.add_column(heading, justify="right")
    for kind, key in zip(KINDS, ("", "overhead", "overhead_waited"), strict=True):
        shares = [f"{figures[k]:+.2%}" for k in (key, f"{key}_cpu")] if key else ["", ""]
        view.add_row(kind, f"{figures['block_seconds'][kind]:.2f}", *shares)
    view.caption = (f"the step waits {figures['stall_ms']:.1f} ms for a copy; a save takes {figures['save_ms']:.0f} ms "
                    f"when waited for, loading {figures['load_ms']:.0f} ms, of which hashing {figures['hash_ms']:.0f}")
    return view


def main(config: Config) -> None:
    check_at_least(1, rounds=config.rounds, steps=config.steps, every=config.every, depth=config.depth)
    with tempfile.TemporaryDirectory(prefix="checkpoint-bench") as folder:
        figures = measure(config, Path(folder))
    Console(width=100).print(table(figures))
    print0(json.dumps(figures | {"dtype": config.dtype, "depth": config.depth, "compile": config.compile}))


if __name__ == "__main__":
    configurator.main(main, Config)
