"""Random runs of the loaders, each resumed at random batches by other ranks and workers, and counted to the document.

    python -m tests.chaos resumes --runs=200

A run is drawn from a seed: pretraining text or conversations, lengths from nothing to many rows, sizes of shards, row
groups, windows, rows and batches. Asked of each:
- the global batches and states after a resume are, by hash, those of the run that was never interrupted, whatever the
  number of ranks and workers before and after;
- an epoch holds each document and each conversation exactly once, cut as the oracle here cuts it, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat import windows
from nanochat.common import UserError
from nanochat.dataloader import Loader, conversation_loader, tokenizing_distributed_data_loader_with_state
from nanochat.dataset import parquets_iter_batched
from tests.chaos import spread
from tests.helpers import byte_tokenizer
from tests.reference import packing as reference

BATCHES = 60  # of a run at most; the sizes are drawn so that most runs reach their second or third epoch by then
RANKS, WORKERS = (1, 2, 4), (0, 2)


@dataclass
class Run:
    """What stays the same however a run is cut; `make(B, rank=, world_size=, workers=, state=)` gives its loaders."""

    name: str
    T: int
    rows: int  # of a global batch, a multiple of 4
    make: Callable[..., Loader]
    expected: Counter[reference.Piece]  # of an epoch
    counts: dict[str, int]  # of an epoch


# ------------------------------------------------------------------------------------------------------ random data


def random_text(rng: random.Random, T: int) -> str:
    """Mostly short, some around the length of a row or of two, a few of many rows."""
    kind = rng.random()
    if kind < 0.03:
        size = rng.randint(5 * T, 20 * T)
    elif kind < 0.3:
        size = max(0, rng.choice([1, 2, 3]) * T + rng.randint(-4, 4))
    else:
        size = rng.randint(0, T)
    return "".join(rng.choices("abcdefghij klmnop", k=size))


def random_row(rng: random.Random, i: int, T: int) -> Any:
    """A conversation (its first question tells it from all others), a document, or something malformed."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice([None, {}, {"messages": []}, {"messages": [{"role": "system", "content": "s"}]}, {"text": i},
                           {"messages": [{"role": "robot", "content": "beep"}]}])
    if kind < 0.15:
        return {"text": rng.choice(["", f"{i}", f"{i} " + random_text(rng, T)])}
    messages = [{"role": "system", "content": "be brief"}] if rng.random() < 0.1 else []
    for turn in range(rng.choice([1, 1, 2, 3, 6])):
        size = rng.choice([2, T // 8, T // 4, T if rng.random() < 0.2 else 3])
        messages.append({"role": "user", "content": f"{i} " * (turn == 0) + "q" * rng.randint(0, size)})
        messages.append({"role": "assistant", "content": "a" * rng.randint(0, size)})
    if rng.random() < 0.3:
        messages[-1]["content"] = [{"type": "python", "text": f"{i}"}, {"type": "python_output", "text": "1"},
                                   {"type": "text", "text": "so"}]
    return {"messages": messages[: -1 if rng.random() < 0.1 else None]}


# ---------------------------------------------------------------------------------------------------- what must come


def piece(ids: list[int], mask: list[int], T: int) -> reference.Piece:
    """At most T + 1 ids: position i learns the id after it, if that is supervised."""
    after = [t if m else -1 for t, m in zip(ids[1:], mask[1:], strict=True)] + [-1]
    return tuple(ids[:T]), tuple(after[:T])


def text_pieces(text: str, T: int) -> list[reference.Piece]:
    """As in pretraining, but that no end is learned after it."""
    pieces = reference.document_pieces(byte_tokenizer().encode(text), byte_tokenizer().get_bos_token_id(), T)
    inputs, targets = pieces.pop()
    return pieces + [(inputs, (*targets[:-1], -1))] * any(t >= 0 for t in targets[:-1])


def row_pieces(row: Any, T: int) -> tuple[str, list[reference.Piece]]:
    """What becomes of a row of a task, a name of the loader's counts, and its pieces."""
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        pieces = text_pieces(row["text"], T)
        return ("documents" if pieces else "skipped"), pieces
    try:
        ids, mask = byte_tokenizer().render_conversation(row, max_tokens=None)
    except UserError:
        return "malformed", []
    if not any(mask):
        return "skipped", []
    if len(ids) <= T + 1:
        return "documents", [piece(ids, mask, T)]
    for n in range(len(row["messages"]), 0, -1):  # without its last messages, until it fits
        if row["messages"][n - 1]["role"] == "assistant":
            ids, mask = byte_tokenizer().render_conversation({"messages": row["messages"][:n]}, max_tokens=None)
            if len(ids) <= T + 1:
                return "truncated", [piece(ids, mask, T)]
    return "skipped", []


def task_pieces(task: list, T: int) -> tuple[Counter[reference.Piece], dict[str, int]]:
    """All pieces of an epoch, and its counts."""
    counts = dict.fromkeys(("documents", "truncated", "skipped", "malformed"), 0)
    expected: Counter[reference.Piece] = Counter()
    for row in task:
        fate, pieces = row_pieces(row, T)
        counts[fate] += 1
        expected.update(pieces)
    counts["documents"] += counts["truncated"]
    return expected, counts


# -------------------------------------------------------------------------------------------------------------- runs


def text_run(rng: random.Random, folder: Path, T: int) -> Run:
    """Shards of random row groups, each document told from the others by its number, but for the empty ones."""
    texts = [f"{i} {random_text(rng, T)}" if rng.random() < 0.95 else "" for i in range(rng.randint(60, 200))]
    files = rng.randint(1, 4)
    (folder / "corpus").mkdir()
    for s in range(files):
        table = pa.table({"text": texts[s::files]})
        pq.write_table(table, folder / f"corpus/{s}.parquet", row_group_size=rng.randint(1, 8))
    data, seed = str(folder / "corpus"), rng.randint(-5, 5)
    train, val = ([t for unit in parquets_iter_batched(split, data=data) for t in unit] for split in ("train", "val"))
    assert Counter(train + val) == Counter(t for t in texts if t), "the corpus itself is not what was written"
    bos = byte_tokenizer().get_bos_token_id()
    expected = Counter(p for t in train for p in reference.document_pieces(byte_tokenizer().encode(t), bos, T))

    def make(B: int, **kw: Any) -> Loader:
        return tokenizing_distributed_data_loader_with_state(byte_tokenizer(), B, T, data=data, seed=seed, **kw)

    return Run(f"{len(texts)} documents", T, 4 * rng.randint(1, 3), make, expected, {"documents": len(train)})


def conversation_run(rng: random.Random, folder: Path, T: int) -> Run:
    """A task of random rows; every unit of the loader is an index range of it."""
    task = [random_row(rng, i, T) for i in range(rng.randint(20, 400))]
    task[0] = {"text": "something to learn, whatever else there is"}
    seed, shuffle = rng.randint(-5, 5), rng.random() < 0.8
    expected, counts = task_pieces(task, T)

    def make(B: int, **kw: Any) -> Loader:
        return conversation_loader(task, byte_tokenizer(), B, T, seed=seed, shuffle=shuffle, **kw)

    return Run(f"{len(task)} conversations", T, 4 * rng.randint(1, 3), make, expected, counts)


@contextlib.contextmanager
def random_run(seed: int, number: int) -> Iterator[tuple[random.Random, Run]]:
    """One run in a base directory of its own, with windows of a few rows, so that a few batches cross many."""
    rng = random.Random(f"{seed}-{number}")
    before = windows.WINDOW_ROWS, os.environ.get("NANOCHAT_BASE_DIR")
    quiet = contextlib.redirect_stdout(io.StringIO())  # a note for each kind of malformed row and each loader
    with tempfile.TemporaryDirectory(prefix="resumes") as folder, quiet:
        windows.WINDOW_ROWS = rng.choice([4, 12, 40])
        os.environ["NANOCHAT_BASE_DIR"] = f"{folder}/base"
        try:
            yield rng, (text_run if number % 2 else conversation_run)(rng, Path(folder), rng.choice([16, 32, 64]))
        finally:
            windows.WINDOW_ROWS = before[0]
            del os.environ["NANOCHAT_BASE_DIR"]
            if before[1] is not None:
                os.environ["NANOCHAT_BASE_DIR"] = before[1]


# ------------------------------------------------------------------------------------------------------------- trials


@dataclass
class Seen:
    """One global batch, put together from its ranks."""

    inputs: np.ndarray
    targets: np.ndarray
    state: str

    def hash(self) -> str:
        content = self.inputs.tobytes() + self.targets.tobytes() + self.state.encode("utf-8")
        return hashlib.sha256(content).hexdigest()


def global_batches(run: Run, n: int, world_size: int, workers: int, state: str | None = None) -> list[Seen]:
    """The next `n` global batches after `state` as `world_size` ranks get them."""
    with contextlib.ExitStack() as stack:
        loaders = [stack.enter_context(run.make(run.rows // world_size, rank=r, world_size=world_size, workers=workers,
                                                state=json.loads(state) if state else None))
                   for r in range(world_size)]
        seen = []
        for ranks in itertools.islice(zip(*loaders, strict=True), n):
            states = {json.dumps(batch.state) for batch in ranks}
            assert len(states) == 1, "the ranks are not at the same batch"
            inputs, targets = (np.concatenate([getattr(batch, name).numpy() for batch in ranks])
                               for name in ("inputs", "targets"))
            seen.append(Seen(inputs, targets, states.pop()))
        return seen


def epoch_rows(run: Run, epoch: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """`(inputs, targets, counts)` of all rows of one epoch, without those that fill up its last batch."""
    source = run.make(1, workers=0).source
    start = {**source.identity, "epoch": epoch, "unit": 0, "row": 0, "counts": {}}
    loader = Loader(source, 16, epochs=epoch + 1, workers=0, state=start)
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*[(b.inputs, b.targets) for b in loader], strict=True))
    rows = loader.counts["positions"] // run.T
    assert (targets[rows:] == -1).all(), "there is something to learn in the filling"
    return inputs[:rows], targets[:rows], loader.counts


def check_epochs(run: Run, uninterrupted: list[Seen]) -> Iterator[str]:
    """Every document once in each of the first two epochs, and the batches are made of these very rows."""
    bos = byte_tokenizer().get_bos_token_id()
    streams = []
    for epoch in (0, 1):
        inputs, targets, counts = epoch_rows(run, epoch)
        streams.append((inputs, targets))
        found = reference.pieces_in(inputs.tolist(), targets.tolist(), bos)
        if found != run.expected:
            yield (f"epoch {epoch} lacks {sum((run.expected - found).values())} pieces and has "
                   f"{sum((found - run.expected).values())} too many")
        counted = {name: counts.get(name) for name in run.counts}
        if counted != run.counts:
            yield f"epoch {epoch} counts {counted}, not {run.counts}"
    for name, i in (("inputs", 0), ("targets", 1)):
        stream = np.concatenate([stream[i] for stream in streams])
        batches = np.concatenate([getattr(seen, name) for seen in uninterrupted])
        n = min(len(stream), len(batches))
        if not np.array_equal(stream[:n], batches[:n]):
            yield f"the {name} of the batches are not the rows of the epochs"


def check_run(resumes: int, case: tuple[int, int]) -> list[str]:
    """One run `(seed, number)`; a line for everything that is wrong with it."""
    with random_run(*case) as (rng, run):
        def fails(what: str) -> str:
            return f"run {case[1]} of seed {case[0]} ({run.name}, T={run.T}, {run.rows} rows a batch): {what}"

        uninterrupted = global_batches(run, BATCHES, rng.choice(RANKS), rng.choice(WORKERS))
        wrong = [fails(what) for what in check_epochs(run, uninterrupted)]
        for _ in range(resumes):
            i = rng.randrange(len(uninterrupted) - 1)
            n = rng.choice([3, 10, 20, BATCHES])
            world_size, workers = rng.choice(RANKS), rng.choice(WORKERS)
            resumed = global_batches(run, n, world_size, workers, uninterrupted[i].state)
            wanted = uninterrupted[i + 1 : i + 1 + n]
            if [seen.hash() for seen in resumed[: len(wanted)]] != [seen.hash() for seen in wanted]:
                wrong.append(fails(f"resumed after batch {i} by {world_size} ranks, {workers} workers: other batches"))
        return wrong


def run_trials(runs: int, resumes: int = 10, seed: int = 0, processes: int = 1) -> list[str]:
    """What went wrong in so many random runs, a line each; [] is wanted."""
    cases = [(seed, number) for number in range(runs)]
    return sorted(itertools.chain.from_iterable(spread(partial(check_run, resumes), cases, processes)))
