"""Reinforcement learning on verifiable rewards, its mathematics: groups of answers in, what a step trains on out.

For each problem the policy writes a group of answers; a task says what each is worth. The policy gradient (REINFORCE,
Williams 1992) with the group's mean as its baseline, as in GRPO (Shao et al. 2024, "DeepSeekMath", section 4.1), but
strictly on-policy: every answer is used once, by the weights that wrote it. So there is no ratio to clip, no trust
region and no reference model; and no division by the group's standard deviation, which would weigh problems by how
nearly they are settled (Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.1):

    loss = -1/N · Σ advantage · log π(token)      over the tokens that the policy sampled, of all ranks
    advantage = reward - mean reward of the group;   N = sampled tokens of the global batch (Yu et al. 2025, "DAPO")

What the tool forced upon an answer is seen by the model, but is nobody's choice and carries no gradient; the
<|assistant_end|> that the policy chose does. A group whose answers are all worth the same is flat: its advantages are
0, so it is left out of the rows, which changes no gradient (its tokens still count in N), only the time.

Pure functions (floor 1); `rollouts.py` is who samples, `scripts/chat_rl.py` what one runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nanochat.packing import pack_pieces

WINDOW = 20  # steps over which a collapse shows
LONGEST = 200  # steps that are remembered to compare with
WATCHED = ("reward", "entropy", "flat", "unfinished")  # figures that a collapse is told by


@dataclass(frozen=True)
class Sample:
    """One answer: the ids after its prompt, and which of them the policy chose."""

    ids: list[int]
    mask: list[int]  # 1 = sampled, 0 = forced by the tool
    reward: float
    ended: bool  # by <|assistant_end|>: what was cut off is no answer, and worth nothing
    entropy: float  # nats, summed over the sampled tokens


@dataclass(frozen=True)
class Group:
    """All answers to one problem."""

    task: str
    prompt: list[int]
    samples: list[Sample]

    @property
    def flat(self) -> bool:
        """Whether all answers are worth the same: nothing tells one from another."""
        return len({sample.reward for sample in self.samples}) < 2

    @property
    def sampled(self) -> int:
        """Tokens that the policy chose, over all answers."""
        return sum(sum(sample.mask) for sample in self.samples)


# --------------------------------------------------------------------------- which problems


@lru_cache(maxsize=2)
def problem_order(n: int, epoch: int, seed: int) -> list[int]:
    """The order in which an epoch asks n problems, each once: `(3, 0, 42) -> [1, 0, 2]`, say."""
    order = list(range(n))
    random.Random(f"reinforcement {seed} {epoch}").shuffle(order)
    return order


def problem_at(position: int, n: int, seed: int) -> int:
    """Which of n problems stands at a position of the endless stream; step s of P problems has `s·P .. s·P + P - 1`."""
    return problem_order(n, position // n, seed)[position % n]


# --------------------------------------------------------------------------- what a step trains on


def advantages(rewards: Sequence[float]) -> list[float]:
    """`[1, 0, 0, 1] -> [0.5, -0.5, -0.5, 0.5]`; of equal rewards exactly 0 each, whatever their mean rounds to."""
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def pieces(groups: Sequence[Group]) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(ids, counts)` of every answer of the groups that are not flat: (n,) each, counts float64.

    Prompt 7 8, answer 5 6 of which 6 was forced, advantage 0.5: `[7, 8, 5, 6], [0, 0, 0.5, 0]`.
    """
    found = []
    for group in groups:
        if group.flat:
            continue
        for sample, advantage in zip(group.samples, advantages([s.reward for s in group.samples]), strict=True):
            counts = np.zeros(len(group.prompt) + len(sample.ids))
            counts[len(group.prompt) :] = advantage * np.asarray(sample.mask)
            found.append((np.asarray(group.prompt + sample.ids, np.uint32), counts))
    return found


def training_rows(
    groups: Sequence[Group], bos: int, T: int, *, rows: int, world_size: int = 1, deterministic: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """All answers that teach something, packed: ids and counts, (R, T + 1) each, the same on every rank.

    R fills whole micro-batches of `rows`, equally many on each rank and at least one; what is left over is empty, and
    counts nothing. In deterministic mode their number is a power of two, so that the tree of their sums has the same
    shape on any number of ranks.
    """
    packed = pack_pieces(pieces(groups), bos, T)
    micro_batches = max(1, -(-len(packed.ids) // rows))
    if deterministic:
        micro_batches = max(world_size, 1 << (micro_batches - 1).bit_length())
    micro_batches += -micro_batches % world_size
    missing = micro_batches * rows - len(packed.ids)
    ids = np.concatenate([packed.ids, np.full((missing, T + 1), bos, packed.ids.dtype)])
    return ids, np.concatenate([packed.learn, np.zeros((missing, T + 1))])


# --------------------------------------------------------------------------- how it goes


def figures(groups: Sequence[Group]) -> dict[str, float]:
    """What the log says of a step's answers, all but `length` and `entropy` as shares or means of rewards.

    `length`: tokens of an answer; `entropy`: nats a sampled token; `tool`: answers in which the tool was used;
    `unfinished`: answers that did not end; `flat`: groups that teach nothing; `reward NAME`: that of each task.
    """
    samples = [sample for group in groups for sample in group.samples]
    found = {
        "reward": _mean([s.reward for s in samples]),
        "length": _mean([len(s.ids) for s in samples]),
        "entropy": sum(s.entropy for s in samples) / max(1, sum(g.sampled for g in groups)),
        "flat": _mean([g.flat for g in groups]),
        "tool": _mean([0 in s.mask for s in samples]),
        "unfinished": _mean([not s.ended for s in samples]),
    }
    for task in sorted({g.task for g in groups}):
        found[f"reward {task}"] = _mean([s.reward for g in groups if g.task == task for s in g.samples])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def collapse(history: Sequence[dict[str, float]], window: int = WINDOW) -> str:
    """What has gone wrong for good, by name, or "": the last `window` steps against those before. `history`: figures.

    "reward collapse": less than half of the best earlier window, which had been above 0.1. "entropy collapse": all
    groups flat though a tenth of the answers and more is wrong: they no longer vary, so nothing can be learned. "no
    reward": not one answer was worth anything, in all groups of the window.
    """
    if len(history) < window:
        return ""
    last = history[-window:]
    reward, entropy, unfinished = (_mean([h[name] for h in last]) for name in ("reward", "entropy", "unfinished"))
    what = f"over {window} steps a mean reward of {reward:.3f}, {entropy:.3f} nats a token, {unfinished:.0%} unfinished"
    if all(h["flat"] == 1 for h in last) and reward < 0.9:
        if not any(h["reward"] for h in last):
            return f"no reward: not one answer was right ({what})"
        return f"entropy collapse: all answers to a problem are worth the same, and not all are right ({what})"
    starts = range(len(history) - 2 * window + 1)  # windows that end before the last begins
    best = max((_mean([h["reward"] for h in history[i : i + window]]) for i in starts), default=0.0)
    if best > 0.1 and reward < best / 2:
        return f"reward collapse: {what}; it had been {best:.3f}"
    return ""
