"""Update rules against torch's own and against their definition; what the optimizer does on one rank.

Several ranks: tests/test_distributed.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from nanochat.adamw import adamw_update
from nanochat.bucket import Bucket, Group, tree_sum
from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.muon import POLAR_EXPRESS, QUINTIC, muon_update, zeropower_via_newtonschulz5
from nanochat.optim import AdamW, DistAdamW, DistMuon, Muon, Optimizer, merge_state_dicts
from tests.reference.optimizer import orthogonalize, polar_express

# --------------------------------------------------------------------------- AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_equals_torchs(dtype):  # trap: adam-eps
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5, 3, dtype=dtype)) for _ in range(2))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    m, v = torch.zeros_like(ours.data), torch.zeros_like(ours.data)
    for step in range(1, 8):
        theirs.grad = torch.randn(5, 3, dtype=dtype)
        reference.step()
        adamw_update(ours.data, theirs.grad, m, v, step=step, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_narrow_weights_are_computed_wide_and_rounded_once(rule):  # trap: mixed-dtype
    torch.manual_seed(0)
    start, grads = torch.randn(6, 4).bfloat16(), [torch.randn(6, 4).bfloat16() for _ in range(3)]
    narrow, wide = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizers = [Optimizer([Group("g", rule, {"p": p}, lr=0.05, weight_decay=0.1)]) for p in (narrow, wide)]
    for g in grads:
        narrow.grad, wide.grad = g.clone(), g.float()
        for optimizer in optimizers:
            optimizer.step(grad_scale=0.3)
        assert narrow.dtype == torch.bfloat16 and torch.equal(narrow, wide.bfloat16())
        wide.data.copy_(narrow)  # both go on from the rounded weight; the state was never rounded
    a, b = (optimizer.state_dict() for optimizer in optimizers)
    assert all(t.dtype == torch.float32 and torch.equal(t, b[key]) for key, t in a.items() if key != "steps")


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_weight_decay_is_decoupled(rule):
    p = nn.Parameter(torch.full((2, 2), 2.0))
    p.grad = torch.zeros(2, 2)
    Optimizer([Group("g", rule, {"p": p}, lr=0.1, weight_decay=0.5)]).step()
    assert torch.allclose(p, torch.full((2, 2), 2.0 * (1 - 0.1 * 0.5)))


# --------------------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (3, 6, 12), (2, 3, 9, 5)])
@pytest.mark.parametrize("coefficients", [QUINTIC, POLAR_EXPRESS], ids=["quintic", "polar_express"])
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_newton_schulz_equals_the_polynomials_on_singular_values(shape, coefficients, steps):
    torch.manual_seed(0)
    G = torch.randn(shape, dtype=torch.float64)
    out = zeropower_via_newtonschulz5(G, steps, coefficients=coefficients)  # float64 stays, whatever `dtype` says
    expected = torch.stack([orthogonalize(g, coefficients, steps) for g in G.reshape(-1, *shape[-2:])])
    assert out.shape == shape and torch.allclose(out, expected.view(shape), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coefficients", [QUINTIC, POLAR_EXPRESS], ids=["quintic", "polar_express"])
@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32)])
def test_singular_values_come_near_one(shape, coefficients, dtype):
    """From a spread of 1 : 50, which is what gradients have; their scale changes nothing."""
    torch.manual_seed(0)
    U, _, Vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    G = U @ torch.diag(torch.linspace(0.02, 1, min(shape))) @ Vt
    s = torch.linalg.svdvals(zeropower_via_newtonschulz5(G, dtype=dtype, coefficients=coefficients))
    low, high = (0.4, 1.25) if coefficients is QUINTIC else (0.8, 1.16)
    assert low < s.min() and s.max() < high
    tiny = zeropower_via_newtonschulz5(G * 1e-3, dtype=dtype, coefficients=coefficients)
    assert torch.allclose(torch.linalg.svdvals(tiny), s, atol=0.05)


def test_a_zero_matrix_stays_zero():
    assert not zeropower_via_newtonschulz5(torch.zeros(2, 4, 6)).any()


def test_polar_express_coefficients_are_the_papers_method():
    derived = torch.tensor(polar_express(len(POLAR_EXPRESS)), dtype=torch.float64)
    derived[-1] = torch.tensor([15 / 8, -10 / 8, 3 / 8])  # the last is the limit, without the safety factor
    assert torch.allclose(torch.tensor(POLAR_EXPRESS, dtype=torch.float64), derived, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("coefficients", "low", "high"), [(QUINTIC, 0.68, 1.14), (POLAR_EXPRESS, 0.86, 1.13)])
def test_what_five_steps_make_of_any_singular_value(coefficients, low, high):
    """The figures of the comments in muon.py: from 0.01 to 1, and 0 stays 0."""
    x = torch.cat([torch.zeros(1), torch.logspace(-2, 0, 10_000)]).double()
    for i in range(5):
        a, b, c = coefficients[min(i, len(coefficients) - 1)]
        x = a * x + b * x**3 + c * x**5
    assert x[0] == 0 and low < x[1:].min() and x.max() < high


def test_muon_step_is_nesterov_and_scales_with_aspect_ratio():
    torch.manual_seed(0)
    for rows, cols, scale in ((4, 4, 1.0), (16, 4, 2.0), (4, 16, 1.0)):
        p, grad, buffer = torch.zeros(1, rows, cols), torch.randn(1, rows, cols), torch.randn(1, rows, cols)
        new_buffer = 0.9 * buffer + 0.1 * grad
        direction = orthogonalize((0.1 * grad + 0.9 * new_buffer)[0], QUINTIC)
        muon_update(p, grad, buffer, lr=0.1, momentum=0.9, weight_decay=0.0, dtype=torch.float32)
        assert torch.allclose(buffer, new_buffer, atol=1e-6)
        assert torch.allclose(p[0].double(), -0.1 * scale * direction, atol=1e-5)


# --------------------------------------------------------------------------- the optimizer on one rank


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(1)
    return {f"p{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate([(4, 8), (4, 8), (8, 4), (6, 6)])}


def give_gradients(params: dict[str, nn.Parameter], seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def small_gpt() -> GPT:
    model = GPT(GPTConfig(sequence_len=8, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=16))
    model.init_weights(0)
    return model


def test_stacking_same_shapes_changes_nothing():
    together, alone = parameters(), parameters()
    give_gradients(together)
    give_gradients(alone)
    Muon(together).step()
    for name, p in alone.items():
        Muon({name: p}).step()
        assert torch.allclose(p, together[name], atol=1e-6)
        assert not torch.equal(p, parameters()[name])


def test_the_norm_is_torchs_and_clipping_is_torchs():
    ours, theirs = parameters(), parameters()
    for params in (ours, theirs):
        give_gradients(params)
    optimizers = [Muon(ours), Muon(theirs)]
    norm = optimizers[0].reduce()
    expected = nn.utils.clip_grad_norm_(theirs.values(), 0.5)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    optimizers[0].step(grad_scale=0.5 / norm)
    optimizers[1].step()
    assert all(torch.allclose(p, theirs[name], atol=1e-5) for name, p in ours.items())


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_the_norm_of_millions_of_elements_is_right(rule):
    """A plain float32 sum over this gradient is wrong in the fourth digit."""
    p = nn.Parameter(torch.zeros(2048, 4096))
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    exact = float(p.grad.double().square().sum().sqrt())
    assert Optimizer([Group("g", rule, {"p": p}, 0.1)]).reduce() == pytest.approx(exact, rel=1e-6)


def test_gradients_are_used_up_and_never_written_to():
    params = parameters()
    give_gradients(params)
    kept = {name: p.grad for name, p in params.items()}
    copies = {name: g.clone() for name, g in kept.items()}
    optimizer = Optimizer([Group("a", "muon", {"p0": params["p0"], "p1": params["p1"]}, 0.1),
                           Group("b", "adamw", {"p2": params["p2"], "p3": params["p3"]}, 0.1)])
    optimizer.reduce()
    assert all(p.grad is None for p in params.values())
    with pytest.raises(RuntimeError, match="reduced already"):
        optimizer.reduce()
    optimizer.step(grad_scale=0.5)
    assert all(torch.equal(kept[name], copies[name]) for name in params)


def test_zero_grad_forgets_reduced_gradients_too():
    params = parameters()
    optimizer = Muon(params)
    give_gradients(params)
    optimizer.reduce()
    optimizer.zero_grad()
    assert not any(len(b.gradient) for b in optimizer.buckets)
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        optimizer.reduce()
    give_gradients(params, seed=3)
    expected = float(torch.stack([p.grad.norm() for p in params.values()]).norm())
    assert optimizer.reduce() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_no_gradient_counts_as_zero(rule):
    ours, theirs = parameters(), parameters()
    optimizers = [Optimizer([Group("g", rule, params, 0.1)]) for params in (ours, theirs)]
    for step in range(3):
        for params in (ours, theirs):
            give_gradients(params, step)
        if step == 1:
            ours["p1"].grad, theirs["p1"].grad = None, torch.zeros_like(theirs["p1"])
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(p, theirs[name]) for name, p in ours.items())


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_model_keeps_its_parameters_and_can_be_saved_and_loaded(tmp_path, deterministic):
    model = small_gpt()
    before = dict(model.named_parameters())
    values = {name: p.detach().clone() for name, p in before.items()}
    optimizer = model.setup_optimizers(deterministic=deterministic)
    assert all(p is before[name] and torch.equal(p, values[name]) for name, p in model.named_parameters())

    ids = torch.arange(16).view(2, 8)
    model(ids, ids).backward()
    optimizer.step()
    save_file(dict(model.state_dict()), tmp_path / "m.safetensors")  # parts of one memory, but no part twice
    save_file(optimizer.state_dict(), tmp_path / "o.safetensors")
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(torch.equal(t, after[name]) for name, t in load_file(tmp_path / "m.safetensors").items())
    assert not torch.equal(after["lm_head.weight"], values["lm_head.weight"])

    model.load_state_dict(values)  # goes into the memory that the optimizer updates
    optimizer.load_state_dict({key: torch.zeros_like(t) for key, t in load_file(tmp_path / "o.safetensors").items()})
    model(ids, ids).backward()
    optimizer.step()
    assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())


def test_deterministic_mode_is_the_same_update_and_polar_express_another():
    ids = torch.arange(16).view(2, 8)
    found = []
    for options in ({}, {"deterministic": True}, {"polar_express": True}):
        model = small_gpt()
        optimizer = model.setup_optimizers(**options)
        for _ in range(3):  # at the first step most gradients are zero: the projections out of the blocks start there
            model(ids, ids).backward()
            optimizer.step()
        found.append({name: p.detach() for name, p in model.named_parameters()})
    plain, fixed, express = found
    assert all(torch.allclose(plain[name], fixed[name], atol=1e-4) for name in plain)
    block = "transformer.h.0.mlp.c_proj.weight"
    assert not torch.allclose(plain[block], express[block], atol=1e-3)
    assert torch.allclose(plain[block], express[block], atol=0.1)


def test_weights_that_lie_otherwise_in_memory_are_taken_over():
    torch.manual_seed(0)
    values = torch.randn(6, 4)
    strided, plain = nn.Parameter(values.mT.contiguous().mT), nn.Parameter(values.clone())
    assert not strided.is_contiguous()
    for p in (strided, plain):
        optimizer = AdamW({"p": p})
        p.grad = values.mT.contiguous().mT + 1
        optimizer.step()
    assert torch.equal(strided, plain) and not torch.equal(plain, values)


def test_what_cannot_be_trained_is_refused():
    p = parameters()
    with pytest.raises(ValueError, match="two groups"):
        Optimizer([Group("a", "muon", p, 0.1), Group("b", "adamw", p, 0.1)])
    with pytest.raises(ValueError, match="two names"):
        AdamW({"a": p["p0"], "b": p["p0"]})
    with pytest.raises(ValueError, match="two names"):  # two Parameters, one memory: tied weights
        AdamW({"a": p["p0"], "b": nn.Parameter(p["p0"].data)})
    with pytest.raises(ValueError, match="gain has shape"):
        Muon({"gain": nn.Parameter(torch.ones(3))})
    with pytest.raises(UserError, match="--device_type=cpu"):
        Optimizer([Group("a", "adamw", {"a": nn.Parameter(torch.empty(2, 2, device="meta"))}, 0.1)], deterministic=True)
    for front in (DistMuon, DistAdamW):
        with pytest.raises(UserError, match="process group: start with torchrun"):
            front(p)


@pytest.mark.parametrize("move", ["to another dtype", "into a new optimizer", "one in the middle of a stack"])
def test_weights_that_were_moved_are_not_trained_in_vain(move):
    model = small_gpt()
    optimizer = model.setup_optimizers()
    name = ""
    if move == "to another dtype":
        model.to(torch.float64)
    elif move == "into a new optimizer":
        model.setup_optimizers()
    else:
        (name, moved), *_ = list(max((b.params for b in optimizer.buckets), key=len).items())[1:-1]
        moved.data = moved.data.clone()
    with pytest.raises(RuntimeError, match=f"{name}.*make the optimizer last"):
        optimizer.step()


def test_parameters_that_the_model_has_no_more_are_not_trained_in_vain():
    model = small_gpt()
    optimizer = model.setup_optimizers()
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)
    ids = torch.arange(16).view(2, 8)
    model(ids, ids).backward()  # in the model's new parameters, which the optimizer does not know
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient.*assign=True"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_groups_of_the_model(dtype):
    """Newton–Schulz in the run's dtype; the rates of AdamW, tuned at width 768, doubled at a quarter of it."""
    model = GPT(GPTConfig(sequence_len=8, vocab_size=50, n_layer=1, n_head=2, n_kv_head=1, n_embd=192))
    model.init_weights(0)
    model.compute_dtype = dtype
    groups = {g.name: g for g in model.setup_optimizers(matrix_lr=0.03, embedding_lr=0.3, unembedding_lr=0.005).groups}
    assert {n: g.lr for n, g in groups.items()} == pytest.approx({"matrices": 0.03, "embedding": 0.6, "head": 0.01})
    assert groups["matrices"].dtype == dtype
    assert {n: g.rule for n, g in groups.items()} == {"matrices": "muon", "embedding": "adamw", "head": "adamw"}


