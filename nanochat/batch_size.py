"""How the rows of a step are cut, and what fits into memory.

A step trains on `total_batch_size` tokens: `total_batch_size / max_seq_len` rows of the stream. Each rank has an equal,
contiguous share of them, and each backward pass `device_batch_size` rows of that. How it is cut changes the memory that
is needed and the speed, never the result. So what cannot be cut evenly is refused before any work
(`run.rows_per_rank`), running out of memory is answered with a smaller size, and `--device_batch_size=auto` finds the
largest that fits.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nanochat.common import UserError, is_out_of_memory, print0
from nanochat.dataloader import Batch
from nanochat.ranks import gather, wire_device
from nanochat.run import divisors

LossFn = Callable[[nn.Module, Batch], Tensor]  # the loss summed over the supervised tokens of a batch

USABLE = 0.85  # of the memory that is free: the rest is for what others start
WORKING = 1.5  # on a CPU: peak over what autograd keeps, operators' own memory and malloc's holes included, generously


# --------------------------------------------------------------------------- when it does not fit


@contextlib.contextmanager
def memory_named(phase: str, rows: int, max_seq_len: int, remedy: str) -> Iterator[None]:
    """Turn running out of memory in this block into one line: the phase, the batch size, and what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(f"out of memory in {phase}, with --device_batch_size={rows} (rows of {max_seq_len} tokens): "
                        f"try {remedy}") from e


def fewer_rows(rows: int, share: int, deterministic: bool) -> str:
    """What to try where backward passes of `rows` rows, of a rank's `share`, need too much memory in training."""
    smaller = max((d for d in divisors(share) if d < rows), default=None)
    if smaller is None:
        return "a new run with a smaller --depth or --max_seq_len of base_train"
    if deterministic:  # the size decides the bits: this run cannot go on with another
        return f"a new run with --device_batch_size={smaller}"
    return f"--device_batch_size={smaller} or auto; the last checkpoint is intact, --resume goes on from it"


# --------------------------------------------------------------------------- what fits


def choose_rows(
    device_batch_size: int | Literal["auto"], share: int, max_seq_len: int, model: nn.Module, loss_fn: LossFn
) -> int:
    """The rows of a backward pass: as given (at most the share), or for "auto" the most that fit, on every rank alike.

    The bytes that a backward pass keeps are measured on `model` (not compiled) at one row and at two, and grow with the
    rows by a line. On CUDA that is only where to begin: sizes are tried for real, downwards, until one fits.
    """
    if device_batch_size != "auto":
        if device_batch_size > share:
            print0(f"--device_batch_size={device_batch_size} is more than the {share} rows of a step on each rank: "
                   f"{share} a backward pass")
        return min(device_batch_size, share)
    device = next(model.parameters()).device

    def backward(rows: int) -> None:
        ids = torch.zeros(rows, max_seq_len, dtype=torch.long, device=device)  # which tokens they are costs nothing
        loss_fn(model, Batch(ids, ids, {})).backward()

    with memory_named("trying one row", 1, max_seq_len, fewer_rows(1, share, False)):
        one = saved_bytes(model, lambda: backward(1))
    try:
        two = saved_bytes(model, lambda: backward(2)) if share > 1 else 2 * one
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        two = math.inf
    per_row = (two - one) * (1 if device.type == "cuda" else WORKING)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed, free = one + 3 * weights, free_memory(device)  # 3: a gradient of each, and the update's own copies of it
    fitting = [d for d in divisors(share) if fixed + d * per_row <= USABLE * free] or [1]
    if device.type == "cuda":
        fitting = [next((d for d in reversed(fitting) if _runs(model, lambda d=d: backward(d), 2 * weights)), 1)]
    rows = int(gather(torch.tensor([fitting[-1]], device=wire_device())).min())
    needed = f"about {(fixed + rows * per_row) / 1e9:.2f} GB" if math.isfinite(per_row) else "more for two"
    print0(f"--device_batch_size=auto: {rows} rows a backward pass, {share // rows} of them a step on each rank "
           f"({needed} of {free / 1e9:.2f} GB free)")
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

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run()
    finally:
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
    """What a container's limit leaves, if there is one (Linux control groups, version 2, then 1): `[bytes]` or `[]`.

    Pages of files that were not read lately count as used there, but the kernel gives them back before it refuses.
    """
    kinds = (("memory.max", "memory.current", "memory.stat", "inactive_file"),
             ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat",
              "total_inactive_file"))
    for *names, field in kinds:
        try:
            limit, used, stat = [(root / name).read_text(encoding="utf-8").strip() for name in names]
        except OSError:
            continue
        if limit.isdigit() and used.isdigit():  # "max" means that there is no limit
            cached = dict(line.split() for line in stat.splitlines()).get(field, "0")
            return [max(0, int(limit) - int(used) + int(cached))]
    return []
