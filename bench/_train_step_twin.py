"""Our model as transformers' `NanoChatForCausalLM`: the same weights under its names. There is nothing to run.

    twin = transformers_twin(model)                  # float32, on the device of `model`, the same logits

The one place that knows both architectures' names; the benchmark and tests/test_parity.py share it. What one must
know beside the names: `intermediate_size` is 4·width; F.rms_norm's default epsilon is that of float32; a padding token
would get no gradient (`padding_idx` of its embedding), and we have none; our vocabulary's padding is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.gpt import GPT, LOGIT_CAP, GPTConfig

if TYPE_CHECKING:
    from transformers import NanoChatConfig, NanoChatForCausalLM

PARTS = {  # of a parameter's name: ours -> theirs
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    ".attn.c_q.": ".self_attn.q_proj.",
    ".attn.c_k.": ".self_attn.k_proj.",
    ".attn.c_v.": ".self_attn.v_proj.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
BY_VOCABULARY = ("transformer.wte.weight", "lm_head.weight")  # a row a token, padded at the end


def their_tensors(ours: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Weights, or their gradients, from our names to theirs; views, not copies.

    `{"transformer.h.0.mlp.c_fc.weight": w} -> {"model.layers.0.mlp.fc1.weight": w}`
    """
    theirs = {}
    for name, tensor in ours.items():
        their_name = name
        for part, their_part in PARTS.items():
            their_name = their_name.replace(part, their_part)
        theirs[their_name] = tensor[:vocab_size] if name in BY_VOCABULARY else tensor
    return theirs


def their_config(config: GPTConfig) -> NanoChatConfig:
    """The same architecture in their words."""
    from transformers import NanoChatConfig

    return NanoChatConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=4 * config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        max_position_embeddings=config.sequence_len,
        rms_norm_eps=torch.finfo(torch.float32).eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        final_logit_softcapping=LOGIT_CAP,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def transformers_twin(model: GPT) -> NanoChatForCausalLM:
    """Their model with a copy of our weights, ready to train (theirs has no dropout)."""
    from transformers import NanoChatForCausalLM

    twin = NanoChatForCausalLM(their_config(model.config)).to(model.get_device())
    copy_weights(model, twin)
    return twin.train()


def copy_weights(model: GPT, twin: NanoChatForCausalLM) -> None:
    """Our weights into theirs; a name that only one side has is an error."""
    twin.load_state_dict(their_tensors(model.state_dict(), model.config.vocab_size), strict=True)
