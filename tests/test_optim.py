"""Update rules against torch's own and against their definition; the optimizer's bookkeeping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanochat.adamw import adamw_update
from nanochat.common import UserError
from nanochat.muon import muon_update, zeropower_via_newtonschulz5
from nanochat.optim import AdamW, Group, Muon, Optimizer


def test_adamw_equals_torchs():  # trap: adam-eps
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    m, v = torch.zeros(5, 3), torch.zeros(5, 3)
    for step in range(1, 8):
        theirs.grad = torch.randn(5, 3)
        reference.step()
        adamw_update(ours.data, theirs.grad, m, v, step=step, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (3, 6, 12)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    out = zeropower_via_newtonschulz5(torch.randn(shape))
    assert out.shape == shape
    s = torch.linalg.svdvals(out)
    assert s.min() > 0.4 and s.max() < 1.3


def test_newton_schulz_keeps_singular_vectors():
    torch.manual_seed(0)
    U, S, Vt = torch.linalg.svd(torch.randn(6, 6))
    out = zeropower_via_newtonschulz5(U @ torch.diag(torch.linspace(0.5, 1.5, 6)) @ Vt)
    core = U.mT @ out @ Vt.mT  # diagonal if the vectors were kept
    assert (core - torch.diag(core.diagonal())).abs().max() < 1e-3


def test_muon_step_is_nesterov_and_scales_with_aspect_ratio():
    torch.manual_seed(0)
    for rows, cols, scale in ((4, 4, 1.0), (16, 4, 2.0), (4, 16, 1.0)):
        p, grad, buffer = torch.zeros(1, rows, cols), torch.randn(1, rows, cols), torch.randn(1, rows, cols)
        new_buffer = 0.9 * buffer + 0.1 * grad
        direction = zeropower_via_newtonschulz5(0.1 * grad + 0.9 * new_buffer)
        muon_update(p, grad, buffer, lr=0.1, momentum=0.9, weight_decay=0.0, dtype=torch.float32)
        assert torch.allclose(buffer, new_buffer, atol=1e-6)
        assert torch.allclose(p, -0.1 * scale * direction, atol=1e-6)


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(1)
    return {f"p{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate([(4, 8), (4, 8), (8, 4), (6, 6)])}


def test_stacking_same_shapes_changes_nothing():
    together, alone = parameters(), parameters()
    torch.manual_seed(2)
    for name in together:
        together[name].grad = torch.randn_like(together[name])
        alone[name].grad = together[name].grad.clone()
    Muon(together).step()
    for name, p in alone.items():
        Muon({name: p}).step()
        assert torch.allclose(p, together[name], atol=2e-2)  # bfloat16 iterations may round in another order
        assert not torch.equal(p, parameters()[name])


def test_state_round_trip_and_refusal():
    params = parameters()
    optimizer = AdamW(params)
    for p in params.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    flat = {k: t.clone() for k, t in optimizer.state_dict().items()}
    other = AdamW(parameters())
    other.load_state_dict(flat)
    assert other.steps == 1 and all(torch.equal(flat[k], t) for k, t in other.state_dict().items())
    with pytest.raises(UserError, match="another model"):
        AdamW({"x": nn.Parameter(torch.zeros(2))}).load_state_dict(flat)


def test_a_parameter_has_one_group():
    p = parameters()
    with pytest.raises(ValueError, match="two groups"):
        Optimizer([Group("a", "muon", p, 0.1), Group("b", "adamw", p, 0.1)])


def test_weight_decay_is_decoupled():
    p = nn.Parameter(torch.full((2, 2), 2.0))
    p.grad = torch.zeros(2, 2)
    AdamW({"p": p}, lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(p, torch.full((2, 2), 2.0 * (1 - 0.1 * 0.5)))
