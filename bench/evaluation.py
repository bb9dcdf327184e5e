"""How much faster CORE is with shared prefixes and batches than one prompt at a time, and whether it says the same.

    NANOCHAT_TEST_DATA=DATA python bench/evaluation.py               # the 22 tasks in DATA/core
    python bench/evaluation.py --examples=20 --depth=2               # the pocket bundle, in a minute

One at a time is the obvious way, and nanochat's: an example's prompts through the model, one after the other, all
logits, `evaluate_example`. The other is `evaluate_task`. Both begin with the texts and end with predictions. The model
has random weights, which costs the same as trained ones; its tokenizer is trained on the bundle. The examples of each
task are cut into as many parts as there are rounds; in a round each way works off the same part of every task, and who
goes first alternates. So all examples are scored both ways, and every prediction is compared.

The last line printed is JSON: `core_vs_one_at_a_time` is the median over the rounds of the ratio of wall seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout that is not installed, too

from nanochat import configurator
from nanochat.common import check_at_least, compute_init, print0, resolve_dtype
from nanochat.core_eval import (
    RENDER,
    Question,
    make_questions,
    predict,
    render_prompts,
    score,
    score_plainly,
)
from nanochat.gpt import GPT, config_for_depth
from nanochat.task_eval import spread
from nanochat.tokenizer import pick_tokenizer_class
from tasks.core_bundle import CoreTask, load_bundle

WAYS = ("shared and batched", "one at a time")


@dataclass
class Config:
    """Compare two ways to score CORE."""

    core: str = ""
    """A bundle (default: core/ in $NANOCHAT_TEST_DATA, else the pocket bundle)."""
    examples: int = 500
    """Examples of each task at most, evenly spaced."""
    rounds: int = 5
    """Parts that they are cut into."""
    depth: int = 4
    """Depth of the model (width 64 × depth)."""
    vocab_size: int = 8192
    """Tokens of its vocabulary."""
    max_seq_len: int = 2048
    """Its context."""
    batch_tokens: int = 0
    """Positions computed together (0: what suits the device)."""
    dtype: str = "auto"
    """Compute dtype."""
    device_type: str = ""
    """cpu, cuda or mps (default: the best there is)."""


def texts(tasks: list[CoreTask]) -> Iterator[str]:
    """Some of the bundle's own, for the tokenizer."""
    for task in tasks:
        for row in task.rows[:2000]:
            for prompt in RENDER[task.kind](row, task.delimiter):
                yield prompt.context + prompt.continuation


def make_model(config: Config, tasks: list[CoreTask]) -> tuple[GPT, Any]:
    device = compute_init(config.device_type)[-1]
    tokenizer = pick_tokenizer_class().train_from_iterator(texts(tasks), config.vocab_size)
    with torch.device("meta"):
        model = GPT(config_for_depth(config.depth, vocab_size=tokenizer.get_vocab_size(), head_dim=64, aspect_ratio=64,
                                     sequence_len=config.max_seq_len))
    model.to_empty(device=device)
    model.init_weights(0)
    with torch.no_grad():
        for p in model.parameters():  # what begins at zero too: else all choices would tie
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(device) * 0.02)
    model.compute_dtype = resolve_dtype(config.dtype, device.type)
    return model.eval(), tokenizer


@dataclass
class Timed:
    wall: float
    cpu: float
    predictions: list[int]  # which choice; of a text to be gone on with, whether every token was the likeliest
    nats: list[float]


def timed(model: GPT, tokenizer: Any, task: CoreTask, asked: list[int],
          way: Callable[[list[Question]], list[list[Any]]]) -> Timed:
    """Ask these rows of a task, from the texts to the predictions."""
    wall, cpu = time.perf_counter(), time.process_time()
    questions = make_questions([render_prompts(task, i) for i in asked], tokenizer, model.config.sequence_len)
    scores = way(questions)
    predictions = [found[0].greedy if task.kind == "language_modeling" else predict(found) for found in scores]
    if model.get_device().type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Timed(wall, cpu, predictions, [s.nats for q in scores for s in q])


