"""Grade a chat model on tasks: how many right, of how many, and how sure that is.

    python -m scripts.chat_eval --source=sft
    python -m scripts.chat_eval --source=mid --tasks gsm8k spelling_bee --max-problems=200
    python -m scripts.chat_eval --tasks humaneval --num_samples=8 --temperature=0.8      pass@1, 2, 4, 8
    python -m scripts.chat_eval --data=FOLDER --tasks mmlu my_questions.jsonl
    python -m nanochat.launch 8 scripts.chat_eval --source=sft                           the same, on 8 GPUs

ChatCORE is the mean over the tasks that go with the data of (accuracy - chance) / (1 - chance): nanochat's six, or, in
the pocket world, all that it asks by default. Where one of them was not measured it stays blank. Figures from the
pocket world are labelled "pocket": they are never those of the real benchmarks.

The record is written after each task, so that what ends an evaluation early takes nothing of what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, check_at_least, compute_init, print0, resolve_dtype, stage_progress
from nanochat.dataset import on_hub
from nanochat.engine import Engine
from nanochat.eval_result import EvalResult, chatcore
from nanochat.ranks import gather_texts
from nanochat.report import get_report
from nanochat.task_eval import run_categorical_eval, run_chat_eval, run_generative_eval
from tasks.catalog import ALIASES, make_task
from tasks.common import Task

__all__ = ["Config", "main", "run_categorical_eval", "run_chat_eval", "run_generative_eval"]

POCKET_TASKS = ("identity", "world_qa", "world_mc", "spelling_bee", "gsm8k", "gsm8k_new_templates", "calculator",
                "humaneval")
REAL_TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee")  # nanochat's six


@dataclass
class Config:
    """Grade a chat model on tasks."""

    source: Literal["base", "mid", "sft", "rl"] = "sft"
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
    """answers to each problem; above 1: the share of right ones, and pass@k, whether one of k is right"""
    unsafe_execution: bool = False
    """let programs that the model writes run without a sandbox where there is none: they can do all that you can"""
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


def default_tasks(data: str) -> tuple[str, ...]:
    """The tasks that go with the data; ChatCORE is their mean."""
    return POCKET_TASKS if data == "pocket" else REAL_TASKS


def choose_tasks(config: Config) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks by their names in the report, and why others that go with the data cannot run here."""
    asked = [name for item in config.tasks for name in item.split(",")]
    tasks: dict[str, Task] = {}
    not_run: dict[str, str] = {}
    for name in asked or default_tasks(config.data):
        shown = metric_name(name)
        if shown in tasks:
            raise UserError(f"two tasks of {', '.join(asked)} would share the name {shown} in the report: name each "
                            "once, or rename one file")
        unsafe = {"unsafe": True} if config.unsafe_execution and shown == "humaneval" else {}
        task = make_task(name, config.data, "test", **unsafe)
        why = next(filter(None, gather_texts(task.obstacle())), "")  # all ranks must have the same tasks
        if why and asked:
            raise UserError(f"{name} cannot run here: {why}; or run the model's programs without a sandbox, on a "
                            "machine that has nothing to lose: --unsafe_execution")
        if why:
            not_run[shown] = why
            print0(f"{shown} is left out: {why}")
        else:
            tasks[shown] = task
    return tasks, not_run


def main(config: Config) -> None:
    start = time.perf_counter()
    check_at_least(1, batch_size=config.batch_size, max_new_tokens=config.max_new_tokens,
                   num_samples=config.num_samples)
    if config.num_samples > 1 and config.temperature == 0:
        raise UserError(f"--num_samples={config.num_samples} at temperature 0 would be the same answer each time: add "
                        "--temperature=0.8, say")
    _, _, _, _, device = compute_init(config.device_type, config.seed)
    tasks, not_run = choose_tasks(config)  # all data before the model
    dtype = resolve_dtype(config.dtype, device.type)
    model, tokenizer, meta = load_model(config.source, device, "eval", config.model_tag, config.step, dtype)
    engine = Engine(model, tokenizer)
    results: list[EvalResult] = []
    for name, task in tasks.items():
        begin = time.perf_counter()
        with stage_progress() as tell:
            results.append(run_chat_eval(
                task, model, tokenizer, engine, name=name, max_problems=config.max_problems,
                batch_size=config.batch_size, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                top_k=config.top_k, num_samples=config.num_samples, seed=config.seed, tell=partial(tell, name)))
        print0(told(results[-1], time.perf_counter() - begin))
        get_report().log(f"chat_eval_{config.source}", {
            "config": asdict(config),
            "seconds": time.perf_counter() - start,
            "model": meta["parent"],
            "incomplete": list(tasks)[len(results) :],
            "not_run": not_run,
            **record(results, tasks, config.data),
        })
    print_table(results, default_tasks(config.data), f"{config.source} · {config.data}")


def record(results: list[EvalResult], tasks: dict[str, Task], data: str) -> dict[str, Any]:
    """What was measured so far, for the report (`nanochat.report` says which key is what)."""
    runs_in = {tasks[r.name].runs_in for r in results} - {""}
    return {
        "data": data,
        "chatcore": chatcore(results, default_tasks(data)),
        "chatcore_tasks": default_tasks(data),
        "metrics": {r.name: r.metrics() | source_label(tasks[r.name], data) for r in results},
        "samples": [{"task": result.name, **sample} for result in results for sample in result.samples],
        **({"programs_ran_in": ", ".join(sorted(runs_in))} if runs_in else {}),
    }


def told(result: EvalResult, seconds: float) -> str:
    """One line of the log: `"gsm8k: 540/1319 in 61.2 s"`, and what a reader must know of it."""
    notes = [f"{count} {what}" for count, what in ((result.cropped, "prompts shortened"),
                                                   (result.ungraded, "answers could not be graded: counted as wrong"))
             if count]
    line = f"{result.name}: {result.correct}/{result.n * result.num_samples} in {seconds:.1f} s"
    return line + (f" ({'; '.join(notes)})" if notes else "")


def source_label(task: Task, data: str) -> dict[str, str]:
    """`{"data": "pocket"}` for what the hub has no set for and comes from the pocket world, else nothing."""
    return {"data": "pocket"} if on_hub(data) and not task.published else {}


def metric_name(task: str) -> str:
    """The name in tables and reports: `"spellingbee" -> "spelling_bee"`, `"data/my.jsonl" -> "my"`."""
    shown = {key: alias for alias, key in ALIASES.items()}
    return Path(task).stem if task.endswith(".jsonl") else shown.get(task, task)


def print_table(results: list[EvalResult], core: Sequence[str], title: str) -> None:
    """One row a task; the interval says what a repetition with other problems might have shown."""
    from rich.console import Console
    from rich.table import Table

    several = max((r.num_samples for r in results), default=1)
    columns = ["task", "right", "95% interval", *([f"pass@{several}"] if several > 1 else []), "n", "chance"]
    table = Table(*columns, title=title)
    for r in results:
        low, high = r.ci95
        any_right = [f"{r.pass_at(several):.1%}" if r.num_samples == several else ""] if several > 1 else []
        chance = f"{r.chance:.1%}" if r.chance else ""
        table.add_row(r.name, f"{r.accuracy:.1%}", f"{low:.1%} – {high:.1%}", *any_right, str(r.n), chance)
    console = Console()
    with console.capture() as capture:
        console.print(table)
    print0(capture.get(), end="")  # rank 0 only
    if (value := chatcore(results, core)) is not None:
        print0(f"ChatCORE {value:.4f}: the mean of {', '.join(core)}, with chance at 0")


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
