"""What the loaders hand out, window by window: stretches of text or of a task, tokenized, packed and shuffled.

A window is made of consecutive *units*, row groups of a corpus or index ranges of a task, as many as fill about
WINDOW_ROWS rows. It is a function of (seed, epoch, first unit) and of nothing that came before it.

**Shuffling** has three levels. Each epoch takes the row groups of all shards (or the rows of a task) in a new random
order; the documents of a window are put into random order before they are packed, and so are its rows after that.

There is nothing to run here; dataloader.py makes batches of windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanochat.common import UserError, print0
from nanochat.dataset import Corpus, corpus, read_unit
from nanochat.packing import Packed, Piece, cut, pack_documents, pack_pieces
from nanochat.tokenizer import Rendered
from tasks.common import Task
from tasks.rows import rows_fingerprint

WINDOW_ROWS = 2048  # wide enough that best-fit wastes under 0.5%; a resume repeats at most this much work
WINDOW_TOKENS = 2**23  # beyond rows of 4 096 tokens a window has fewer rows, down to an eighth: memory
CONVERSATIONS_PER_UNIT = 64
STREAM = 2  # part of every state: raise it when the order of rows changes, so that no run is resumed across that


@dataclass
class Window:
    """Packed rows in random order; where the next window starts. `counts` add up over windows (`Loader.counts`)."""

    ids: np.ndarray  # (rows, T + 1), the tokenizer's dtype
    learn: np.ndarray  # (rows, T + 1) bool
    next_unit: int
    counts: dict[str, int]


class Source(Protocol):
    """Units in an order that depends on the epoch, and windows that depend on nothing but (epoch, first unit)."""

    T: int
    bos: int
    identity: dict[str, Any]  # what must be the same on resume; part of every state
    faults: dict[str, str]  # the first row of each kind that could not be used, and why

    def num_units(self) -> int: ...

    def window(self, epoch: int, unit: int) -> Window: ...


ORDER, WINDOW = 1, 2  # two streams of random numbers, for numpy seeds [1, 2] and [1, 2, 0] alike


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([k % 2**64 for k in key])  # modulo, not abs: seeds 1 and -1 are two seeds


def _order(n: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    return _rng(ORDER, seed, epoch).permutation(n) if shuffle else np.arange(n)


def window_size(T: int) -> int:
    """Positions that a window is filled up to."""
    return T * min(WINDOW_ROWS, max(WINDOW_ROWS // 8, WINDOW_TOKENS // T))


def _window(packed: Packed, next_unit: int, counts: dict[str, int]) -> Window:
    rows, columns = packed.ids.shape
    return Window(packed.ids, packed.learn, next_unit,
                  {**counts, "used": packed.used, "positions": rows * (columns - 1)})


class TextSource:
    """Pretraining: units are the row groups of one split of a corpus."""

    def __init__(self, tokenizer: Any, T: int, split: str, data: str | Path | Corpus, seed: int, threads: int):
        self.corpus = corpus(data)
        self.units = self.corpus.units(split)
        self.tokenizer, self.T, self.bos, self.threads = tokenizer, T, tokenizer.get_bos_token_id(), threads
        self.shuffle, self.seed = split == "train", seed if split == "train" else 0
        self.faults: dict[str, str] = {}
        self.identity = {"stream": STREAM, "data": self.corpus.fingerprint, "split": split,
                         "tokenizer": tokenizer.fingerprint()[:16], "seq_len": T, "seed": self.seed}

    def num_units(self) -> int:
        return len(self.units)

    def window(self, epoch: int, unit: int) -> Window:
        order = _order(len(self.units), self.shuffle, self.seed, epoch)
        documents: list[np.ndarray] = []
        size, stop = 0, unit
        while stop < len(order) and size < window_size(self.T):
            encoded = self.tokenizer.encode_batch(read_unit(self.units[order[stop]]), self.threads)
            documents += encoded.rows()
            size += len(encoded.ids) + len(encoded.offsets) - 1  # a BOS each
            stop += 1
        rng = _rng(WINDOW, self.seed, epoch, unit)
        documents = [documents[i] for i in rng.permutation(len(documents)).tolist()]  # so neighbours in a file part
        return _window(pack_documents(documents, self.bos, self.T, rng), stop, {"documents": len(documents)})


def _content(task: Any) -> dict[str, str]:
    """Fingerprints of what a task holds, its parts first: so the message of a resume names the one that has changed.

    A mixture -> `{"task GSM8K": "9c41…", "task my.jsonl": "07d2…", "tasks": "e5b0…"}`; plain rows -> `{"rows": "3a…"}`.
    """
    if not isinstance(task, Task):
        return {"rows": rows_fingerprint(task.__getitem__, len(task))}
    parts: dict[str, str] = {}
    for name, fingerprint in task.parts():
        if fingerprint not in parts.get(key := f"task {name}", ""):  # listed twice, or two slices of one
            parts[key] = f"{parts.get(key, '')} {fingerprint}".lstrip()
    return {**parts, "tasks": task.fingerprint()}


class ConversationSource:
    """Conversations: units are index ranges of a (shuffled) task."""

    def __init__(self, task: Any, tokenizer: Any, T: int, seed: int, shuffle: bool, threads: int, speak: bool = True):
        self.task, self.tokenizer, self.T, self.seed, self.shuffle = task, tokenizer, T, seed, shuffle
        self.bos, self.threads, self.speak = tokenizer.get_bos_token_id(), threads, speak
        self.faults: dict[str, str] = {}
        self.noted: set[str] = getattr(task, "noted", set())  # the task's own: a validation set is loaded many times
        self.identity = {"stream": STREAM, "conversations": len(task), **_content(task), "shuffle": shuffle,
                         "tokenizer": tokenizer.fingerprint()[:16], "seq_len": T, "seed": seed}

    def num_units(self) -> int:
        return -(-len(self.task) // CONVERSATIONS_PER_UNIT)

    def window(self, epoch: int, unit: int) -> Window:
        order = _order(len(self.task), self.shuffle, self.seed, epoch)
        pieces: list[Piece] = []
        counts = {"documents": 0, "truncated": 0, "skipped": 0, "malformed": 0}
        size, stop = 0, unit
        while stop < self.num_units() and size < window_size(self.T):
            indices = order[stop * CONVERSATIONS_PER_UNIT : (stop + 1) * CONVERSATIONS_PER_UNIT].tolist()
            rendered = self.tokenizer.render_conversations(map(self._row, indices), self.threads)
            for index, one in zip(indices, rendered, strict=True):
                fitting = self._leave_out(index, one, counts) if isinstance(one, UserError) else self._fit(one, counts)
                pieces += fitting
                size += sum(len(ids) for ids, _ in fitting)
            stop += 1
        rng = _rng(WINDOW, self.seed, epoch, unit)
        return _window(pack_pieces(pieces, self.bos, self.T, rng), stop, counts)

    def _row(self, index: int) -> Any:
        try:
            return self.task[index]
        except UserError as e:  # a task that checks its rows when they are read
            return e

    def _leave_out(self, index: int, error: UserError, counts: dict[str, int]) -> list[Piece]:
        """Hours into a run, bad rows are no reason to stop; the first of each kind is one to speak."""
        counts["malformed"] += 1
        kind = getattr(error, "kind", "row")
        if kind not in self.faults:
            where = getattr(self.task, "where", lambda i: f"conversation {i} of {type(self.task).__name__}")(index)
            self.faults[kind] = f"{where}: {error}"
            if self.speak and kind not in self.noted:
                self.noted.add(kind)
                print0(f"note: left out, and all others like it: {self.faults[kind]}")
        return []

    def _fit(self, one: Rendered, counts: dict[str, int]) -> list[Piece]:
        """The pieces (of at most T + 1 ids) that a row of the task becomes, and its entry in the counts."""
        ids, learn, turns = one
        pieces = [(ids, learn)]
        if len(ids) > self.T + 1:
            # a conversation ends after the last answer that fits whole; a document has no turns and goes on in a piece
            end = max((end for end in turns if end <= self.T + 1), default=0)
            pieces = [(ids[:end], learn[:end])] if turns else cut(ids, learn, self.T)
        if not any(learn.any() for _, learn in pieces):  # no answer, none that fits, or a document without text
            counts["skipped"] += 1
            return []
        counts["documents"] += 1
        counts["truncated"] += len(ids) > self.T + 1 and bool(turns)
        return pieces
