"""How fast answers are sampled for reinforcement learning: rows that come and go, against batches that end together.

    python bench/rollouts.py                                         # a stand-in of random weights, a few minutes
    NANOCHAT_BASE_DIR=BASE python bench/rollouts.py --source=sft --model_tag=d4       # a checkpoint and its tasks

A round asks `--problems` problems for `--num_samples` answers each, at temperature 1, with the calculator, and grades
them (an answer without <|assistant_end|> has the reward 0). Three ways take turns, in an order that changes:

- ours: all rows in one `engine.begin`; a row that ends makes room for the next one.
- fixed batches, PyTorch: the loop one writes first. `--batch` samples of one problem are computed until the longest has
  ended, with keys and values kept and the prompt computed once a batch; rows that have ended are computed on.
- fixed batches, our kernel: the same loop with the engine's forward pass. So it shows how much of the factor is the
  kernel's, and how much is left for the rows that come and go.

All ways draw with the same numbers (`uniform(seed, index, step)`), so they sample the same tokens, but for those at
which the rounding of another forward pass decides: every row and every reward is compared with ours. Tokens are those
of the answers, sampled and forced, without what is computed behind an end; the seconds begin with the prompts' ids and
end with the rewards.

The stand-in (no --source) is a random model of the pocket's sizes that says <|assistant_end|> louder than the rest. So
answers end, some at once, a few only with the context; a reward is drawn from a checksum of the text: any other text
changes every second one. It does not get as far as calling the calculator; a checkpoint does.

The last line printed is JSON: `rollouts_vs_fixed` is the median over the rounds of the ratio of tokens per second.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import string
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout that is not installed, too

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import check_at_least, compute_init, print0, resolve_dtype
from nanochat.engine import Engine, RowState, Specials
from nanochat.gpt import GPT, config_for_depth
from nanochat.kv_cache import KVCache
from nanochat.sampling import Sampling, sample_next_token, stream_seed, uniform
from nanochat.task_eval import completion_parts, crop, plain_text
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer
from tasks.catalog import make_task
from tasks.common import Conversation, Task

VOCAB, CONTEXT = 1024, 256  # the pocket's
OURS, PLAIN, KERNEL = WAYS = ("ours", "fixed batches, PyTorch", "fixed batches, our kernel")


@dataclass
class Config:
    """Compare ways to sample answers for reinforcement learning."""

    source: str = ""
    """Which stage's model: base, mid, sft or rl (empty: a stand-in of random weights)."""
    model_tag: str = ""
    """Which model of that stage, e.g. d4 (empty: the largest)."""
    tasks: list[str] = field(default_factory=lambda: ["gsm8k", "spellingbee"])
    """What a checkpoint is asked: training rows of these, in turns."""
    data: str = "pocket"
    """Where they come from."""
    depth: int = 4
    """Depth of the stand-in (width 64 × depth)."""
    problems: int = 32
    """Problems a round, others in each."""
    num_samples: int = 16
    """Answers to each."""
    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    batch: int = 8
    """Rows of a fixed batch."""
    max_rows: int = 128
    """Rows that the engine decodes together."""
    rounds: int = 5
    """Rounds; figures are their medians."""
    dtype: str = "float32"
    """Compute dtype."""
    device_type: str = "cpu"
    """cpu or cuda."""


# --------------------------------------------------------------------------- what is asked


@dataclass
class Problem:
    task: Task
    conversation: Conversation
    ids: list[int]  # up to <|assistant_start|>
    seed: int


class Lottery(Task):
    """The stand-in's task: some numbers, and a reward that no other text is sure to have."""

    eval_type = "generative"

    def num_examples(self) -> int:
        return 1_000_000

    def get_example(self, index: int) -> Conversation:
        r = random.Random(f"lottery/{index}")
        numbers = " ".join(str(r.randrange(1000)) for _ in range(r.randint(5, 25)))
        return {"messages": [{"role": "user", "content": numbers}, {"role": "assistant", "content": "?"}]}

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return zlib.crc32(completion.encode()) % 2 == 0


