"""The policy gradient's parts: the gradient of the plain formula, however answers are packed, cut and dealt to ranks.

Here ranks are emulated, by the slices that `Rollouts` gives them; tests/test_rollouts.py has real ones.

Run: python -m pytest tests/test_rl.py
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import Optimizer
from nanochat.packing import to_inputs_and_targets
from nanochat.rl import Group, Sample, advantages, collapse, figures, pieces, problem_at, training_rows
from nanochat.stage_config import StageConfig
from nanochat.train import TrainState, document_loss, train
from nanochat.train_step import global_gradient, split_rows
from tests.reference.rl import policy_loss, token_logprobs

V, T = 40, 16
BOS, END = 30, 31
PLAIN = [i for i in range(V) if i not in (BOS, END)]
REWARDS = (0.0, 1.0, 0.1, 0.3, -2.5)
UNSHRUNK = [Phase.explicit, Phase.reuse, Phase.generate]  # of gradients: to shrink a finding would take minutes


@cache
def fresh_model() -> GPT:
    """Float64, two heads on one key and value head, no weight zero.

    The rotary table too: that of float32 turns an answer by 1e-9 more or less, as it stands in its row.
    """
    model = GPT(GPTConfig(sequence_len=T, vocab_size=V, n_layer=2, n_head=2, n_kv_head=1, n_embd=16))
    model.init_weights(seed=0)
    model.to(torch.float64).compute_dtype = torch.float64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.1)
    half = model.config.head_dim // 2
    frequencies = torch.atan2(model.sin[0, 1, 0], model.cos[0, 1, 0])  # the angles of position 1
    angles = torch.arange(T, dtype=torch.float64)[:, None] * frequencies
    assert model.cos.shape == (1, T, 1, half) and (model.cos[0, :, 0] - angles.cos()).abs().max() < 1e-5
    model.cos, model.sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    return model


def batches_of(groups: list[Group], rows: int, world_size: int = 1, deterministic: bool = False) -> list[Batch]:
    """What each rank trains on, as `Rollouts` makes it of the groups that it answered itself: every `world_size`-th."""
    ids, counts = training_rows(groups, BOS, T, rows=rows, world_size=world_size, deterministic=deterministic)
    batches = []
    for rank in range(world_size):
        mine = slice(rank * len(ids) // world_size, (rank + 1) * len(ids) // world_size)
        inputs, targets = map(torch.from_numpy, to_inputs_and_targets(ids[mine], counts[mine]))
        tokens = sum(group.sampled for group in groups[rank::world_size])
        batches.append(Batch(inputs, targets, {}, torch.from_numpy(counts[mine, 1:]), tokens))
    return batches


def reduced(optimizer: Optimizer) -> list[Tensor]:
    """The gradient that the optimizer holds after a reduction, on one rank."""
    return [torch.stack(b.gradient) if isinstance(b.gradient, list) else b.gradient for b in optimizer.buckets]


def gradient(groups: list[Group], rows: int, world_size: int = 1, deterministic: bool = False) -> list[Tensor]:
    """By the code of the training loop; the parts of the ranks added up."""
    model = copy.deepcopy(fresh_model())
    optimizer = model.setup_optimizers()
    batches = batches_of(groups, rows, world_size, deterministic)
    tokens = sum(batch.tokens for batch in batches)
    parts = []
    for batch in batches:
        batch.tokens = tokens  # of all ranks: here none of them can be asked
        found = global_gradient(model, optimizer, batch, rows=rows, loss_fn=document_loss(BOS),
                                deterministic=deterministic)
        assert found.finite and found.supervised == tokens
        parts.append([g.clone() for g in reduced(optimizer)])
        optimizer.zero_grad()
    return [sum(gs) for gs in zip(*parts, strict=True)]


def reference(groups: list[Group]) -> list[Tensor]:
    model = copy.deepcopy(fresh_model())
    optimizer = model.setup_optimizers()
    loss = policy_loss(model, groups)
    if loss.requires_grad:
        loss.backward()
    optimizer.reduce()
    return reduced(optimizer)


def distance(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest difference, in terms of the gradient's largest element."""
    largest = max(float(g.abs().max()) for g in plain)
    return max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)) / max(largest, 1e-3)


# --------------------------------------------------------------------------- answers of all kinds


