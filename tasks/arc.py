"""ARC: grade-school science questions, an easy and a challenging set, three to five choices each.

A row of `arc/arc_{easy,challenge}_{train,validation,test}.jsonl` (some are labelled 1 to 4; we always ask by letter):
    {"id": "MCAS_2000_4_6", "question": "Which technology was developed most recently?", "answerKey": "A",
     "choices": {"text": ["cellular telephone", "television", "refrigerator"], "label": ["A", "B", "C"]}}
"""

from __future__ import annotations

import reprlib
from typing import Any

from nanochat.common import UserError
from tasks.common import LETTERS, Conversation, MultipleChoice
from tasks.rows import BadRow, fields, task_rows

FILES = {"ARC-Easy": "arc_easy", "ARC-Challenge": "arc_challenge"}


class ARC(MultipleChoice):
    """`ARC("ARC-Easy", "test")`. The pocket world asks about itself in this schema (there it is called world_mc)."""

    published = True

    def __init__(self, subset: str = "ARC-Easy", split: str = "test", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        split = "validation" if split == "val" else split
        if subset not in FILES or split not in ("train", "validation", "test"):
            choices = f"{' or '.join(FILES)}, and train, validation or test"
            raise UserError(f"ARC has no {subset} {split}: choose {choices}")
        self.rows = task_rows(
            data, f"arc/{FILES[subset]}_{split}.jsonl", _check, hub=("allenai/ai2_arc", f"{subset}/{split}-")
        )
        self.content = self.rows.fingerprint

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        choices = row["choices"]
        return self.conversation(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


def _check(row: Any) -> None:
    fields(question=str, choices=dict, answerKey=str)(row)
    text, label = row["choices"].get("text"), row["choices"].get("label")
    if not (isinstance(text, list) and isinstance(label, list) and len(text) == len(label) and len(text) >= 2):
        raise BadRow('"choices" needs "text" and "label", two lists of the same length, at least 2')
    if len(text) > len(LETTERS) or not all(isinstance(t, str) for t in text):
        raise BadRow(f'"choices" must be 2 to {len(LETTERS)} strings')
    if label.count(row["answerKey"]) != 1:
        key = reprlib.repr(row["answerKey"])
        raise BadRow(f'"answerKey" is {key}, which must be one of the labels, once: {reprlib.repr(label)}')
