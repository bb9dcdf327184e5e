"""Bundles and models for trials of CORE: random tasks of all kinds, a bundle on the disk, models that guess or know.

The models stand where one of `transformers` would (`logits_at`, `get_device`, `config.sequence_len`): what asks them
and what is made of their answers is the real thing.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.task_eval import spread
from tasks.core_bundle import CoreTask
from tests.reference import core as reference

KINDS = ("multiple_choice", "schema", "language_modeling")
DELIMITERS = (" ", "\nAnswer: ", "\n", " = ", "")
WORDS = "the quick brown fox 12 goats Ossa river, 42 miles . Tarn Größe 麟 <|bos|> {{a}} a".split()

# --------------------------------------------------------------------------- tasks


def _words(rng: random.Random, least: int, most: int) -> str:
    """Words with blanks around them, which must not matter, or nothing."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(least, most)))
    return rng.choice(["", " ", "\n"]) + text + rng.choice(["", " "])


def random_task(rng: random.Random, kind: str, *, rows: int = 0, least: int = 0) -> CoreTask:
    """Ragged and equal choices, empty texts and delimiters (if `least` is 0: so many words a question has), long ones,
    one row, more shots than rows."""
    asked, answered, some = max(least, rng.choice([2, 6, 25])), rng.choice([1, 3, 20]), min(least, 1)

    def row() -> dict[str, Any]:
        n = rng.randint(2, 5)
        if kind == "language_modeling":
            return {"context": _words(rng, least, asked), "continuation": _words(rng, some, answered)}
        if kind == "schema":
            options = [_words(rng, least, asked) for _ in range(n)]
            return {"context_options": options, "continuation": _words(rng, some, answered), "gold": rng.randrange(n)}
        choices = [_words(rng, some, answered) for _ in range(n)]
        if rng.random() < 0.3 and not least:
            choices[-1] = choices[0]
        return {"query": _words(rng, least, asked), "choices": choices, "gold": rng.randrange(n)}

    delimiter = rng.choice(DELIMITERS[:2] if least else DELIMITERS)
    n_rows = rows or rng.choice([1, 1, 2, 3, 5])
    return CoreTask(f"{kind}_task", kind, rng.choice([0, 1, 2, 10]), delimiter, 0.25, [row() for _ in range(n_rows)])


def write_bundle(folder: Path, tasks: Sequence[CoreTask]) -> Path:
    """The same as a folder that `load_bundle` reads."""
    listed = []
    for task in tasks:
        path = folder / "eval_data" / "kind" / f"{task.label}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in task.rows), encoding="utf-8")
        listed.append({"label": task.label, "dataset_uri": f"kind/{path.name}", "icl_task_type": task.kind,
                       "num_fewshot": task.num_fewshot, "continuation_delimiter": task.delimiter,
                       "random_baseline_pct": 100 * task.baseline})
    (folder / "tasks.json").write_text(json.dumps({"tasks": listed}), encoding="utf-8")
    return folder


def unambiguous(task: CoreTask) -> CoreTask:
    """Without the rows whose question stands there twice: where the answers differ no model can give both."""
    def question(row: dict[str, Any]) -> str:
        return (row.get("query") or row.get("context") or json.dumps(row.get("context_options"))).strip()

    times = Counter(map(question, task.rows))
    return replace(task, rows=[row for row in task.rows if times[question(row)] == 1])


# --------------------------------------------------------------------------- models


class Stub(nn.Module):
    """The last of its `vocab_size` ids is one that no text has."""

    def __init__(self, vocab_size: int, sequence_len: int = 10**6):
        super().__init__()
        self.vocab_size, self.config = vocab_size, SimpleNamespace(sequence_len=sequence_len)

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def logit(self, nats: float) -> float:
        """What an id needs, where all others have 0, to cost so much."""
        return math.log(self.vocab_size - 1) - nats - math.log1p(-math.exp(-nats))


class Guesses(Stub):
    """Each choice is as likely to be taken as any other, whatever its length.

    Random logits would not do: the mean over many tokens strays less than that over few, so that the winner would
    mostly be short. Here the mean loss of every choice is drawn from one distribution, log V + 0.5 to log V + 2.5. The
    last token of a choice is not in the row: there every id costs the same and the tokens before it make up for that;
    where the last is the only one, each id has a draw of its own, and the id that no text has takes what is left.
    """

    def __init__(self, vocab_size: int, seed: int):
        super().__init__(vocab_size)
        self.random = torch.Generator().manual_seed(seed)

    def logits_at(self, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        logits = torch.zeros(len(rows), self.vocab_size)
        begin, free = 0, math.log(self.vocab_size)
        for n in torch.unique_consecutive(rows, return_counts=True)[1].tolist():
            if n == 1:
                draws = 2 * torch.rand(self.vocab_size, generator=self.random, dtype=torch.float64) - 1
                draws[-1] = math.log(self.vocab_size * math.exp(1.5) - float(draws[:-1].exp().sum()))
                logits[begin] = draws.float()  # they sum to V * e^1.5: an id costs log V + 1.5 - its draw
            else:
                mean = free + 0.5 + 2 * float(torch.rand((), generator=self.random))
                at = slice(begin, begin + n - 1)
                shown = ids[rows[at], columns[at] + 1]
                logits[range(begin, begin + n - 1), shown] = self.logit((n * mean - free) / (n - 1))
            begin += n
        return logits


class Knows(Stub):
    """Goes on rightly wherever it is asked one of the known questions, the surer the further; has no idea elsewhere."""

    def __init__(self, vocab_size: int, questions: Iterable[tuple[Sequence[int], int]]):
        super().__init__(vocab_size)
        self.next = {tuple(ids[:t]): (ids[t], 0.5 / (1 + t - start))
                     for ids, start in questions for t in range(start, len(ids))}

    def logits_at(self, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        logits = torch.zeros(len(rows), self.vocab_size)
        listed = ids.tolist()
        for i, (row, column) in enumerate(zip(rows.tolist(), columns.tolist())):
            token, nats = self.next.get(tuple(listed[row][: column + 1]), (None, 0.0))
            if token is not None:
                logits[i, token] = self.logit(nats)
        return logits


def knows(task: CoreTask, tokenizer: Any, max_examples: int = -1) -> Knows:
    """A model that knows the right answers of a task."""
    asked = spread(len(task.rows), max_examples)
    return Knows(tokenizer.get_vocab_size() + 1, (
        reference.prompts(task, i, tokenizer, 10**6)[0][task.rows[i].get("gold", 0)] for i in asked))