# --------------------------------------------------------------------------- state, and shares of it


def test_state_round_trip_and_refusal():
    params = parameters()
    optimizer = AdamW(params)
    give_gradients(params)
    optimizer.step()
    flat = {k: t.clone() for k, t in optimizer.state_dict().items()}
    other = AdamW(parameters())
    other.load_state_dict(flat)
    assert other.steps == 1 and all(torch.equal(flat[k], t) for k, t in other.state_dict().items())
    with pytest.raises(UserError, match="another model"):
        AdamW({"x": nn.Parameter(torch.zeros(2))}).load_state_dict(flat)
    with pytest.raises(UserError, match="another model.*steps"):
        other.load_state_dict({k: t for k, t in flat.items() if k != "steps"})
    with pytest.raises(UserError, match=r"p2/exp_avg is \(3, 4\), the model needs \(8, 4\)"):  # a part, not merged
        other.load_state_dict({**flat, "p2/exp_avg": flat["p2/exp_avg"][:3]})
    with pytest.raises(UserError, match=r"different steps: \[1, 2\]"):
        merge_state_dicts([flat, {**flat, "steps": torch.tensor(2)}])


@given(units=st.integers(1, 200), old=st.integers(1, 9), new=st.integers(1, 9),
       muon=st.booleans(), deterministic=st.booleans())
