"""Grade a chat model on tasks: how many right, of how many, and how sure that is.

    python -m scripts.chat_eval --source=sft
    python -m scripts.chat_eval --source=mid --tasks gsm8k spelling_bee --max-problems=200
    python -m scripts.chat_eval --data=FOLDER --tasks mmlu my_questions.jsonl

Figures from the pocket world are labelled "pocket": they are never those of the real benchmarks.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, check_at_least, compute_init, print0, resolve_dtype
from nanochat.dataset import on_hub
from nanochat.engine import Engine
from nanochat.report import get_report
from nanochat.task_eval import EvalResult, run_categorical_eval, run_chat_eval, run_generative_eval
from tasks.catalog import ALIASES, make_task
from tasks.common import Task

__all__ = ["Config", "main", "run_categorical_eval", "run_chat_eval", "run_generative_eval"]

POCKET_TASKS = ("identity", "world_qa", "world_mc", "spelling_bee", "gsm8k", "calculator")
REAL_TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "spelling_bee")


@dataclass
class Config:
    """Grade a chat model on tasks."""

    source: Literal["base", "mid", "sft"] = "sft"
    """which stage's model"""
    tasks: tuple[str, ...] = ()
    """names of tasks, or .jsonl files with an "answer" in each line; empty: those that go with the data"""
    data: str = "pocket"
    """where the tasks come from: "pocket" (generated), a hub source such as "fineweb-edu" (downloaded) or a folder"""
    max_problems: int = -1
    """at most so many problems a task, evenly spaced; -1: all"""
    batch_size: int = 32
    """problems worked on at once"""
    max_new_tokens: int = 256
    """longest answer, in tokens"""
    temperature: float = 0.0
    """0: always the most likely token"""
    top_k: int = 0
    """sample among the k most likely tokens; 0: all"""
    num_samples: int = 1
    """answers to each problem; it counts as solved if any is right"""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is"""
    dtype: str = "auto"
    """auto, bfloat16 or float32"""
    seed: int = 42
    """of sampling, at a temperature above 0"""
    model_tag: str = ""
    """name of the model's folder, such as d4; empty: the largest"""
    step: int = -1
    """which checkpoint; -1: the last"""


def main(config: Config) -> None:
    start = time.perf_counter()
    check_at_least(1, batch_size=config.batch_size, max_new_tokens=config.max_new_tokens,
                   num_samples=config.num_samples)
    names = [name for item in config.tasks for name in item.split(",")]
    names = names or (POCKET_TASKS if config.data == "pocket" else REAL_TASKS)
    tasks = {metric_name(name): make_task(name, config.data, "test") for name in names}  # all data before the model
    if len(tasks) < len(names):
        raise UserError(f"two tasks of {', '.join(names)} would share a name in the report: rename one file")
    _, _, _, _, device = compute_init(config.device_type, config.seed)
    dtype = resolve_dtype(config.dtype, device.type)
    model, tokenizer, meta = load_model(config.source, device, "eval", config.model_tag, config.step, dtype)
    engine = Engine(model, tokenizer)
    results = []
    for name, task in tasks.items():
        begin = time.perf_counter()
        result = run_chat_eval(
            task, model, tokenizer, engine, name=name, max_problems=config.max_problems, batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_k=config.top_k,
            num_samples=config.num_samples, seed=config.seed,
        )
        results.append(result)
        print0(f"{name}: {result.correct}/{result.n} in {time.perf_counter() - begin:.1f} s")
    print_table(results, f"{config.source} · {config.data}")
    get_report().log(f"chat_eval_{config.source}", {
        "config": asdict(config),
        "seconds": time.perf_counter() - start,
        "data": config.data,
        "model": meta["parent"],
        "metrics": {r.name: r.metrics() | source_label(tasks[r.name], config.data) for r in results},
        "samples": [{"task": result.name, **sample} for result in results for sample in result.samples],
    })


def source_label(task: Task, data: str) -> dict[str, str]:
    """`{"data": "pocket"}` for what the hub has no set for and comes from the pocket world, else nothing."""
    return {"data": "pocket"} if on_hub(data) and not task.published else {}


def metric_name(task: str) -> str:
    """The name in tables and reports: `"spellingbee" -> "spelling_bee"`, `"data/my.jsonl" -> "my"`."""
    shown = {key: alias for alias, key in ALIASES.items()}
    return Path(task).stem if task.endswith(".jsonl") else shown.get(task, task)


def print_table(results: list[EvalResult], title: str) -> None:
    """One row a task; the interval says what a repetition with other problems might have shown."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "right", "95% interval", "n", "chance", title=title)
    for r in results:
        low, high = r.ci95
        chance = f"{r.chance:.1%}" if r.chance else ""
        table.add_row(r.name, f"{r.accuracy:.1%}", f"{low:.1%} – {high:.1%}", str(r.n), chance)
    console = Console()
    with console.capture() as capture:
        console.print(table)
    print0(capture.get(), end="")  # rank 0 only


if __name__ == "__main__":
    configurator.main(main, Config)
