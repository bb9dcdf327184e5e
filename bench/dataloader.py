"""The loader: its packer against the plain best-fit scan, the whole way from parquet to batches, the cost of a rank.

    python bench/dataloader.py                                     # half a minute on two cores
    python bench/dataloader.py --rounds=1 --packing_megabytes=5 --data=pocket

1. **Packing**, ours (windows as the loader has them) and the scan of tests/reference/packing.py (a buffer of 1 000
   pieces), on long documents and on chats of about 100 tokens; beside the plain loop over the buffer also one tuned as
   far as Python's own functions carry it. All get arrays of ids and give rows of T + 1 ids with what is learned; turn
   by turn, tokens per CPU second. What came out is checked outside the clock, id by id.
2. **End to end**: one epoch of `tokenizing_distributed_data_loader_with_state`, from parquet files to int64 batches;
   the same of conversations through `conversation_loader`. Positions that are padding do not count as tokens.
3. **Eight ranks**: every rank tokenizes and packs every window and keeps its share (so that a global batch is the same
   for any number of ranks). The CPU seconds that one rank of eight spends on a million tokens of the global batch.

Freed memory is kept, as in a training process. Figures are medians of the rounds. The last line printed is JSON:
`packing_vs_scan` (the plain one) is the lower of the two kinds of text, `utilisation` and `tokens_dropped` are the
worse of the two, `end_to_end_tokens_per_second` is of the documents.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference: the installed project leaves it out

from nanochat import configurator
from nanochat.common import UserError, check_at_least, cpu_cores, keep_freed_memory, print0
from nanochat.dataloader import Loader, conversation_loader, tokenizing_distributed_data_loader_with_state
from nanochat.dataset import parquets_iter_batched, text_iterator
from nanochat.packing import pack_documents
from nanochat.tokenizer import RustBPETokenizer, pick_tokenizer_class
from nanochat.windows import window_size
from tasks.common import Task
from tasks.smoltalk import SmolTalk
from tests.reference.packing import Choice, plain_choice, quick_choice, scan_buffer

CHAT_TOKENS = 300  # chats up to here: their mean is about 100
Rows = tuple[np.ndarray, np.ndarray]  # (ids, learn), T + 1 wide


@dataclass
class Config:
    """Measure the loader: packing, end to end, the cost of one rank of eight."""

    data: str = ""
    """pocket or a folder with corpus/ and sft/. Default: $NANOCHAT_TEST_DATA where that is set, else pocket."""
    seq_len: int = 2048
    """Positions in a row, T."""
    buffer: int = 1000
    """Pieces that the scan looks through."""
    packing_megabytes: float = 40
    """Text of each kind to pack, at most."""
    vocab_size: int = 32768
    """Of the tokenizer, trained here on the same text."""
    rounds: int = 5
    """Measurements of each; the median is shown."""
    workers: int | None = None
    """Tokenizing threads of the loader (default: as many as it takes by itself)."""


@dataclass
class Cost:
    """What one measurement took. `tokens`: ids that came in, or positions that are not padding."""

    tokens: int
    wall: float
    cpu: float


def timed(run: Callable[[], int]) -> Cost:
    """`run()` gives how many tokens it dealt with. CPU seconds count all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    return Cost(tokens, time.perf_counter() - wall, time.process_time() - cpu)


def median(costs: Sequence[Cost], value: Callable[[Cost], float]) -> float:
    return statistics.median(value(cost) for cost in costs)


# ------------------------------------------------------------------------------------------------------- packing


def windows(documents: Sequence[np.ndarray], tokens: int) -> Iterator[list[np.ndarray]]:
    """Consecutive documents until they hold so many positions, as the loader gathers them."""
    window: list[np.ndarray] = []
    held = 0
    for document in documents:
        window.append(document)
        held += len(document) + 1
        if held >= tokens:
            yield window
            window, held = [], 0
    if window:
        yield window


def ours(documents: Sequence[np.ndarray], bos: int, config: Config) -> Iterator[Rows]:
    rng = np.random.default_rng(0)
    for window in windows(documents, window_size(config.seq_len)):
        packed = pack_documents(window, bos, config.seq_len, rng)
        yield packed.ids, packed.learn


def scan(choose: Choice, documents: Sequence[np.ndarray], bos: int, config: Config) -> Iterator[Rows]:
    for ids, learn in scan_buffer(documents, bos, config.seq_len, config.buffer, choose):
        yield ids[None], learn[None]


PACKERS = {"ours": ours, "scan": partial(scan, plain_choice), "tuned scan": partial(scan, quick_choice)}


def drain(rows: Iterator[Rows], tokens: int) -> int:
    """Make all rows, keep none."""
    for _ in rows:
        pass
    return tokens


