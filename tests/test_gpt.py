"""The model and its attention against slow references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.attention import (
    attend,
    cache_mask,
    document_mask,
    document_offsets,
    kernel_name,
    packed_documents,
    uses_varlen,
)
from nanochat.common import UserError
from nanochat.gpt import GPT, LOGIT_CAP, GPTConfig, apply_rotary_emb, config_for_depth
from tests.reference.attention import attend_slowly


def tiny(**changes: int) -> GPT:
    sizes = {"sequence_len": 16, "vocab_size": 50, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, **changes}
    model = GPT(GPTConfig(**sizes))
    model.init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # at the start every block is the identity: nothing to compare. Give all weights a size.
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(1, 1), (2, 1), (4, 2)]), st.integers(1, 6), st.sampled_from(["float32", "bfloat16"]),
       st.booleans(), st.integers(0, 1000))
def test_attend_equals_the_slow_reference(heads, T, dtype, documents, seed):
    torch.manual_seed(seed)
    H, H_kv = heads
    dtype = getattr(torch, dtype)
    q, k, v = torch.randn(2, H, T, 8, dtype=dtype), torch.randn(2, H_kv, T, 8, dtype=dtype), \
        torch.randn(2, H_kv, T, 8, dtype=dtype)
    if documents:
        mask = document_mask((torch.rand(2, T) < 0.4).cumsum(1))
        allowed = mask[:, 0]
    else:
        mask, allowed = None, torch.ones(2, T, T, dtype=torch.bool).tril()
    expected = attend_slowly(q, k, v, allowed)
    error = (attend(q, k, v, mask).double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("T", [128, 200, 384, 513])
def test_blocks_of_queries_equal_the_whole(T, documents):
    """bfloat16 on CPU goes block by block above 128 positions: forward and gradients against SDPA in float64."""
    torch.manual_seed(T)
    q, k, v = (torch.randn(2, heads, T, 16).bfloat16().requires_grad_() for heads in (4, 2, 2))
    mask = document_mask((torch.rand(2, T) < 0.02).cumsum(1)) if documents else None
    out = attend(q, k, v, mask)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*wide, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    upstream = torch.randn(out.shape)
    out.backward(upstream.bfloat16())
    expected.backward(upstream.double())
    for ours, reference in zip((out, q.grad, k.grad, v.grad), (expected, *(x.grad for x in wide)), strict=True):
        assert (ours.double() - reference).norm() < 1e-2 * reference.norm()


def test_offsets_of_documents():
    starts = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]).bool()
    offsets = document_offsets(starts)
    assert offsets.dtype == torch.int32 and offsets.tolist()[:5] == [0, 3, 4, 5, 8]
    assert (offsets[4:] == 8).all()
    assert starts[1, 0] == 0  # the argument is left as it was
    many = torch.ones(4, 64).bool()  # every position a document: more than the usual room
    assert document_offsets(many).tolist()[:257] == list(range(257))
    few = [document_offsets(torch.rand(8, 256) < p).shape for p in (0.0, 0.005, 0.01)]
    assert len(set(few)) == 1  # the shape does not follow the data


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_offsets_and_mask_mean_the_same_documents(B, T, share, seed):
    """The varlen kernel is told the same as the mask: who sees whom, rebuilt from the offsets."""
    starts = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share
    offsets = document_offsets(starts).long()
    numbers = torch.searchsorted(offsets, torch.arange(B * T), right=True)  # (B·T,) the document of each position
    assert torch.equal(document_mask(numbers.view(B, T)), document_mask(starts.long().cumsum(1)))


def test_packed_documents_on_this_device():
    inputs = torch.tensor([[1, 5, 6, 1, 8, 9]])
    assert packed_documents(inputs, 1, torch.bfloat16).tolist() == [[1, 1, 1, 2, 2, 2]]
    assert not uses_varlen("cuda", torch.float32) and not uses_varlen("mps", torch.bfloat16)


def test_documents_by_varlen_are_those_of_the_mask(monkeypatch):
    """What the CUDA path gives its kernel, with a slow stand-in that reads the arguments as torch documents them."""
    from torch.nn.attention import varlen

    def stand_in(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        assert cu_q is cu_k and window_size == (-1, 0) and q.size(-1) % 8 == 0 and q.shape == k.shape == v.shape
        out = torch.zeros_like(v)
        for a, b in zip(cu_q.tolist(), cu_q.tolist()[1:]):
            assert b - a <= max_q
            for h in range(q.size(1)):
                seen = torch.ones(b - a, b - a, dtype=torch.bool).tril()
                scores = (q[a:b, h] @ k[a:b, h].T * scale).masked_fill(~seen, float("-inf"))
                out[a:b, h] = scores.softmax(-1) @ v[a:b, h]
        return out

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 12, 10), torch.randn(2, 2, 12, 10), torch.randn(2, 2, 12, 10)
    starts = torch.rand(2, 12) < 0.3
    expected = attend(q, k, v, document_mask(starts.long().cumsum(1)))
    assert torch.allclose(attend(q, k, v, document_offsets(starts)), expected, atol=1e-5)


def test_compiling_for_training_compiles_the_loss_too():
    model = tiny()
    assert not model.compiled
    model.compile_for_training()
    assert model.compiled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_kernels_of_a_gpu_equal_float64(heads):
    """cuDNN or Flash on plain rows, varlen on packed ones, forward and backward."""
    assert "varlen" in kernel_name("cuda", torch.bfloat16)  # measures which is faster
    torch.manual_seed(0)
    H, H_kv = heads
    q, k, v = (torch.randn(2, h, 256, 64, device="cuda").bfloat16().requires_grad_() for h in (H, H_kv, H_kv))
    starts = torch.rand(2, 256, device="cuda") < 0.05
    for mask, dense in ((None, None), (document_offsets(starts), document_mask(starts.cumsum(1)))):
        wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
        expected = F.scaled_dot_product_attention(*wide, attn_mask=dense, is_causal=dense is None, enable_gqa=True)
        q.grad = k.grad = v.grad = None
        out, upstream = attend(q, k, v, mask), torch.randn(expected.shape, device="cuda")
        out.backward(upstream.bfloat16())
        expected.backward(upstream.double())
        for ours, reference in zip((out, q.grad, k.grad, v.grad), (expected, *(x.grad for x in wide)), strict=True):
            assert (ours.double() - reference).norm() < 2e-2 * reference.norm()


def test_cache_mask_hides_cells_beyond_each_row():
    mask = cache_mask(torch.tensor([[0], [2]]), n_keys=4)
    assert mask[:, 0, 0].tolist() == [[True, False, False, False], [True, True, True, False]]


def test_no_document_sees_its_neighbour():
    model = tiny()
    row = torch.tensor([[1, 5, 6, 7, 1, 8, 9, 3]])
    doc = (row == 1).cumsum(1)
    packed = model(row, doc=doc)
    other = row.clone()
    other[0, 1:4] = 20  # change the first document: the second's logits must not move
    assert torch.allclose(packed[0, 4:], model(other, doc=doc)[0, 4:], atol=1e-6)
    assert not torch.allclose(packed[0, 4:], model(other)[0, 4:], atol=1e-3)  # without `doc` they do


def test_packed_document_equals_the_document_alone():
    """Rotary positions are relative: a document's logits do not depend on where in the row it stands."""
    model = tiny()
    alone = model(torch.tensor([[1, 8, 9, 3]]))
    row = torch.tensor([[1, 5, 6, 7, 1, 8, 9, 3]])
    assert torch.allclose(model(row, doc=(row == 1).cumsum(1))[0, 4:], alone[0], atol=1e-5)


