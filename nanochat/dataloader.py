"""Text and conversations → packed batches: no document sees its neighbour, none is lost, any batch can be resumed from.

Two loaders share one packer, one scheme of windows and one state:

    tokenizing_distributed_data_loader_with_state(...)   pretraining text, a `Corpus` of dataset.py
    conversation_loader(...)                             a `Task`, with its supervision mask

How documents become rows stands in packing.py; the model finds the documents of a row by `(inputs == bos).cumsum(1)`.

**Order.** Text comes in windows of packed rows (windows.py says how they are read and shuffled), and a window depends
on nothing before it: `state` = epoch, first unit of the window, rows already given out. The stream of rows is a
function of seed and epoch alone, the same for any batch size, rank count and number of workers; a global batch is its
next `B * world_size` rows, of which rank r has `[r * B, (r + 1) * B)`.

**Threads.** A window is prepared one ahead in one thread (which tokenizes on `workers` more), batches are cut a few
ahead in another and, for CUDA, laid into pinned memory. `workers=0` does all of it in the caller's. There is nothing
to run here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError, cpu_cores
from nanochat.dataset import Corpus
from nanochat.packing import to_inputs_and_targets
from nanochat.prefetch import Prefetch
from nanochat.ranks import gather_texts, rank_and_world
from nanochat.windows import ConversationSource, Source, TextSource, Window

BATCHES_AHEAD = 4


@dataclass
class Batch:
    """`inputs` (B, T) and `targets` (B, T; -1 = not supervised), long; `state` continues after this very batch.

    What was sampled for it by the model itself (`rollouts.py`) also says: `counts` (B, T), what each target's loss is
    multiplied with; `tokens`, by how many the sum over this rank's rows and all others' is divided; `figures` for the
    log, the same on all ranks.
    """

    inputs: Tensor
    targets: Tensor
    state: dict
    counts: Tensor | None = None  # None: 1 each
    tokens: int | None = None  # this rank's share of them; None: its supervised targets
    figures: dict[str, float] = field(default_factory=dict)


class NothingToLearn(UserError):
    """Not one row of the data has a token to learn from that fits; `why` counts what became of the rows."""

    def __init__(self, why: str):
        super().__init__(f"nothing to train on: {why}")
        self.why = why


# --------------------------------------------------------------------------- windows → batches


@dataclass(frozen=True)
class _Position:
    epoch: int = 0
    unit: int = 0
    row: int = 0


def _windows(source: Source, at: _Position, epochs: int | None) -> Iterator[tuple[_Position, Window]]:
    """The windows from `at` on, over the epochs, each with where it begins (the first with `at` itself)."""
    epoch, unit, row = at.epoch, at.unit, at.row
    while epochs is None or epoch < epochs:
        started_whole, counts = unit == 0, dict[str, int]()
        while unit < source.num_units():
            window = source.window(epoch, unit)
            _add(counts, window.counts)
            yield _Position(epoch, unit, row), window
            unit, row = window.next_unit, 0
            del window  # while the next one is made, there is one fewer
        if started_whole and not counts.get("positions"):  # an endless loader would look for ever
            why = "".join(f"; {counts[what]} {what}" for what in ("skipped", "malformed") if counts.get(what))
            why += "".join(f"; {fault}" for fault in list(source.faults.values())[:1])
            raise NothingToLearn(f"not one document or conversation has a token to learn from in a row of {source.T}"
                                 f"{why}")
        epoch, unit, row = epoch + 1, 0, 0


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for name, n in more.items():
        counts[name] = counts.get(name, 0) + n


@dataclass(frozen=True)
class _Share:
    """The rows of a global batch that are this rank's."""

    B: int
    rank: int
    world_size: int

    def of(self, begin: int, end: int) -> tuple[int, int]:
        """Of rows `begin .. end` of a global batch, the `(first, last + 1)` that are ours, counted from `begin`."""
        first, last = (min(max(r * self.B, begin), end) - begin for r in (self.rank, self.rank + 1))
        return first, last