def test_shares_cover_everything_once_and_can_be_dealt_anew(units, old, new, muon, deterministic):  # trap: vocab-shard
    def buckets(world_size: int) -> list[Bucket]:
        if muon:
            params = {f"p{i}": nn.Parameter(torch.zeros(2, 3)) for i in range(units)}
        else:
            params = {"p": nn.Parameter(torch.zeros(units, 3))}
        group = Group("g", "muon" if muon else "adamw", params, 0.1)
        return [Bucket(group, params, rank, world_size, deterministic) for rank in range(world_size)]

    def state(parts: list[Bucket]) -> dict[str, torch.Tensor]:
        return merge_state_dicts([{**b.state_dict(), "steps": torch.tensor(1)} for b in parts])

    before, after = buckets(old), buckets(new)
    assert sum(b.own for b in before) == units
    if deterministic:  # each call of a rule is of one size, whoever makes it: no kernel can tell the ranks apart
        calls = {block.stop - block.start for b in before + after for block in b.blocks}
        assert calls == {1 if muon else 64}
    for b in before:
        for t in b.state.values():
            t.copy_(torch.randn(t.shape))
    full = state(before)
    assert {key: t.shape for key, t in full.items() if key != "steps"} == before[0].full_shapes()
    for b in after:
        b.load_state_dict(full)
    again = state(after)
    assert full.keys() == again.keys() and all(torch.equal(full[key], again[key]) for key in full)


@given(ranks=st.sampled_from([1, 2, 4, 8]), grains=st.integers(1, 7))
def test_a_tree_over_ranks_of_trees_over_grains_is_one_tree(ranks, grains):
    leaves = [torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(ranks * grains)]
    whole = tree_sum([t.clone() for t in leaves])
    of_ranks = [tree_sum([t.clone() for t in leaves[r * grains : (r + 1) * grains]]) for r in range(ranks)]
    assert torch.equal(tree_sum(of_ranks), whole)
    assert torch.allclose(whole, torch.stack(leaves).sum(0), atol=1e-4)
