"""HumanEval: its rows, what a completion's code is, and who grades it.

Run: python -m pytest tests/test_humaneval.py        (grading needs bubblewrap)
"""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import sandbox
from nanochat.common import UserError
from nanochat.eval_result import EvalResult
from nanochat.pocket import programs
from scripts import chat_eval
from tasks import humaneval, rows
from tasks.humaneval import HumanEval, program_of
from tests.box import needs_box
from tests.test_task_rows import fetched_before

PROMPT = 'from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\ndef total(xs: List[int]) -> int:\n'
PROMPT += '    """ Sum of helper(x).\n    >>> total([1, 2])\n    5\n    """\n'
ROW = {"task_id": "test/0", "prompt": PROMPT, "entry_point": "total",
       "canonical_solution": "    return sum(helper(x) for x in xs)\n",
       "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 5\n"
               "    assert candidate([]) == 0\n    assert candidate([7]) == total([7]) == helper(7)\n"}  # fmt: skip
OTHER = {"task_id": "test/1", "prompt": "def up(s):\n    '''Upper case.'''\n", "entry_point": "up",
         "canonical_solution": "    return s.upper()\n",
         "test": "def check(candidate):\n    assert candidate('a') == 'A'\n"}


def write(path: Path, found: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(path.parents[1])


@pytest.fixture
def task(tmp_path) -> HumanEval:
    return HumanEval(data=write(tmp_path / "humaneval/HumanEval.jsonl", [ROW, OTHER]))


def of(task: HumanEval, name: str) -> dict:
    return next(c for c in task if c["problem"]["entry_point"] == name)


# --------------------------------------------------------------------------- rows


def test_a_conversation_asks_for_the_function_and_answers_with_all_of_it(task):
    user, assistant = of(task, "up")["messages"]
    assert user["content"] == "Complete this Python function:\n```python\ndef up(s):\n    '''Upper case.'''\n```"
    assert assistant["content"] == "```python\ndef up(s):\n    '''Upper case.'''\n    return s.upper()\n```"
    assert (len(task), task.eval_type, task.published) == (2, "generative", True)


def test_the_pocket_world_teaches_the_same_form(tmp_path):
    program = programs.Program("up", (), "up", OTHER["prompt"], OTHER["canonical_solution"], OTHER["test"])
    [conversation] = HumanEval(data=write(tmp_path / "humaneval/HumanEval.jsonl", [program.problem(0)]))
    assert conversation["messages"] == program.row()["messages"]


@needs_box
def test_the_pocket_worlds_own_answers_are_right(pocket_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    task = HumanEval(stop=5)
    assert len(HumanEval()) >= 100
    assert all(task.evaluate(conversation, conversation["messages"][-1]["content"]) for conversation in task)


def test_the_packed_file_is_the_same(tmp_path, task):
    folder = tmp_path / "packed/humaneval"
    folder.mkdir(parents=True)
    plain = (tmp_path / "humaneval/HumanEval.jsonl").read_bytes()
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(plain))
    packed = HumanEval(data=str(folder.parent))
    assert list(packed) == list(task) and packed.fingerprint() == task.fingerprint()
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(plain)[:-9])
    with pytest.raises(UserError, match="not a whole gzip file"):
        HumanEval(data=str(folder.parent))
    (folder / "HumanEval.jsonl.gz").write_bytes(plain)
    with pytest.raises(UserError, match="not a whole gzip file"):
        HumanEval(data=str(folder.parent))