def check(rows: Iterator[Rows], documents: Sequence[np.ndarray], bos: int) -> tuple[float, int]:
    """(share of positions that are not padding, ids that are learned less often than they stand in the documents).

    Counted from the rows alone. Padding is a BOS after which nothing is learned, unless a cut document goes on there.
    """
    wanted = np.bincount(np.concatenate(documents), minlength=bos + 1)
    found = np.zeros_like(wanted)
    positions = padding = 0
    for ids, learn in rows:
        inputs, following, learned = ids[:, :-1], ids[:, 1:], learn[:, 1:]
        found += np.bincount(following[learned], minlength=bos + 1)
        positions += inputs.size
        padding += int(((inputs == bos) & ~learned & (following == bos)).sum())
    dropped = np.maximum(wanted - found, 0)[:bos]
    return 1 - padding / positions, int(dropped.sum())


def measure_packing(kinds: dict[str, list[np.ndarray]], bos: int, config: Config) -> dict[str, dict]:
    """Kind of text -> the packers' costs and checks; the packers take turns, the first one changes."""
    costs: dict[tuple[str, str], list[Cost]] = {(kind, who): [] for kind in kinds for who in PACKERS}
    for round in range(config.rounds):
        for kind, documents in kinds.items():
            for who in [*PACKERS][round % 3 :] + [*PACKERS][: round % 3]:
                cost = timed(partial(drain, PACKERS[who](documents, bos, config), sum(map(len, documents))))
                costs[kind, who].append(cost)
                print0(f"round {round + 1}, packing {kind}, {who}: {cost.cpu:.3f} CPU s, "
                       f"{cost.tokens / cost.cpu / 1e6:,.1f}M tokens per CPU s")
    results: dict[str, dict] = {}
    for kind, documents in kinds.items():
        results[kind] = {"documents": len(documents), "mean_tokens": statistics.fmean(map(len, documents))}
        for who, pack in PACKERS.items():
            utilisation, dropped = check(pack(documents, bos, config), documents, bos)
            results[kind][who] = {
                "tokens_per_cpu_s": median(costs[kind, who], lambda c: c.tokens / c.cpu),
                "tokens_per_s": median(costs[kind, who], lambda c: c.tokens / c.wall),
                "utilisation": utilisation, "tokens_dropped": dropped,
            }
        speeds = [results[kind][who]["tokens_per_cpu_s"] for who in PACKERS]
        results[kind] |= {"ours_vs_scan": speeds[0] / speeds[1], "ours_vs_tuned_scan": speeds[0] / speeds[2]}
    return results


# ---------------------------------------------------------------------------------------------------- end to end


def one_epoch(make: Callable[[], Loader]) -> int:
    """Tokens of the batches of an epoch, of all ranks: positions in use. The loader is made inside the clock."""
    with make() as loader:
        batches = 0
        for batch in loader:
            batches += 1
            if batch.state["epoch"] > 0:
                break
        return round(batches * loader.rows * loader.T * loader.utilisation)


def measure_loaders(tokenizer: RustBPETokenizer, data: str, chats: Task, config: Config) -> dict[str, list[Cost]]:
    """One epoch each, turn by turn: documents, conversations, and documents as one rank of eight sees them."""
    T, workers = config.seq_len, config.workers

    def text(B: int, **rank: int) -> Loader:
        return tokenizing_distributed_data_loader_with_state(tokenizer, B, T, data=data, workers=workers, **rank)

    makers: dict[str, Callable[[], Loader]] = {
        "documents": lambda: text(32),
        "conversations": lambda: conversation_loader(chats, tokenizer, 32, T, workers=workers, epochs=1),
        "documents, rank 3 of 8": lambda: text(4, rank=3, world_size=8),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in makers}
    for round in range(config.rounds):
        names = list(makers)
        for name in names[round % 3 :] + names[: round % 3]:
            cost = timed(partial(one_epoch, makers[name]))
            costs[name].append(cost)
            print0(f"round {round + 1}, one epoch of {name}: {cost.tokens:,} tokens in {cost.wall:.2f} s, "
                   f"{cost.cpu:.2f} CPU s, {cost.tokens / cost.wall / 1e6:.1f}M tokens/s")
    return costs


# --------------------------------------------------------------------------------------------------------- main


def source(data: str) -> tuple[str, str]:
    """`(data, label)`: what to read, and what the results call it."""
    shared = os.environ.get("NANOCHAT_TEST_DATA")
    return (data or "pocket", data or "pocket") if data or not shared else (shared, "NANOCHAT_TEST_DATA")


def chat_texts(chats: Task) -> Iterator[str]:
    for conversation in chats:
        contents = [message["content"] for message in conversation["messages"]]
        yield "\n".join(c if isinstance(c, str) else "".join(part["text"] for part in c) for c in contents)