@st.composite
def samples(draw, room: int) -> Sample:
    """Any answer the engine can give: ended, cut off or stopped by <|bos|>; tokens of the tool anywhere before that;
    up to the last token that the context holds."""
    full = draw(st.booleans())
    n = room if full else draw(st.integers(1, room))
    ids = draw(st.lists(st.sampled_from(PLAIN), min_size=n, max_size=n))
    mask = draw(st.lists(st.sampled_from([1, 1, 0]), min_size=n, max_size=n))
    last = draw(st.sampled_from([END, BOS, None]))
    if last is not None:
        ids[-1], mask[-1] = last, 1
    return Sample(ids, mask, draw(st.sampled_from(REWARDS)), last == END, 0.5)


@st.composite
def groups_of(draw, most: int = 3) -> list[Group]:
    found = []
    for _ in range(draw(st.integers(1, most))):
        prompt = [BOS, *draw(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=T - 2))]
        answers = draw(st.lists(samples(T - len(prompt)), min_size=2, max_size=5))
        if draw(st.integers(0, 3)) == 0:  # a flat group
            answers = [Sample(s.ids, s.mask, 0.3, s.ended, s.entropy) for s in answers]
        found.append(Group("toy", prompt, answers))
    return found


def answer(ids: list[int], reward: float, mask: list[int] | None = None, entropy: float = 0.0) -> Sample:
    return Sample(ids, mask or [1] * len(ids), reward, ids[-1] == END, entropy)


# --------------------------------------------------------------------------- the gradient


@settings(max_examples=15, phases=UNSHRUNK)
@given(groups_of(), st.integers(1, 8), st.sampled_from([1, 2, 3, 4]))
def test_the_gradient_is_that_of_the_plain_formula(groups, rows, world_size):
    assert distance(gradient(groups, rows, world_size), reference(groups)) < 1e-10


@settings(max_examples=5, phases=UNSHRUNK)
@given(groups_of(), st.integers(1, 4))
def test_deterministic_mode_has_the_same_gradient(groups, rows):
    assert distance(gradient(groups, rows, deterministic=True), reference(groups)) < 1e-10


def test_a_rank_count_changes_no_bit_in_deterministic_mode():
    """Rows in whole micro-batches, a power of two of them: the same grains on 1, 2 and 4 ranks."""
    groups = [Group("toy", [BOS, i], [answer([i + 1] * n + [END], n % 2) for n in range(1, 10)]) for i in range(3)]
    cuts = [np.concatenate([b.inputs.numpy() for b in batches_of(groups, 2, world_size, True)])
            for world_size in (1, 2, 4)]
    assert all(len(cut) // 2 in (4, 8, 16) for cut in cuts) and len({cut.tobytes() for cut in cuts}) == 1


def test_every_answer_counts_whatever_their_number():  # trap: rl-remainder
    """Seven answers in micro-batches of three rows: all seven have tokens that count, each once."""
    answers = [answer([i, i + 1, END], float(i == 3)) for i in range(7)]
    group = Group("toy", [BOS, 20], answers)
    (batch,) = batches_of([group], rows=3)
    assert batch.tokens == 21 and len(batch.inputs) % 3 == 0
    learned = Counter(batch.targets[batch.counts != 0].tolist())
    assert learned == Counter(token for a in answers for token in a.ids)
    assert distance(gradient([group], 3), reference([group])) < 1e-10


def test_the_end_that_was_sampled_is_reinforced():  # trap: rl-stop-token
    """Two answers that differ in nothing but where they end: the gradient makes the right one's end likelier."""
    prompt, right, wrong = [BOS, 1, 2], answer([5, END], 1.0), answer([5, 6, END], 0.0)
    (batch,) = batches_of([Group("toy", prompt, [right, wrong])], rows=1)
    ends = batch.counts[batch.targets == END].tolist()
    assert sorted(ends) == [-0.5, 0.5]
    model = copy.deepcopy(fresh_model())

    def logprob_of_the_end() -> float:
        return float(token_logprobs(model, prompt, right.ids)[-1].detach())

    before = logprob_of_the_end()
    (document_loss(BOS)(model, batch) / batch.tokens).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.01 * p.grad)
    assert logprob_of_the_end() > before


def test_what_the_tool_forced_has_no_weight_and_is_seen():  # trap: rl-forced
    forced = answer([5, 6, 7, END], 1.0, [1, 0, 0, 1])
    group = Group("toy", [BOS, 1], [forced, answer([8, END], 0.0)])
    ids, counts = pieces([group])[0]
    assert ids.tolist() == [BOS, 1, 5, 6, 7, END] and counts.tolist() == [0, 0, 0.5, 0, 0, 0.5]
    (batch,) = batches_of([group], rows=2)
    assert batch.tokens == 4  # nor are they counted in N
    assert not {6, 7} & set(batch.targets[batch.targets >= 0].tolist())
    assert {6, 7} <= set(batch.inputs.flatten().tolist())


