"""Pretraining documents among conversations: a model that only chats for a while forgets what it has read.

Not a chat task: a row is plain text, and all of it is learned, as in pretraining. In a mixture: `documents:12000`.
    {"text": "Esmy loves to eat cheese. Lisker is home to Esmy. She has a pet pony."}
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import Any

from nanochat.common import UserError
from nanochat.dataset import corpus, text_iterator
from tasks.common import Task


class Documents(Task):
    """`size` documents of the corpus of `data`, in a fixed shuffled order; "test" is its validation split."""

    def __init__(self, size: int = 1000, split: str = "train", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        if split not in ("train", "test"):
            raise UserError(f'Documents has no split "{split}": choose train or test')
        if size < 1:
            raise UserError(f"Documents wants a size of at least 1, got {size}")
        self.size, self.split, self.corpus = size, "val" if split == "test" else split, corpus(data)

    @cached_property
    def texts(self) -> list[str]:
        """Read when first needed. A corpus with fewer documents gives all it has."""
        return list(islice(text_iterator(self.corpus, self.split), self.size))

    @property
    def content(self) -> str:
        return f"{self.size} {self.split} {self.corpus.fingerprint}"

    def num_examples(self) -> int:
        return len(self.texts)

    def get_example(self, index: int) -> dict[str, str]:
        return {"text": self.texts[index]}
