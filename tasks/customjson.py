"""CustomJSON: your own conversations, one JSON line each; with accepted answers they can also be graded.

Rows (a bare list of messages will do; "answer" lists accepted answers, any one of them counts):
    {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am nanochat."}],
     "answer": ["nanochat"]}
    [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]

Check a file: `python -m tasks.catalog my.jsonl`.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from tasks.common import Conversation, Task, check_conversation
from tasks.rows import BadRow, load_jsonl

# a number with its sign (a minus right after a word or digit is a dash: "3-5"), commas and decimals; or a word
TOKEN = re.compile(r"(?<!\w)-(?=\.?\d)|\d[\d,]*(?:\.\d+)?|\.\d+|\w+")


class CustomJSON(Task):
    """`CustomJSON("my.jsonl")`, in the order of the file. Every line is checked when it is loaded."""

    eval_type = "generative"

    def __init__(self, filepath: str | Path, **slicing: Any) -> None:
        super().__init__(**slicing)
        self.filepath = Path(filepath)
        rows = load_jsonl(self.filepath, lambda row: _check(_conversation(row)))
        self.rows, self.content = [_conversation(row) for row in rows], rows.fingerprint

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return self.rows[index]

    def name_of(self, index: int) -> str:
        return f"{self.filepath} row {index + 1}"

    def parts(self) -> list[tuple[str, str]]:
        return [(self.filepath.name, self.fingerprint())]  # not the folder: a file may be moved

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether an accepted answer stands in the completion as whole words, case and punctuation aside."""
        if "answer" not in conversation:
            raise UserError(f'{self.filepath} has rows without "answer": add the accepted answers, or only train on it')
        return any(contains_words(completion, answer) for answer in conversation["answer"])


class LessonsJSON(CustomJSON):
    """Conversations only to train on: what they teach another task grades (functions to complete: HumanEval)."""

    eval_type = None
    evaluate = Task.evaluate


def words(text: str) -> list[str]:
    """Words and numbers in one plain form.

    `"It's 1,200.50 DM!" -> ["it", "s", "1200.5", "dm"]`, `"-7" -> ["-", "7"]`, `"3-5" -> ["3", "5"]`.
    """
    return [_plain_number(t) for t in TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())]


def contains_words(text: str, wanted: str) -> bool:
    """Whether the words of `wanted` occur in `text`, in a row. `("at Fern Lane 12", "fern lane") -> True`, 1 in 12: no.

    A number without a sign is not found in its negative: `("it is -7", "7") -> False`.
    """
    have, want = words(text), words(wanted)
    if not want:
        return False
    number = want[0][0].isdigit()
    starts = (i for i in range(len(have) - len(want) + 1) if not (number and i > 0 and have[i - 1] == "-"))
    return any(have[i : i + len(want)] == want for i in starts)


def _plain_number(token: str) -> str:
    if not (token[0].isdigit() or token[0] == "."):
        return token
    token = token.replace(",", "")
    token = token.rstrip("0").rstrip(".") if "." in token else token
    return "0" + token if token.startswith(".") else token or "0"


def _conversation(row: Any) -> Any:
    """The two spellings of a row as one; a lone answer string as a list. What is neither is left for the check."""
    if isinstance(row, list):
        return {"messages": row}
    if isinstance(row, dict) and isinstance(row.get("answer"), str):
        return {**row, "answer": [row["answer"]]}
    return row


def _check(row: Any) -> None:
    check_conversation(row)
    if "answer" in row:
        answers = row["answer"]
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and words(a) for a in answers):
            raise BadRow('"answer" must be a non-empty list of strings with at least one word or number each')
