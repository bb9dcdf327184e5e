"""A stand-in for a model: next token = a rule of the row's tokens so far. And a worker whose model repeats what it hears.

    python -m tests.parrot --delay=0.02        # speaks the worker's protocol (nanochat/worker.py)

Everything but the model is the real thing: engine, cache, sampling, calculator, streaming. So a test decides what "the
model" says: it repeats the user's last message, token by token; to `calc: 12/60` it calls the calculator, then says
"done". A text to go on with (no chat) goes on with its first token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from nanochat import configurator, worker
from nanochat.engine import Engine
from tests.helpers import byte_tokenizer


class Parrot:
    """A "model" with a rule in place of weights: next token = rule(all tokens of the row so far).

    It remembers the tokens only as keys in the real KVCache, so a cache that mixes up rows or positions changes what it
    says. One layer, one head of size 1.
    """

    compute_dtype = torch.float32

    def __init__(self, rule, vocab_size: int, sequence_len: int = 256):
        self.rule = rule
        self.config = SimpleNamespace(sequence_len=sequence_len, vocab_size=vocab_size, n_layer=1, n_head=1,
                                      n_kv_head=1, n_embd=1, head_dim=1)
        self.rows_seen: list[int] = []  # batch size of each forward

    def get_device(self):
        return torch.device("cpu")

    def parameters(self):
        return [torch.zeros(1)]

    def num_parameters(self) -> int:
        return 0

    def __call__(self, idx, kv_cache, at=None):
        B, T = idx.shape
        self.rows_seen.append(B)
        positions = kv_cache.positions(T)
        assert int(positions.max()) < self.config.sequence_len
        k, _ = kv_cache.insert_kv(0, idx.float().view(B, 1, T, 1), idx.float().view(B, 1, T, 1))
        logits = torch.zeros(B, T if at is None else 1, self.config.vocab_size)
        for b in range(B):
            for i, t in enumerate(range(T) if at is None else [int(at[b])]):
                logits[b, i, self.rule(k[b, 0, : int(positions[b, t]) + 1, 0].long().tolist())] = 10.0
        kv_cache.advance(T)
        return logits


def repeat(tokenizer: Any):
    """The rule that repeats the last user message, or calls the calculator for one that begins with "calc: "."""
    ids = {name: tokenizer.encode_special(f"<|{name}|>") for name in
           ("user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end", "output_start",
            "output_end")}
    calc = tokenizer.encode("calc: ")

    def last(history: list[int], token: int) -> int:
        return len(history) - 1 - history[::-1].index(token) if token in history else -1

    def rule(history: list[int]) -> int:
        begin, end, answer = (last(history, ids[name]) for name in ("user_start", "user_end", "assistant_start"))
        heard, said = history[begin + 1 : end], history[answer + 1 :]
        if answer < 0:  # no chat: the text's first token, for ever
            return history[min(1, len(history) - 1)]
        if heard[: len(calc)] == calc:
            script = [ids["python_start"], *heard[len(calc) :], ids["python_end"]]
            if said[: len(script)] == script:  # what the tool forces upon the row stands behind it
                said = said[len(script) :]
                if ids["output_end"] in said:
                    said = said[said.index(ids["output_end"]) + 1 :]
                script = tokenizer.encode("done")
        else:
            script = heard
        return script[len(said)] if len(said) < len(script) else ids["assistant_end"]

    return rule


@dataclass
class Config(worker.Config):
    delay: float = 0.0
    """Seconds a step."""
    context: int = 8192


def main(config: Config) -> None:
    def load() -> tuple[Engine, dict[str, Any]]:
        tokenizer = byte_tokenizer()
        rule = repeat(tokenizer)
        model = Parrot(rule, tokenizer.get_vocab_size(), config.context)
        engine = Engine(model, tokenizer)
        forward = engine.forward

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(forward, name)

            def __call__(self, *args: Any) -> torch.Tensor:
                time.sleep(config.delay)
                return forward(*args)

        engine.forward = Slow()
        meta = {"parent": {"source": config.source, "model_tag": "parrot", "step": 0}, "config": {"data": "pocket"}}
        return engine, worker.describe(meta, engine)

    worker.serve(load, config.max_rows)


if __name__ == "__main__":
    configurator.main(main, Config)