def measure(config: Config, model: GPT, tokenizer: Any, tasks: list[CoreTask]) -> dict[str, Any]:
    ways = {WAYS[0]: lambda questions: score(model, questions, config.batch_tokens),
            WAYS[1]: lambda questions: [score_plainly(model, q) for q in questions]}
    for way in ways.values():  # memory, threads
        timed(model, tokenizer, tasks[0], [0, 1], way)
    asked = {task.label: spread(len(task.rows), config.examples) for task in tasks}
    sums = [{way: [0.0, 0.0] for way in WAYS} for _ in range(config.rounds)]
    by_task = {task.label: dict.fromkeys(WAYS, 0.0) for task in tasks}
    mismatches, apart = 0, 0.0
    for r in range(config.rounds):
        for task in tasks:
            part, found = asked[task.label][r :: config.rounds], {}
            for way in WAYS[:: 1 - 2 * (r % 2)]:
                found[way] = timed(model, tokenizer, task, part, ways[way])
                sums[r][way][0] += found[way].wall
                sums[r][way][1] += found[way].cpu
                by_task[task.label][way] += found[way].wall
            a, b = found.values()
            mismatches += sum(x != y for x, y in zip(a.predictions, b.predictions, strict=True))
            apart = max([apart, *(abs(x - y) for x, y in zip(a.nats, b.nats, strict=True))])
        print0(f"round {r + 1} of {config.rounds}: " + ", ".join(f"{w} {sums[r][w][0]:.1f} s" for w in WAYS))
    n = sum(map(len, asked.values()))

    def ratio(i: int) -> float:
        return statistics.median(s[WAYS[1]][i] / s[WAYS[0]][i] for s in sums)

    return {
        "core_vs_one_at_a_time": ratio(0), "core_vs_one_at_a_time_cpu": ratio(1),
        "prediction_mismatches": mismatches, "largest_difference_nats": apart, "examples": n,
        "examples_per_second": {way: n / sum(s[way][0] for s in sums) for way in WAYS},
        "cpu_seconds": {way: sum(s[way][1] for s in sums) for way in WAYS},
        "by_task": {label: t[WAYS[1]] / t[WAYS[0]] for label, t in by_task.items()},
        "ratios": [s[WAYS[1]][0] / s[WAYS[0]][0] for s in sums],
    }


def table(figures: dict[str, Any]) -> Table:
    view = Table(title=f"CORE, {figures['examples']:,} examples", caption="times as fast: the medians of the rounds; "
                 "a task's from the sums over all rounds")
    for heading in ("", "examples/s", "CPU s", "times as fast", "by CPU s"):
        view.add_column(heading, justify="right" if heading else "left")
    for way in WAYS:
        ratios = [f"{figures[key]:.2f}" for key in ("core_vs_one_at_a_time", "core_vs_one_at_a_time_cpu")]
        view.add_row(way, f"{figures['examples_per_second'][way]:.2f}", f"{figures['cpu_seconds'][way]:.0f}",
                     *(ratios if way == WAYS[0] else []), end_section=way == WAYS[1])
    for label, times in figures["by_task"].items():
        view.add_row(label, "", "", f"{times:.1f}")
    return view


def main(config: Config) -> None:
    check_at_least(1, examples=config.examples, rounds=config.rounds, depth=config.depth)
    check_at_least(0, batch_tokens=config.batch_tokens)
    data = os.environ.get("NANOCHAT_TEST_DATA", "")
    core = config.core or (str(Path(data) / "core") if data else "")
    tasks = [replace(task, rows=list(task.rows)) for task in load_bundle("pocket", core)]
    model, tokenizer = make_model(config, tasks)
    figures = measure(config, model, tokenizer, tasks)
    Console(width=100).print(table(figures))
    print0(json.dumps(figures | {
        "bundle": core or "pocket", "depth": config.depth, "vocab_size": tokenizer.get_vocab_size(),
        "max_seq_len": config.max_seq_len, "threads": torch.get_num_threads(), "device": str(model.get_device()),
        "dtype": str(model.compute_dtype).removeprefix("torch."), "rounds": config.rounds}))


if __name__ == "__main__":
    configurator.main(main, Config)