def test_a_full_context_loses_no_token():
    group = Group("toy", [BOS, 1, 2], [answer([3] * (T - 4) + [END], 1.0), answer([4] * (T - 3), 0.0)])
    assert all(len(ids) == T for ids, _ in pieces([group]))
    (batch,) = batches_of([group], rows=1)
    assert int((batch.counts != 0).sum()) == batch.tokens == 2 * (T - 3)
    assert distance(gradient([group], 1), reference([group])) < 1e-10


def test_the_compiled_model_has_the_same_gradient():
    """Traced as for training, `counts` included; the kernels are left to PyTorch: to make them takes most of a minute.
    """
    model = copy.deepcopy(fresh_model()).float()
    model.compute_dtype = torch.float32
    group = Group("toy", [BOS, 20], [answer([i, i + 1, END], float(i == 3)) for i in range(7)])
    (batch,) = batches_of([group], rows=2)
    loss_fn, found = document_loss(BOS), []
    for run in (model, torch.compile(model, dynamic=False, backend="aot_eager")):
        for micro in split_rows(batch, 2):
            loss_fn(run, micro).backward()
        found.append([p.grad for p in model.parameters()])
        model.zero_grad()
    assert len(batch.inputs) >= 4 and distance(found[1], found[0]) < 1e-5


# --------------------------------------------------------------------------- advantages, flat groups


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_advantages_sum_to_nothing(rewards):
    found = advantages(rewards)
    assert len(found) == len(rewards) and all(map(math.isfinite, found))
    assert abs(sum(found)) <= 1e-9 * max(1.0, *map(abs, rewards))
    mean = math.fsum(rewards) / len(rewards)
    assert found == pytest.approx([r - mean for r in rewards], rel=1e-9, abs=1e-9 * max(1.0, *map(abs, rewards)))


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -1e-300, 1e308])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_equal_rewards_have_advantages_of_exactly_nothing(reward, n):  # trap: rl-flat
    """Also where their mean rounds: (0.1 + 0.1 + 0.1) / 3 is 0.10000000000000002."""
    assert advantages([reward] * n) == [0.0] * n
    assert Group("toy", [BOS], [answer([1], reward)] * n).flat


@settings(max_examples=6, phases=UNSHRUNK)
@given(groups_of(2), st.integers(1, 3))
def test_leaving_flat_groups_out_changes_nothing_but_the_time(groups, rows):
    """They have no rows, and still count in N: the reference, which computes them, has the same gradient."""
    flat = Group("toy", [BOS, 1], [answer([5, END], 0.1), answer([6, 7, END], 0.1), answer([8], 0.1)])
    with_flat = [flat, *groups, flat]
    assert len(pieces(with_flat)) == len(pieces(groups))
    assert distance(gradient(with_flat, rows), reference(with_flat)) < 1e-10
    n, more = sum(g.sampled for g in groups), sum(g.sampled for g in with_flat)
    assert more == n + 12
    assert distance(gradient(with_flat, rows), [g * (n / more) for g in reference(groups)]) < 1e-10


def test_a_step_in_which_all_is_flat_moves_no_weight():  # trap: rl-flat
    """Not even by the momentum that steps before it have left, nor by weight decay."""
    live = [Group("toy", [BOS, 1], [answer([5, END], 1.0), answer([6, END], 0.0)])]
    flat = [Group("toy", [BOS, 1], [answer([5, END], 0.1), answer([6, 7, END], 0.1), answer([8], 0.1)])]
    model = copy.deepcopy(fresh_model())
    optimizer = model.setup_optimizers(weight_decay=0.1)
    weights, told = [[p.detach().clone() for p in model.parameters()]], []

    def on_step(state: TrainState, metrics: dict) -> None:
        weights.append([p.detach().clone() for p in model.parameters()])
        told.append((metrics["loss"], metrics["norm"], state.supervised_tokens))

    stream = iter([batches_of(groups, 2)[0] for groups in (live, flat, live)])
    assert train(model, optimizer, stream, StageConfig(), TrainState(), num_iterations=3, rows=2,
                 loss_fn=document_loss(BOS), hooks=[], on_step=on_step) == 0
    moved = [not all(map(torch.equal, a, b)) for a, b in zip(weights, weights[1:])]
    assert moved == [True, False, True]
    assert told[1] == (0.0, 0.0, 4 + 6) and all(torch.isfinite(w).all() for w in weights[-1])


