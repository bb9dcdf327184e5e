"""What tests of reinforcement learning are made of: a policy that knows what an answer looks like and no more, and a
task that judges them.

`taught(rows)` is a tiny real model, trained for a second on conversations: shown every answer to every question equally
often, it has learned what an answer looks like, and to guess.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from nanochat.dataloader import Batch
from nanochat.gpt import GPT
from nanochat.packing import pack_pieces, to_inputs_and_targets
from nanochat.stage_config import StageConfig
from nanochat.train import TrainState, document_loss, train
from tasks.common import Conversation, Task
from tests.helpers import byte_tokenizer, small_model

QUESTIONS, ANSWERS = "abcdefgh", "wxyz"


class Cipher(Task):
    """`c` -> `y`: each letter has one right answer of four. The best policy is always right, a guess in one of four."""

    eval_type = "generative"

    def __init__(self, name: str = "cipher", worth: float = 1.0, **slicing):
        super().__init__(**slicing)
        self.name, self.worth = name, worth

    def num_examples(self) -> int:
        return len(QUESTIONS)

    def get_example(self, index: int) -> Conversation:
        return chat(QUESTIONS[index], ANSWERS[index % len(ANSWERS)])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion == conversation["messages"][-1]["content"]

    def reward(self, conversation: Conversation, completion: str) -> float:
        return self.worth * self.evaluate(conversation, completion)


def chat(question: str, answer: str | list[dict[str, str]]) -> Conversation:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def guesses() -> list[Conversation]:
    """Every answer to every question."""
    return [chat(question, answer) for question in QUESTIONS for answer in ANSWERS]


def manners() -> list[Conversation]:
    """Answers of all kinds: short, long (they get cut off), with a call of the calculator in between."""
    tool = [{"type": "python", "text": "3*4"}, {"type": "python_output", "text": "12"}, {"type": "text", "text": "x"}]
    answers = ["w", "yz", "zxw", "wxyzwxyzwxyz", tool, [{"type": "text", "text": "z"}, *tool]]
    return [chat(question, answer) for question in QUESTIONS for answer in answers]


def taught(rows: list[Conversation], *, T: int = 32, steps: int = 60) -> GPT:
    """A float32 model of some ten thousand weights after `steps` steps on conversations."""
    tokenizer = byte_tokenizer()
    model = small_model(tokenizer, sequence_len=T, n_layer=1, n_kv_head=1)
    pieces = [tuple(map(np.asarray, tokenizer.render_conversation(row, max_tokens=None))) for row in rows]
    packed = pack_pieces(pieces, tokenizer.get_bos_token_id(), T)
    inputs, targets = map(torch.from_numpy, to_inputs_and_targets(packed.ids, packed.learn))

    def batches() -> Iterator[Batch]:
        while True:
            yield Batch(inputs, targets, {})

    train(model, model.setup_optimizers(), batches(), StageConfig(warmdown_ratio=0.5), TrainState(),
          num_iterations=steps, rows=len(inputs), loss_fn=document_loss(tokenizer.get_bos_token_id()), hooks=[])
    return model
