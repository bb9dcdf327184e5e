"""The model: a GPT with rotary positions, QK norm, ReLU² and no frills. One file, readable from top to bottom.

Rotary embeddings instead of learned positions, RMSNorm without parameters (also right after the embedding), untied
`wte` and `lm_head`, no biases, grouped-query attention, logits soft-capped at 15 in float32. This is the form that
`transformers` knows as `NanoChatForCausalLM`.

    model = GPT(GPTConfig(n_layer=4, n_head=2, n_kv_head=2, n_embd=256, vocab_size=1024, sequence_len=256))
    model.init_weights()
    logits = model(ids)                      # (B, T) -> (B, T, vocab_size) float32
    loss = model(ids, targets)               # mean over targets that are not -1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.attention import attend, document_mask
from nanochat.common import UserError
from nanochat.loss_head import linear_cross_entropy, soft_cap
from nanochat.optim import Group, Optimizer

if TYPE_CHECKING:  # the engine is a floor above: the model knows only the shape of its cache
    from typing import Protocol

    class Cache(Protocol):
        def end(self, T: int) -> int: ...
        def positions(self, T: int) -> Tensor: ...
        def mask(self, positions: Tensor) -> Tensor | None: ...
        def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...
        def advance(self, T: int) -> None: ...


LOGIT_CAP = 15.0
LARGEST = 2**20  # of each size in a configuration: what is beyond is a mistake, or made to fill the memory


@dataclass(frozen=True)
class GPTConfig:
    """The architecture. Impossible sizes are refused here, before anything is allocated."""

    sequence_len: int = 2048
    vocab_size: int = 65536
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6  # GQA when smaller than n_head
    n_embd: int = 768

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise UserError(f"{name}={value} is impossible: it must be a whole number from 1 to {LARGEST}")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: "
                            "choose a width that is a multiple of the number of heads (or set --head_dim)")
        if self.n_head % self.n_kv_head:
            raise UserError(f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}")
        if self.head_dim % 2:
            raise UserError(f"head size n_embd/n_head={self.head_dim} is odd: rotary embeddings need pairs")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


def config_for_depth(depth: int, *, vocab_size: int, sequence_len: int, aspect_ratio: int, head_dim: int) -> GPTConfig:
    """The one dial: width = depth · aspect_ratio, as many heads as fit.

    `depth=20, aspect_ratio=64, head_dim=128 -> n_embd=1280, n_head=10`
    """
    width = depth * aspect_ratio
    if head_dim < 1 or width % head_dim:
        raise UserError(f"width {depth}·{aspect_ratio} = {width} is not divisible by --head_dim={head_dim}: "
                        "choose another --depth, --aspect_ratio or --head_dim")
    n_head = width // head_dim
    return GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, n_layer=depth,
                     n_head=n_head, n_kv_head=n_head, n_embd=width)


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without parameters."""
    return F.rms_norm(x, (x.size(-1),))


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) by their position's angle. x (B, T, H, D); cos, sin (1 or B, T, 1, D/2).

    The sign is the opposite of Llama's; weights from one do not fit the other.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)


