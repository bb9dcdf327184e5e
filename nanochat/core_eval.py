"""CORE: how much a base model knows and understands, by few-shot prompts (DCLM, Li et al. 2024, section 3 and app. G).

    results = evaluate_core(model, tokenizer, load_bundle("pocket"))
    core_metric(results)                              # 0.18: the mean of the centred accuracies

The rules, all DCLM's: texts are stripped; examples with their answers come before the question, a line each; of the
choices the one with the lowest mean loss per token wins; a text to be gone on with counts when every token of it is the
most likely one. Ours: which examples stand before a question depends on nothing but its number.

There are two ways to the same predictions. `evaluate_example` is the plain one: every prompt by itself, all logits.
`evaluate_task` is the fast one: what the prompts of a question have in common, which is nearly all, is computed once,
and of its last block only what the answers see; questions of like length share a batch; logits are made only where an
answer is scored; ranks share the questions. So that rounding, which depends on batches, does not decide, scores that
differ by less than `TIE` are a tie, and the first wins; in float32 that is enough. In bfloat16 near-ties may fall
otherwise in another batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.attention import cache_mask
from nanochat.common import progress
from nanochat.eval_result import centred, wilson
from nanochat.gpt import GPT
from nanochat.kv_cache import KVCache
from nanochat.ranks import rank_and_world, sum_over_ranks, wire_device
from nanochat.task_eval import spread
from tasks.core_bundle import CoreTask
from tasks.rows import Row

SHOTS_SEED = 1234  # DCLM's
TIE = 1e-5  # nats a token: rounding in float32 moves a mean loss by less
# Positions computed together: few enough that a CPU's caches hold their activations, many enough to keep a GPU busy
# (the latter not measured).
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 4096}
SCORED_FLOATS = 2**27  # logits held at once: half a gigabyte


# --------------------------------------------------------------------------- prompts


class Prompt(NamedTuple):
    """A text in two parts: what is given, and what is scored after it (with the blank before it)."""

    context: str
    continuation: str


def _prompts(shots: Iterable[str], delimiter: str, pairs: Iterable[tuple[str, str]]) -> list[Prompt]:
    """`["2 = 2"], " = ", [("1", "1")] -> [Prompt("2 = 2\\n1 =", " 1")]`: the blank goes with the word after it."""
    before = "".join(f"{shot}\n" for shot in shots)
    stem = delimiter.rstrip()
    return [Prompt(f"{before}{asked.strip()}{stem}", f"{delimiter[len(stem):]}{answer.strip()}")
            for asked, answer in pairs]


def render_prompts_mc(item: Row, continuation_delimiter: str, fewshot_examples: Sequence[Row] = ()) -> list[Prompt]:
    """A prompt for each choice, which all have the same context.

    `{"query": "2+2 is", "choices": ["5", "4"], "gold": 1}, " " -> [("2+2 is", " 5"), ("2+2 is", " 4")]`
    """
    shots = (f"{row['query'].strip()}{continuation_delimiter}{row['choices'][row['gold']].strip()}"
             for row in fewshot_examples)
    return _prompts(shots, continuation_delimiter, [(item["query"], choice) for choice in item["choices"]])


def render_prompts_schema(item: Row, continuation_delimiter: str, fewshot_examples: Sequence[Row] = ()) -> list[Prompt]:
    """A prompt for each context; what is scored is the same in all."""
    shots = (f"{row['context_options'][row['gold']].strip()}{continuation_delimiter}{row['continuation'].strip()}"
             for row in fewshot_examples)
    return _prompts(shots, continuation_delimiter, [(text, item["continuation"]) for text in item["context_options"]])


def render_prompts_lm(item: Row, continuation_delimiter: str, fewshot_examples: Sequence[Row] = ()) -> list[Prompt]:
    """The one prompt of a text to be gone on with."""
    shots = (f"{row['context'].strip()}{continuation_delimiter}{row['continuation'].strip()}"
             for row in fewshot_examples)
    return _prompts(shots, continuation_delimiter, [(item["context"], item["continuation"])])


RENDER = {"multiple_choice": render_prompts_mc, "schema": render_prompts_schema, "language_modeling": render_prompts_lm}


def render_prompts(task: CoreTask, index: int) -> list[Prompt]:
    """The prompts of row `index`, after `num_fewshot` other rows: always the same ones, whatever else is asked."""
    n = len(task.rows)
    drawn = random.Random(SHOTS_SEED + index).sample(range(n - 1), min(task.num_fewshot, n - 1))
    shots = [task.rows[i + (i >= index)] for i in drawn]  # all rows but this one
    return RENDER[task.kind](task.rows[index], task.delimiter, shots)


# --------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Question:
    """One example in tokens: `trunk + branch` is a prompt, of which the last `scored` tokens count.

    `[7, 1, 2, 3]` and `[7, 1, 2, 5, 6]`, both with the context `[7, 1, 2]`, are trunk `[7, 1]`, branches `[2, 3]` and
    `[2, 5, 6]`, scored 1 and 2: the token before the first scored one is the branch's, since it is what predicts that.
    """

    trunk: list[int]
    branches: list[list[int]]
    scored: list[int]
    cropped: bool


def make_questions(all_prompts: Sequence[Sequence[Prompt]], tokenizer: Any, sequence_len: int) -> list[Question]:
    """The prompts of many examples as tokens, each beginning with <|bos|> and fitting a context of `sequence_len`."""
    flat = [prompt for prompts in all_prompts for prompt in prompts]
    bos = tokenizer.get_bos_token_id()
    contexts = sorted({prompt.context for prompt in flat})  # the choices of a question have theirs in common
    known = dict(zip(contexts, tokenizer.encode(contexts, prepend=bos), strict=True))
    whole = iter(tokenizer.encode([prompt.context + prompt.continuation for prompt in flat], prepend=bos))
    return [make_question([(known[p.context], next(whole)) for p in prompts], sequence_len) for prompts in all_prompts]


def make_question(pairs: Sequence[tuple[list[int], list[int]]], sequence_len: int) -> Question:
    """One example of `(tokens of the context, tokens of all)`, a pair a prompt.

    Scored is what comes after the tokens that both begin with, in case the blank between them is one token with what
    stands before. A model of context T reads T tokens and is asked for the one after: prompts of T + 1 tokens fit. Of
    longer ones all lose equally many tokens at the left, but for the first (<|bos|>), so that all choices keep the same
    context.
    """
    pairs = [(context, whole if len(whole) > 1 else whole * 2) for context, whole in pairs]  # "" is ended by <|bos|>
    prompts = [whole for _, whole in pairs]
    starts = [max(1, min(common_prefix([context, whole]), len(whole) - 1)) for context, whole in pairs]
    excess = max(0, max(map(len, prompts)) - (sequence_len + 1))
    if excess:
        for i, (ids, start) in enumerate(zip(prompts, starts)):
            ids = ids[:1] + ids[1 + min(excess, start - 1):]  # never of what is scored ...
            prompts[i] = ids[:1] + ids[1:][-sequence_len:]  # ... unless that alone is too long
            starts[i] = max(1, len(prompts[i]) - (len(pairs[i][1]) - start))
    trunk = min(common_prefix(prompts), *starts) - 1
    return Question(prompts[0][:trunk], [ids[trunk:] for ids in prompts],
                    [len(ids) - start for ids, start in zip(prompts, starts)], excess > 0)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with: `[[1, 2, 3], [1, 2, 5, 6]] -> 2`."""
    first, last = min(rows), max(rows)  # in the order of a dictionary: all others lie between these two
    same, most, step = 0, min(len(first), len(last)), 64  # 64 at a time: prompts have thousands in common
    while same + step <= most and first[same : same + step] == last[same : same + step]:
        same += step
    while same < most and first[same] == last[same]:
        same += 1
    return same


