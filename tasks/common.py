"""What all tasks share: slicing, mixing, the multiple-choice prompt, and where task data comes from.

A task is a list of conversations that can also grade an answer. Training mixes tasks (`TaskMixture`), evaluation asks
one at a time (`nanochat/task_eval.py`). Data comes from one setting, `data`: "pocket" (generated here), a folder of
one's own in the same layout, or "hub" (the published sets through huggingface_hub).

A row, as every task hands it out:
    {"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"}]}

Look at one: `python -m tasks.catalog gsm8k`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from nanochat.dataset import data_dir

Row = dict[str, Any]
Conversation = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


class BadRow(ValueError):
    """A row of a task file that cannot be used, and why; `load_jsonl` adds the file and the line."""


# --------------------------------------------------------------------------- tasks


class Task:
    """A sequence of conversations with a grader. `start`, `stop`, `step` slice it as they slice a list.

    Ten examples, `start=2, stop=99, step=3` -> examples 2, 5, 8: a stop past the end is the end, as for lists.
    Subclasses give `num_examples()`, `get_example(i)` and, where they can be graded, `eval_type` and `evaluate()`.
    """

    on_hub = False  # whether `data="hub"` has a published set for it; else its rows come from the pocket world
    eval_type: str | None = None  # "generative": write an answer; "categorical": choose a letter; None: training only

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        if start < 0 or step < 1 or (stop is not None and stop < 0):
            raise UserError(f"a task slice wants start >= 0, stop >= 0, step >= 1; got {start}:{stop}:{step}")
        self.start, self.stop, self.step = start, stop, step

    def num_examples(self) -> int:
        """How many examples there are before slicing."""
        raise NotImplementedError

    def get_example(self, index: int) -> Conversation:
        """Example `index` of the unsliced task."""
        raise NotImplementedError

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether `completion` (the assistant's ordinary text, no tool calls) answers `conversation`."""
        raise UserError(f"{type(self).__name__} has no right answers to grade: use it for training only")

    def _indices(self) -> range:
        return range(self.num_examples())[self.start : self.stop : self.step]

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> Conversation:
        return self.get_example(self._indices()[index])  # range raises IndexError and counts negatives from the end

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))


class TaskMixture(Task):
    """All examples of all tasks in one fixed shuffled order. A task listed twice counts twice.

    Shuffled once, not drawn at random: an epoch sees each example exactly as often as its task is listed.
    """

    def __init__(self, tasks: Sequence[Task], seed: int = 42, **slicing: Any) -> None:
        super().__init__(**slicing)
        self.tasks = list(tasks)
        self.index_map = [(t, i) for t, task in enumerate(self.tasks) for i in range(len(task))]
        random.Random(seed).shuffle(self.index_map)

    def num_examples(self) -> int:
        return len(self.index_map)

    def get_example(self, index: int) -> Conversation:
        task, local = self.index_map[index]
        return self.tasks[task][local]


class TaskSequence(Task):
    """The tasks one after the other, each in its own order: a curriculum."""

    def __init__(self, tasks: Sequence[Task], **slicing: Any) -> None:
        super().__init__(**slicing)
        self.tasks = list(tasks)
        self.lengths = [len(task) for task in self.tasks]

    def num_examples(self) -> int:
        return sum(self.lengths)

    def get_example(self, index: int) -> Conversation:
        for task, length in zip(self.tasks, self.lengths):
            if index < length:
                return task[index]
            index -= length
        raise IndexError(index)


# --------------------------------------------------------------------------- multiple choice


def render_mc(question: str, choices: Sequence[str]) -> str:
    """The user's message of every multiple-choice task.

    `render_mc("Which is a colour?", ["red", "soup."])` ->

        Multiple choice question: Which is a colour?
        - red =A
        - soup. =B
        Answer with the letter alone.

    Value first, then its letter: finding the value again makes the next token the answer. And " =" before the letter:
    under our split pattern "red=A" would tie "=A" into one piece, "= A" would make " A", and "soup.=A" yet another cut;
    only after " =" is the letter always exactly the token that the assistant must answer with.
    """
    lines = [f"- {choice.strip()} ={letter}" for choice, letter in zip(choices, LETTERS)]
    return "\n".join([f"Multiple choice question: {question.strip()}", *lines, "Answer with the letter alone."])


