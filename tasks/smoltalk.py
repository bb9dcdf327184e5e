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

from nanochat.common import UserError
from tasks.common import Conversation, Row, Shuffled, Task, check_conversation, hub_rows, load_jsonl, task_dir

TEST_NAMES = ("test", "val", "validation")
TEST_PERCENT = 5


class SmolTalk(Task):
    """`SmolTalk("train")` or `SmolTalk("test")`: conversations to learn from; there is nothing to grade.

    In a folder, files called `*_test.jsonl` or `*_val.jsonl` (or just `test.jsonl`) are the test split. Without any
    such file 5% of the conversations are, chosen by a hash of their content: one that occurs twice is on one side.
    """

    on_hub = True

    def __init__(self, split: str = "train", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        if split not in ("train", "test"):
            raise UserError(f'SmolTalk has no split "{split}": choose train or test')
        if data == "hub":
            self.rows = Shuffled(hub_rows("HuggingFaceTB/smol-smoltalk", f"data/{split}-"))
        else:
            self.rows = Shuffled(_folder_rows(task_dir(data) / "sft", split == "test"))

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}


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
