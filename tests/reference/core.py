"""CORE as one reads it in DCLM's rules (llm-foundry's in-context tasks): a prompt at a time, softmax in float64. Slow.

What nanochat/core_eval.py does with shared beginnings, batches and caches must come to the same. From it comes nothing.
"""

from __future__ import annotations

import random

import torch

TIE = 1e-5  # nats a token: choices that are so close are equal, and the first of equals is taken


def halves(task, row) -> list[tuple[str, str]]:
    """What stands before the delimiter and what after it, of each choice of a row."""
    if task.kind == "multiple_choice":
        return [(row["query"].strip(), choice.strip()) for choice in row["choices"]]
    if task.kind == "schema":
        return [(context.strip(), row["continuation"].strip()) for context in row["context_options"]]
    return [(row["context"].strip(), row["continuation"].strip())]


def texts(task, index: int) -> list[tuple[str, str]]:
    """(the text up to what is scored, the whole text) of each choice; blanks before the answer belong to the answer."""
    others = [row for i, row in enumerate(task.rows) if i != index]
    shots = random.Random(1234 + index).sample(others, min(task.num_fewshot, len(others)))
    lines = [task.delimiter.join(halves(task, row)[row.get("gold", 0)]) for row in shots]
    wholes = ["\n".join([*lines, asked + task.delimiter + answer]) for asked, answer in halves(task, task.rows[index])]
    befores = ["\n".join([*lines, asked + task.delimiter.rstrip()]) for asked, _ in halves(task, task.rows[index])]
    return list(zip(befores, wholes))


def prompts(task, index: int, tokenizer, sequence_len: int) -> tuple[list[tuple[list[int], int]], bool]:
    """(ids, where in them the answer begins) of each choice, and whether any had to be cut."""
    bos = tokenizer.get_bos_token_id()
    made = []
    for before, whole in texts(task, index):
        given, ids = [bos, *tokenizer.encode(before)], [bos, *(tokenizer.encode(whole) or [bos])]  # "": it ends at once
        start = 0
        while start < min(len(given), len(ids)) and given[start] == ids[start]:
            start += 1
        made.append((ids, max(1, min(start, len(ids) - 1))))  # at least the last token is scored, <|bos|> never
    too_many = max(len(ids) for ids, _ in made) - (sequence_len + 1)  # the last token is predicted, not read
    for _ in range(too_many):  # the oldest token of every choice goes, <|bos|> stays, the answer stays
        made = [(ids[:1] + ids[2:], start - 1) if start > 1 else (ids, start) for ids, start in made]
    made = [(ids[:1] + ids[-sequence_len:], 1) if len(ids) > sequence_len + 1 else (ids, start) for ids, start in made]
    return made, too_many > 0


@torch.inference_mode()
def scores(model, task, index: int, tokenizer, sequence_len: int) -> list[tuple[float, int, bool]]:
    """(nats, tokens, whether each was the likeliest) of the answer, for each choice. model: ids (1, T) -> (1, T, V)."""
    found = []
    for ids, start in prompts(task, index, tokenizer, sequence_len)[0]:
        nats, greedy = 0.0, True
        probabilities = model(torch.tensor([ids[:-1]]))[0].double().softmax(-1)
        for t in range(start, len(ids)):
            nats -= float(probabilities[t - 1, ids[t]].log())
            greedy = greedy and int(probabilities[t - 1].argmax()) == ids[t]
        found.append((nats, len(ids) - start, greedy))
    return found


def choose(found: list[tuple[float, int, bool]]) -> int:
    """The lowest mean loss per token."""
    means = [nats / tokens for nats, tokens, _ in found]
    return next(i for i, mean in enumerate(means) if mean <= min(means) + TIE)


def is_right(model, task, index: int, tokenizer, sequence_len: int) -> bool:
    found = scores(model, task, index, tokenizer, sequence_len)
    return found[0][2] if task.kind == "language_modeling" else choose(found) == task.rows[index]["gold"]


def centred(accuracy: float, baseline: float) -> float:
    """`accuracy=1 -> 1`, `accuracy=baseline -> 0`."""
    return (accuracy - baseline) / (1.0 - baseline)