class MultipleChoice(Task):
    """A task whose answer is one letter: MMLU and ARC differ only in their rows."""

    eval_type = "categorical"

    def conversation(self, question: str, choices: Sequence[str], answer: int) -> Conversation:
        """The conversation of one question; `answer` is the index of the right choice.

        `"letters"` tells the evaluation among which letters to choose (their number differs between questions).
        """
        return {
            "messages": [
                {"role": "user", "content": render_mc(question, choices)},
                {"role": "assistant", "content": LETTERS[answer]},
            ],
            "letters": list(LETTERS[: len(choices)]),
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == conversation["messages"][-1]["content"]


# --------------------------------------------------------------------------- conversations


def check_conversation(row: Any) -> None:
    """Raise BadRow saying what is wrong, unless `row["messages"]` is an optional system message, then user and
    assistant in turn, ending with the assistant, every content non-empty."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadRow('needs a non-empty list "messages"')
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise BadRow(f'message {i + 1} must be an object with "role" and "content"')
        _check_content(message["role"], message["content"], f"message {i + 1}")
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    first = len(roles) - len(turns) + 1
    for i, role in enumerate(turns):
        want = ("user", "assistant")[i % 2]
        if role != want:
            raise BadRow(f"message {first + i} has the role {role!r} where {want!r} must come "
                         "(a system message may only come first, then user and assistant take turns)")
    if len(turns) == 0 or len(turns) % 2 == 1:
        raise BadRow("the conversation must end with an assistant message")


def _check_content(role: Any, content: Any, where: str) -> None:
    """Text for everyone; the assistant may also hand in a list of parts (text, python, python_output)."""
    if role == "assistant" and isinstance(content, list):
        kinds = ("text", "python", "python_output")
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
                raise BadRow(f'{where}: a part must be {{"type": {" | ".join(kinds)}, "text": string}}')
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{where}: content must be a string, not {type(content).__name__}")
    if not content.strip():
        raise BadRow(f"{where}: content is empty")


# --------------------------------------------------------------------------- where the rows come from


def fields(**types: type) -> Callable[[Any], None]:
    """A checker for `load_jsonl`: `fields(question=str, answer=int)` wants exactly these types under these keys."""

    def check(row: Any) -> None:
        if not isinstance(row, dict):
            raise BadRow(f"must be a JSON object, not {type(row).__name__}")
        for key, kind in types.items():
            if not isinstance(row.get(key), kind):
                raise BadRow(f'needs "{key}" of type {kind.__name__}')

    return check


def load_jsonl(path: str | Path, check: Callable[[Any], None] | None = None) -> list[Any]:
    """The rows of a JSON Lines file; blank lines are skipped. Whatever is wrong with a line names file and line.

    Lines end at b"\\n" only: JSON strings may hold U+2028 and other things that `str.splitlines` breaks at.
    """
    path = Path(path)
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in path.parent.glob("*.jsonl"))) or "nothing of the kind"
        raise UserError(f"{path} is missing (the folder has: {found}): put it there, or choose another --data or split")
    rows = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if check is not None:
                    check(row)
            except UnicodeDecodeError as e:  # a ValueError too, so it must come first
                raise UserError(f"{path}:{number}: byte {e.start} is not UTF-8: save the file as UTF-8") from e
            except (ValueError, RecursionError) as e:
                raise UserError(f"{path}:{number}: {e}: mend or remove this line") from e
            rows.append(row)
    if not rows:
        raise UserError(f"{path} has no rows: write at least one, or choose another file")
    return rows


def task_rows(
    data: str,
    part: str,
    check: Callable[[Any], None] | None = None,
    hub: tuple[str, str] | None = None,
) -> Sequence[Row]:
    """The rows of one split of one set, in a fixed shuffled order, so that any slice is a fair sample.

    (MMLU stands sorted by subject: its first 200 rows are algebra and anatomy.) `part` is the file inside the data
    folder, `hub` the dataset repository and the prefix of its parquet files:
    `task_rows("hub", "gsm8k/test.jsonl", hub=("openai/gsm8k", "main/test-"))`.
    """
    if data == "hub" and hub is not None:
        rows: Sequence[Row] = hub_rows(*hub)
    else:
        rows = load_jsonl(task_dir(data) / part, check)
    return Shuffled(rows)


def task_dir(data: str) -> Path:
    """The folder of task files. What the hub has no set for (identity, word list, …) comes from the pocket world."""
    return data_dir("pocket" if data == "hub" else data)


def hub_rows(repo: str, prefix: str) -> Sequence[Row]:
    """The rows of a published dataset: its parquet files under `prefix`, fetched once into the hub's own cache."""
    from huggingface_hub import HfApi, hf_hub_download  # only here: everything else works without network

    try:
        every = sorted(HfApi().list_repo_files(repo, repo_type="dataset"))
        names = [name for name in every if name.startswith(prefix) and name.endswith(".parquet")]
        paths = [hf_hub_download(repo, name, repo_type="dataset") for name in names]
    except Exception as e:  # the hub client raises its own, requests', httpx' and OS errors
        raise UserError(f"cannot fetch {repo} from the hub ({type(e).__name__}): check the network and HF_ENDPOINT, "
                        "or use --data=pocket or --data=FOLDER") from e
    if not paths:
        raise UserError(f"{repo} has no parquet file named {prefix}*: choose another split, or --data=FOLDER")
    return ParquetRows(paths)


class ParquetRows(Sequence[Row]):
    """Parquet files as one list of row dicts, kept in Arrow memory (half a million dicts would take many GB)."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            self.table = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
        except (pyarrow.ArrowException, OSError) as e:
            raise UserError(f"{paths[0]}: not a readable parquet file: remove it so that it is fetched again") from e

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index):
        row = self.table.slice(range(len(self))[index], 1).to_pylist()[0]
        # MMLU's auxiliary_train keeps each row inside one more struct column, called "train"
        return row["train"] if set(row) == {"train"} else row


class Shuffled(Sequence[Row]):
    """The same rows in an order that depends on nothing but their number."""

    def __init__(self, rows: Sequence[Row], seed: int = 42) -> None:
        self.rows = rows
        self.order = list(range(len(rows)))
        random.Random(seed).shuffle(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index):
        return self.rows[self.order[index]]
