"""The loss head: linear layer, soft cap and cross entropy as one step, without ever holding all logits.

For N tokens and a vocabulary of V the logits are N·V numbers: 8 192 × 32 768 in float32 are a gigabyte, and autograd
keeps several such. Here a block of rows at a time goes through the product, and one pass over the block turns its
logits into losses and, in their place, into the gradient; forward and backward are done together (the idea is that of
Hsu et al. 2024, "Liger Kernel").

    loss = linear_cross_entropy(x, weight, targets, vocab_size=1024, cap=15.0)     # summed over targets >= 0
    loss.backward()

The soft cap bounds every logit, so the sum of exponentials needs no maximum taken off first: one pass less (for caps up
to 50: above, float32 might overflow). A pure part (floor 1); `tests/reference/loss_head.py` is the plain form that it
equals. There is nothing to run here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of a block. On a CPU its logits must stay in the cache between the product that writes them and the kernel that
# reads them (256 rows of 32 768 are 16 MB); a GPU wants fewer and larger launches.
BLOCK_ROWS = {"cpu": 256, "cuda": 4096, "mps": 1024}
# Rows whose gradients are multiplied together: the weight's gradient (V, C) is read and written once for them all.
GROUP_ROWS = {"cpu": 2048, "cuda": 4096, "mps": 1024}
# Where rows without a target are left out, and cost nothing. On a GPU, counting them would mean waiting for it.
LEAVES_OUT = ("cpu",)
MAX_CAP = 50.0

Kernel = Callable[[Tensor, Tensor, float], Tensor]


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """`cap · tanh(logits / cap)`: float32 (float64 stays), between -cap and cap."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cap * torch.tanh(wide / cap)


def _capped(logits: Tensor, cap: float) -> Tensor:
    """tanh(logits / cap), by one exponential and a division: the kernel takes a third less time than with `tanh`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return 1 - 2 / (torch.exp(wide * (2 / cap)) + 1)


def token_losses(logits: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Cross entropy of capped logits: logits (R, V), targets (R,) -> (R,), 0 where the target is negative."""
    capped = cap * _capped(logits, cap)
    chosen = capped.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(targets >= 0, capped.exp().sum(1).log() - chosen, 0.0)


def losses_and_gradient(logits: Tensor, targets: Tensor, cap: float) -> Tensor:
    """The same losses; and `logits` becomes the gradient of their sum with respect to the uncapped logits.

    With u = tanh(z / cap) and p = softmax(cap · u): dL/dz = (p - onehot(target)) · (1 - u²).
    """
    u = _capped(logits, cap)
    exponentials = torch.exp(cap * u)
    total = exponentials.sum(1, keepdim=True)
    chosen = cap * u.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    columns = torch.arange(logits.size(1), device=logits.device)
    onehot = (columns[None, :] == targets[:, None]).to(u.dtype)
    gradient = (exponentials / total - onehot) * (1 - u * u)
    counts = targets >= 0
    logits.copy_(torch.where(counts[:, None], gradient, 0.0))
    return torch.where(counts, total.squeeze(1).log() - chosen, 0.0)


@functools.cache
def _compiled(kernel: Kernel) -> Kernel:
    return torch.compile(kernel, dynamic=False)


