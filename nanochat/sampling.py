"""How the next token is chosen: a pure function of logits, settings and numbers that belong to the row.

    tokens = sample_next_token(logits, [uniform(seed, row=0, step=7)], temperature=0.8, top_k=50, top_p=0.9)

There is nothing to run here; `nanochat.engine` exports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.common import UserError


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen. Impossible settings are refused here."""

    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int | None = None  # choose among so many likeliest tokens; None or 0: all
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature={self.temperature} is impossible: choose 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 0:
            raise UserError(f"top_k={self.top_k} is impossible: it must be at least 0 (all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is impossible: it must be above 0, and at most 1 (all tokens)")


def mix64(x: int) -> int:
    """SplitMix64's scrambler (Steele et al. 2014): a bijection on 64 bits, near inputs look unrelated."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def stream_seed(seed: int, index: int) -> int:
    """The seed of one of many things that are sampled: of one seed, no two indices (below 2^64) have the same."""
    return mix64(mix64(seed & 0xFFFFFFFFFFFFFFFF) ^ index)


def uniform(seed: int, row: int, step: int) -> float:
    """The random number in [0, 1) of one step of one row: a function of the three, so that no neighbour, no batch size
    and no order of work can change it. 52 bits."""
    return (mix64(stream_seed(seed, row) ^ step) >> 12) * 2.0**-52


def sample_next_token(logits: Tensor, uniforms: Sequence[float] | None = None, temperature: float = 1.0,
                      top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """One token a row: logits (B, V), a number in [0, 1) for each row -> (B,) ids.

    Temperature 0 takes the most likely token and needs no numbers. `top_k` of None, 0 or at least V means all tokens.
    `top_p` keeps the fewest likeliest tokens, of those that `top_k` kept, whose probabilities reach it (Holtzman et al.
    2020, "nucleus sampling"). Sampling inverts the distribution function: the first token at which the cumulative
    probability exceeds the number. `logits=[[0, log 3]], uniforms=[0.2] -> [0]` (P = 1/4, 3/4), `uniforms=[0.3] -> [1]`
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if uniforms is None:
        raise ValueError("sampling at a temperature above 0 needs one random number a row")
    ids = None
    if top_k and top_k < logits.size(-1):
        logits, ids = logits.topk(top_k, dim=-1)  # (B, top_k), falling
    elif top_p < 1:
        logits, ids = logits.sort(dim=-1, descending=True)
    # float64: a cumulative sum over 65 536 small float32 numbers would be wrong by more than the rarest tokens' share
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # largest first to 0: no temperature overflows
    cumulative = logits.exp().cumsum(dim=-1)  # (B, V), not normalised: the number is scaled instead
    total = cumulative[:, -1:]
    if top_p < 1:  # what the kept tokens add up to: the first sum that reaches the share
        total = cumulative.gather(-1, torch.searchsorted(cumulative, top_p * total).clamp_(max=cumulative.size(-1) - 1))
    target = torch.tensor(uniforms, dtype=logits.dtype, device=logits.device)[:, None] * total
    choice = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.size(-1) - 1)  # (B, 1)
    return (choice if ids is None else ids.gather(-1, choice))[:, 0]


def sample_rows(logits: Tensor, settings: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """One token a row, each row by its own settings: logits (B, V) -> (B,) ids. Rows of like settings go together."""
    groups: dict[Sampling, list[int]] = {}
    for row, sampling in enumerate(settings):
        groups.setdefault(sampling, []).append(row)
    if len(groups) == 1:
        return sample_next_token(logits, uniforms, settings[0].temperature, settings[0].top_k, settings[0].top_p)
    tokens = torch.empty(len(settings), dtype=torch.long, device=logits.device)
    for s, rows in groups.items():
        tokens[rows] = sample_next_token(logits[rows], [uniforms[row] for row in rows], s.temperature, s.top_k, s.top_p)
    return tokens


def entropies(logits: Tensor) -> Tensor:
    """How undecided the model is, in nats: logits (n, V) -> (n,). `[[0, 0]] -> [log 2]`, `[[0, 99]] -> [0]`"""
    logprobs = logits.float().log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


class TokenLogprobs(NamedTuple):
    """How likely the model found one token, whatever the sampling's settings made of it."""

    token: int
    logprob: float  # natural logarithm
    top: list[tuple[int, float]]  # the likeliest tokens and theirs, falling


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """For each row of logits (n, V) the log-probability of its token, and the `top` likeliest.

    `logits=[[0, log 3]], tokens=[0], top=1 -> [(0, log 1/4, [(1, log 3/4)])]`
    """
    logits = logits.float()
    total = logits.logsumexp(dim=-1, keepdim=True)  # (n, 1)
    chosen = logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None]) - total
    best, ids = logits.topk(min(top, logits.size(-1)), dim=-1)  # (n, top)
    likeliest = (best - total).tolist()
    return [TokenLogprobs(token, logprob, list(zip(row, values)))
            for token, logprob, row, values in zip(tokens, chosen[:, 0].tolist(), ids.tolist(), likeliest)]