@pytest.mark.parametrize("bomb", [b" " * 3000, b" \n" * 1500])
def test_a_packed_file_is_bounded(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(rows, "MAX_UNPACKED", 2000)
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(UserError, match="unpacks to more than 2,000 bytes"):
        HumanEval(data=str(tmp_path))


def test_the_set_of_the_hub():
    fetched_before("openai/openai_humaneval", {"openai_humaneval/test-00000-of-00001": [ROW, OTHER]})
    assert {c["problem"]["entry_point"] for c in HumanEval(data="hub")} == {"total", "up"}


@pytest.mark.parametrize(("change", "message"), [
    ({"test": "x = 1"}, "define no function check"), ({"entry_point": "other"}, "define no function other"),
    ({"test": "def check(candidate:"}, "no Python program"), ({"prompt": 3}, '"prompt" of type str'),
    ({"test": "\0"}, "no Python program"),
])  # fmt: skip
def test_bad_rows_are_named(tmp_path, change, message):
    data = write(tmp_path / "humaneval/HumanEval.jsonl", [OTHER, ROW | change])
    with pytest.raises(UserError, match=rf"HumanEval\.jsonl:2: .*{message}"):
        HumanEval(data=data)


def test_there_is_only_a_test_split(tmp_path):
    with pytest.raises(UserError, match="choose test"):
        HumanEval("train", data=write(tmp_path / "humaneval/HumanEval.jsonl", [ROW]))


# --------------------------------------------------------------------------- code in completions

BODY = "    return sum(helper(x) for x in xs)\n"
WHOLE = "def total(xs):\n" + BODY
SAID = {
    "the function in a fence": f"Sure!\n\n```python\n{WHOLE}```\nHope it helps.",
    "no name of the language": f"```\n{WHOLE}```",
    "a fence that is not finished": f"Here:\n```python\n{WHOLE}",
    "an example of its use after it": f"```python\n{WHOLE}```\nUse it:\n```python\nprint(total([1]))\n```",
    "a first try before it": f"```python\ndef total(xs):\n    return 0\n```\nNo, better:\n```python\n{WHOLE}```",
    "all of the prompt again": f"```python\n{PROMPT}{BODY}```",
    "its own helper": "```python\ndef helper(x):\n    return 1 + x\n\n\n" + WHOLE + "```",
    "indented in a list": f"1. ```python\nx = 1\n```\n\n```py\n{WHOLE}```",
    "indented itself": "* like this:\n  ```python\n" + "".join(f"  {line}\n" for line in WHOLE.splitlines()) + "  ```",
    "no fence": WHOLE,
    "the body": BODY,
    "the body in a fence": f"```python\n{BODY}```",
    "the body without its indentation": "```python\nreturn sum(helper(x) for x in xs)\n```",
    "the body, and what a base model goes on with": BODY + "\n\ndef main():\n    broken(\n\nif __name__",
    "carriage returns": f"```python\r\n{WHOLE}```".replace("\n", "\r\n").replace("\r\r", "\r"),
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())
def test_the_code_of_a_completion(said):
    tree = ast.parse(program_of(said, PROMPT, "total"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert names[0] == "helper" and names[-1] == "total"
    *_, last = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "total")
    assert ast.unparse(last).endswith("return sum((helper(x) for x in xs))")
    assert isinstance(tree.body[0], ast.ImportFrom)


PIECES = st.sampled_from(["```", "python", "\n", "def total", "(", "    ", "return", "é", "\r"])


@given(st.text() | st.lists(PIECES).map("".join))
def test_no_completion_is_too_odd(completion):
    assert isinstance(program_of(completion, PROMPT, "total"), str)


# --------------------------------------------------------------------------- grading


@needs_box
def test_its_own_gold_is_right_and_other_answers_are_not(task):
    for name in ("total", "up"):
        conversation = of(task, name)
        gold = conversation["messages"][-1]["content"]
        assert task.evaluate(conversation, gold) is True
        assert task.evaluate(conversation, "I do not know.") is False
        assert task.evaluate(conversation, "") is False
    assert task.evaluate(of(task, "total"), SAID["the body"])
    assert task.verdict(of(task, "total"), "```python\ndef total(xs):\n    return 5\n```").reason == "wrong answer"


@needs_box
def test_a_test_that_names_the_function_means_the_right_one(task):
    """HumanEval/33 compares the answer with `sort_third(...)`: with itself, were it the answer's own."""
    conversation = of(task, "total")
    wrong = "```python\ndef total(xs):\n    return {0: 0, 2: 5}.get(len(xs), -1)\n```"
    assert "total([7])" in humaneval.tests_of(conversation["problem"])
    assert not task.evaluate(conversation, wrong)


def test_without_a_sandbox_it_is_refused_or_asked_for(tmp_path, monkeypatch, task):
    monkeypatch.setattr(sandbox, "problem", lambda: "bubblewrap is not installed")
    conversation = of(task, "up")
    gold = conversation["messages"][-1]["content"]
    with pytest.raises(UserError, match="--unsafe_execution"):
        task.evaluate(conversation, gold)
    assert task.obstacle() == "bubblewrap is not installed"  # known before anything is generated
    unsafe = HumanEval(data=str(tmp_path), unsafe=True)
    assert unsafe.evaluate(conversation, gold) and unsafe.obstacle() == ""
    assert programs_ran_in(unsafe) == "UNSAFE: without a sandbox"


@needs_box
def test_where_there_is_a_sandbox_it_is_used_whatever_is_allowed(tmp_path, task):
    for found in (task, HumanEval(data=str(tmp_path), unsafe=True)):
        assert found.obstacle() == "" and programs_ran_in(found).startswith("bubblewrap ")


def programs_ran_in(task: HumanEval) -> str:
    """What a report says of it."""
    return chat_eval.record([EvalResult("humaneval", [0])], {"humaneval": task}, "pocket")["programs_ran_in"]
