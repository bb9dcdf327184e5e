"""SmolTalk: general conversations. From the hub smol-smoltalk; from a folder whatever lies in `sft/*.jsonl`.

A row (a system message may come first; several turns are usual):
    {"messages": [{"role": "user", "content": "What is a polygon?"},
                  {"role": "assistant", "content": "A flat shape with straight sides."}]}
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nanochat.common import UserError, print0
from nanochat.dataset import on_hub
from tasks.common import Conversation, Task, check_conversation
from tasks.rows import Row, Rows, Shuffled, fingerprint_of, hub_rows, load_jsonl, task_dir

HUB_REPO = "HuggingFaceTB/smol-smoltalk"
TEST_NAMES = ("test", "val", "validation")
TEST_PERCENT = 5


class SmolTalk(Task):
    """`SmolTalk("train")` or `SmolTalk("test")`: conversations to learn from; there is nothing to grade.

    In a folder, files called `*_test.jsonl` or `*_val.jsonl` (or just `test.jsonl`) are the test split. Without any
    such file 5% of the conversations are, chosen by a hash of their content (one that occurs twice is on one side); of
    a few, where that would leave a side empty, at least one.
    """

    published = True

    def __init__(self, split: str = "train", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        if split not in ("train", "test"):
            raise UserError(f'SmolTalk has no split "{split}": choose train or test')
        if on_hub(data):
            self.rows = _hub_rows(f"data/{split}-")
        else:
            self.rows = Shuffled(_folder_rows(task_dir(data) / "sft", split == "test"))
        self.content = self.rows.fingerprint

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}


def _hub_rows(prefix: str) -> Shuffled:
    """Nobody can mend a file of the hub, and one conversation more or less is no matter: bad ones are left out."""
    rows = hub_rows(HUB_REPO, prefix)
    bad = dict(rows.problems(check_conversation))
    if bad:
        first = next(iter(bad.values()))
        if len(bad) == len(rows):
            raise UserError(f"{first}, and so with every other row: {HUB_REPO} is no set of conversations any more")
        print0(f"note: {len(bad):,} of {len(rows):,} conversations of {HUB_REPO} are left out; the first: {first}")
    return Shuffled(rows, without=bad)


def _folder_rows(folder: Path, test: bool) -> Rows:
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{folder} has no .jsonl files: SmolTalk wants conversations there (or choose another --data)")
    held_out = [path for path in files if path.stem.rsplit("_", 1)[-1] in TEST_NAMES]
    if held_out:
        files = held_out if test else [path for path in files if path not in held_out]
    read = [load_jsonl(path, check_conversation) for path in files]
    rows = [row for one in read for row in one]
    if not held_out:
        hashes = [_hash(row) for row in rows]
        chosen = held_out_hashes(set(hashes))
        rows = [row for row, number in zip(rows, hashes, strict=True) if (number in chosen) == test]
    return Rows(rows, fingerprint_of(test, *(one.fingerprint for one in read)))


def _hash(row: Row) -> int:
    """The same for a conversation, whatever file or line it stands in."""
    text = json.dumps(row["messages"], sort_keys=True, ensure_ascii=False)
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16)


def held_out_hashes(hashes: set[int]) -> set[int]:
    """A fixed 5% of all possible conversations; of two or more, at least one is held out and one is not."""
    test = {number for number in hashes if number % 100 < TEST_PERCENT}
    if not test and len(hashes) > 1:
        return {min(hashes)}
    return test - {max(hashes)} if test == hashes and hashes else test
