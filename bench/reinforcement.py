"""What reinforcement learning does to a model's skills, and in how much time: before and after, over several seeds.

    NANOCHAT_BASE_DIR=FOLDER python bench/reinforcement.py                # a folder with the pocket run's SFT model
    NANOCHAT_BASE_DIR=FOLDER python bench/reinforcement.py --seeds 0 --max_problems=100

For each seed `scripts.chat_rl` runs with its preset as a process of its own, from the same SFT model; then the model of
before and each of after answer the same held-out problems, greedily and, where answers are written, also sampled at
temperature 1 (`--num_samples` answers to each: that is the policy's own pass@1). The gain is paired: the mean of the
differences problem by problem, with its 95% interval; over the seeds, the mean gain of each problem.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout that is not installed, too

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, check_at_least, compute_init, print0, resolve_dtype
from nanochat.engine import Engine
from nanochat.eval_result import EvalResult, paired_gain
from nanochat.task_eval import run_chat_eval
from tasks.catalog import make_task
from tasks.common import Task


@dataclass
class Config:
    """Train by reinforcement with several seeds and compare what each can do with what the SFT model could."""

    preset: str = "runs/pocket.toml"
    """Whose [chat_rl] is run."""
    from_tag: str = "d4"
    """The SFT model."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run each."""
    tasks: tuple[str, ...] = ("gsm8k_rl", "gsm8k_new_templates", "gsm8k", "spellingbee", "calculator", "identity",
                              "world_qa", "world_mc")
    """Held-out problems, the test split of each."""
    max_problems: int = -1
    """At most so many of each (-1: all)."""
    num_samples: int = 4
    """Answers to each problem at temperature 1."""
    data: str = "pocket"
    """Where the tasks come from."""
    overwrite: bool = False
    """Replace the models of an earlier such benchmark."""


def train(config: Config, seed: int) -> float:
    """One run; returns its seconds, everything included."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "scripts.chat_rl", config.preset, f"--from_tag={config.from_tag}",
               f"--model_tag={tag(config, seed)}", f"--seed={seed}", *(["--overwrite"] if config.overwrite else [])]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(f"the run of seed {seed} ended with status {status}: its last lines say why")
    return time.perf_counter() - begun


def tag(config: Config, seed: int) -> str:
    return f"{config.from_tag}_seed{seed}"


def answers(config: Config, source: str, model_tag: str, tasks: dict[str, Task]) -> dict[str, EvalResult]:
    """What a model makes of all tasks: `"gsm8k"` greedily, `"gsm8k, sampled"` at temperature 1."""
    _, _, _, _, device = compute_init("", 42)
    model, tokenizer, _ = load_model(source, device, "eval", model_tag, -1, resolve_dtype("auto", device.type))
    engine, found = Engine(model, tokenizer), dict[str, EvalResult]()
    for name, task in tasks.items():
        common: dict[str, Any] = {"max_problems": config.max_problems, "batch_size": 64, "seed": 42}
        found[name] = run_chat_eval(task, model, tokenizer, engine, **common)
        if task.eval_type == "generative":
            found[f"{name}, sampled"] = run_chat_eval(task, model, tokenizer, engine, temperature=1.0,
                                                      num_samples=config.num_samples, **common)
    print0(f"{source} {model_tag}: " + ", ".join(f"{name} {r.accuracy:.1%}" for name, r in found.items()))
    return found


def compare(before: EvalResult, after: list[EvalResult]) -> dict[str, Any]:
    """Of one task, over the runs."""
    k = before.num_samples
    gain, low, high = paired_gain([right * len(after) for right in before.right],
                                  [sum(rights) for rights in zip(*(r.right for r in after), strict=True)],
                                  k * len(after))
    return {"n": before.n, "num_samples": k, "before": before.accuracy, "after": [r.accuracy for r in after],
            "gain": gain, "ci95": [low, high], "by_run": [paired_gain(before.right, r.right, k) for r in after]}


def view(figures: dict[str, dict[str, Any]], config: Config, seconds: list[float]) -> Table:
    took = ", ".join(f"{s / 60:.1f}" for s in seconds)
    table = Table(title=f"before and after reinforcement learning, {len(config.seeds)} seeds · {config.data}",
                  caption=f"each run took {took} min, its own exams included; gain: paired, mean over the seeds")
    for heading in ("", "n", "before", *(f"seed {seed}" for seed in config.seeds), "gain", "95% interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, f in figures.items():
        low, high = f["ci95"]
        table.add_row(name, str(f["n"]), f"{f['before']:.1%}", *(f"{a:.1%}" for a in f["after"]),
                      f"{100 * f['gain']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}")
    return table


def main(config: Config) -> None:
    check_at_least(1, seeds=len(config.seeds), num_samples=config.num_samples)
    tasks = {name: make_task(name, config.data, "test") for name in config.tasks}
    before = answers(config, "sft", config.from_tag, tasks)
    seconds = [train(config, seed) for seed in config.seeds]
    after = [answers(config, "rl", tag(config, seed), tasks) for seed in config.seeds]
    figures = {name: compare(before[name], [found[name] for found in after]) for name in before}
    Console(width=120).print(view(figures, config, seconds))
    print0(json.dumps({"tasks": figures, "seconds": seconds, "seeds": config.seeds, "preset": config.preset,
                       "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    configurator.main(main, Config)