class Linear(nn.Linear):
    """No bias; a float32 master weight, multiplied in the dtype of what comes in."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.c_q = Linear(config.n_embd, config.n_head * config.head_dim)
        self.c_k = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_v = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_proj = Linear(config.n_head * config.head_dim, config.n_embd)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], mask: Tensor | None, kv_cache: Cache | None) -> Tensor:
        B, T, _ = x.shape
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        q = norm(apply_rotary_emb(q, *cos_sin)).transpose(1, 2)  # (B, H, T, D)
        k, v = self.keys_values(x, cos_sin)
        if kv_cache is not None:
            k, v = kv_cache.insert_kv(self.layer_idx, k, v)  # (B, H_kv, keys so far, D)
        y = attend(q, k, v, mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1))

    def keys_values(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What later positions will see of these: (B, H_kv, T, D) each."""
        B, T, _ = x.shape
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        return norm(apply_rotary_emb(k, *cos_sin)).transpose(1, 2), v.transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer_idx)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], mask: Tensor | None, kv_cache: Cache | None) -> Tensor:
        x = x + self.attn(norm(x), cos_sin, mask, kv_cache)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """`__init__` only lays out (it may run on the meta device); `init_weights()` makes every number."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32  # one explicit choice, made by whoever builds the model
        self.compiled = False  # see compile_for_training
        self.padded_vocab_size = -(-config.vocab_size // 64) * 64  # a multiple of 64 suits the matrix units
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(self.padded_vocab_size, config.n_embd),
            "h": nn.ModuleList([Block(config, i) for i in range(config.n_layer)]),
        })
        self.lm_head = Linear(config.n_embd, self.padded_vocab_size)
        for name in ("cos", "sin"):  # derived, so never saved
            self.register_buffer(name, torch.empty(0), persistent=False)

    # ----------------------------------------------------------------- numbers

    @torch.no_grad()
    def init_weights(self, seed: int | None = None) -> None:
        """All parameters and the rotary table. With `seed`, from a generator of their own."""
        device = self.get_device()
        generator = None if seed is None else torch.Generator(device=device).manual_seed(seed)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight") or name == "lm_head.weight":
                p.zero_()  # every block starts as the identity, every logit at zero
            elif name == "transformer.wte.weight":
                p.normal_(0.0, 1.0, generator=generator)
            else:  # spectral norm about √(fan_out/fan_in) (Yang et al. 2023, "A Spectral Condition", eq. 1)
                fan_out, fan_in = p.shape
                p.normal_(0.0, fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5), generator=generator)
        self._grow_rotary(self.config.sequence_len)

    def _precompute_rotary_embeddings(
        self, seq_len: int, head_dim: int, base: float = 10000.0
    ) -> tuple[Tensor, Tensor]:
        """cos and sin of position · base^(-2i/D): (1, seq_len, 1, D/2) each, float32."""
        device = self.get_device()
        frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float32, device=device), frequencies)
        return angles.cos()[None, :, None, :], angles.sin()[None, :, None, :]

    @torch.inference_mode(False)  # whoever makes it grow: a tensor made in that mode would be of no use in training
    def _grow_rotary(self, seq_len: int) -> None:
        self.cos, self.sin = self._precompute_rotary_embeddings(seq_len, self.config.head_dim)

    def get_device(self) -> torch.device:
        return self.lm_head.weight.device

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def estimate_flops(self) -> int:
        """Training FLOPs a token: 6 per weight that multiplies, 12·layers·width·T for attention (PaLM, appendix B)."""
        c = self.config
        multiplying = self.num_parameters() - self.transformer.wte.weight.numel()
        return 6 * multiplying + 12 * c.n_layer * c.n_embd * c.sequence_len

    def setup_optimizers(
        self,
        *,
        embedding_lr: float = 0.2,
        unembedding_lr: float = 0.004,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.0,
        polar_express: bool = False,
        deterministic: bool = False,
    ) -> Optimizer:
        """Muon for the matrices of the blocks, AdamW for the embedding and the head.

        The AdamW rates were tuned at width 768 and go with 1/√width. To be made last: the optimizer takes over the
        memory of the weights, so `model.to(...)` must come before.
        """
        scale = (self.config.n_embd / 768) ** -0.5
        blocks = {n: p for n, p in self.named_parameters() if n.startswith("transformer.h.")}
        adam = {"betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": weight_decay}
        return Optimizer([
            Group("matrices", "muon", blocks, lr=matrix_lr, dtype=self.compute_dtype, polar_express=polar_express),
            Group("embedding", "adamw", {"transformer.wte.weight": self.transformer.wte.weight},
                  lr=embedding_lr * scale, **adam),
            Group("head", "adamw", {"lm_head.weight": self.lm_head.weight}, lr=unembedding_lr * scale, **adam),
        ], deterministic=deterministic)

    # ----------------------------------------------------------------- use

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: Cache | None = None,
        loss_reduction: Literal["mean", "sum", "none"] = "mean",
        doc: Tensor | None = None,
        at: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, vocab_size) float32; or, with `targets` (B, T; -1 = not supervised), the loss.

        `doc`: the documents of packed rows, by number (B, T) or as `attention.packed_documents` gives them for this
        device; without it a row is one document. With `kv_cache`, row b's tokens stand at positions `lengths[b] +
        0..T-1`, and the cache is advanced by T. `at` (B,) asks for the logits at one of the T only: (B, 1, vocab_size).
        A batch without any supervised target has loss 0 (not NaN). `counts` (B, T): what each target's loss
        is multiplied with.
        """
        x = self.hidden(idx, kv_cache, doc)  # (B, T, C)
        if at is not None:
            x = x[torch.arange(len(x), device=x.device), at][:, None]  # (B, 1, C)
        if targets is None:
            return self.logits(x)
        loss = linear_cross_entropy(norm(x), self.lm_head.weight, targets, vocab_size=self.config.vocab_size,
                                    cap=LOGIT_CAP, reduction="none" if loss_reduction == "none" else "sum",
                                    compiled=self.compiled, counts=counts)
        return loss / (targets >= 0).sum().clamp(min=1) if loss_reduction == "mean" else loss

    def hidden(self, idx: Tensor, kv_cache: Cache | None = None, doc: Tensor | None = None) -> Tensor:
        """What the blocks make of `idx` (B, T), before the last norm and the head: (B, T, n_embd). See `forward`."""
        x, cos_sin, mask = self._enter(idx, kv_cache, doc)
        for block in self.transformer.h:
            x = block(x, cos_sin, mask, kv_cache)
        if kv_cache is not None:
            kv_cache.advance(idx.size(1))
        return x

    def fill(self, idx: Tensor, kv_cache: Cache) -> None:
        """Put `idx` (B, T) into the cache as `hidden` does, without what would only lead to a result: of the last block
        nothing but its keys and values is computed."""
        x, cos_sin, mask = self._enter(idx, kv_cache)
        *blocks, last = self.transformer.h
        for block in blocks:
            x = block(x, cos_sin, mask, kv_cache)
        kv_cache.insert_kv(last.attn.layer_idx, *last.attn.keys_values(norm(x), cos_sin))
        kv_cache.advance(idx.size(1))

    def _enter(
        self, idx: Tensor, kv_cache: Cache | None, doc: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """The embeddings (B, T, n_embd), cos and sin of their positions, and who may see whom."""
        T = idx.size(1)
        positions = kv_cache.positions(T) if kv_cache is not None else None  # (B, T)
        needed = T if kv_cache is None else kv_cache.end(T)
        if needed > self.cos.size(1):
            self._grow_rotary(max(needed, 2 * self.cos.size(1)))
        if positions is None:
            cos, sin = self.cos[:, :T], self.sin[:, :T]
            mask = document_mask(doc) if doc is not None and doc.dim() == 2 else doc
        else:
            cos, sin = self.cos[0, positions], self.sin[0, positions]  # (B, T, 1, D/2)
            mask = kv_cache.mask(positions)
        x = norm(self.transformer.wte(idx).to(self.compute_dtype))  # (B, T, C)
        return x, (cos.to(self.compute_dtype), sin.to(self.compute_dtype)), mask

    def logits(self, x: Tensor) -> Tensor:
        """The head on some of what `hidden` gave: (..., n_embd) -> (..., vocab_size) float32, capped."""
        return soft_cap(self.lm_head(norm(x))[..., : self.config.vocab_size], LOGIT_CAP)

    def compile_for_training(self) -> Callable[..., Tensor]:
        """`forward`, compiled for one shape. The model itself stays as it is: evaluation and sampling, with shapes of
        their own, go through it uncompiled, but for the kernel of the loss, which has one shape for all."""
        self.compiled = True
        return torch.compile(self, dynamic=False)

    @torch.no_grad()
    def generate(
        self, tokens: list[int], max_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int = 42
    ) -> Iterator[int]:
        """The slow, obvious way: the whole sequence through the model for each new token. `Engine` is the fast one."""
        device = self.get_device()
        generator = torch.Generator(device=device).manual_seed(seed)
        ids = torch.tensor([tokens], dtype=torch.long, device=device)
        for _ in range(max_tokens):
            logits = self(ids)[0, -1]
            if temperature == 0:
                token = logits.argmax()
            else:
                if top_k:
                    kth = logits.topk(min(top_k, logits.numel())).values[-1]
                    logits = logits.masked_fill(logits < kth, float("-inf"))
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[0]
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
            yield int(token)