def test_causal():
    model = tiny()
    row = torch.randint(0, 50, (1, 10))
    changed = row.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 50
    assert torch.allclose(model(row)[0, :6], model(changed)[0, :6], atol=1e-6)


def test_rotary_keeps_length_and_depends_on_distance_only():
    model = tiny()
    x, y = torch.randn(8), torch.randn(8)

    def score(i: int, j: int) -> float:
        cos, sin = model._precompute_rotary_embeddings(40, 8)
        a = apply_rotary_emb(x.view(1, 1, 1, 8), cos[:, i : i + 1], sin[:, i : i + 1])
        b = apply_rotary_emb(y.view(1, 1, 1, 8), cos[:, j : j + 1], sin[:, j : j + 1])
        assert a.norm().item() == pytest.approx(x.norm().item(), rel=1e-5)
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(30, 28), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_rotary_table_grows_on_demand():
    model = tiny(sequence_len=4)
    longer = tiny(sequence_len=16)
    row = torch.randint(0, 50, (1, 12))
    assert torch.allclose(model(row), longer(row), atol=1e-6)


def test_loss_reductions_agree_and_ignore_minus_one():
    model = tiny()
    x, y = torch.randint(0, 50, (2, 6)), torch.randint(0, 50, (2, 6))
    y[0, :3] = -1
    each = model(x, y, loss_reduction="none")
    assert each.shape == (2, 6) and (each[0, :3] == 0).all()
    assert torch.allclose(model(x, y, loss_reduction="sum"), each.sum())
    assert torch.allclose(model(x, y), each.sum() / 9)
    logits = model(x)
    assert torch.allclose(model(x, y), F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1))