def _batches(source: Source, windows: Iterator[tuple[_Position, Window]], share: _Share, counts: dict[str, int],
             device: torch.device) -> Iterator[Batch | dict]:
    """Global batches of `B * world_size` rows, of each our share; last of all the state after everything.

    A stream that ends is filled up with empty rows once.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # this is another thread: it would pin memory for the first GPU
    rows, filled, parts = share.B * share.world_size, 0, []
    after = _Position()

    def state() -> dict:
        return {**source.identity, "epoch": after.epoch, "unit": after.unit, "row": after.row, "counts": dict(counts)}

    for at, window in windows:
        row, available = at.row, len(window.ids)
        if row == 0:  # else a resume, and the state has counted this window
            _add(counts, window.counts)
        after = _after(source, at, window, row)
        while row < available:
            taken = min(rows - filled, available - row)
            a, b = share.of(filled, filled + taken)
            parts.append((window.ids[row + a : row + b], window.learn[row + a : row + b]))
            row, filled = row + taken, filled + taken
            after = _after(source, at, window, row)
            if filled == rows:
                yield _batch(parts, state(), device)
                filled, parts = 0, []
        del window
    if filled:
        a, b = share.of(filled, rows)
        shape = (b - a, source.T + 1)
        parts.append((np.full(shape, source.bos, np.uint32), np.zeros(shape, bool)))
        yield _batch(parts, state(), device)
    yield state()


def _after(source: Source, at: _Position, window: Window, row: int) -> _Position:
    """The position of `row` of the window that begins at `at`; behind its last row, the start of the next one."""
    if row < len(window.ids):
        return _Position(at.epoch, at.unit, row)
    if window.next_unit < source.num_units():
        return _Position(at.epoch, window.next_unit)
    return _Position(at.epoch + 1)


def _batch(parts: list[tuple[np.ndarray, np.ndarray]], state: dict, device: torch.device) -> Batch:
    ids, learn = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    inputs, targets = map(torch.from_numpy, to_inputs_and_targets(ids, learn))
    if device.type == "cuda":
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    return Batch(inputs, targets, state)


class Loader:
    """An iterator of `Batch`es. Close it (or let it go) to end its threads; it also works in a `with` statement.

    `counts`, over the windows begun from the very start of the run to the last batch that was given out, across
    resumes: documents, positions and how many of them are used; of conversations also how many were truncated, skipped
    and malformed (see `conversation_loader`).
    """

    def __init__(self, source: Source, B: int, *, device: str | torch.device = "cpu", state: dict | None = None,
                 rank: int = 0, world_size: int = 1, epochs: int | None = None, workers: int = 1):
        self.source, self.B, self.T, self.rank, self.rows = source, B, source.T, rank, B * world_size
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        at = self._restore(state) if state else _Position()
        counts = dict((state or {}).get("counts", {}))
        self._state = {**source.identity, "epoch": at.epoch, "unit": at.unit, "row": at.row, "counts": dict(counts)}
        self._agree(world_size)
        windows: Any = _windows(source, at, epochs)
        first = windows = Prefetch(windows) if workers else windows
        batches = _batches(source, windows, _Share(B, rank, world_size), counts, self.device)
        self._batches: Any = Prefetch(batches, BATCHES_AHEAD, behind=first) if workers else batches

    def _restore(self, state: dict) -> _Position:
        for name, value in self.source.identity.items():
            if state.get(name) != value:
                raise UserError(f"cannot resume: the loader's {name} was {state.get(name)!r} and is now {value!r}; "
                                "give the run what it was started with, or start a new one")
        return _Position(state["epoch"], state["unit"], state["row"])

    def _agree(self, world_size: int) -> None:
        """Ranks of one run make their loaders together, and read the same: or no batch would be a global one."""
        if world_size == 1 or rank_and_world()[1] != world_size:
            return
        said = [json.loads(text) for text in gather_texts(json.dumps(self._state))]
        for rank, state in enumerate(said):
            for name, value in said[0].items():
                if state[name] != value:
                    raise UserError(f"rank {rank} reads other data than rank 0 ({name} {state[name]!r} there, "
                                    f"{value!r} here): give all ranks the same files and settings")

    @property
    def counts(self) -> dict[str, int]:
        return self._state["counts"]

    @property
    def utilisation(self) -> float:
        """The share of positions that are not padding, 0 to 1."""
        return self.counts.get("used", 0) / max(1, self.counts.get("positions", 0))

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        item = next(self._batches)
        if isinstance(item, dict):
            self._state = item
            raise StopIteration
        self._state = item.state
        pinned = self.device.type == "cuda"  # then the copy may go on while the model computes
        return Batch(item.inputs.to(self.device, non_blocking=pinned),
                     item.targets.to(self.device, non_blocking=pinned), item.state)

    def state(self) -> dict:
        """The state of the batch given out last; before the first, of the start."""
        return self._state

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --------------------------------------------------------------------------- the public loaders


def _checked(B: int, T: int, rank: int, world_size: int, workers: int | None) -> int:
    """The number of workers, None resolved; what is impossible is refused before any work."""
    if B < 1 or T < 2:
        raise UserError(f"a batch of {B} rows of {T} tokens is impossible: B must be at least 1 and T at least 2")
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} of {world_size} does not exist")
    if workers is None:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return max(1, min(8, cpu_cores() // ranks_here))
    if workers < 0:
        raise UserError(f"{workers} workers are impossible: give 0 (no thread) or more")
    return workers


def tokenizing_distributed_data_loader_with_state(
    tokenizer: Any, B: int, T: int, split: str = "train", *, data: str | Path | Corpus = "pocket",
    device: str | torch.device = "cpu", state: dict | None = None, seed: int = 0, rank: int = 0, world_size: int = 1,
    workers: int | None = None,
) -> Loader:
    """Batches of pretraining text. `train`: endless, epoch after epoch; `val`: one pass in a fixed order.

    `state` is the `Batch.state` after which to go on, taken at any batch, by any number of ranks and workers. `workers`
    tokenize (None: this rank's share of the cores, at most 8); 0 means no thread at all.
    """
    workers = _checked(B, T, rank, world_size, workers)
    source = TextSource(tokenizer, T, split, data, seed, max(1, workers))
    return Loader(source, B, device=device, state=state, rank=rank, world_size=world_size,
                  epochs=None if split == "train" else 1, workers=workers)


def tokenizing_distributed_data_loader(tokenizer: Any, B: int, T: int, split: str = "train",
                                       **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The same as `(inputs, targets)` pairs."""
    for batch in tokenizing_distributed_data_loader_with_state(tokenizer, B, T, split, **kwargs):
        yield batch.inputs, batch.targets


def conversation_loader(
    task: Any, tokenizer: Any, B: int, T: int, *, device: str | torch.device = "cpu", state: dict | None = None,
    seed: int = 0, rank: int = 0, world_size: int = 1, epochs: int | None = None, shuffle: bool = True,
    workers: int | None = None,
) -> Loader:
    """Batches of conversations (a `Task`), for `epochs` passes or endlessly; a task may also hold documents.

    A conversation longer than a row ends after its last answer that fits whole (`counts["truncated"]`); a document goes
    on in another piece. Left out are those without an answer that fits (`counts["skipped"]`) and those that cannot be
    rendered (`counts["malformed"]`; the first of each kind is printed): documents + skipped + malformed = all rows.
    `shuffle=False` keeps the task's order, but for the rows of a window (a curriculum).
    """
    workers = _checked(B, T, rank, world_size, workers)
    source = ConversationSource(task, tokenizer, T, seed, shuffle, max(1, workers))
    return Loader(source, B, device=device, state=state, rank=rank, world_size=world_size, epochs=epochs,
                  workers=workers)


def rows_of_epoch(task: Any, tokenizer: Any, T: int, *, seed: int = 0) -> int:
    """How many rows the first epoch of `conversation_loader(task, ...)` has: lengths alone do not tell.

    Renders and packs all of it, on all cores, and cuts no batch.
    """
    source = ConversationSource(task, tokenizer, T, seed, shuffle=True, threads=cpu_cores(), speak=False)
    return sum(len(window.ids) for _, window in _windows(source, _Position(), 1))
