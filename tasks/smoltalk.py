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
from tasks.rows import Row, Shuffled, hub_rows, load_jsonl, task_dir

HUB_REPO = "HuggingFaceTB/smol-smoltalk"
TEST_NAMES = ("test", "val", "validation")
TEST_PERCENT = 5


class SmolTalk(Task):
    """`SmolTalk("train")` or `SmolTalk("test")`: conversations to learn from; there is nothing to grade.

    In a folder, files called `*_test.jsonl` or `*_val.jsonl` (or just `test.jsonl`) are the test split. Without any
    such file 5% of the conversations are, chosen by a hash of their content: one that occurs twice is on one side.
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


def _folder_rows(folder: Path, test: bool) -> list[Row]:
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{folder} has no .jsonl files: SmolTalk wants conversations there (or choose another --data)")
    held_out = [path for path in files if path.stem.rsplit("_", 1)[-1] in TEST_NAMES]
    if held_out:
        chosen = held_out if test else [path for path in files if path not in held_out]
        return [row for path in chosen for row in load_jsonl(path, check_conversation)]
    rows = [row for path in files for row in load_jsonl(path, check_conversation)]
    return [row for row in rows if _is_test(row) == test]


def _is_test(row: Row) -> bool:
    """A fixed 5% of all possible conversations, whatever file or line they stand in."""
    text = json.dumps(row["messages"], sort_keys=True, ensure_ascii=False)
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 100 < TEST_PERCENT
