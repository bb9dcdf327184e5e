"""The model and its attention against slow references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.attention import attend, cache_mask, document_mask
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