@pytest.mark.parametrize("bos", [BOS, 70_000])  # a vocabulary of more than 65 536 tokens
def test_a_step_in_which_all_is_flat_still_has_rows_for_every_rank(bos):
    ids, counts = training_rows([Group("toy", [bos, 1], [answer([5, END], 1.0)] * 2)], bos, T, rows=3, world_size=2)
    assert ids.shape == counts.shape == (6, T + 1) and (ids == bos).all() and not counts.any()


@settings(max_examples=30)
@given(groups_of(), st.integers(1, 8), st.sampled_from([1, 2, 3, 4]), st.booleans())
def test_rows_fill_whole_micro_batches_on_every_rank(groups, rows, world_size, deterministic):
    ids, counts = training_rows(groups, BOS, T, rows=rows, world_size=world_size, deterministic=deterministic)
    micro_batches, left = divmod(len(ids), rows)
    assert ids.shape == counts.shape == (len(ids), T + 1) and np.isfinite(counts).all()
    assert not left and micro_batches and micro_batches % world_size == 0
    if deterministic and world_size != 3:
        assert micro_batches & (micro_batches - 1) == 0
    alive = [g for g in groups if not g.flat]  # what counts is what was sampled, no more and no less
    weights = Counter(w for _, by in pieces(groups) for w in by.tolist() if w)
    assert Counter(counts[counts != 0].tolist()) == weights
    assert sum(weights.values()) <= sum(g.sampled for g in alive)


# --------------------------------------------------------------------------- which problems


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 2**40))
def test_an_epoch_asks_every_problem_once(n, epoch, seed):
    asked = [problem_at(position, n, seed) for position in range(epoch * n, (epoch + 1) * n)]
    assert sorted(asked) == list(range(n))


def test_another_epoch_or_seed_has_another_order():
    orders = [[problem_at(p, 50, seed) for p in range(epoch * 50, epoch * 50 + 50)]
              for seed in (1, -1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6


# --------------------------------------------------------------------------- how it goes


def test_figures_of_a_step():
    groups = [
        Group("a", [BOS, 1], [answer([5, END], 1.0, entropy=0.5), answer([6, 7, 8], 0.0, [1, 0, 0], entropy=0.25)]),
        Group("b", [BOS, 2], [answer([5, END], 1.0, entropy=0.0), answer([9, END], 1.0, entropy=0.0)]),
    ]
    assert figures(groups) == {"reward": 0.75, "length": 2.25, "entropy": 0.75 / 7, "flat": 0.5, "tool": 0.25,
                               "unfinished": 0.25, "reward a": 0.5, "reward b": 1.0}
    assert all(value == 0 for value in figures([]).values())


def steps(n: int, reward: float, flat: float = 0.5, entropy: float = 1.0) -> list[dict[str, float]]:
    return [{"reward": reward, "entropy": entropy, "flat": flat, "unfinished": 0.0}] * n


@pytest.mark.parametrize(("history", "name"), [
    (steps(19, 0.0, flat=1.0), ""),  # too short to tell
    (steps(20, 0.0, flat=1.0), "no reward"),
    (steps(19, 0.0, flat=1.0) + steps(1, 0.01, flat=0.9), ""),  # there is something to learn from
    (steps(20, 0.5, flat=1.0, entropy=0.0), "entropy collapse"),
    (steps(20, 0.95, flat=1.0, entropy=0.0), ""),  # solved
    (steps(100, 1.0, flat=1.0, entropy=0.0), ""),
    (steps(20, 0.8) + steps(20, 0.3), "reward collapse"),
    (steps(20, 0.8) + steps(20, 0.5), ""),  # worse, but not by half
    (steps(20, 0.8) + steps(10, 0.1), ""),  # it may yet recover: the last 20 have a mean of 0.45
    (steps(20, 0.8) + steps(100, 0.6) + steps(20, 0.3), "reward collapse"),  # against the best, however long ago
    (steps(20, 0.09) + steps(20, 0.0, flat=0.9), ""),  # there was nothing to lose
    (steps(20, 0.8) + steps(20, 0.0, flat=1.0), "no reward"),
    ([], ""),
])
def test_a_collapse_has_its_name(history, name):
    what = collapse(history)
    assert what.startswith(name) and bool(what) == bool(name) and "\n" not in what
