"""Text and conversations → packed batches: no document sees its neighbour, none is lost, any batch can be resumed from.

Two loaders share one packer, one scheme of windows and one state:

    tokenizing_distributed_data_loader_with_state(...)   pretraining text, a `Corpus` of dataset.py
    conversation_loader(...)                             a `Task`, with its supervision mask

How documents become rows stands in packing.py; the model finds the documents of a row by `(inputs == bos).cumsum(1)`.

**Windows.** Consecutive units (row groups, or index ranges of a task, in an order that depends on seed and epoch alone)
are read until they fill WINDOW_ROWS rows, then packed, and the rows shuffled. A window depends on nothing before it:
`state` = epoch, first unit of the window, rows already given out. The stream of rows is the same for any batch size and
rank count; a global batch is its next `B * world_size` rows, of which rank r has `[r * B, (r + 1) * B)`.

The next window is prepared in a thread while the current one is trained on. There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError, print0
from nanochat.dataset import corpus, read_unit
from nanochat.packing import Packed, pack_conversations, pack_documents

WINDOW_ROWS = 2048  # wide enough that best-fit wastes under 0.5%; a resume repeats at most this much work
CONVERSATIONS_PER_UNIT = 64


@dataclass
class Batch:
    """`inputs` (B, T) and `targets` (B, T; -1 = not supervised), long; `state` continues after this very batch."""

    inputs: Tensor
    targets: Tensor
    state: dict


# --------------------------------------------------------------------------- sources: what a window is made of


@dataclass
class Window:
    """Packed, shuffled rows, and where the next window starts. `counts` adds up over windows (see `Loader.counts`)."""

    inputs: np.ndarray  # (rows, T) int32
    targets: np.ndarray  # (rows, T) int32
    next_unit: int
    counts: dict[str, int]


class Source(Protocol):
    """Units in an order that depends on the epoch, and windows that depend on nothing but (epoch, first unit)."""

    bos: int
    identity: dict[str, Any]  # what must be the same on resume; part of every state

    def num_units(self) -> int: ...

    def window(self, epoch: int, unit: int) -> Window: ...


ORDER, WINDOW = 1, 2  # two streams of random numbers, for numpy seeds [1, 2] and [1, 2, 0] alike


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([k % 2**64 for k in key])  # modulo, not abs: seeds 1 and -1 are two seeds


def _order(n: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    return _rng(ORDER, seed, epoch).permutation(n) if shuffle else np.arange(n)


def _window(packed: Packed, rng: np.random.Generator, next_unit: int, counts: dict[str, int]) -> Window:
    order = rng.permutation(len(packed.inputs))  # best-fit leaves them sorted: long documents first, crumbs last
    counts |= {"used": packed.used, "positions": packed.inputs.size}
    return Window(packed.inputs[order], packed.targets[order], next_unit, counts)


class _TextSource:
    """Pretraining: units are the row groups of one split of a corpus."""

    def __init__(self, tokenizer: Any, T: int, split: str, data: str, seed: int):
        self.corpus = corpus(data)
        self.units = self.corpus.units(split)
        self.tokenizer, self.T, self.bos = tokenizer, T, tokenizer.get_bos_token_id()
        self.shuffle, self.seed = split == "train", seed if split == "train" else 0
        self.threads = min(8, os.cpu_count() or 1)
        self.identity = {"data": self.corpus.fingerprint, "split": split, "tokenizer": tokenizer.fingerprint()[:16],
                         "seq_len": T, "seed": self.seed}

    def num_units(self) -> int:
        return len(self.units)

    def window(self, epoch: int, unit: int) -> Window:
        order = _order(len(self.units), self.shuffle, self.seed, epoch)
        documents: list[np.ndarray] = []
        size, stop = 0, unit
        while stop < len(order) and size < WINDOW_ROWS * self.T:
            encoded = self.tokenizer.encode_batch(read_unit(self.units[order[stop]]), self.threads)
            documents += encoded.rows()
            size += len(encoded.ids) + len(encoded.offsets) - 1  # a BOS each
            stop += 1
        rng = _rng(WINDOW, self.seed, epoch, unit)
        documents = [documents[i] for i in rng.permutation(len(documents))]  # so neighbours in a file part
        return _window(pack_documents(documents, self.bos, self.T), rng, stop, {"documents": len(documents)})


class _ConversationSource:
    """Conversations: units are index ranges of a (shuffled) task."""

    def __init__(self, task: Any, tokenizer: Any, T: int, seed: int, shuffle: bool):
        self.task, self.tokenizer, self.T, self.seed, self.shuffle = task, tokenizer, T, seed, shuffle
        self.bos, self.noted = tokenizer.get_bos_token_id(), False
        self.identity = {"conversations": len(task), "tokenizer": tokenizer.fingerprint()[:16], "seq_len": T,
                         "seed": seed}

    def num_units(self) -> int:
        return -(-len(self.task) // CONVERSATIONS_PER_UNIT)

    def window(self, epoch: int, unit: int) -> Window:
        order = _order(len(self.task), self.shuffle, self.seed, epoch)
        rendered: list[tuple[list[int], list[int]]] = []
        counts = {"documents": 0, "truncated": 0, "skipped": 0, "malformed": 0}
        size, stop = 0, unit
        while stop < self.num_units() and size < WINDOW_ROWS * self.T:
            for index in order[stop * CONVERSATIONS_PER_UNIT : (stop + 1) * CONVERSATIONS_PER_UNIT].tolist():
                ids, mask = self._render(index, counts)
                if ids:
                    rendered.append((ids, mask))
                    size += len(ids)
            stop += 1
        packed = pack_conversations(rendered, self.bos, self.T)
        return _window(packed, _rng(WINDOW, self.seed, epoch, unit), stop, counts)

    def _render(self, index: int, counts: dict[str, int]) -> tuple[list[int], list[int]]:
        """At most T ids with their mask, and the conversation entered under what became of it; no ids: left out."""
        conversation = self.task[index]
        try:  # one token more than fits: so a conversation that is too long is known to be
            if "text" in conversation:  # a document (tasks/documents.py): all of it is learned
                ids = self.tokenizer.encode(conversation["text"], prepend=self.bos)[: self.T + 1]
                mask = [0] + [1] * (len(ids) - 1)
            else:
                ids, mask = self.tokenizer.render_conversation(conversation, max_tokens=self.T + 1)
        except UserError as e:
            if not self.noted:  # hours into a run, one bad row is no reason to stop; it is one to speak
                print0(f"note: conversation {index} of {type(self.task).__name__} is left out: {e}")
            self.noted = True
            counts["malformed"] += 1
            return [], []
        if not any(mask[1 : self.T]):  # no answer within the row: nothing to learn from
            counts["skipped"] += 1
            return [], []
        counts["documents"] += 1
        counts["truncated"] += len(ids) > self.T
        return ids[: self.T], mask[: self.T]


# --------------------------------------------------------------------------- windows → batches


@dataclass(frozen=True)
class _Position:
    epoch: int = 0
    unit: int = 0
    row: int = 0


def _windows(source: Source, at: _Position, epochs: int | None) -> Iterator[Window]:
    """The windows from `at` on, over the epochs."""
    epoch, unit, rows = at.epoch, at.unit, 0
    while epochs is None or epoch < epochs:
        started_whole = unit == 0
        while unit < source.num_units():
            window = source.window(epoch, unit)
            rows += len(window.inputs)
            yield window
            unit = window.next_unit
        if started_whole and not rows:
            raise UserError("nothing to train on: not one document or conversation has a token to learn from")
        epoch, unit, rows = epoch + 1, 0, 0


class Loader:
    """An iterator of `Batch`es. Close it (or let it go) to end its thread; it also works in a `with` statement.

    `counts`, over the windows begun since the very start of the run and across resumes: documents, positions and how
    many of them are used; of conversations also how many were truncated, skipped and malformed (see
    `conversation_loader`).
    """

    def __init__(self, source: Source, B: int, T: int, *, device: str | torch.device = "cpu", state: dict | None = None,
                 rank: int = 0, world_size: int = 1, epochs: int | None = None):
        if B < 1 or T < 2:
            raise UserError(f"a batch of {B} rows of {T} tokens is impossible: B must be at least 1 and T at least 2")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of {world_size} does not exist")
        self.source, self.B, self.T, self.rank, self.rows = source, B, T, rank, B * world_size
        self.device = torch.device(device)
        self.counts: dict[str, int] = dict((state or {}).get("counts", {}))
        self.position = self._restore(state) if state else _Position()
        self.window: Window | None = None
        self._windows = Prefetch(_windows(source, self.position, epochs))

    def _restore(self, state: dict) -> _Position:
        for name, value in self.source.identity.items():
            if state.get(name) != value:
                raise UserError(f"cannot resume: the loader's {name} was {state.get(name)!r} and is now {value!r}; "
                                "give the run what it was started with, or start a new one")
        return _Position(state["epoch"], state["unit"], state["row"])

    @property
    def utilisation(self) -> float:
        """The share of positions that are not padding, 0 to 1."""
        return self.counts.get("used", 0) / max(1, self.counts.get("positions", 0))

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """The next `rows` rows of the stream; a stream that ends is filled up with empty rows once."""
        parts, missing = [], self.rows
        while missing and self._ready():
            a = self.position.row
            b = min(a + missing, len(self.window.inputs))
            parts.append((self.window.inputs[a:b], self.window.targets[a:b]))
            missing -= b - a
            self._advance(b)
        if not parts:
            raise StopIteration
        if missing:
            shape = (missing, self.T)
            parts.append((np.full(shape, self.source.bos, np.int32), np.full(shape, -1, np.int32)))
        inputs, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        mine = slice(self.rank * self.B, (self.rank + 1) * self.B)
        return Batch(self._tensor(inputs[mine]), self._tensor(targets[mine]), self.state())

    def _ready(self) -> bool:
        """Whether there is a row at `position`; fetches the next window when the current one is used up."""
        while self.window is None or self.position.row >= len(self.window.inputs):
            item = next(self._windows, None)
            if item is None:
                return False
            self.window = item
            if self.position.row == 0:  # else a resume, and the state has counted this window
                for name, n in self.window.counts.items():
                    self.counts[name] = self.counts.get(name, 0) + n
            if self.position.row >= len(self.window.inputs):
                self._advance(self.position.row)
        return True

    def _advance(self, row: int) -> None:
        """Move to `row` of the window, or to the start of the next one: a state never points behind the last row."""
        at = self.position
        if row < len(self.window.inputs):
            self.position = _Position(at.epoch, at.unit, row)
        elif self.window.next_unit < self.source.num_units():
            self.position, self.window = _Position(at.epoch, self.window.next_unit), None
        else:
            self.position, self.window = _Position(at.epoch + 1), None

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array.astype(np.int64))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def state(self) -> dict:
        at = self.position
        return {**self.source.identity, "epoch": at.epoch, "unit": at.unit, "row": at.row, "counts": dict(self.counts)}

    def close(self) -> None:
        self._windows.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Prefetch:
    """Runs an iterator one item ahead in a thread. What it raises is raised here; `close()` ends it at any time.

    The thread holds no reference to this object, so one that is dropped without `close()` still ends it.
    """

    def __init__(self, items: Iterator[Any]):
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_produce, args=(items, self._queue, self._stop), daemon=True,
                                        name="nanochat-loader")
        self._thread.start()

    def __iter__(self) -> Prefetch:
        return self

    def __next__(self) -> Any:
        while not self._stop.is_set():
            try:
                kind, value = self._queue.get(timeout=1.0)
            except queue.Empty:
                if self._thread.is_alive():
                    continue
                raise RuntimeError("the loader's thread died without a word") from None
            if kind == "item":
                return value
            self._stop.set()  # the end, or an error: either way nothing follows
            if kind == "error":
                raise value
        raise StopIteration

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()  # a thread that waits for room need not wait for its timeout
        self._thread.join(timeout=10)

    def __del__(self) -> None:
        self._stop.set()


def _produce(items: Iterator[Any], out: queue.Queue, stop: threading.Event) -> None:
    def put(entry: tuple[str, Any]) -> bool:
        while not stop.is_set():
            try:
                out.put(entry, timeout=0.1)
                return not stop.is_set()
            except queue.Full:
                continue
        return False

    try:
        for item in items:
            if not put(("item", item)):
                return
        put(("end", None))
    except BaseException as e:
        put(("error", e))


# --------------------------------------------------------------------------- the public loaders


def tokenizing_distributed_data_loader_with_state(
    tokenizer: Any, B: int, T: int, split: str = "train", *, data: str = "pocket", device: str | torch.device = "cpu",
    state: dict | None = None, seed: int = 0, rank: int = 0, world_size: int = 1,
) -> Loader:
    """Batches of pretraining text. `train`: endless, epoch after epoch; `val`: one pass in a fixed order.

    `state` is the `Batch.state` after which to go on, taken at any batch, by any number of ranks.
    """
    source = _TextSource(tokenizer, T, split, data, seed)
    return Loader(source, B, T, device=device, state=state, rank=rank, world_size=world_size,
                  epochs=None if split == "train" else 1)


def tokenizing_distributed_data_loader(tokenizer: Any, B: int, T: int, split: str = "train",
                                       **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The same as `(inputs, targets)` pairs."""
    for batch in tokenizing_distributed_data_loader_with_state(tokenizer, B, T, split, **kwargs):
        yield batch.inputs, batch.targets


def conversation_loader(
    task: Any, tokenizer: Any, B: int, T: int, *, device: str | torch.device = "cpu", state: dict | None = None,
    seed: int = 0, rank: int = 0, world_size: int = 1, epochs: int | None = None, shuffle: bool = True,
) -> Loader:
    """Batches of conversations (a `Task`), for `epochs` passes or endlessly.

    A conversation longer than a row is cut at T (`counts["truncated"]`). Left out are those with no answer within the
    row (`counts["skipped"]`) and those that cannot be rendered (`counts["malformed"]`; the first is printed).
    `shuffle=False` keeps the task's order, but for the rows of a window (a curriculum).
    """
    return Loader(_ConversationSource(task, tokenizer, T, seed, shuffle), B, T, device=device, state=state, rank=rank,
                  world_size=world_size, epochs=epochs)
