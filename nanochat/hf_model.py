"""Any causal language model of `transformers` in the form that CORE asks: `python -m scripts.base_eval --hf_path=gpt2`.

Weights are read from safetensors only (a pickle runs code), and no code that comes with a model is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.common import UserError

UNKNOWN_LENGTH = 2048  # context of a model that does not say how long it is


@dataclass(frozen=True)
class HFConfig:
    sequence_len: int


class HFModel(nn.Module):
    """The logits of some positions of right-padded rows: causal models never look at the padding."""

    def __init__(self, model: Any, sequence_len: int):
        super().__init__()
        self.model = model
        self.config = HFConfig(sequence_len)
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters  # else it computes all of them

    def get_device(self) -> torch.device:
        return self.model.device

    def forward(self, ids: Tensor) -> Tensor:
        """All logits: (B, T) -> (B, T, V) float32."""
        return self.model(input_ids=ids, use_cache=False).logits.float()

    def logits_at(self, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """ids (B, T); rows, columns (N,) -> (N, V) float32."""
        if not self.keeps:
            return self.model(input_ids=ids, use_cache=False).logits[rows, columns].float()
        kept, columns = torch.unique(columns, return_inverse=True)
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[rows, columns].float()


class HFTokenizer:
    """A tokenizer of `transformers` with the two methods of ours that prompts need."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def get_bos_token_id(self) -> int:
        """What texts begin with: the model's <bos>, or, where it has none, the end of the text before (as in GPT-2)."""
        for id in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if id is not None:
                return id
        raise UserError(f"{self.tokenizer.name_or_path}: its tokenizer has no token that begins or ends a text, which "
                        "prompts need: choose another --hf_path")

    def encode(self, texts: Sequence[str], prepend: int) -> list[list[int]]:
        if not texts:
            return []
        how = {"add_special_tokens": False, "split_special_tokens": True}  # one named in a text is text, as in ours
        return [[prepend, *row] for row in self.tokenizer(list(texts), verbose=False, **how)["input_ids"]]


def load_hf(path: str, device: torch.device, dtype: torch.dtype) -> tuple[HFModel, HFTokenizer]:
    """The model in a folder or of that name on the hub (what is missing is fetched). UserError where that fails."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:  # without trust_remote_code=False it would ask the person at the keyboard whether to run a model's own code
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
        if loaded["missing_keys"]:  # they would be random
            raise ValueError(f"its weights lack {min(loaded['missing_keys'])}")
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as e:
        reason = str(e).strip().split("\n")[0]
        raise UserError(f"--hf_path={path} cannot be loaded: {reason} (give a folder, or OWNER/NAME on the hub, of a "
                        "causal language model whose weights are safetensors)") from e
    sizes = [getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions")]
    sequence_len = next((n for n in sizes if isinstance(n, int) and n > 0), UNKNOWN_LENGTH)
    return HFModel(model.to(device).eval(), sequence_len), HFTokenizer(tokenizer)
