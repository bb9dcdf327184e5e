"""GSM8K: grade-school word problems, solved in steps with a calculator.

A row of `gsm8k/{train,test}.jsonl`; `<<expression=result>>` marks a call of the calculator, `#### ` the final number:
    {"question": "Weng earns $12 an hour for babysitting. Yesterday, she did 50 minutes. How much did she earn?",
     "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\\nShe earned 0.2 x 50 = $<<0.2*50=10>>10.\\n#### 10"}
The pocket world has two sets more, in the same form: `gsm8k/rl_{train,test}.jsonl`, templates that reinforcement
learning practises on, and `gsm8k/test_new_templates.jsonl`, templates that nothing trains on.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from nanochat.common import UserError
from nanochat.dataset import on_hub
from tasks.common import Conversation, Task
from tasks.rows import BadRow, fields, task_rows

MARK = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
# The look-ahead keeps "#### 1/2" and "#### 1.2.3" from passing for their first digits. Blanks are matched in one way
# only: with three optional runs of them in a row, a few thousand would take minutes.
FINAL = re.compile(r"####[ \t]*(?:(-)[ \t]*)?(?:\$[ \t]*)?([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?![.,]?[0-9]|/)")

FILES = {"main": "gsm8k/{}.jsonl", "socratic": "gsm8k/{}.jsonl", "rl": "gsm8k/rl_{}.jsonl",
         "new_templates": "gsm8k/{}_new_templates.jsonl"}  # each subset's file in a folder, by split


class GSM8K(Task):
    """`GSM8K("main", "test")`. A calculator mark becomes a tool call that the engine answers when it runs.

    Subsets: main; socratic, on the hub only; rl and new_templates (test only), in the pocket world and in folders.
    """

    published = True
    eval_type = "generative"

    def __init__(self, subset: str = "main", split: str = "test", *, data: str = "pocket", **slicing: Any) -> None:
        super().__init__(**slicing)
        if subset not in FILES or split not in ("train", "test"):
            raise UserError(f'GSM8K has no "{subset}" {split}: choose main, rl or new_templates, and train or test')
        if subset == "new_templates" and split == "train":
            raise UserError('GSM8K "new_templates" has no train split, as nothing may train on it: choose test, '
                            "or the subset rl")
        if subset == "socratic" and not on_hub(data):
            raise UserError('GSM8K "socratic" is only on the hub: choose main')
        self.published = subset in ("main", "socratic")
        if not self.published and on_hub(data):
            raise UserError(f'GSM8K "{subset}" is not on the hub ({data}): choose --data=pocket, or a folder that has '
                            f"{FILES[subset].format(split)}")
        self.rows = task_rows(data, FILES[subset].format(split), _check, hub=("openai/gsm8k", f"{subset}/{split}-"))
        self.content = self.rows.fingerprint

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        return {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": answer_parts(row["answer"])},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the last `#### N` of the completion is the number of the gold answer."""
        gold = "".join(part["text"] for part in conversation["messages"][-1]["content"] if part["type"] == "text")
        answer = final_number(completion)
        return answer is not None and answer == final_number(gold)


def answer_parts(answer: str) -> list[dict[str, str]]:
    """Text with calculator marks as parts of an assistant message.

    `"12/60 = <<12/60=0.2>>0.2"` -> text `12/60 = `, python `12/60`, python_output `0.2`, text `0.2`.
    """
    parts, position = [], 0
    for mark in MARK.finditer(answer):
        if mark.start() > position:
            parts.append({"type": "text", "text": answer[position : mark.start()]})
        parts.append({"type": "python", "text": mark[1].strip()})
        parts.append({"type": "python_output", "text": mark[2].strip()})
        position = mark.end()
    if position < len(answer):
        parts.append({"type": "text", "text": answer[position:]})
    return parts


def final_number(text: str) -> Decimal | None:
    """The number of the last `#### N`, commas and a dollar sign aside.

    `"#### 7 ... #### 1,200" -> 1200`, `"#### -3.50" -> -3.5`, `"1200" -> None`, `"#### many" -> None`.
    """
    found = FINAL.findall(text)
    return Decimal(found[-1][0] + found[-1][1].replace(",", "")) if found else None


def _check(row: Any) -> None:
    fields(question=str, answer=str)(row)
    if final_number(row["answer"]) is None:
        raise BadRow('"answer" must end with "#### " and a number')
    if len(re.findall("<<|>>", row["answer"])) != 2 * len(MARK.findall(row["answer"])):
        raise BadRow('"answer" has a calculator mark that is not <<expression=result>>')
