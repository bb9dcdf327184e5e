"""Small real things that several test files need: a trained tokenizer, a model, a finished tiny checkpoint."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer, pick_tokenizer_class

TEXT = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, the fox runs.",
    "Mira lives in Tarn and keeps 12 goats; 12 + 30 = 42, and 42 - 30 = 12.",
    "What is the river called? The river is called the Ossa, and it is 310 miles long.",
] * 20


def small_tokenizer(vocab_size: int = 320) -> RustBPETokenizer:
    """A tokenizer really trained, on a page of text, by whichever trainer is there."""
    return pick_tokenizer_class().train_from_iterator(iter(TEXT), vocab_size)


@cache
def byte_tokenizer() -> RustBPETokenizer:
    """A real one without merges: a token is a byte."""
    return pick_tokenizer_class().train_from_iterator(["aaaa"], 256 + len(SPECIAL_TOKENS))


def small_model(tokenizer: RustBPETokenizer, *, seed: int = 0, **sizes: int) -> GPT:
    """A float32 model of some ten thousand weights, all of them non-zero."""
    config = {"sequence_len": 64, "vocab_size": tokenizer.get_vocab_size(), "n_layer": 2, "n_head": 2, "n_kv_head": 2,
              "n_embd": 32, **sizes}
    model = GPT(GPTConfig(**config))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def write_corpus(folder: Path, documents: int = 400) -> Path:
    """A folder of plain text files to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        number = f"Note {i}: {i} + {i + 1} = {2 * i + 1}. "
        (folder / f"{i:04d}.txt").write_text(number + TEXT[i % 3], encoding="utf-8")
    return folder
