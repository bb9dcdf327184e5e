"""Oracles for inference: a cache of Python lists, and completion without any cache. Slow and obvious.

`ListCache` does what `nanochat.kv_cache.KVCache` does, one row at a time with `torch.cat`. `complete` runs the whole
sequence through the model for each new token of one row, so neither a cache nor a neighbour can be wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.calculator import use_calculator
from nanochat.engine import uniform


class ListCache:
    """For each layer and row the keys and values so far, (H, length, D)."""

    def __init__(self, rows: int, layers: int, heads: int, head_dim: int):
        self.empty = torch.zeros(heads, 0, head_dim)
        self.rows = [[(self.empty, self.empty) for _ in range(layers)] for _ in range(rows)]

    def lengths(self) -> list[int]:
        return [row[0][0].size(1) for row in self.rows]

    def insert(self, layer: int, k: Tensor, v: Tensor) -> None:
        for b, row in enumerate(self.rows):
            row[layer] = (torch.cat([row[layer][0], k[b]], dim=1), torch.cat([row[layer][1], v[b]], dim=1))

    def truncate(self, lengths: list[int]) -> None:
        self.rows = [[(k[:, :n], v[:, :n]) for k, v in row] for row, n in zip(self.rows, lengths)]

    def keep(self, rows: list[int]) -> None:
        self.rows = [list(self.rows[r]) for r in rows]

    def append(self, other: ListCache, rows: list[int]) -> None:
        self.rows += [list(other.rows[r]) for r in rows]


def pick(logits: Tensor, u: float, temperature: float, top_k: int | None) -> int:
    """One token from logits (V,) by walking along the probabilities until they exceed u."""
    if temperature == 0:
        return int(logits.argmax())
    order = list(range(len(logits)))
    if top_k and top_k < len(logits):
        order = logits.topk(top_k).indices.tolist()
    probabilities = torch.softmax(logits.double()[order] / temperature, dim=0).tolist()
    total = 0.0
    for token, p in zip(order, probabilities):
        total += p
        if total > u:
            return token
    return order[-1]


@torch.no_grad()
def complete(model, tokenizer, prompt: list[int], max_tokens: int, temperature: float = 0.0, top_k: int | None = None,
             seed: int = 42, index: int = 0) -> tuple[list[int], list[int]]:
    """(completion, mask) of one row; the tool's state is found anew from the text at each step."""
    names = ("python_start", "python_end", "output_start", "output_end")
    python_start, python_end, output_start, output_end = (tokenizer.encode_special(f"<|{name}|>") for name in names)
    stops = {tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")}
    ids: list[int] = []
    mask: list[int] = []
    forced: list[int] = []
    while len(ids) < min(max_tokens, model.config.sequence_len - len(prompt)):
        if forced:
            ids.append(forced.pop(0))
            mask.append(0)
            continue
        logits = model(torch.tensor([prompt + ids]))[0, -1]
        token = pick(logits, uniform(seed, index, len(ids)), temperature, top_k)
        if token == python_end:
            marks = [i for i, (t, m) in enumerate(zip(ids, mask)) if m and t in (python_start, python_end)]
            if marks and ids[call := marks[-1]] == python_start:
                result = use_calculator(tokenizer.decode(ids[call + 1 :]))
                if result is not None:
                    forced = [output_start, *tokenizer.encode(result), output_end]
        ids.append(token)
        mask.append(1)
        if token in stops:
            break
    return ids, mask