def stand_in(depth: int, device: torch.device) -> tuple[GPT, RustBPETokenizer]:
    """A random model that ends its answers, and a tokenizer of the bytes and of pairs of characters."""
    pairs = map("".join, itertools.product(string.ascii_lowercase + string.digits, repeat=2))
    texts = [*(bytes([b]) for b in range(256)), *(pair.encode() for pair in pairs)][: VOCAB - len(SPECIAL_TOKENS)]
    specials = {name: len(texts) + i for i, name in enumerate(SPECIAL_TOKENS)}
    tokenizer = RustBPETokenizer({text: i for i, text in enumerate(texts)}, SPLIT_PATTERN, specials)
    model = GPT(config_for_depth(depth, vocab_size=VOCAB, sequence_len=CONTEXT, aspect_ratio=64, head_dim=64))
    model.init_weights(0)
    generator, s = torch.Generator().manual_seed(0), Specials.of(tokenizer)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, p.size(-1) ** -0.5, generator=generator)
        # a row of the head four times as long: a logit with four times the deviation, sometimes far above all others
        model.lm_head.weight[s.assistant_end] *= 4
        model.lm_head.weight[s.bos] = 0
    return model.to(device).eval().requires_grad_(False), tokenizer


def make_problems(config: Config, tasks: Sequence[Task], engine: Engine, round_: int) -> list[Problem]:
    """The problems of a round: the tasks take turns; no round asks what another one did while there are others."""
    context, problems = engine.model.config.sequence_len, []
    room = context - min(config.max_new_tokens, context // 4)
    for i in range(round_ * config.problems, (round_ + 1) * config.problems):
        task, index = tasks[i % len(tasks)], i // len(tasks)
        conversation = task[index % len(task)]
        ids = crop(engine.tokenizer.render_for_completion(conversation), room)
        problems.append(Problem(task, conversation, ids, stream_seed(round_, i)))
    return problems


# --------------------------------------------------------------------------- the ways


class PlainForward:
    """The model as it is, called like the engine's forward passes, for rows that are equally long."""

    def __init__(self, model: GPT):
        self.model = model

    def new_cache(self, rows: int, positions: int) -> KVCache:
        c = self.model.config
        return KVCache(rows, c.n_kv_head, positions, c.head_dim, c.n_layer, self.model.compute_dtype,
                       self.model.get_device())

    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        tokens = torch.tensor(ids, device=self.model.get_device())  # (B, T)
        last = torch.full((tokens.size(0),), tokens.size(1) - 1, device=tokens.device)
        return self.model(tokens, kv_cache=cache, at=last)[:, 0]  # (B, V)


def rows_of(config: Config, engine: Engine, problem: Problem) -> list[RowState]:
    return engine.make_rows([problem.ids], config.num_samples, config.max_new_tokens, Sampling(1.0), problem.seed)


def continuous(engine: Engine, rows: list[RowState], max_rows: int) -> int:
    """Complete the rows by the engine; returns how often a row was computed a step further."""
    generation, row_steps = engine.begin(rows, max_rows), 0
    while events := generation.step():
        row_steps += len(events)
    return row_steps


@torch.inference_mode()
def fixed_batch(forward: Any, rows: list[RowState], tokenizer: Any) -> int:
    """Complete samples of one prompt together until the longest has ended; returns rows times steps."""
    prompt, specials = rows[0].prompt, Specials.of(tokenizer)
    cache = forward.new_cache(len(rows), len(prompt) + max(row.limit for row in rows))
    cache.keep([0])
    logits = forward([prompt], cache).expand(len(rows), -1)  # (B, V)
    prefix = cache.read_row(0)
    cache.add_rows(len(rows) - 1)
    for i in range(1, len(rows)):
        cache.write_row(i, prefix)
    for step in itertools.count():
        tokens = sample_next_token(logits, [uniform(row.seed, row.index, step) for row in rows]).tolist()
        for i, row in enumerate(rows):
            if row.finish is None:
                tokens[i], _ = row.push(tokens[i], tokenizer, specials)  # the tool may overrule it
        if all(row.finish is not None for row in rows):
            return len(rows) * (step + 1)
        logits = forward([[token] for token in tokens], cache)


@dataclass
class Rollouts:
    """What one way did with the problems of a round."""

    rows: list[RowState]
    rewards: list[bool]
    row_steps: int
    wall: float
    cpu: float
    grading: float  # seconds of `wall`

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


def rollouts(config: Config, engine: Engine, problems: list[Problem], way: str) -> Rollouts:
    """Sample and grade all answers, timed."""
    wall, cpu = time.perf_counter(), time.process_time()
    groups = [rows_of(config, engine, problem) for problem in problems]
    rows = [row for group in groups for row in group]
    if way == OURS:
        row_steps = continuous(engine, rows, config.max_rows)
    else:
        forward = PlainForward(engine.model) if way == PLAIN else engine.forward
        row_steps = sum(fixed_batch(forward, group[i : i + config.batch], engine.tokenizer)
                        for group in groups for i in range(0, len(group), config.batch))
    grading = time.perf_counter()
    rewards = [row.finish == "stop" and problem.task.evaluate(
        problem.conversation, plain_text(completion_parts(engine.tokenizer, row.ids)))
        for problem, group in zip(problems, groups, strict=True) for row in group]
    end = time.perf_counter()
    return Rollouts(rows, rewards, row_steps, end - wall, time.process_time() - cpu, end - grading)


# --------------------------------------------------------------------------- figures


def measure(config: Config, engine: Engine, tasks: Sequence[Task]) -> list[dict[str, Rollouts]]:
    """For each round what each way did."""
    for way in WAYS:  # memory, threads
        rollouts(config, engine, make_problems(config, tasks, engine, config.rounds)[:2], way)
    rounds = []
    for r in range(config.rounds):
        problems = make_problems(config, tasks, engine, r)
        done = {way: rollouts(config, engine, problems, way) for way in WAYS[r % 3 :] + WAYS[: r % 3]}
        rounds.append(done)
        print0(f"round {r + 1} of {config.rounds}: "
               + ", ".join(f"{way} {done[way].tokens / done[way].wall:,.0f} tokens/s" for way in WAYS))
    return rounds


def of_way(ours: list[Rollouts], own: list[Rollouts]) -> dict[str, Any]:
    """One way's figures over all rounds: medians where they are times, else sums. `ours` is what it must agree with."""
    def differ(what: Callable[[Rollouts], list[Any]]) -> int:
        return sum(x != y for a, b in zip(ours, own) for x, y in zip(what(a), what(b), strict=True))

    tokens, row_steps = sum(x.tokens for x in own), sum(x.row_steps for x in own)
    return {
        "tokens_per_s": statistics.median(x.tokens / x.wall for x in own),
        **{f"{name}_s": statistics.median(getattr(x, name) for x in own) for name in ("wall", "cpu", "grading")},
        "rows_that_differ": differ(lambda x: [row.ids for row in x.rows]),
        "rewards_that_differ": differ(lambda x: x.rewards),
        "tokens": tokens, "row_steps": row_steps, "wasted": 1 - tokens / row_steps,
    }


def summary(rounds: list[dict[str, Rollouts]]) -> dict[str, Any]:
    """The figures of all ways and rounds."""
    ways = {way: of_way([done[OURS] for done in rounds], [done[way] for done in rounds]) for way in WAYS}

    def factor(way: str, of: Callable[[Rollouts], float]) -> list[float]:
        return [(done[OURS].tokens / of(done[OURS])) / (done[way].tokens / of(done[way])) for done in rounds]

    rows = [row for done in rounds for row in done[OURS].rows]
    lengths = sorted(len(row.ids) for row in rows)
    ratios = factor(PLAIN, lambda x: x.wall)
    return {
        "rollouts_vs_fixed": statistics.median(ratios),
        "rollouts_vs_fixed_cpu": statistics.median(factor(PLAIN, lambda x: x.cpu)),
        "rollouts_vs_fixed_same_kernel": statistics.median(factor(KERNEL, lambda x: x.wall)),
        "rows": len(rows), "rows_that_differ": max(w["rows_that_differ"] for w in ways.values()),
        "rewards_that_differ": max(w["rewards_that_differ"] for w in ways.values()),
        "ratios": ratios, "ways": ways,
        "lengths": {"mean": statistics.mean(lengths), "median": statistics.median(lengths),
                    "p95": lengths[int(0.95 * (len(lengths) - 1))], "max": lengths[-1]},
        "prompt_tokens_mean": statistics.mean(len(row.prompt) for row in rows),
        "ended": sum(row.finish == "stop" for row in rows) / len(rows),
        "forced_tokens": sum(row.mask.count(0) for row in rows),
        "reward_mean": statistics.mean(float(x) for done in rounds for x in done[OURS].rewards),
    }


def table(figures: dict[str, Any], title: str) -> Table:
    lengths = figures["lengths"]
    view = Table(title=title, caption=(
        f"{figures['rows']:,} answers of {lengths['mean']:.0f} tokens (median {lengths['median']:.0f}, 95% "
        f"{lengths['p95']}, max {lengths['max']}), {figures['ended']:.0%} ended, {figures['forced_tokens']:,} tokens "
        f"forced, reward {figures['reward_mean']:.2f}. Wasted: computed for rows that had ended."))
    for heading in ("", "tokens/s", "wall s", "CPU s", "grading s", "wasted", "rows that differ", "rewards", "ours is"):
        view.add_column(heading, justify="right" if heading else "left")
    factors = {PLAIN: "rollouts_vs_fixed", KERNEL: "rollouts_vs_fixed_same_kernel"}
    for way, w in figures["ways"].items():
        view.add_row(way, f"{w['tokens_per_s']:,.0f}", f"{w['wall_s']:.2f}", f"{w['cpu_s']:.2f}",
                     f"{w['grading_s']:.2f}", f"{w['wasted']:.0%}", str(w["rows_that_differ"]),
                     str(w["rewards_that_differ"]), f"{figures[factors[way]]:.2f} x" if way in factors else "")
    return view


def main(config: Config) -> None:
    check_at_least(1, problems=config.problems, num_samples=config.num_samples, max_new_tokens=config.max_new_tokens,
                   batch=config.batch, max_rows=config.max_rows, rounds=config.rounds, depth=config.depth)
    device = compute_init(config.device_type)[-1]
    dtype = resolve_dtype(config.dtype, device.type)
    if config.source:
        model, tokenizer, meta = load_model(config.source, device, "eval", config.model_tag, dtype=dtype)
        tasks = [make_task(name, config.data, "train") for name in config.tasks]
        label = f"{config.source} {meta['parent']['model_tag']}, {', '.join(config.tasks)}"
    else:
        model, tokenizer = stand_in(config.depth, device)
        model.compute_dtype, tasks = dtype, [Lottery()]
        label = f"stand-in of random weights, depth {config.depth}"
    figures = summary(measure(config, Engine(model, tokenizer), tasks))
    Console(width=120).print(table(figures, label))
    print0(json.dumps(figures | {
        "model": label, "problems": config.problems, "num_samples": config.num_samples, "batch": config.batch,
        "max_new_tokens": config.max_new_tokens, "max_rows": config.max_rows, "rounds": config.rounds,
        "threads": torch.get_num_threads(), "device": str(device), "dtype": str(dtype).removeprefix("torch.")}))


if __name__ == "__main__":
    configurator.main(main, Config)
