"""Answers to learn from: the policy writes groups of them, a task grades them, and a step's batch comes out.

    batches = Rollouts(engine, task, settings, rows=8)      # endless; `run_training` takes one a step
    batch = next(batches)                                   # written by the weights as they are now

On-policy by construction: nothing is prepared ahead, each batch is sampled when it is asked for, at temperature 1 and
from all tokens, so from the very distribution that the gradient is about. All answers of a step are decoded together
(continuous batching: `engine.py`); the calculator answers as it does in a chat.

The ranks share a step's problems, tell each other what they got, and each trains on an equal share of the rows that all
of them pack alike: whoever drew the flat groups or the long answers, the work is even. An answer depends on weights,
problem and seed only, so any number of ranks trains on the same rows.

`scripts/chat_rl.py` is what one runs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nanochat.common import UserError, print0
from nanochat.dataloader import Batch
from nanochat.engine import Engine, RowState, Sampling
from nanochat.packing import to_inputs_and_targets
from nanochat.ranks import all_or_none, gather_texts, rank_and_world
from nanochat.rl import LONGEST, WATCHED, Group, Sample, collapse, figures, problem_at, training_rows
from nanochat.sampling import stream_seed
from nanochat.task_eval import completion_parts, plain_text, share
from nanochat.watchdog import WAITS, alive
from tasks.common import Conversation, Task

ROLLOUTS = 0x524F4C4C  # the streams of these answers, apart from those of an evaluation by the same seed


@dataclass(frozen=True)
class Settings:
    """What a step's answers depend on, beside the weights."""

    examples_per_step: int
    num_samples: int
    max_new_tokens: int
    seed: int


def answer_seed(seed: int, position: int) -> int:
    """The seed of all answers to the problem at a position of the stream; the number of the answer does the rest
    (`sampling.uniform`). Positions belong to one step of one rank, so no two answers of a run draw alike."""
    return stream_seed(stream_seed(seed, ROLLOUTS), position)


class Rollouts:
    """An iterator of `Batch`: this rank's share of each step.

    `state` is that of the batch after which to go on. `on_collapse`: "stop" raises a UserError that names it, "note"
    prints it once. `seconds` that this process has spent on sampling, and `tokens` of all ranks that came of it.
    """

    def __init__(self, engine: Engine, task: Task, settings: Settings, *, rows: int, rollout_rows: int = 128,
                 deterministic: bool = False, on_collapse: str = "stop", state: dict[str, Any] | None = None):
        self.engine, self.task, self.settings = engine, task, settings
        self.rows, self.rollout_rows, self.deterministic = rows, rollout_rows, deterministic
        self.on_collapse = on_collapse
        self.identity = {"task": task.fingerprint()}
        state = state or {**self.identity, "step": 0, "history": []}
        if (was := state["task"]) != self.identity["task"]:
            raise UserError(f"cannot resume: the problems had the fingerprint {was} and now have "
                            f"{self.identity['task']}: give the run the data that it was started with, or start anew")
        self.step, self.history = state["step"], state["history"]
        self.seconds, self.tokens = 0.0, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._look_for_collapse()
        begun = time.perf_counter()
        groups, own = self.sample(self.step)
        self.seconds += time.perf_counter() - begun
        self.tokens += sum(len(sample.ids) for group in groups for sample in group.samples)
        found = figures(groups)
        self.step += 1
        self.history = [*self.history, {name: found[name] for name in WATCHED}][-LONGEST:]
        rank, world_size = rank_and_world()
        T, device = self.engine.model.config.sequence_len, self.engine.model.get_device()
        ids, counts = training_rows(groups, self.engine.specials.bos, T, rows=self.rows, world_size=world_size,
                                    deterministic=self.deterministic)
        mine = slice(rank * len(ids) // world_size, (rank + 1) * len(ids) // world_size)
        inputs, targets = (torch.from_numpy(a).to(device) for a in to_inputs_and_targets(ids[mine], counts[mine]))
        wide = torch.float32 if device.type == "mps" else torch.float64
        return Batch(inputs, targets, {**self.identity, "step": self.step, "history": self.history},
                     torch.from_numpy(counts[mine, 1:]).to(device, wide), sum(group.sampled for group in own), found)

    def sample(self, step: int) -> tuple[list[Group], list[Group]]:
        """The groups of a step: those of all ranks, in the order of the stream, and this rank's own."""
        rank, world_size = rank_and_world()
        per_step, seed = self.settings.examples_per_step, self.settings.seed
        positions = range(step * per_step, (step + 1) * per_step)
        with all_or_none(f"sampling the answers of step {step}"):
            own = self._answered({p: problem_at(p, len(self.task), seed) for p in share(positions, rank, world_size)})
            alive(f"{WAITS}: their answers of step {step}")
        told = [json.loads(text) for text in gather_texts(json.dumps({p: asdict(g) for p, g in own.items()}))]
        groups = {int(p): group for part in told for p, group in part.items()}
        if not groups:
            raise UserError(f"not one of the {per_step} problems of step {step} leaves room for an answer in the "
                            f"model's context of {self.engine.model.config.sequence_len} tokens: choose another task")
        return [_group(groups[p]) for p in sorted(groups)], list(own.values())

    def _answered(self, problems: dict[int, int]) -> dict[int, Group]:
        """Position -> group, of this rank. A problem too long to be answered in the context has none."""
        s, engine = self.settings, self.engine
        context = engine.model.config.sequence_len
        asked: dict[int, tuple[Task, Conversation, list[RowState]]] = {}
        for position, index in problems.items():
            task, local = self.task.locate(index)
            conversation = task[local]
            prompt = engine.tokenizer.render_for_completion(conversation)
            if context - len(prompt) < min(s.max_new_tokens, context // 4):
                continue
            rows = engine.make_rows([prompt], s.num_samples, s.max_new_tokens, Sampling(),
                                    answer_seed(s.seed, position))
            for row in rows:
                row.entropy = 0.0
            asked[position] = task, conversation, rows
        generation = engine.begin([row for _, _, rows in asked.values() for row in rows], self.rollout_rows)
        while generation.step():
            alive()
        return {position: Group(task.name or type(task).__name__, rows[0].prompt,
                                [graded(engine.tokenizer, task, conversation, row) for row in rows])
                for position, (task, conversation, rows) in asked.items()}

    def _look_for_collapse(self) -> None:
        what = collapse(self.history)
        if what and self.on_collapse == "stop":
            raise UserError(f"step {self.step}: {what}. Stopped; what was saved before is as it was. Begin again with "
                            "a lower --init_lr_frac or easier problems; --resume --collapse=note goes on from the last "
                            "save in spite of it")
        if what and self.on_collapse == "note":
            print0(f"note: step {self.step}: {what}")
            self.on_collapse = ""


def graded(tokenizer: Any, task: Task, conversation: Conversation, row: RowState) -> Sample:
    """A finished row as a sample. An answer that does not end is worth 0: "#### 12" may have been on its way to 123."""
    reward = 0.0
    if row.finish == "stop":
        reward = float(task.reward(conversation, plain_text(completion_parts(tokenizer, row.ids))))
        if not math.isfinite(reward):
            raise UserError(f"{task.name or type(task).__name__} gave an answer the reward {reward}: rewards must be "
                            "finite numbers")
    return Sample(row.ids, row.mask, reward, row.finish == "stop", row.entropy or 0.0)


def _group(plain: dict[str, Any]) -> Group:
    return Group(plain["task"], plain["prompt"], [Sample(**sample) for sample in plain["samples"]])
