"""MMLU: multiple choice over 57 school and university subjects.

A row of `mmlu/{auxiliary_train,dev,val,test}.jsonl`; `answer` is the index of the right choice:
    {"subject": "astronomy", "question": "Which is a gas giant?", "choices": ["Mars", "Saturn", "Io"], "answer": 1}
"""

from __future__ import annotations

from typing import Any

from nanochat.common import UserError
from tasks.common import LETTERS, Conversation, MultipleChoice
from tasks.rows import BadRow, fields, task_rows

SPLITS = {"auxiliary_train": "auxiliary_train", "dev": "dev", "val": "validation", "test": "test"}  # ours -> the hub's


class MMLU(MultipleChoice):
    """`MMLU("all", "test")`; for training `MMLU("auxiliary_train", "train")` (the seed's way to ask for that split)."""

    published = True

    def __init__(self, subset: str = "all", split: str = "test", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        if subset not in ("all", "auxiliary_train"):
            raise UserError(f'MMLU has no subset "{subset}": choose all or auxiliary_train')
        if subset == "auxiliary_train" or split == "train":
            split = "auxiliary_train"
        split = "val" if split == "validation" else split
        if split not in SPLITS:
            raise UserError(f'MMLU has no split "{split}": choose one of {", ".join(SPLITS)}')
        self.rows = task_rows(data, f"mmlu/{split}.jsonl", _check, hub=("cais/mmlu", f"all/{SPLITS[split]}-"))
        self.content = self.rows.fingerprint

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        return {**self.conversation(row["question"], row["choices"], row["answer"]), "subject": row.get("subject", "")}


def _check(row: Any) -> None:
    fields(question=str, choices=list, answer=int)(row)
    if not 2 <= len(row["choices"]) <= len(LETTERS) or not all(isinstance(c, str) for c in row["choices"]):
        raise BadRow(f'"choices" must be 2 to {len(LETTERS)} strings')
    if not 0 <= row["answer"] < len(row["choices"]):
        raise BadRow(f'"answer" is {row["answer"]}, but there are {len(row["choices"])} choices, counted from 0')
