"""Our model is the architecture that transformers knows as `NanoChatForCausalLM`: logits, loss and gradients.

Equality is max|Δ| / max|reference|, float32. The names are those of bench/_train_step_twin.py, as in the benchmark.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig

pytest.importorskip("transformers.models.nanochat", reason="transformers is not installed, or older than this model")


@pytest.fixture
def twins(monkeypatch):
    """The module that knows both sides' names; it lies beside the benchmark, which is no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("_train_step_twin")


def made(embedding: float = 1.0, **changes: int) -> GPT:
    """A model whose weights are all non-zero and large enough that the soft cap and the attention matter.

    With a small `embedding`, what is normed first is so small that the norm's epsilon matters too.
    """
    sizes = {"sequence_len": 48, "vocab_size": 128, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 64, **changes}
    model = GPT(GPTConfig(**sizes))
    model.init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
        model.transformer.wte.weight.mul_(embedding)
    return model


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("sizes", [{}, {"n_kv_head": 2}, {"n_kv_head": 1, "n_layer": 3}, {"vocab_size": 101},
                                   {"n_head": 1, "n_kv_head": 1, "vocab_size": 70}, {"embedding": 1e-3}],
                         ids=["plain", "gqa", "mqa", "vocabulary of 101", "one head", "epsilon"])
def test_logits_loss_and_gradients_equal_those_of_transformers(twins, sizes):
    model = made(**sizes)
    twin = twins.transformers_twin(model)
    V = model.config.vocab_size
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, V, (3, 41), generator=generator)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    targets = targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.2, -1)

    logits = twin(input_ids=inputs, use_cache=False).logits
    assert logits.abs().max() > 7.5  # else nothing is said about the soft cap at 15
    assert error(model(inputs), logits) <= 1e-5

    labels = targets.masked_fill(targets < 0, -100)
    their_loss = twin(input_ids=inputs, labels=labels, shift_labels=labels, use_cache=False).loss
    our_loss = model(inputs, targets)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)

    our_loss.backward()
    their_loss.backward()
    ours = twins.their_tensors({name: p.grad for name, p in model.named_parameters()}, V)
    theirs = {name: p.grad for name, p in twin.named_parameters()}
    assert ours.keys() == theirs.keys()
    wrong = {name: e for name in ours if not (e := error(ours[name], theirs[name])) <= 1e-5}
    assert wrong == {}


def test_the_table_of_names_is_one_to_one(twins):
    model = made(vocab_size=101)
    theirs = twins.their_tensors(model.state_dict(), 101)
    assert len(theirs) == len(model.state_dict())
    assert theirs["model.embed_tokens.weight"].shape == theirs["lm_head.weight"].shape == (101, 64)
    assert not any("c_" in name or "transformer." in name for name in theirs)
