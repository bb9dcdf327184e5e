"""What an evaluation found, as figures: shares, their 95% intervals, pass@k, and ChatCORE, a mean of centred shares.

    result = EvalResult.of("gsm8k", [Outcome(0, right=2), Outcome(1, right=0)], num_samples=2)
    result.accuracy, result.n, result.ci95      # 0.5, 2, (0.095, 0.905)
    result.pass_at(2)                           # 0.5: how often one of two answers is right

Who asks and grades is `task_eval.py`. There is nothing to run here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEEP = 4  # transcripts kept of right answers, as many of wrong ones, and as many of those that no grader could judge


# --------------------------------------------------------------------------- figures


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): within [0, 1] and sensible at 0, at n and for small n.

    `wilson(9, 10) -> (0.596, 0.982)`, `wilson(0, 10) -> (0.0, 0.278)`, and nothing known: `wilson(0, 0) -> (0.0, 1.0)`.
    `correct` may be a fraction, the sum of n shares: no mean of n numbers in [0, 1] varies more than that of n yes/no
    answers, so the interval is then rather too wide than too narrow.
    """
    if n == 0:
        return 0.0, 1.0
    p, s = correct / n, z * z / n
    centre = (p + s / 2) / (1 + s)
    half = math.sqrt(p * (1 - p) * s + s * s / 4) / (1 + s)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that of k answers at least one is right, estimated without bias from n answers of which c are.

    1 - C(n - c, k) / C(n, k): of all ways to pick k of the n, the share with a right one (Chen et al. 2021, "Evaluating
    Large Language Models Trained on Code", eq. 1). `pass_at_k(4, 1, 2) -> 0.5`: 3 of the 6 pairs.
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def paired_gain(before: Sequence[float], after: Sequence[float], num_samples: int = 1) -> tuple[float, float, float]:
    """How much more is right on the same problems, and its 95% interval: right answers of `num_samples` to each.

    The interval is that of a mean of differences, which is narrower than that of two independent shares where hard
    problems stay hard: `paired_gain([0, 1, 0, 0], [1, 1, 0, 1]) -> (0.5, -0.07, 1.07)`.
    """
    gains = [(b - a) / num_samples for a, b in zip(before, after, strict=True)]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
    half = 1.96 * math.sqrt(variance / len(gains))
    return mean, mean - half, mean + half


def centred(accuracy: float, chance: float) -> float:
    """Accuracy on a scale on which blind choice is 0 and all right is 1: `centred(0.625, 0.25) -> 0.5`."""
    return (accuracy - chance) / (1 - chance)


def chatcore(results: Iterable[EvalResult], tasks: Sequence[str]) -> float | None:
    """ChatCORE: the mean of the centred accuracies of `tasks`. None unless each of them was measured."""
    found = {result.name: result for result in results}
    if not tasks or not all(name in found and found[name].n for name in tasks):
        return None
    return sum(centred(found[name].accuracy, found[name].chance) for name in tasks) / len(tasks)


# --------------------------------------------------------------------------- results


@dataclass
class Outcome:
    """What became of one problem, as plain data: ranks send it to each other."""

    index: int  # of the problem in its task
    right: int  # how many of its answers were
    choices: int = 0  # on offer; 0: it was answered in words
    cropped: bool = False  # the prompt lost its beginning because it did not fit the context
    ungraded: int = 0  # answers that the grader itself failed on: they count as wrong, and are told
    sample: dict[str, Any] | None = None  # its transcript: {"user", "expected", "completion", "right"}

    @property
    def kind(self) -> str:
        return "right" if self.right else "ungraded" if self.ungraded else "wrong"


def thin(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """In the order of the task, with the first `KEEP` transcripts of each kind.

    Thinning the parts and then the whole keeps what thinning the whole would.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.index)
    kept = {"right": 0, "wrong": 0, "ungraded": 0}
    for outcome in ordered:
        kept[outcome.kind] += outcome.sample is not None
        if kept[outcome.kind] > KEEP:
            outcome.sample = None
    return ordered


@dataclass
class EvalResult:
    """What one task's evaluation found. `chance` is what blind choice would reach (0 for written answers)."""

    name: str
    right: list[int]  # of each problem, in the order of the task: how many of its answers were right
    num_samples: int = 1  # answers to each problem
    chance: float = 0.0
    cropped: int = 0  # prompts that lost their beginning because they did not fit the context
    ungraded: int = 0  # answers that the grader failed on; they count as wrong
    samples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, outcomes: Iterable[Outcome], num_samples: int = 1) -> EvalResult:
        """From the outcomes of all problems, in any order."""
        ordered = thin(outcomes)
        chances = [1 / outcome.choices for outcome in ordered if outcome.choices]
        return cls(name, [outcome.right for outcome in ordered], num_samples, sum(chances) / max(1, len(ordered)),
                   sum(outcome.cropped for outcome in ordered), sum(outcome.ungraded for outcome in ordered),
                   [outcome.sample for outcome in ordered if outcome.sample is not None])

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def correct(self) -> int:
        """Right answers, of n · num_samples."""
        return sum(self.right)

    @property
    def accuracy(self) -> float:
        """The share of right answers; with several to a problem that is pass@1."""
        return self.correct / (self.n * self.num_samples) if self.n else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """Of the accuracy, over problems: several answers to one problem are no further problems."""
        return wilson(self.correct / self.num_samples, self.n)

    def pass_at(self, k: int) -> float:
        """How often at least one of k answers is right (1 <= k <= num_samples)."""
        return sum(pass_at_k(self.num_samples, c, k) for c in self.right) / self.n if self.n else 0.0

    def metrics(self) -> dict[str, Any]:
        """The entry of this task in a report; with several answers to a problem also pass@1, 2, 4, … and all."""
        found = {"accuracy": self.accuracy, "n": self.n, "ci95": list(self.ci95), "chance": self.chance,
                 "cropped": self.cropped, "ungraded": self.ungraded}
        if self.num_samples == 1:
            return found
        ks = sorted({self.num_samples, *(2**i for i in range(self.num_samples.bit_length()))})
        shares = {k: self.pass_at(k) for k in ks}
        return found | {"num_samples": self.num_samples, "pass_at": {
            str(k): {"accuracy": share, "ci95": list(wilson(share * self.n, self.n))} for k, share in shares.items()}}


def readable(content: str | list[Any]) -> str:
    """An assistant's content, or a list of accepted answers, on paper.

    `[{"type": "text", "text": "It is "}, {"type": "python", "text": "2*3"}, {"type": "python_output", "text": "6"}]`
    -> `"It is ⟨2*3⟩⟨=6⟩"`
    """
    if isinstance(content, str):
        return content
    if all(isinstance(part, str) for part in content):
        return " | ".join(content)
    form = {"text": "{}", "python": "⟨{}⟩", "python_output": "⟨={}⟩"}
    return "".join(form[part["type"]].format(part["text"]) for part in content)


def transcript(conversation: Mapping[str, Any], completion: list[Any], right: bool, why: str = "") -> dict[str, Any]:
    """A problem, its gold answer and what was said (parts of a message), for the eye; `why`: how the grader failed."""
    expected = conversation.get("answer") or conversation["messages"][-1]["content"]
    shown = {"user": conversation["messages"][-2]["content"], "expected": readable(expected),
             "completion": readable(completion), "right": right}
    return shown | ({"grader": why} if why else {})
