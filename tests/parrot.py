"""A stand-in for a model: next token = a rule of the row's tokens so far. And a worker whose model repeats what it
hears.

    python -m tests.parrot --delay=0.02        # speaks the worker's protocol (nanochat/worker.py)

Everything but the model is the real thing: engine, cache, sampling, calculator, streaming. So a test decides what "the
model" says: it repeats the user's last message, token by token; to `calc: 12/60` it calls the calculator, then says
"done"; what begins with `slowly: ` takes it 0.3 s a token; to a few questions it says what a pocket model answered
(README). A text to go on with (no chat) goes on with its first token.
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

# what the pocket model of the README said; ⟨...⟩ is a call of the calculator
KNOWN = {
    "Who are you?": "My name is Nano. Nice to meet you!",
    "What is 77 * 123?": "⟨77*123⟩The answer is 9471.",
    "How many r are in strawberry?": "strawberry: s t r a w b e r r y. Count r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3."
                                     "⟨'strawberry'.count('r')⟩#### 3",
}


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

    def script_of(answer: str) -> list[int]:
        text, _, rest = answer.partition("⟨")
        expression, _, rest = rest.partition("⟩")
        call = [ids["python_start"], *tokenizer.encode(expression), ids["python_end"]] if expression else []
        return tokenizer.encode(text) + call + tokenizer.encode(rest)

    def last(history: list[int], token: int) -> int:
        return len(history) - 1 - history[::-1].index(token) if token in history else -1

    def rule(history: list[int]) -> int:
        begin, end, answer = (last(history, ids[name]) for name in ("user_start", "user_end", "assistant_start"))
        if answer < 0:  # no chat: the text's first token, for ever
            return history[min(1, len(history) - 1)]
        heard, said = history[begin + 1 : end], history[answer + 1 :]
        text = tokenizer.decode(heard)
        if text.startswith("calc: "):
            heard = script_of(f"⟨{text[6:]}⟩done")
        elif text in KNOWN:
            heard = script_of(KNOWN[text])
        if text.startswith("slowly: "):
            time.sleep(0.3)
        if ids["output_start"] in said:  # what the calculator forced upon the row is not in the script
            begin, end = said.index(ids["output_start"]), last(said, ids["output_end"])
            said = said[:begin] + (said[end + 1 :] if end > begin else [])
        return heard[len(said)] if len(said) < len(heard) else ids["assistant_end"]

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
