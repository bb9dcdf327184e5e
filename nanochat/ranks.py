"""How the ranks of a run speak with each other, beside weights and gradients: a few numbers, a line of text, a failure.

Everything here asks the process group, never the environment: without a group there is one rank, nothing is sent, and
the caller need not know. With one, every rank must make the same calls in the same order. A second thread that wants to
speak with its like on other ranks does so in a group of its own (`apart`), or its words and the first's would mix.

    start = on_rank0(lambda: resume_step(...))      # rank 0 decides, all know; its error is everybody's
    with all_or_none("saving step 500"): ...        # one that fails here ends all of them, instead of leaving them hang

There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.common import PATIENCE, UserError

_group: ContextVar[dist.ProcessGroup | None] = ContextVar("group", default=None)  # None: the default group


class OtherRankFailed(Exception):
    """This rank was well, but must end because of another: that one is to be blamed, so this one leaves after it."""


def rank_and_world() -> tuple[int, int]:
    """`(rank, world_size)` of the process group; `(0, 1)` without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def new_group() -> dist.ProcessGroup | None:
    """Another group of all ranks (all must call this), to speak `apart` in; None where there is nobody to speak to."""
    return dist.new_group(backend="gloo", timeout=PATIENCE) if rank_and_world()[1] > 1 else None


def leave_group(group: dist.ProcessGroup | None) -> None:
    """Let go of a group that `new_group` made."""
    if group is not None:
        dist.destroy_process_group(group)


@contextlib.contextmanager
def apart(group: dist.ProcessGroup | None) -> Iterator[None]:
    """What is called here, in this thread, speaks in `group`."""
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def wire_device() -> torch.device:
    """Where a tensor must lie to be sent: NCCL knows GPU memory only, gloo takes the CPU's."""
    if rank_and_world()[1] > 1 and dist.get_backend(_group.get()) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place: `tensor` is whatever lies where the model lies."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor, group=_group.get())
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """`(k,)` of this rank -> `(world_size, k)`: a row for each rank, on all of them."""
    world_size = rank_and_world()[1]
    if world_size == 1:
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(rows, tensor, group=_group.get())
    return torch.stack(rows)


def gather_texts(text: str) -> list[str]:
    """A text of each rank, in the order of the ranks. Bytes on the wire, no pickle, padded to the longest."""
    if rank_and_world()[1] == 1:
        return [text]
    data = text.encode("utf-8", "backslashreplace")  # a file's name may hold what is no Unicode
    lengths = gather(torch.tensor([len(data)], device=wire_device())).flatten().tolist()
    data = data.ljust(max(1, *lengths), b"\0")
    rows = gather(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(wire_device())).cpu()
    return [bytes(row[:length].tolist()).decode("utf-8") for row, length in zip(rows, lengths, strict=True)]


def on_rank0(fn: Callable[[], Any]) -> Any:
    """Call `fn` on rank 0 alone; its result (JSON) is what all ranks return, its error what all ranks raise."""
    rank, world_size = rank_and_world()
    if world_size == 1:
        return fn()
    answer: dict[str, Any] = {}
    error: Exception | None = None
    if rank == 0:
        try:
            answer = {"result": fn()}
            json.dumps(answer)
        except Exception as e:
            error, answer = e, {"error": str(e), "user": isinstance(e, UserError)}
    try:
        answer = json.loads(gather_texts(json.dumps(answer))[0])
    finally:
        if error is not None:  # whatever became of telling the others
            raise error
    if "error" in answer:
        raise UserError(answer["error"]) if answer["user"] else OtherRankFailed(f"rank 0 failed: {answer['error']}")
    return answer["result"]


@contextlib.contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """A block that may fail on one rank: then it fails on all, and those that were well name the one that was not."""
    error: Exception | None = None
    try:
        yield
    except Exception as e:
        error = e
    said = gather_texts("" if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(said):
        if text:
            raise OtherRankFailed(f"rank {rank} failed while {what}: {text}")


def first_to_say(text: str) -> bool:
    """Whether no other rank has said this yet: what all ranks find wrong is printed once.

    Not a collective: a rank may be the only one to ask. Where the ranks cannot be asked, each may speak.
    """
    if rank_and_world()[1] == 1:
        return True
    key = "nanochat/said/" + hashlib.sha256(text.encode("utf-8")).hexdigest()
    try:
        return dist.distributed_c10d._get_default_store().add(key, 1) == 1
    except (RuntimeError, dist.DistError):
        return True
