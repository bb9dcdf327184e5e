"""Grading a chat model on tasks: it writes an answer (generative) or chooses a letter (categorical).

Everything here returns data with its uncertainty and a few transcripts, and prints nothing.

    result = run_chat_eval("gsm8k", model, tokenizer, engine, max_problems=200)
    result.accuracy, result.n, result.ci95            # 0.41, 200, (0.344, 0.479)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from nanochat.common import UserError
from nanochat.engine import TextStream
from tasks.catalog import make_task
from tasks.common import Conversation, Task

if TYPE_CHECKING:
    from nanochat.engine import Engine
    from nanochat.gpt import GPT

KEEP = 4  # transcripts kept of right answers, and as many of wrong ones
POSITIONS = 8192  # at most so many token positions in one categorical batch: logits are (positions, vocabulary) floats


# --------------------------------------------------------------------------- results


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): within [0, 1] and sensible at 0, at n and for small n.

    `wilson(9, 10) -> (0.596, 0.982)`, `wilson(0, 10) -> (0.0, 0.278)`, and nothing known: `wilson(0, 0) -> (0.0, 1.0)`
    """
    if n == 0:
        return 0.0, 1.0
    p, s = correct / n, z * z / n
    centre = (p + s / 2) / (1 + s)
    half = math.sqrt(p * (1 - p) * s + s * s / 4) / (1 + s)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class EvalResult:
    """What one task's evaluation found. `chance` is what blind choice would reach (0 for written answers)."""

    name: str
    correct: int
    n: int
    chance: float = 0.0
    cropped: int = 0  # prompts that lost their beginning because they did not fit the context
    samples: list[dict[str, Any]] = field(default_factory=list)  # {"user", "expected", "completion", "right"}

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    def add(self, conversation: Conversation, completion: str, right: bool) -> None:
        """Count one answer; keep its transcript while there are few of its kind."""
        self.correct += right
        self.n += 1
        if sum(sample["right"] == right for sample in self.samples) < KEEP:
            expected = conversation.get("answer") or conversation["messages"][-1]["content"]
            self.samples.append({"user": conversation["messages"][-2]["content"], "expected": readable(expected),
                                 "completion": completion, "right": right})

    def metrics(self) -> dict[str, Any]:
        """The entry of this task in a report."""
        return {"accuracy": self.accuracy, "n": self.n, "ci95": list(self.ci95), "chance": self.chance,
                "cropped": self.cropped}


def readable(content: str | list[Any]) -> str:
    """An assistant's content, or a list of accepted answers, on paper.

    `[{"type": "text", "text": "It is "}, {"type": "python", "text": "2*3"}, {"type": "python_output", "text": "6"}]`
    -> `"It is ⟨2*3⟩⟨=6⟩"`
    """
    if isinstance(content, str):
        return content
    if all(isinstance(part, str) for part in content):
        return " | ".join(content)
    form = {"text": "{}", "python": "⟨{}⟩", "python_output": "⟨={}⟩"}
    return "".join(form[part["type"]].format(part["text"]) for part in content)


# --------------------------------------------------------------------------- what to ask