# --------------------------------------------------------------------------- scores


class Score(NamedTuple):
    """How well a model knows one continuation."""

    nats: float  # -log p of all its tokens
    tokens: int
    greedy: bool  # whether each of them was the most likely one

    @property
    def mean(self) -> float:
        return self.nats / self.tokens


def predict(scores: Sequence[Score]) -> int:
    """The index of the choice with the lowest mean loss: the first of those that are within `TIE` of it."""
    best = min(score.mean for score in scores)
    return next(i for i, score in enumerate(scores) if not score.mean > best + TIE)  # of NaN, the first


def is_right(task: CoreTask, index: int, scores: Sequence[Score]) -> bool:
    if task.kind == "language_modeling":
        return scores[0].greedy
    return predict(scores) == task.rows[index]["gold"]


class Branches:
    """What the model sees in place of a `KVCache`: the branches of each trunk in one row, blind for one another.

    trunk: the cache of B trunks. branch (B, Q): which branch a token of the row belongs to; place (B, Q): where in it.
    """

    def __init__(self, trunk: KVCache, branch: Tensor, place: Tensor):
        self.trunk, self.branch, self.place = trunk, branch, place
        self._end = int(self.positions(0).max()) + 1

    def positions(self, T: int) -> Tensor:
        return self.trunk.lengths[:, None] + self.place

    def end(self, T: int) -> int:
        return self._end  # not beyond the context, however many branches stand in a row

    def mask(self, positions: Tensor) -> Tensor:
        """The keys of its own trunk, then those of its own branch up to itself: (B, 1, Q, longest trunk + Q)."""
        B, Q = self.branch.shape
        trunk = cache_mask(self.trunk.lengths[:, None] - 1, self.trunk.used).expand(B, 1, Q, self.trunk.used)
        own = (self.branch[:, :, None] == self.branch[:, None, :]).tril()[:, None]
        return torch.cat([trunk, own], dim=-1)

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the trunks, then of the branches: (B, H_kv, longest trunk + Q, D). Nothing is kept."""
        B = k.size(0)
        keys, values = self.trunk.store[:, layer_idx, :B, :, : self.trunk.used]
        return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)

    def advance(self, T: int) -> None:
        pass


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device) -> Tensor:
    """`[[1, 2], [3]], 0 -> [[1, 2], [3, 0]]` int64."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)