def test_all_masked_batch_gives_zero_not_nan():  # trap: all-masked
    model = tiny()
    loss = model(torch.randint(0, 50, (2, 4)), torch.full((2, 4), -1))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_logits_are_float32_capped_and_cropped_to_the_vocabulary():  # trap: softcap-precision
    model = tiny(vocab_size=50)
    model.compute_dtype = torch.bfloat16
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
    logits = model(torch.randint(0, 50, (1, 5)))
    assert logits.shape == (1, 5, 50) and model.padded_vocab_size == 64
    assert logits.dtype == torch.float32 and logits.abs().max() <= LOGIT_CAP
    # in bfloat16, 15·tanh takes but a few values near the cap; in float32 neighbours stay apart
    assert logits.flatten().unique().numel() > 100


def test_bfloat16_stays_near_float32():  # trap: mixed-dtype
    model = tiny()
    row = torch.randint(0, 50, (2, 12))
    exact = model(row)
    model.compute_dtype = torch.bfloat16
    assert (model(row) - exact).abs().max() / exact.abs().max() < 0.05


def test_new_model_predicts_uniformly_and_meta_device_works():
    with torch.device("meta"):
        model = GPT(GPTConfig(sequence_len=8, vocab_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=16))
    model.to_empty(device="cpu")
    model.init_weights(seed=3)
    x = torch.randint(0, 64, (2, 8))
    assert model(x, x).item() == pytest.approx(torch.tensor(64.0).log().item(), abs=1e-4)


def test_depth_20_is_the_561m_model():
    with torch.device("meta"):
        model = GPT(config_for_depth(20, vocab_size=65536, sequence_len=2048, aspect_ratio=64, head_dim=128))
    assert (model.config.n_embd, model.config.n_head) == (1280, 10)
    assert round(model.num_parameters() / 1e6) == 561
    attention = 12 * 20 * 1280 * 2048
    assert model.estimate_flops() == 6 * (model.num_parameters() - 65536 * 1280) + attention


@pytest.mark.parametrize("sizes, word", [({"n_embd": 30}, "n_embd=30"), ({"n_kv_head": 3}, "n_kv_head=3"),
                                         ({"n_layer": 0}, "n_layer=0"), ({"n_embd": 12}, "odd")])
def test_impossible_sizes_are_refused_by_name(sizes, word):
    with pytest.raises(UserError, match=word):
        tiny(**sizes)


def test_generate_is_deterministic_and_greedy_matches_argmax():
    model = tiny()
    ids = list(model.generate([1, 2, 3], max_tokens=4, temperature=0))
    assert ids[0] == int(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
    sampled = [list(model.generate([1, 2, 3], 5, temperature=1.0, top_k=5, seed=s)) for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
