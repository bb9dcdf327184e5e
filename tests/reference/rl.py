"""The policy gradient as the formula stands: each answer alone in a forward pass, no packing, no rows, no ranks.

The oracle of `nanochat/rl.py` and of what the training loop makes of it. Slow and obvious; float64 with
a float64 model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanochat.rl import Group


def token_logprobs(model: nn.Module, prompt: list[int], ids: list[int]) -> Tensor:
    """(len(ids),) log-probability of each id of an answer, given all that stands before it; differentiable."""
    logits = model(torch.tensor([[*prompt, *ids[:-1]]]))[0]  # (n, V); the last id is nobody's input
    chosen = logits.log_softmax(-1)[len(prompt) - 1 :]  # (len(ids), V)
    return chosen[torch.arange(len(ids)), torch.tensor(ids)]


def policy_loss(model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """-1/N · Σ (reward - mean reward of its group) · log π(token), over sampled tokens; N = those of all groups."""
    total, sampled = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        mean = sum(sample.reward for sample in group.samples) / len(group.samples)
        for sample in group.samples:
            logprobs = token_logprobs(model, group.prompt, sample.ids)
            chosen = torch.tensor(sample.mask, dtype=torch.float64)  # what the tool forced is nobody's choice
            total = total + (sample.reward - mean) * (logprobs * chosen).sum()
            sampled += sum(sample.mask)
    return -total / max(1, sampled)