@torch.inference_mode()
def score_batch(model: Any, questions: Sequence[Question]) -> list[list[Score]]:
    """The scores of all branches. Either every question has a trunk (`model` is a `GPT`), or each is one branch."""
    device = model.get_device()
    rows = [[id for branch in q.branches for id in branch[:-1]] for q in questions]  # the last token predicts nothing
    ids, at, targets = padded(rows, 0, device), [], []
    for row, q in enumerate(questions):
        end = 0
        for branch, scored in zip(q.branches, q.scored):
            end += len(branch) - 1
            at += [(row, end - scored + i) for i in range(scored)]
            targets += branch[len(branch) - scored :]
    where, wanted = torch.tensor(at, device=device).unbind(1), torch.tensor(targets, device=device)
    if isinstance(model, GPT):
        hidden = model.hidden(ids, _branches(model, questions) if questions[0].trunk else None)[where]  # (N, C)
        block = max(1, SCORED_FLOATS // model.config.vocab_size)
        blocks = (model.logits(part) for part in hidden.split(block))
    else:
        blocks = iter([model.logits_at(ids, *where)])
    nats, greedy = [], []
    for logits in blocks:  # (at most `block` of N, V)
        target = wanted[len(nats) : len(nats) + len(logits)]
        nats += F.cross_entropy(logits, target, reduction="none").tolist()
        greedy += (logits.argmax(dim=-1) == target).tolist()
    return _by_question(questions, nats, greedy)


def _branches(model: GPT, questions: Sequence[Question]) -> Branches:
    """Compute the trunks of all questions."""
    c, device = model.config, model.get_device()
    trunks = padded([q.trunk for q in questions], 0, device)
    cache = KVCache(len(questions), c.n_kv_head, trunks.size(1), c.head_dim, c.n_layer, model.compute_dtype, device)
    model.fill(trunks, cache)
    cache.set_lengths([len(q.trunk) for q in questions])
    branch = padded([[i for i, b in enumerate(q.branches) for _ in b[:-1]] for q in questions], -1, device)
    place = padded([[i for b in q.branches for i in range(len(b) - 1)] for q in questions], 0, device)
    return Branches(cache, branch, place)


def _by_question(questions: Sequence[Question], nats: list[float], greedy: list[bool]) -> list[list[Score]]:
    """Put the figures of tokens, all in a row, together to those of branches."""
    tokens = iter(zip(nats, greedy, strict=True))
    found = []
    for q in questions:
        parts = [list(islice(tokens, n)) for n in q.scored]
        found.append([Score(sum(x for x, _ in part), len(part), all(g for _, g in part)) for part in parts])
    return found


def batches(questions: Sequence[Question], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of questions to be scored together, the longest first: `batch_tokens` positions at most, padding included
    (or one question)."""

    def size(i: int) -> tuple[int, int]:
        return len(questions[i].trunk), sum(map(len, questions[i].branches))

    batch: list[int] = []
    trunk = widest = 0
    for i in sorted(range(len(questions)), key=size, reverse=True):
        own_trunk, width = size(i)
        full = (len(batch) + 1) * (trunk + max(widest, width)) > batch_tokens
        if batch and (full or bool(trunk) != bool(own_trunk)):
            yield batch
            batch, widest = [], 0
        trunk, widest = max(own_trunk, trunk if batch else 0), max(widest, width)
        batch.append(i)
    if batch:
        yield batch


def one_branch_each(question: Question) -> list[Question]:
    """Every prompt as a question of its own: `[1] + ([2], [3]) -> [1, 2], [1, 3]`."""
    return [Question([], [question.trunk + branch], [scored], question.cropped)
            for branch, scored in zip(question.branches, question.scored)]


def score(model: Any, questions: Sequence[Question], batch_tokens: int = 0,
          description: str = "") -> list[list[Score]]:
    """The scores of all questions, shared among the ranks; every rank returns all of them.

    `batch_tokens`: positions computed together; 0: what suits the device. A model other than `GPT` brings
    `logits_at(ids, rows, columns)`, `get_device()` and `config.sequence_len`; it computes whole prompts.
    """
    share = isinstance(model, GPT)
    asked = [part for q in questions for part in ([q] if share and q.trunk else one_branch_each(q))]
    starts = [0, *accumulate(len(q.branches) for q in asked)]
    rank, world_size = rank_and_world()
    found = torch.zeros(starts[-1], 2, dtype=torch.float64)
    todo = list(batches(asked, batch_tokens or BATCH_TOKENS[model.get_device().type]))[rank::world_size]
    for batch in progress(todo, description=description):
        for i, scores in zip(batch, score_batch(model, [asked[i] for i in batch])):
            found[starts[i] : starts[i + 1]] = torch.tensor([[s.nats, s.greedy] for s in scores], dtype=torch.float64)
    flat = iter(sum_over_ranks(found.to(wire_device())).tolist())  # what another rank has scored is 0 here
    return [[Score(nats, n, bool(greedy)) for n, (nats, greedy) in zip(q.scored, flat)] for q in questions]


# --------------------------------------------------------------------------- tasks


@dataclass
class CoreResult:
    """What one task's evaluation found. `chance` is the mean of 1/choices, `baseline` what DCLM takes for it."""

    label: str
    baseline: float
    chance: float
    right: list[bool] = field(default_factory=list)
    cropped: int = 0  # questions that lost the beginning of their context

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / self.n if self.n else 0.0

    @property
    def centered(self) -> float:
        """0 where blind choice is, 1 where all is right: `accuracy=0.5, baseline=0.25 -> 0.333`."""
        return centred(self.accuracy, self.baseline)

    def metrics(self) -> dict[str, Any]:
        """The entry of this task in a report."""
        return {"accuracy": self.accuracy, "n": self.n, "ci95": list(wilson(sum(self.right), self.n)),
                "chance": self.chance, "baseline": self.baseline, "centered": self.centered, "cropped": self.cropped}


def evaluate_task(
    model: Any, tokenizer: Any, task: CoreTask, *, max_examples: int = -1, batch_tokens: int = 0
) -> CoreResult:
    """Ask all rows of a task, or `max_examples` evenly spaced ones. The examples in prompts are drawn from all rows."""
    asked = spread(len(task.rows), max_examples)
    questions = make_questions([render_prompts(task, i) for i in asked], tokenizer, model.config.sequence_len)
    scores = score(model, questions, batch_tokens, task.label)
    generative = task.kind == "language_modeling"
    return CoreResult(
        task.label, task.baseline,
        chance=0.0 if generative or not asked else sum(1 / len(q.branches) for q in questions) / len(asked),
        right=[is_right(task, i, found) for i, found in zip(asked, scores)],
        cropped=sum(q.cropped for q in questions))


def evaluate_core(
    model: Any, tokenizer: Any, tasks: Sequence[CoreTask], *, max_examples: int = -1, batch_tokens: int = 0
) -> Iterator[CoreResult]:
    """The result of each task, as soon as it is there. The model is asked in evaluation mode and left as it came."""
    was_training = model.training
    model.eval()
    try:
        for task in tasks:
            yield evaluate_task(model, tokenizer, task, max_examples=max_examples, batch_tokens=batch_tokens)
    finally:
        model.train(was_training)


def core_metric(results: Sequence[CoreResult]) -> float:
    """The plain mean of the centred accuracies."""
    return sum(result.centered for result in results) / len(results)


# --------------------------------------------------------------------------- the plain way


@torch.inference_mode()
def forward_model(model: Any, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and predictions at every position: input_ids (B, T) -> (B, T) float32 nats of the token that comes next
    (the last has none: NaN), (B, T) the token that was thought most likely to."""
    logits = model(input_ids).float()  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), input_ids.roll(-1, 1).flatten(), reduction="none")
    losses = losses.view_as(input_ids)
    losses[:, -1] = float("nan")  # it was compared with the row's first token
    return losses, logits.argmax(dim=-1)


def score_plainly(model: Any, question: Question) -> list[Score]:
    """The scores of one question, prompt by prompt."""
    scores = []
    for branch, n in zip(question.branches, question.scored):
        ids = torch.tensor([question.trunk + branch], device=model.get_device())
        losses, predictions = forward_model(model, ids)
        at = slice(-1 - n, -1)
        scores.append(Score(float(losses[0, at].sum(dtype=torch.float64)), n,
                            bool((predictions[0, at] == ids[0, -n:]).all())))
    return scores


def evaluate_example(index: int, model: Any, tokenizer: Any, task: CoreTask) -> bool:
    """Whether row `index` of a task is answered rightly. One prompt at a time: the reference for `evaluate_task`."""
    (question,) = make_questions([render_prompts(task, index)], tokenizer, model.config.sequence_len)
    return is_right(task, index, score_plainly(model, question))
