"""The blockwise loss head against the plain formula: losses, gradients, masks, and what it holds in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import loss_head
from nanochat.common import compile_problem
from nanochat.loss_head import linear_cross_entropy, soft_cap
from tests.reference.loss_head import plain_losses

CAP = 15.0


def case(N: int, C: int, V: int, seed: int, dtype: torch.dtype, masked: float = 0.3, size: float = 1.0):
    """x, weight (padded to a multiple of 64, as in the model) and targets of which a share is masked."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(-(-V // 64) * 64, C, generator=g) * size).to(torch.promote_types(dtype, torch.float32))
    targets = torch.randint(0, V, (N,), generator=g)
    targets[torch.rand(N, generator=g) < masked] = -1
    return x, weight.requires_grad_(), targets


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))


def both(x, weight, targets, V, cap=CAP, upstream=0.37, **kwargs):
    """(loss, dx, dw) of the head and of the reference; the upstream gradient is not 1."""
    found = []
    for loss in (linear_cross_entropy(x, weight, targets, vocab_size=V, cap=cap, **kwargs),
                 plain_losses(x, weight, targets, V, cap).sum()):
        x.grad = weight.grad = None
        (loss * upstream).backward()
        found.append((loss.detach(), x.grad, weight.grad))
    return found


@settings(max_examples=40)
@given(st.integers(1, 40), st.sampled_from([1, 3, 16]), st.sampled_from([2, 50, 64, 130]), st.integers(0, 10_000),
       st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([1, 4, 7, 16]), st.sampled_from([1, 2, 3]),
       st.sampled_from([0.1, 3.0]), st.sampled_from([CAP, 30.0]), st.booleans())
def test_equals_the_plain_form(N, C, V, seed, masked, block, blocks, size, cap, as_on_a_gpu):
    """Float32 to 1e-5 whatever the blocks: rows that do not divide, one row, saturated logits, whole blocks masked."""
    x, weight, targets = case(N, C, V, seed, torch.float32, masked, size)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loss_head, "LEAVES_OUT", () if as_on_a_gpu else ("cpu",))
        m.setitem(loss_head.BLOCK_ROWS, "cpu", block)
        m.setitem(loss_head.GROUP_ROWS, "cpu", block * blocks)
        (loss, dx, dw), (loss_, dx_, dw_) = both(x, weight, targets, V, cap)
        assert float(loss) == pytest.approx(float(loss_), rel=1e-5, abs=1e-5)
        assert (dx - dx_).abs().max() <= 1e-5 * dx_.abs().max() + 1e-6
        assert (dw - dw_).abs().max() <= 1e-5 * dw_.abs().max() + 1e-6
        assert (dw[V:] == 0).all()  # the padding of the vocabulary learns nothing


