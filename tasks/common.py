"""What all tasks share: slicing, mixing, the multiple-choice prompt, what a conversation to learn from must be.

A task is a list of conversations that can also grade an answer. Training mixes tasks (`TaskMixture`), evaluation asks
one at a time (`nanochat/task_eval.py`). Data comes from one setting, `data`: "pocket" (generated here), a folder of
one's own in the same layout, or a hub source such as "fineweb-edu" (the published sets): see `tasks/rows.py`.

A row, as every task hands it out:
    {"messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"}]}

Look at one: `python -m tasks.catalog gsm8k`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from nanochat.common import UserError
from nanochat.conversation import rendering
from tasks.rows import BadRow, fingerprint_of, rows_fingerprint

Conversation = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


# --------------------------------------------------------------------------- tasks


class Task:
    """A sequence of conversations with a grader. `start`, `stop`, `step` slice it as they slice a list.

    Ten examples, `start=2, stop=99, step=3` -> examples 2, 5, 8: a stop past the end is the end, as for lists.
    Subclasses give `num_examples()`, `get_example(i)` and, where they can be graded, `eval_type` and `evaluate()`; and
    `content`, where there is a cheaper one.
    """

    published = False  # whether the hub has a set for it; else its rows come from the pocket world when data is there
    eval_type: str | None = None  # "generative": write an answer; "categorical": choose a letter; None: training only
    name = ""  # what it is called on the command line, where it came from there

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        if start < 0 or step < 1 or (stop is not None and stop < 0):
            raise UserError(f"a task slice wants start >= 0, stop >= 0, step >= 1; got {start}:{stop}:{step}")
        self.start, self.stop, self.step = start, stop, step
        self.noted: set[str] = set()  # kinds of faulty rows that a loader has named: it need not again (windows.py)

    def num_examples(self) -> int:
        """How many examples there are before slicing."""
        raise NotImplementedError

    def get_example(self, index: int) -> Conversation:
        """Example `index` of the unsliced task."""
        raise NotImplementedError

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether `completion` (the assistant's ordinary text, no tool calls) answers `conversation`."""
        raise UserError(f"{type(self).__name__} has no right answers to grade: use it for training only")

    def reward(self, conversation: Conversation, completion: str) -> float:
        """What `completion` is worth to a policy that learns from it: 1 right, 0 wrong; a task may have shades."""
        return float(self.evaluate(conversation, completion))

    @property
    def runs_in(self) -> str:
        """Where answers that are programs run, for reports: "bubblewrap 0.8.0, ...", or "UNSAFE: ..."; "": none are."""
        return ""

    def obstacle(self) -> str:
        """Why answers cannot be graded on this machine, and the remedy, in one line; "" where they can."""
        return ""

    @cached_property
    def content(self) -> str:
        """What decides the unsliced examples: hashes of the files they come from, settings. Here: all examples."""
        return rows_fingerprint(self.get_example, self.num_examples())

    def fingerprint(self) -> str:
        """16 hex digits, others when the examples are: a resumed run must go on with the same ones."""
        return fingerprint_of(type(self).__name__, self.start, self.stop, self.step, self.content)

    def parts(self) -> list[tuple[str, str]]:
        """`(name, fingerprint)` of each task in this one, by which a message can say what has changed."""
        return [(type(self).__name__, self.fingerprint())]

    def locate(self, index: int) -> tuple[Task, int]:
        """The task that example `index` is of, and its index there: itself, but for a mixture, which cannot grade."""
        return self, index

    def _indices(self) -> range:
        return range(self.num_examples())[self.start : self.stop : self.step]

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> Conversation:
        return self.get_example(self._indices()[index])  # range raises IndexError and counts negatives from the end

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))

    def where(self, index: int) -> str:
        """Which row example `index` is, for messages: `"GSM8K 17"` (before slicing); a mixture names its task's row."""
        return self.name_of(self._indices()[index])

    def name_of(self, index: int) -> str:
        """The same of example `index` of the unsliced task."""
        return f"{type(self).__name__} {index}"


class TaskMixture(Task):
    """All examples of all tasks in one fixed shuffled order. A task listed twice counts twice.

    Shuffled once, not drawn at random: an epoch sees each example exactly as often as its task is listed.
    """

    def __init__(self, tasks: Sequence[Task], seed: int = 42, **slicing: Any) -> None:
        super().__init__(**slicing)
        self.tasks, self.seed = list(tasks), seed
        self.index_map = [(t, i) for t, task in enumerate(self.tasks) for i in range(len(task))]
        random.Random(seed).shuffle(self.index_map)

    def num_examples(self) -> int:
        return len(self.index_map)

    def get_example(self, index: int) -> Conversation:
        task, local = self.index_map[index]
        return self.tasks[task][local]

    def name_of(self, index: int) -> str:
        task, local = self.index_map[index]
        return self.tasks[task].where(local)

    def locate(self, index: int) -> tuple[Task, int]:
        task, local = self.index_map[self._indices()[index]]
        return self.tasks[task].locate(local)

    @cached_property
    def content(self) -> str:
        return fingerprint_of(self.seed, *(task.fingerprint() for task in self.tasks))

    def parts(self) -> list[tuple[str, str]]:
        return [part for task in self.tasks for part in task.parts()]


class TaskSequence(Task):
    """The tasks one after the other, each in its own order: a curriculum."""

    def __init__(self, tasks: Sequence[Task], **slicing: Any) -> None:
        super().__init__(**slicing)
        self.tasks = list(tasks)
        self.lengths = [len(task) for task in self.tasks]

    def num_examples(self) -> int:
        return sum(self.lengths)

    def get_example(self, index: int) -> Conversation:
        task, local = self._find(index)
        return task[local]

    def name_of(self, index: int) -> str:
        task, local = self._find(index)
        return task.where(local)

    def locate(self, index: int) -> tuple[Task, int]:
        task, local = self._find(self._indices()[index])
        return task.locate(local)

    @cached_property
    def content(self) -> str:
        return fingerprint_of(*(task.fingerprint() for task in self.tasks))

    def parts(self) -> list[tuple[str, str]]:
        return [part for task in self.tasks for part in task.parts()]

    def _find(self, index: int) -> tuple[Task, int]:
        """The task that holds example `index`, and its index there."""
        for task, length in zip(self.tasks, self.lengths):
            if index < length:
                return task, index
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
    """Raise BadRow saying what is wrong, unless one can train on `row`.

    What a conversation is stands in `nanochat/conversation.py`; beyond that, one to learn from ends with the assistant
    and has no blank message.
    """
    if not isinstance(row, dict) or "messages" not in row:
        raise BadRow('needs "messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]')
    try:
        rendering(row)
    except UserError as e:
        raise BadRow(str(e)) from e
    if row["messages"][-1]["role"] != "assistant":
        raise BadRow("the conversation must end with an assistant message")
    for i, message in enumerate(row["messages"], start=1):
        content = message["content"]
        if not (content if isinstance(content, str) else "".join(part["text"] for part in content)).strip():
            raise BadRow(f"message {i}: content is empty")