def spread(n: int, max_problems: int) -> list[int]:
    """Which of n problems to ask: all when `max_problems` is below 1 or reaches n, else evenly spaced ones.

    `spread(10, 4) -> [0, 2, 5, 7]`. The same in every run, each at most once, and no file order can bias it.
    """
    m = n if max_problems < 1 else min(n, max_problems)
    return [i * n // m for i in range(m)]


def crop(ids: list[int], room: int) -> list[int]:
    """The first token (<|bos|>) and the last ones, `room` in all: the question stands at the end of a prompt.

    `crop([0, 1, 2, 3, 4], 3) -> [0, 3, 4]`
    """
    return ids if len(ids) <= room else ids[:1] + ids[len(ids) - room + 1 :]


# --------------------------------------------------------------------------- evaluations


def run_generative_eval(
    task: Task,
    tokenizer: Any,
    engine: Engine,
    *,
    max_problems: int = -1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    num_samples: int = 1,
    seed: int = 42,
    batch_size: int = 32,
    name: str = "",
) -> EvalResult:
    """Let the model answer in its own words; the task grades the text outside of tool calls.

    With `num_samples` above 1 a problem counts as solved when any of its samples is right (pass@k). Rows that finish
    make room for the next problem: `batch_size` is how many are written at once.
    """
    context = engine.model.config.sequence_len
    room = context - min(max_new_tokens, context // 4)  # a prompt keeps three quarters; answers end with the context
    result = EvalResult(name or type(task).__name__, 0, 0)
    conversations = [task[i] for i in spread(len(task), max_problems)]
    if not conversations:
        return result
    prompts = [tokenizer.render_for_completion(conversation) for conversation in conversations]
    result.cropped = sum(len(ids) > room for ids in prompts)
    completions, _ = engine.generate_batch(
        [crop(ids, room) for ids in prompts], num_samples=num_samples, max_tokens=max_new_tokens,
        temperature=temperature, top_k=top_k, seed=seed, max_rows=batch_size,
    )
    for i, conversation in enumerate(conversations):
        answers = [completion_parts(tokenizer, ids) for ids in completions[i * num_samples : (i + 1) * num_samples]]
        grades = [bool(task.evaluate(conversation, plain_text(parts))) for parts in answers]
        shown = answers[grades.index(True)] if any(grades) else answers[0]
        result.add(conversation, readable(shown), any(grades))
    return result


def completion_parts(tokenizer: Any, ids: Sequence[int]) -> list[dict[str, str]]:
    """Generated ids as the parts of an assistant message: text, python, python_output."""
    stream = TextStream(tokenizer)
    for token in ids:
        stream.feed(token)
    stream.flush()
    return stream.parts


def plain_text(parts: Sequence[dict[str, str]]) -> str:
    """The ordinary text of a message: what a person reads as the answer, tool calls and their output left out."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


@torch.inference_mode()
def run_categorical_eval(
    task: Task,
    tokenizer: Any,
    model: GPT,
    *,
    max_problems: int = -1,
    batch_size: int = 32,
    name: str = "",
) -> EvalResult:
    """Let the model choose: of the letters on offer, the one with the highest logit right after the prompt.

    Nothing is generated, so a model that does not yet know the form of an answer can show what it knows. Prompts of
    like length share a batch, padded on the right, where causal attention never looks.
    """
    result = EvalResult(name or type(task).__name__, 0, 0)
    conversations = [task[i] for i in spread(len(task), max_problems)]
    prompts = [tokenizer.render_for_completion(conversation) for conversation in conversations]
    context, bos = model.config.sequence_len, tokenizer.get_bos_token_id()
    result.cropped = sum(len(ids) > context for ids in prompts)
    prompts = [crop(ids, context) for ids in prompts]
    chosen: dict[int, str] = {}
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    while waiting:
        longest = len(prompts[waiting[-1]])
        count = max(1, min(batch_size, POSITIONS // longest))
        batch = [waiting.pop() for _ in range(min(count, len(waiting)))]
        rows = [prompts[i] + [bos] * (longest - len(prompts[i])) for i in batch]
        logits = model(torch.tensor(rows, dtype=torch.long, device=model.get_device()))  # (B, T, V)
        for row, i in enumerate(batch):
            letters = conversations[i]["letters"]
            # one letter is always one token: every byte is in the vocabulary
            scores = logits[row, len(prompts[i]) - 1, [tokenizer.encode(letter)[0] for letter in letters]]
            chosen[i] = letters[int(scores.argmax())]
    for i, conversation in enumerate(conversations):
        result.add(conversation, chosen[i], bool(task.evaluate(conversation, chosen[i])))
    result.chance = sum(1 / len(c["letters"]) for c in conversations) / max(1, len(conversations))
    return result


def run_chat_eval(
    task: str | Task,
    model: GPT,
    tokenizer: Any,
    engine: Engine,
    *,
    data: str = "pocket",
    split: str = "test",
    max_problems: int = -1,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    num_samples: int = 1,
    seed: int = 42,
    name: str = "",
) -> EvalResult:
    """Evaluate one task, by name or ready made, in the way that suits it."""
    if isinstance(task, str):
        name, task = name or task, make_task(task, data, split)
    common = {"max_problems": max_problems, "batch_size": batch_size, "name": name}
    if task.eval_type == "categorical":
        return run_categorical_eval(task, tokenizer, model, **common)
    if task.eval_type == "generative":
        return run_generative_eval(task, tokenizer, engine, max_new_tokens=max_new_tokens, temperature=temperature,
                                   top_k=top_k, num_samples=num_samples, seed=seed, **common)
    raise UserError(f"{name or type(task).__name__} has no right answers to grade: use it for training only")