def test_float64_is_exact_and_bfloat16_close():
    for dtype, bound in ((torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        x, weight, targets = case(600, 32, 100, 1, dtype, size=0.5)
        for ours, reference in zip(*both(x, weight, targets, 100), strict=True):
            assert relative(ours, reference) < bound


@pytest.mark.parametrize("kernel", [loss_head.token_losses, loss_head.losses_and_gradient])
def test_losses_of_bfloat16_logits_are_float32(kernel):  # trap: softcap-precision
    """The logits are rounded to bfloat16, what comes after them is not."""
    logits = (torch.randn(64, 300) * 8).bfloat16()
    targets = torch.randint(0, 300, (64,))
    expected = plain_losses(logits.double(), torch.eye(300).double(), targets, 300, CAP)
    losses = kernel(logits, targets, CAP)
    assert losses.dtype == torch.float32 and relative(losses, expected) < 1e-5


def test_gradients_in_bfloat16_lean_to_no_side():
    """The weight's gradient is summed up in float32, and the factor of the upstream gradient is not rounded for all."""
    x, weight, targets = case(1200, 32, 100, 1, torch.bfloat16, masked=0.0, size=0.5)
    with pytest.MonkeyPatch.context() as m:  # 150 groups: a sum in bfloat16 would be off by two percent
        m.setitem(loss_head.BLOCK_ROWS, "cpu", 8)
        m.setitem(loss_head.GROUP_ROWS, "cpu", 8)
        (_, dx, dw), (_, dx_, dw_) = both(x, weight, targets, 100, upstream=1 / 3333)
    assert relative(dw, dw_) < 8e-3
    for ours, reference in ((dx, dx_), (dw, dw_)):
        along = float((ours.double() * reference.double()).sum() / reference.double().square().sum())
        assert abs(along - 1) < 4e-4  # 1/3333 in bfloat16 is off by 2e-3


def test_one_loss_a_token_with_and_without_gradient():
    x, weight, targets = case(37, 8, 50, 2, torch.float32)
    targets[1], targets[2] = 0, -100  # the first id counts; any negative number does not
    expected = plain_losses(x, weight, targets, 50, CAP)
    with torch.no_grad():
        blockwise = linear_cross_entropy(x, weight, targets, vocab_size=50, cap=CAP, reduction="none")
    plain = linear_cross_entropy(x, weight, targets, vocab_size=50, cap=CAP, reduction="none")
    assert blockwise.shape == targets.shape and (blockwise[targets < 0] == 0).all()
    assert relative(blockwise, expected) < 1e-5 and relative(plain, expected) < 1e-5
    (plain * torch.arange(37)).sum().backward()  # a weight for each token
    ours = x.grad
    x.grad = None
    (expected * torch.arange(37)).sum().backward()
    assert relative(ours, x.grad) < 1e-5


@settings(max_examples=30)
@given(st.integers(1, 40), st.sampled_from([2, 50, 130]), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.1]),
       st.sampled_from([1, 4, 16]), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_counts_multiply_each_loss(N, V, seed, masked, block, as_on_a_gpu, wide):
    """Of either sign, and 0; summed, one by one, with gradient and without; given in another width than the model's."""
    x, weight, targets = case(N, 8, V, seed, torch.float64, masked)
    counts = torch.randn(N, generator=torch.Generator().manual_seed(seed)).to(wide)
    counts[::5] = 0
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loss_head, "LEAVES_OUT", () if as_on_a_gpu else ("cpu",))
        m.setitem(loss_head.BLOCK_ROWS, "cpu", block)
        m.setitem(loss_head.GROUP_ROWS, "cpu", 2 * block)
        expected = plain_losses(x, weight, targets, V, CAP) * counts
        found = {}
        for name in ("sum", "none"):
            loss = linear_cross_entropy(x, weight, targets, vocab_size=V, cap=CAP, reduction=name, counts=counts)
            with torch.no_grad():
                same = linear_cross_entropy(x, weight, targets, vocab_size=V, cap=CAP, reduction=name, counts=counts)
            wanted = expected.detach() if name == "none" else expected.detach().sum()
            assert loss.shape == same.shape == wanted.shape
            assert torch.allclose(loss, wanted, atol=1e-12) and torch.allclose(same, wanted, atol=1e-12)
            found[name] = torch.autograd.grad(loss.sum() * 0.37, (x, weight))
        plain = torch.autograd.grad(expected.sum() * 0.37, (x, weight))
        for gradients in found.values():
            for ours, reference in zip(gradients, plain, strict=True):
                assert torch.allclose(ours, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_of_one_change_no_bit(dtype):
    x, weight, targets = case(300, 16, 50, 5, dtype)
    ones = torch.ones(300, dtype=torch.float64)
    for reduction in ("sum", "none"):
        with_, without = ((loss.detach(), *torch.autograd.grad(loss.sum(), (x, weight))) for loss in (
            linear_cross_entropy(x, weight, targets, vocab_size=50, cap=CAP, reduction=reduction, counts=counts)
            for counts in (ones, None)))
        assert all(map(torch.equal, with_, without))


def test_without_a_target_loss_and_gradient_are_zero():  # trap: all-masked
    x, weight, targets = case(9, 4, 20, 3, torch.float32, masked=2.0)
    loss = linear_cross_entropy(x, weight, targets, vocab_size=20, cap=CAP)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all() and (weight.grad == 0).all()


def test_no_rows_and_a_cap_that_is_too_large():
    x, weight, targets = case(0, 4, 20, 3, torch.float32)
    loss = linear_cross_entropy(x, weight, targets, vocab_size=20, cap=CAP)
    loss.backward()
    assert loss == 0 and x.grad.shape == (0, 4) and (weight.grad == 0).all()
    with pytest.raises(ValueError, match="at most 50"):
        linear_cross_entropy(x, weight, targets, vocab_size=20, cap=100.0)


def test_huge_and_broken_logits():
    """Logits far beyond the cap saturate; a NaN is not hidden."""
    x, weight, targets = case(5, 4, 20, 4, torch.float32, masked=0.0, size=1e6)
    for ours, reference in zip(*both(x, weight, targets, 20), strict=True):
        assert torch.isfinite(ours).all() and relative(ours, reference) < 1e-4
    with torch.no_grad():
        x[0, 0] = float("nan")
    assert linear_cross_entropy(x, weight, targets, vocab_size=20, cap=CAP).isnan()


def test_soft_cap_is_float32_at_least():  # trap: softcap-precision
    assert soft_cap(torch.tensor([100.0], dtype=torch.bfloat16), CAP).dtype == torch.float32
    assert soft_cap(torch.tensor([3.0], dtype=torch.float64), CAP).dtype == torch.float64
    assert soft_cap(torch.tensor([1e4]), CAP) == CAP


def test_shape_of_a_batch_and_the_second_backward():
    x, weight, targets = case(12, 4, 20, 5, torch.float32)
    flat = linear_cross_entropy(x, weight, targets, vocab_size=20, cap=CAP)
    loss = linear_cross_entropy(x.view(3, 4, 4), weight, targets.view(3, 4), vocab_size=20, cap=CAP)
    assert torch.equal(flat, loss)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_never_holds_all_logits():
    """Peak of what is allocated, counted by torch's own allocator events: a small part of the (N, V) float32 logits."""
    from torch.profiler import ProfilerActivity, profile

    N, C, V = 4096, 8, 4096

    def peak(run) -> int:
        x, weight, targets = case(N, C, V, 6, torch.float32, masked=0.0)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
            run(x, weight, targets).backward()
        held = top = 0
        for event in p.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                top = max(top, held)
        return top

    plain = peak(lambda x, w, t: torch.nn.functional.cross_entropy(soft_cap(x @ w.T, CAP), t))
    ours = peak(lambda x, w, t: linear_cross_entropy(x, w, t, vocab_size=V, cap=CAP))
    assert plain > 3 * N * V * 4 and ours < plain / 4


@pytest.mark.slow
@pytest.mark.skipif(compile_problem("cpu") is not None, reason="torch.compile does not work here")
def test_compiled_kernel_equals_the_eager_one():
    x, weight, targets = case(500, 16, 100, 7, torch.float32)
    torch._dynamo.reset()
    compiled = both(x, weight, targets, 100, compiled=True)
    for ours, reference in zip(*compiled, strict=True):
        assert relative(ours, reference) < 1e-5
    with torch._dynamo.config.patch(error_on_recompile=True):  # other numbers of rows are no other shape
        both(*case(77, 16, 100, 8, torch.float32), 100, compiled=True)
