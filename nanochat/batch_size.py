"""How the rows of a step are cut, and what fits into memory.

A step trains on `total_batch_size` tokens: `total_batch_size / max_seq_len` rows of the stream. Each rank has an equal,
contiguous share of them, and each backward pass `device_batch_size` rows of that. How it is cut changes the memory that
is needed and the speed, never the result. So what cannot be cut evenly is refused before any work, running out of
memory is answered with a smaller size, and `--device_batch_size=auto` finds the largest that fits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nanochat.common import UserError, check_at_least, get_dist_info, print0
from nanochat.dataloader import Batch
from nanochat.ranks import gather, wire_device

LossFn = Callable[[nn.Module, Batch], Tensor]  # the loss summed over the supervised tokens of a batch

USABLE = 0.85  # of the memory that is free: the rest is for what others start
WORKING = 1.5  # peak over what autograd keeps, operators' own memory and malloc's holes included: 1.1 to 1.5 on a CPU


def rows_per_rank(
    total_batch_size: int, device_batch_size: int | Literal["auto"], max_seq_len: int, *, deterministic: bool = False
) -> int:
    """The rows of a step that each rank trains on: `total=8192, T=256` on 2 ranks -> 16.

    Sizes that do not fit together are refused with those nearby that do. So are, in deterministic mode, numbers of
    ranks among which a binary tree of gradients cannot be shared.
    """
    world_size = get_dist_info()[3]
    rows = 1 if device_batch_size == "auto" else device_batch_size
    check_at_least(1, device_batch_size=rows, total_batch_size=total_batch_size, max_seq_len=max_seq_len)
    if deterministic and device_batch_size == "auto":
        raise UserError("--deterministic needs a --device_batch_size: what is summed first depends on it")
    if deterministic and world_size & (world_size - 1):
        raise UserError(f"--deterministic works on 1, 2, 4, 8, ... ranks, not on {world_size}")
    unit, token_rows = rows * max_seq_len * world_size, max_seq_len * world_size
    if total_batch_size % unit == 0:
        return total_batch_size // token_rows
    near = [n * unit for n in (total_batch_size // unit, total_batch_size // unit + 1) if n]
    advice = f"--total_batch_size={' or '.join(map(str, near))}"
    if total_batch_size % token_rows == 0:
        fitting = divisors(total_batch_size // token_rows)
        near = [d for d in fitting if d < rows][-1:] + [d for d in fitting if d > rows][:1]
        advice += f", or --device_batch_size={' or '.join(map(str, near))}"
    ranks = f" × {world_size} ranks" if world_size > 1 else ""
    raise UserError(f"--total_batch_size={total_batch_size} is not a multiple of --device_batch_size={rows} × "
                    f"--max_seq_len={max_seq_len}{ranks} (= {unit} tokens): these would fit: {advice}")


def divisors(n: int) -> list[int]:
    """`12 -> [1, 2, 3, 4, 6, 12]`"""
    return [d for d in range(1, n + 1) if n % d == 0]


# --------------------------------------------------------------------------- when it does not fit


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, CUDA's, and what torch's allocators for CPU and MPS say in a RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


@contextlib.contextmanager
def memory_named(phase: str, rows: int, max_seq_len: int) -> Iterator[None]:
    """Turn running out of memory in this block into one line: the phase, the batch size, and what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        smaller = f"--device_batch_size={rows // 2} or auto" if rows > 1 else "a smaller --depth or --max_seq_len"
        raise UserError(f"out of memory in {phase}, with --device_batch_size={rows} (rows of {max_seq_len} tokens): "
                        f"try {smaller}; the last checkpoint is intact, --resume goes on from it") from e


# --------------------------------------------------------------------------- what fits


def choose_rows(
    device_batch_size: int | Literal["auto"], share: int, max_seq_len: int, model: nn.Module, loss_fn: LossFn
) -> int:
    """The rows of a backward pass: as given, or for "auto" the most that fit, the same on every rank.

    The bytes that a backward pass keeps are measured on `model` (not compiled) at one row and at two, and grow with the
    rows by a line. On CUDA that is only where to begin: sizes are tried for real, downwards, until one fits.
    """
    if device_batch_size != "auto":
        return device_batch_size
    device = next(model.parameters()).device

    def backward(rows: int) -> None:
        ids = torch.zeros(rows, max_seq_len, dtype=torch.long, device=device)  # which tokens they are costs nothing
        loss_fn(model, Batch(ids, ids, {})).backward()

    one = saved_bytes(model, lambda: backward(1))
    per_row = (saved_bytes(model, lambda: backward(2)) - one) * (1 if device.type == "cuda" else WORKING)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed, free = one + 3 * weights, free_memory(device)  # 3: a gradient of each, and the update's own copies of it
    fitting = [d for d in divisors(share) if fixed + d * per_row <= USABLE * free] or [1]
    if device.type == "cuda":
        fitting = [next((d for d in reversed(fitting) if _runs(model, lambda d=d: backward(d), 2 * weights)), 1)]
    rows = int(gather(torch.tensor([fitting[-1]], device=wire_device())).min())
    print0(f"--device_batch_size=auto: {rows} rows a backward pass, {share // rows} of them a step on each rank (about "
           f"{(fixed + rows * per_row) / 1e9:.2f} GB of {free / 1e9:.2f} GB free)")
    return rows


def saved_bytes(model: nn.Module, run: Callable[[], None]) -> int:
    """Bytes that autograd keeps for the backward pass of `run()`, each storage once, parameters and buffers apart."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = max(storage.nbytes(), kept.get(storage.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    model.zero_grad(set_to_none=True)
    return sum(kept.values())


def _runs(model: nn.Module, run: Callable[[], None], beside: int) -> bool:
    """Whether `run()` ends on a GPU that has `beside` bytes less; what it allocated is given back."""
    try:
        ballast = torch.empty(beside, dtype=torch.uint8, device="cuda")
        run()
        del ballast
        torch.cuda.synchronize()
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def free_memory(device: torch.device) -> int:
    """Bytes that this rank may still fill: of its GPU, or its part of what the machine and the control group leave."""
    import psutil

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = min([psutil.virtual_memory().available, *cgroup_room()])
    if device.type == "mps":
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def cgroup_room(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container's limit leaves, if there is one (Linux control groups, version 2, then 1): `[bytes]` or `[]`."""
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, used in pairs:
        try:
            numbers = [(root / name).read_text(encoding="utf-8").strip() for name in (limit, used)]
        except OSError:
            continue
        if all(n.isdigit() for n in numbers):  # "max" means that there is no limit
            return [max(0, int(numbers[0]) - int(numbers[1]))]
    return []
