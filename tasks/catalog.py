"""Every task by name: for the command line of training and evaluation.

    python -m tasks.catalog                        the names
    python -m tasks.catalog gsm8k mmlu             size and a first row of each
    python -m tasks.catalog my.jsonl               the same; every line is checked
    python -m tasks.catalog gsm8k --data=FOLDER --split=test
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nanochat import configurator
from nanochat.common import UserError, print0
from tasks.arc import ARC
from tasks.common import Task, TaskMixture
from tasks.customjson import CustomJSON, LessonsJSON
from tasks.documents import Documents
from tasks.gsm8k import GSM8K
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU
from tasks.rows import task_dir
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee


def _custom(folder: str, kind: type[CustomJSON] = CustomJSON) -> Callable[..., Task]:
    return lambda split, data, **kw: kind(task_dir(data) / folder / f"{split}.jsonl", **kw)


TASKS: dict[str, Callable[..., Task]] = {
    "smoltalk": SmolTalk,
    "mmlu": lambda split, **kw: MMLU("all", split, **kw),
    "arc_easy": lambda split, **kw: ARC("ARC-Easy", split, **kw),
    "arc_challenge": lambda split, **kw: ARC("ARC-Challenge", split, **kw),
    "gsm8k": lambda split, **kw: GSM8K("main", split, **kw),
    "gsm8k_rl": lambda split, **kw: GSM8K("rl", split, **kw),
    "gsm8k_new_templates": lambda split, **kw: GSM8K("new_templates", split, **kw),
    "humaneval": lambda split, **kw: HumanEval(split, **kw),
    "spellingbee": lambda split, **kw: SpellingBee(split=split, **kw),
    "simplespelling": lambda split, **kw: SimpleSpelling(split=split, **kw),
    "documents": lambda split, **kw: Documents(split=split, **kw),
    "identity": _custom("identity"),
    "world_qa": _custom("world_qa"),
    "calculator": _custom("calculator"),
    "code": _custom("code", LessonsJSON),
    "world_mc": lambda split, **kw: ARC("ARC-Easy", split, **kw),
}
SIZED = ("spellingbee", "simplespelling", "documents")  # these are as long as one asks for
ALIASES = {"spelling_bee": "spellingbee", "simple_spelling": "simplespelling"}
ITEM = re.compile(r"(?P<name>.+?)(?:@(?P<split>\w+))?(?::(?P<rows>[0-9]+))?(?:\*(?P<times>[0-9]+))?")


def make_task(name: str, data: str = "pocket", split: str = "train", **kw: Any) -> Task:
    """The task called `name`, or CustomJSON for a path that ends in .jsonl (which has no splits).

    `kw` goes to the task: start, stop, step, and size for the spelling tasks.
    """
    if name.endswith(".jsonl"):
        task = CustomJSON(name, **kw)
        task.name = Path(name).stem
        return task
    key = ALIASES.get(name, name)
    if key not in TASKS:
        near = difflib.get_close_matches(key.lower(), TASKS, n=1, cutoff=0)[0]
        known = f"{', '.join(TASKS)}, or a .jsonl file"
        raise UserError(f'there is no task "{name}": did you mean {near}? (tasks: {known})')
    task = TASKS[key](split=split, data=data, **kw)
    task.name = key
    return task


def parse_mixture(items: Sequence[str], data: str = "pocket", split: str = "train", seed: int = 42) -> TaskMixture:
    """A mixture from `name[@split][:rows][*times]` items.

    `["smoltalk:10000", "gsm8k*2", "spellingbee:5000", "arc_easy@validation"]`: the first 10 000 rows of SmolTalk, all
    of GSM8K twice, 5 000 generated words, and ARC's validation split to train on. `@split` only says where training
    rows come from: the same items with `split="test"` are the tasks' own tests. The test of my.jsonl is
    my_test.jsonl beside it; without one it has none, and a line says so: its rows are those that were learned.
    """
    if not items:
        raise UserError("the mixture is empty: name at least one task")
    tasks: list[Task] = []
    for item in items:
        found = ITEM.fullmatch(item.strip())
        numbers = [n for n in found.group("rows", "times") if n is not None] if found else []
        if found is None or not all(n.strip("0") and len(n) < 10 for n in numbers) or len(found["times"] or "") > 3:
            raise UserError(f'"{item}" is no mixture item: write name[@split][:rows][*times], as in gsm8k:1000*2 '
                            "(rows from 1, times 1 to 999)")
        name, rows = found["name"], found["rows"]
        size_key = "size" if ALIASES.get(name, name) in SIZED else "stop"
        if name.endswith(".jsonl") and split == "test":
            beside = Path(name).with_name(f"{Path(name).stem}_test.jsonl")
            if not beside.is_file():
                print0(f"note: nothing is held out of {name}: there is no {beside.name} beside it")
                continue
            name = str(beside)
        from_split = found["split"] if found["split"] and split == "train" else split
        task = make_task(name, data, from_split, **({size_key: int(rows)} if rows else {}))
        tasks += [task] * int(found["times"] or 1)
    return TaskMixture(tasks, seed=seed)


@dataclass
class Config:
    """List the tasks, or show how many rows some have and the first of each."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """tasks or .jsonl files; none: list the tasks"""
    data: str = "pocket"
    """where the rows come from: "pocket" (generated), a hub source such as "fineweb-edu" (downloaded) or a folder"""
    split: str = "train"
    """train or test; some tasks have others"""


def main(config: Config) -> None:
    if not config.names:
        print("\n".join(TASKS))
    for name in config.names:
        task = make_task(name, config.data, config.split)
        print(f"{name}: {len(task):,} rows ({task.eval_type or 'training only'})")
        row = task[0]
        lines = [f"{message['role']}: {message['content']}" for message in row.get("messages", [])] or [row["text"]]
        for line in lines:
            print("  " + line.encode("utf-8", "backslashreplace").decode())  # JSON may hold half of a character


if __name__ == "__main__":
    configurator.main(main, Config)
