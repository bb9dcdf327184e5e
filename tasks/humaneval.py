"""HumanEval: finish a Python function from its signature and docstring; tests that the model does not see decide.

A row of `humaneval/HumanEval.jsonl` (or .jsonl.gz; Chen et al. 2021, arXiv:2107.03374):
    {"task_id": "HumanEval/53", "entry_point": "add", "prompt": "def add(x: int, y: int):\\n    \\"\\"\\"Add two ...",
     "canonical_solution": "    return x + y\\n", "test": "def check(candidate):\\n    assert candidate(0, 1) == 1\\n"}

The answer's code runs under bubblewrap, or is refused where that is missing (nanochat/execution.py); with `unsafe=True`
it runs there without.

Look at one: `python -m tasks.catalog humaneval --split=test`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any

from nanochat import sandbox
from nanochat.common import UserError
from nanochat.execution import Limits, Verdict, require, run_tests
from tasks.common import Conversation, Task
from tasks.rows import BadRow, fields, task_rows

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)  # the last may be unfinished


class HumanEval(Task):
    """`HumanEval("test")`. `unsafe`: where there is no sandbox, run the answers without; they can do what we can."""

    published = True
    eval_type = "generative"

    def __init__(
        self,
        split: str = "test",
        *,
        data: str = "pocket",
        unsafe: bool = False,
        limits: Limits | None = None,
        **slicing: Any,
    ) -> None:
        super().__init__(**slicing)
        if split != "test":
            raise UserError(f"HumanEval has no {split} split: choose test")
        self.unsafe, self.limits = unsafe and bool(sandbox.problem()), limits or Limits()
        self.rows = task_rows(
            data, "humaneval/HumanEval.jsonl", _check, hub=("openai/openai_humaneval", "openai_humaneval/test-")
        )
        self.content = self.rows.fingerprint

    @property
    def runs_in(self) -> str:
        return sandbox.describe(self.unsafe)

    def obstacle(self) -> str:
        return "" if self.unsafe else sandbox.problem()

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        """Code stands in the fence in which chat models write it, in the question and in the answer, as in the pocket
        world's task "code", which teaches it. `"problem"` is for the grader.
        """
        row = self.rows[index]
        return {
            "messages": [
                {"role": "user", "content": f"Complete this Python function:\n{fenced(row['prompt'])}"},
                {"role": "assistant", "content": fenced(row["prompt"] + row["canonical_solution"])},
            ],
            "problem": {key: row[key] for key in ("prompt", "entry_point", "canonical_solution", "test")},
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return self.verdict(conversation, completion).passed

    def verdict(self, conversation: Conversation, completion: str) -> Verdict:
        """Whether the completion's code passes the tests, and why not; UserError where there is no sandbox."""
        require(self.unsafe)
        problem = conversation["problem"]
        program = program_of(completion, problem["prompt"], problem["entry_point"])
        return run_tests(program, problem["entry_point"], tests_of(problem), self.limits, unsafe=self.unsafe)


def fenced(code: str) -> str:
    """``"x = 1\\n" -> "```python\\nx = 1\\n```"``"""
    code = code.strip("\n")
    return f"```python\n{code}\n```"


def tests_of(problem: dict[str, str]) -> str:
    """What the judge runs: the data set's own program, then its tests, which use helpers of the prompt (HumanEval/32)
    and in one case (33) the function itself, by name: there the right one must stand, not the one that is judged.
    """
    return "\n\n".join([problem["prompt"] + problem["canonical_solution"], problem["test"]])


def program_of(completion: str, prompt: str, entry_point: str) -> str:
    """The program that a completion means.

    Of its fenced blocks the last that defines the function (an example of its use often follows), else the first;
    without a fence all of it. With the function in it, it goes behind what stands in the prompt before the function
    (imports, helpers). Without, it is the body that the prompt's own `def` wants, as base models continue:

        "def add(a, b):\\n    return a + b"  ->  that
        "    return a + b\\n\\nprint(add(1, 2))"  ->  the prompt, then "    return a + b\\n"
    """
    blocks = [textwrap.dedent(block) for block in FENCE.findall(completion.replace("\r\n", "\n"))]
    defines = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", re.MULTILINE)
    whole = [block for block in blocks if defines.search(block)]
    if whole or (not blocks and defines.search(completion)):
        code = whole[-1] if whole else completion
        start = defines.search(prompt)
        return f"{prompt[: start.start() if start else 0]}\n{code}"
    body = blocks[0] if blocks else _body(completion)
    first = next((line for line in body.splitlines() if line.strip()), "")
    if first == first.lstrip():
        body = textwrap.indent(body, "    ")
    return f"{prompt.rstrip()}\n{body}"


def _body(text: str) -> str:
    """The lines up to the first that starts at the margin, which is no part of a body that does not."""
    lines = text.strip("\n").split("\n")
    if not lines[0][:1].isspace():
        return text
    end = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "\n".join(lines[:end]) + "\n"


def _check(row: Any) -> None:
    fields(prompt=str, entry_point=str, canonical_solution=str, test=str)(row)
    try:
        tree = ast.parse(tests_of(row))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise BadRow(f'"prompt", "canonical_solution" and "test" are no Python program: {e}') from e
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in (row["entry_point"], "check"):
        if name not in defined:
            raise BadRow(f'"prompt" and "test" define no function {name}')