def take(texts: Iterator[str], tokenizer: RustBPETokenizer, megabytes: float, most: int | None) -> list[np.ndarray]:
    """The ids of texts until they hold so many bytes, those longer than `most` tokens left out."""
    chosen, size = [], 0.0
    for text in texts:
        if size >= megabytes * 1e6:
            break
        chosen.append(text)
        size += len(text.encode("utf-8"))
    rows = tokenizer.encode_batch(chosen).rows()
    return [ids for ids in rows if 0 < len(ids) <= (most or len(ids))]


def tables(packing: dict[str, dict], loaders: dict[str, list[Cost]], T: int, buffer: int) -> Iterator[Table]:
    table = Table(title=f"Packing, rows of {T:,}, million tokens per CPU second")
    for heading in ("text", "mean tokens", "ours", f"scan of {buffer:,}", "ours / scan", "tuned scan", "ours / tuned",
                    "ours: used", "scan: used", "ours: dropped"):
        table.add_column(heading, justify="right")
    for kind, r in packing.items():
        rates = [f"{r[who]['tokens_per_cpu_s'] / 1e6:,.1f}" for who in PACKERS]
        table.add_row(kind, f"{r['mean_tokens']:,.0f}", rates[0], rates[1], f"{r['ours_vs_scan']:.1f}", rates[2],
                      f"{r['ours_vs_tuned_scan']:.1f}", f"{r['ours']['utilisation']:.2%}",
                      f"{r['scan']['utilisation']:.2%}", f"{r['ours']['tokens_dropped']:,}")
    yield table
    table = Table(title="One epoch, parquet to batches")
    for heading in ("what", "tokens", "M tokens/s", "M tokens per CPU s", "CPU s per M tokens of the global batch"):
        table.add_column(heading, justify="right")
    for name, costs in loaders.items():
        table.add_row(name, f"{costs[0].tokens:,}", f"{median(costs, lambda c: c.tokens / c.wall) / 1e6:.1f}",
                      f"{median(costs, lambda c: c.tokens / c.cpu) / 1e6:.1f}",
                      f"{median(costs, lambda c: c.cpu / c.tokens) * 1e6:.3f}")
    yield table


def summary(packing: dict[str, dict], loaders: dict[str, list[Cost]]) -> dict[str, Any]:
    def cpu(name: str) -> float:
        return median(loaders[name], lambda c: c.cpu / c.tokens) * 1e6

    return {
        "packing_vs_scan": min(r["ours_vs_scan"] for r in packing.values()),
        "packing_vs_tuned_scan": min(r["ours_vs_tuned_scan"] for r in packing.values()),
        "utilisation": min(r["ours"]["utilisation"] for r in packing.values()),
        "tokens_dropped": max(r["ours"]["tokens_dropped"] for r in packing.values()),
        "end_to_end_tokens_per_second": median(loaders["documents"], lambda c: c.tokens / c.wall),
        "conversations_tokens_per_second": median(loaders["conversations"], lambda c: c.tokens / c.wall),
        "cpu_s_per_million_tokens": cpu("documents"),
        "cpu_s_per_million_tokens_rank_of_8": cpu("documents, rank 3 of 8"),
        "packing": packing,
    }


def main(config: Config) -> None:
    check_at_least(1, rounds=config.rounds, buffer=config.buffer)
    check_at_least(2, seq_len=config.seq_len)
    if config.packing_megabytes <= 0:
        raise UserError("--packing_megabytes must be more than 0")
    keep_freed_memory()
    data, label = source(config.data)
    text = text_iterator(data, max_chars=50_000_000)
    tokenizer = pick_tokenizer_class().train_from_iterator(text, config.vocab_size)
    chats = SmolTalk("train", data=data)
    documents = (t for unit in parquets_iter_batched("train", data=data) for t in unit)
    kinds = {"long documents": take(documents, tokenizer, config.packing_megabytes, None),
             "chats": take(chat_texts(chats), tokenizer, config.packing_megabytes, CHAT_TOKENS)}
    for kind, rows in kinds.items():
        print0(f"{kind}: {len(rows):,}, {sum(map(len, rows)):,} tokens, {statistics.fmean(map(len, rows)):,.0f} each")
    packing = measure_packing(kinds, tokenizer.get_bos_token_id(), config)
    loaders = measure_loaders(tokenizer, data, chats, config)
    console = Console(width=120)
    for table in tables(packing, loaders, config.seq_len, config.buffer):
        console.print(table)
    print0(json.dumps(summary(packing, loaders) | {"data": label, "cores": cpu_cores(), "workers": config.workers}))


if __name__ == "__main__":
    configurator.main(main, Config)
