"""What tests of evaluations are made of: two small tasks, a "model" that knows all answers, and one that guesses.

Engine, cache, sampling, calculator and grading around them are the real ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import HuggingFaceTokenizer
from tasks.common import MultipleChoice, Task

# --------------------------------------------------------------------------- tasks


class Choices(MultipleChoice):
    """Questions with 2 to 5 choices and very different lengths."""

    def __init__(self, n: int, long: int = 0, **slicing):
        super().__init__(**slicing)
        self.n, self.long = n, long

    def num_examples(self):
        return self.n

    def get_example(self, index):
        question = f"question {index} " + "word " * (index * 7 % 11) + "long " * (self.long if index == 1 else 0)
        return self.conversation(question, ["yes", "no", "red", "blue", "12"][: 2 + index % 4], index % 2)


class Sums(Task):
    """`0+1?` -> `#### 1`; right is any completion that names the sum."""

    eval_type = "generative"

    def __init__(self, n: int, **slicing):
        super().__init__(**slicing)
        self.n = n

    def num_examples(self):
        return self.n

    def get_example(self, index):
        text = f"{index}+1?" + " please" * (index % 5)
        return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"#### {index + 1}"}]}

    def evaluate(self, conversation, completion):
        return completion == conversation["messages"][1]["content"]


# --------------------------------------------------------------------------- models


@cache
def letter_tokenizer() -> HuggingFaceTokenizer:
    text = "Multiple choice question: what is the answer? Answer with the letter alone. #### 1 2 3"
    return HuggingFaceTokenizer.train_from_iterator([text] * 20, vocab_size=300)


@cache
def random_model() -> GPT:
    """A small real one, of weights that make its answers as different as its prompts."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=256, vocab_size=letter_tokenizer().get_vocab_size(), n_layer=2, n_head=2,
                          n_kv_head=1, n_embd=32))
    model.init_weights(seed=0)
    for p in model.parameters():
        if not p.any():  # fresh projections and the head are zero, so that every logit ties: break that
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


class Stub:
    """What the engine asks of a model. One layer, one head of four numbers."""

    compute_dtype = torch.float32

    def __init__(self, tokenizer: Any, sequence_len: int = 256):
        self.config = GPTConfig(sequence_len=sequence_len, vocab_size=tokenizer.get_vocab_size(), n_layer=1, n_head=1,
                                n_kv_head=1, n_embd=4)
        self.calls: list[list[tuple[int, ...]]] = []  # the rows of each call, with their padding

    def get_device(self) -> torch.device:
        return torch.device("cpu")

    def parameters(self) -> list[Tensor]:
        return [torch.zeros(1)]

    def __call__(self, idx: Tensor, kv_cache: Any, at: Tensor | None = None) -> Tensor:
        """`idx` (B, T) -> logits (B, 1, V) of the last tokens."""
        self.calls.append([tuple(row) for row in idx.tolist()])
        keys = self.remember(idx, kv_cache, at)[:, None, None].expand(-1, 1, idx.size(1), 4)
        kv_cache.insert_kv(0, keys, keys)
        kv_cache.advance(idx.size(1))
        return self.logits(keys[:, 0, -1])[:, None]

    def remember(self, idx: Tensor, kv_cache: Any, at: Tensor | None) -> Tensor:
        """(B, 4): what a row is to remember from now on, in place of keys: it moves along with the row."""
        return torch.zeros(len(idx), 4)

    def logits(self, memory: Tensor) -> Tensor:
        raise NotImplementedError


class Guesses(Stub):
    """Every logit a random number, uniform in [0, 1)."""

    def __init__(self, tokenizer: Any, sequence_len: int = 256, seed: int = 0):
        super().__init__(tokenizer, sequence_len)
        self.generator = torch.Generator().manual_seed(seed)

    def logits(self, memory: Tensor) -> Tensor:
        return torch.rand(len(memory), self.config.vocab_size, generator=self.generator)


class Knows(Stub):
    """Answers `answers[the user's text]` token by token; to anything else it says token 0 for ever.

    The output of tools is not in its script: the engine must bring it. A row remembers (number of its script + 1, place
    in the script, whether a tool speaks).
    """

    def __init__(self, tokenizer: Any, answers: dict[str, Any], sequence_len: int = 256):
        super().__init__(tokenizer, sequence_len)
        self.output_start = tokenizer.encode_special("<|output_start|>")
        self.output_end = tokenizer.encode_special("<|output_end|>")
        self.number: dict[tuple[int, ...], int] = {}
        scripts = [[0]]
        for user, answer in answers.items():
            conversation = {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}
            prompt = tokenizer.render_for_completion(conversation)
            whole, _ = tokenizer.render_conversation(conversation, max_tokens=None)
            self.number[tuple(prompt)] = len(scripts)
            scripts.append(self._without_output(whole[len(prompt):]))
        self.scripts = torch.zeros(len(scripts), max(map(len, scripts)) + 1, dtype=torch.long)
        for i, script in enumerate(scripts):
            self.scripts[i, : len(script)] = torch.tensor(script)

    def _without_output(self, ids: list[int]) -> list[int]:
        kept, inside = [], False
        for token in ids:
            inside = inside or token == self.output_start
            if not inside:
                kept.append(token)
            inside = inside and token != self.output_end
        return kept

    def remember(self, idx: Tensor, kv_cache: Any, at: Tensor | None) -> Tensor:
        if at is not None:  # a prompt
            rows = [tuple(row[: end + 1]) for row, end in zip(idx.tolist(), at.tolist(), strict=True)]
            number = torch.tensor([self.number.get(row, 0) for row in rows])
            return torch.stack([number, *[torch.zeros_like(number)] * 3], dim=1).float()
        token, last = idx[:, 0], kv_cache.lengths - 1
        number, place, inside, _ = kv_cache.store[0, 0, torch.arange(len(idx)), 0, last].unbind(1)
        silent = inside.bool() | (token == self.output_start)
        inside = (silent & (token != self.output_end)).float()
        return torch.stack([number, place + ~silent, inside, inside], dim=1)

    def logits(self, memory: Tensor) -> Tensor:
        number, place = memory[:, 0].long(), memory[:, 1].long().clamp(max=self.scripts.size(1) - 1)
        logits = torch.zeros(len(memory), self.config.vocab_size)
        logits.scatter_(1, self.scripts[number, place][:, None], 99.0)
        return logits


def answers_of(task: Any) -> dict[str, Any]:
    """The gold answer to each question."""
    messages = [conversation["messages"] for conversation in task]
    return {user["content"]: assistant["content"] for *_, user, assistant in messages}


def knowing(tokenizer: Any, task: Any, sequence_len: int = 256) -> Engine:
    """An engine whose model knows the task by heart."""
    return Engine(Knows(tokenizer, answers_of(task), sequence_len), tokenizer)