class _Sum(torch.autograd.Function):
    """Summed loss; the gradients are made on the way and only scaled in `backward`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, counts: Tensor | None, vocab_size: int, cap: float,
        R: int, compiled: bool,
    ) -> Tensor:
        """x (N, C), targets (N,), counts (N,) or None, with N a multiple of R, the rows of a block."""
        kernel = _compiled(losses_and_gradient) if compiled else losses_and_gradient
        N, G = len(x), GROUP_ROWS[x.device.type]
        w = weight[:vocab_size].to(x.dtype)  # (V, C)
        dx = torch.empty_like(x)
        dw = torch.zeros_like(weight)  # (V padded, C), in the dtype of the master weight
        group = torch.empty(min(G, N), vocab_size, dtype=x.dtype, device=x.device)
        losses = []
        for start in range(0, N, G):
            stop = min(start + G, N)
            for a in range(start, stop, R):  # logits of a block, then their gradient in the same place
                block = group[a - start : a - start + R]
                torch.mm(x[a : a + R], w.T, out=block)
                losses.append(kernel(block, targets[a : a + R], cap))
                if counts is not None:
                    block *= counts[a : a + R, None]
                    losses[-1] = losses[-1] * counts[a : a + R]
            d = group[: stop - start]  # (rows, V)
            torch.mm(d, w, out=dx[start:stop])
            dw[:vocab_size] += d.T @ x[start:stop]
        ctx.gradients = dx, dw
        return torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss head cannot go backward a second time: its gradients were scaled in place")
        dx, dw = ctx.gradients
        ctx.gradients = None
        # The factor is rounded with each element, not once for all: in bfloat16 that would be 0.2% more or less of all.
        return (dx.to(dw.dtype) * grad).to(dx.dtype), dw.mul_(grad), None, None, None, None, None, None


@torch.compiler.disable  # the model around it is one graph; a loop over blocks inside it would be unrolled
def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, cap: float,
    reduction: Literal["sum", "none"] = "sum", compiled: bool = False, counts: Tensor | None = None,
) -> Tensor:
    """Cross entropy of `soft_cap(x @ weight[:vocab_size].T)` against `targets`, -1 = not counted.

    x (..., C) in the compute dtype; weight (>= vocab_size, C); targets (...) ids. "sum": a scalar, float32 or wider;
    "none": one loss a token, in the shape of `targets` (with gradients wanted, by the plain form: it holds all logits).
    `compiled`: run the kernel over a block through torch.compile, always for the same shape. `counts` (...): what the
    loss of each target is multiplied with (reinforcement learning: its advantage, of either sign).
    """
    if cap > MAX_CAP:
        raise ValueError(f"a soft cap of {cap} is too large for float32: at most {MAX_CAP}")
    rows, flat = x.reshape(-1, x.size(-1)), targets.reshape(-1)  # (N, C), (N,)
    wide = torch.promote_types(x.dtype, torch.float32)
    by = None if counts is None else counts.reshape(-1).to(wide)  # (N,)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if reduction == "none" and wants_gradient:
        logits = soft_cap(F.linear(rows, weight[:vocab_size].to(x.dtype)), cap)
        losses = F.cross_entropy(logits, flat.clamp(min=-1), ignore_index=-1, reduction="none")
        return (losses if by is None else losses * by).view(targets.shape)
    R = BLOCK_ROWS[x.device.type] if compiled else max(1, min(BLOCK_ROWS[x.device.type], len(flat)))
    index = None
    if x.device.type in LEAVES_OUT:
        index = (flat >= 0).nonzero().squeeze(1)
        if len(index) < len(flat):
            rows, flat, by = rows[index], flat[index], by if by is None else by[index]
    padding = -len(flat) % R if len(flat) else R
    if padding:  # whole blocks only: the kernel is compiled for one shape
        rows, flat = F.pad(rows, (0, 0, 0, padding)), F.pad(flat, (0, padding), value=-1)
        by = by if by is None else F.pad(by, (0, padding))
    if reduction == "sum" and wants_gradient:
        return _Sum.apply(rows, weight, flat, by, vocab_size, cap, R, compiled)
    kernel = _compiled(token_losses) if compiled else token_losses
    w = weight[:vocab_size].to(x.dtype)
    losses = torch.cat([kernel(rows[a : a + R] @ w.T, flat[a : a + R], cap) for a in range(0, len(flat), R)])
    losses = losses if by is None else losses * by
    if reduction == "sum":
        return losses.sum()
    if index is None:
        return losses[: targets.numel()].view(targets.shape)
    return losses.new_zeros(targets.numel()).index_copy(0, index, losses[: len(index)]).view(targets.shape)
