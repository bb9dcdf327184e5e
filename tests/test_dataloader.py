"""The loaders: every document once an epoch, the same rows for any rank count, an exact resume at any batch."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat import dataloader, windows
from nanochat.common import UserError
from nanochat.dataloader import (
    Batch,
    Loader,
    conversation_loader,
    rows_of_epoch,
    tokenizing_distributed_data_loader,
    tokenizing_distributed_data_loader_with_state,
)
from nanochat.dataset import corpus, parquets_iter_batched, prepare, text_iterator
from nanochat.packing import to_inputs_and_targets
from nanochat.prefetch import Prefetch
from nanochat.tokenizer import RustBPETokenizer
from tasks.catalog import parse_mixture
from tasks.common import Task, TaskMixture
from tasks.rows import BadRow
from tests import resume_trials
from tests.helpers import byte_tokenizer, small_tokenizer
from tests.reference import packing as reference

T = 32


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    """A real one without merges: a token is a byte."""
    return byte_tokenizer()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """150 documents of 3 to 80 bytes in 30 row groups, and windows of 12 rows, so that a few batches cross many."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(windows, "WINDOW_ROWS", 12)
    texts = [f"{i} " + "abcdefg "[: 1 + i % 8] * (i * 7 % 10) for i in range(150)]
    (tmp_path / "corpus").mkdir()
    for s in range(3):
        table = pa.table({"text": texts[s * 50 : (s + 1) * 50]})
        pq.write_table(table, tmp_path / f"corpus/{s}.parquet", row_group_size=5)
    return str(tmp_path)


class Conversations(list):
    """The part of a Task that a loader sees: its length and its rows."""


def chat(i: int) -> dict:
    turns = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}" * (1 + i % 3)}]
    return {"messages": turns * (1 + (i % 4 == 0))}


def digest(inputs: torch.Tensor, targets: torch.Tensor) -> str:
    return hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()


def global_batches(make, rows: int, world_size: int, n: int, state: dict | None = None) -> list[tuple[str, str]]:
    """The next `n` global batches as (hash, state), put together from what `world_size` ranks get."""
    loaders = [make(B=rows // world_size, rank=r, world_size=world_size, state=state) for r in range(world_size)]
    found = []
    for parts in islice(zip(*loaders, strict=True), n):
        assert all(p.state == parts[0].state for p in parts)
        inputs, targets = (torch.cat([getattr(p, name) for p in parts]) for name in ("inputs", "targets"))
        found.append((digest(inputs, targets), json.dumps(parts[0].state)))
    for loader in loaders:
        loader.close()
    return found


def makers(folder: str, tokenizer: RustBPETokenizer) -> dict:
    """Each loader by name, as a function of what may differ between a run and its continuation."""
    tasks = Conversations(chat(i) for i in range(200))

    def text(B, **kw):
        return tokenizing_distributed_data_loader_with_state(tokenizer, B, T, "train", data=folder, seed=3, **kw)

    def val(B, **kw):
        return tokenizing_distributed_data_loader_with_state(tokenizer, B, 4, "val", data=folder, **kw)

    def chats(B, **kw):
        return conversation_loader(tasks, tokenizer, B, T, seed=3, **kw)

    return {"text": text, "val": val, "chats": chats}


# --------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", ["text", "val", "chats"])
def test_resume_is_exact_at_every_batch_for_any_rank_count(kind, folder, tokenizer):  # trap: epoch-end
    make = makers(folder, tokenizer)[kind]
    run = global_batches(make, rows=4, world_size=1, n=82)
    if kind != "val":
        assert len(run) == 82 and json.loads(run[-1][1])["epoch"] >= 2  # mid-window, mid-epoch and across epochs
        assert len({h for h, _ in run}) == 82  # and nothing came twice
    for world_size in (2, 4):
        assert global_batches(make, rows=4, world_size=world_size, n=82) == run
    if kind == "text":
        eight = global_batches(make, rows=8, world_size=8, n=30)
        assert eight == global_batches(make, rows=8, world_size=1, n=30)
    for i, (_, state) in enumerate(run[:80]):
        for world_size in (1, 2, 4):
            assert global_batches(make, 4, world_size, 2, json.loads(state)) == run[i + 1 : i + 3]


def test_random_runs_resume_exactly_and_lose_nothing():  # trap: epoch-end
    """Others each time, but in CI; the 200 runs are `python -m tests.chaos resumes`."""
    seed = 1 if os.environ.get("CI") else random.randrange(1 << 16)
    assert resume_trials.run_trials(10, resumes=10, seed=seed) == []


def test_repeated_resumes_are_exact(folder, tokenizer):
    make = makers(folder, tokenizer)["text"]
    run = global_batches(make, rows=4, world_size=1, n=60)
    found, state = [], None
    while len(found) < 60:
        found += global_batches(make, 4, (1, 2, 4)[len(found) % 3], 1 + len(found) % 4, state)
        state = json.loads(found[-1][1])
    assert found[:60] == run


def test_batch_size_does_not_change_the_stream(folder, tokenizer):
    make = makers(folder, tokenizer)["text"]
    streams = []
    for B in (1, 3, 8):
        with make(B=B) as loader:
            streams.append(torch.cat([b.inputs for b in islice(loader, 120 // B)]))
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])


def test_rows_are_the_same_without_rustbpe(folder, tokenizer):
    """One machine has a Rust toolchain, another does not."""
    without = copy.deepcopy(tokenizer)
    without._bulk = None
    streams = [islice(makers(folder, one)["text"](B=4), 8) for one in (tokenizer, without)]
    for a, b in zip(*streams, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and a.state == b.state


def test_resume_on_other_data_is_refused_by_name(folder, tokenizer):
    with tokenizing_distributed_data_loader_with_state(tokenizer, 2, T, data=folder) as loader:
        state = next(loader).state
    with pytest.raises(UserError, match="seq_len was 32 and is now 16"):
        tokenizing_distributed_data_loader_with_state(tokenizer, 2, 16, data=folder, state=state)
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        tokenizing_distributed_data_loader_with_state(tokenizer, 2, T, data=folder, state=state, seed=1)
    (Path(folder) / "corpus/more.txt").write_text("more", encoding="utf-8")
    prepare(folder)
    with pytest.raises(UserError, match="data was"):
        tokenizing_distributed_data_loader_with_state(tokenizer, 2, T, data=folder, state=state)


def test_resume_with_another_tokenizer_is_refused_by_name(folder, tokenizer):
    for kind in ("text", "chats"):
        with makers(folder, small_tokenizer())[kind](B=2) as loader:
            state = next(loader).state
        with pytest.raises(UserError, match="tokenizer was"):
            makers(folder, tokenizer)[kind](B=2, state=state)


def test_resume_on_other_conversations_or_another_stream_is_refused_by_name(tokenizer):
    rows = [chat(i) for i in range(50)] + [{"messages": "\ud800"}]  # JSON may hold half a character
    state = next(conversation_loader(rows, tokenizer, 2, T)).state
    other = [*rows[:49], chat(77), rows[50]]  # any row at all
    with pytest.raises(UserError, match="rows was"):
        conversation_loader(other, tokenizer, 2, T, state=state)
    with pytest.raises(UserError, match="shuffle was True and is now False"):
        conversation_loader(rows, tokenizer, 2, T, state=state, shuffle=False)
    with pytest.raises(UserError, match="stream was None"):  # a checkpoint from before the order of rows changed
        conversation_loader(other, tokenizer, 2, T, state={k: v for k, v in state.items() if k != "stream"})


def test_resume_after_a_line_was_edited_names_its_file(tmp_path, tokenizer):
    path, other = tmp_path / "my.jsonl", tmp_path / "other.jsonl"
    for i, file in enumerate((path, other)):
        file.write_text("".join(json.dumps(chat(n + i)) + "\n" for n in range(100)), encoding="utf-8")

    def loader(*items: str, **kw) -> Loader:
        return conversation_loader(parse_mixture(items), tokenizer, 2, T, **kw)

    both = f"{path}*2", f"{other}:50"
    state = json.loads(json.dumps(next(loader(*both)).state))
    wanted = [b.inputs.tolist() for b in islice(loader(*both, state=state), 3)]
    path = path.rename(tmp_path / "moved.jsonl").rename(tmp_path / "my.jsonl")  # where it lies is no matter
    assert [b.inputs.tolist() for b in islice(loader(*both, state=state), 3)] == wanted
    for items in ((f"{path}*2", f"{other}:49"), (f"{path}*2", f"{other}:49", f"{other}:1"), both[:1], both[::-1]):
        with pytest.raises(UserError, match="cannot resume: the loader's (task other.jsonl|tasks|conversations) was"):
            loader(*items, state=state)
    (tmp_path / "b").mkdir()
    namesake = shutil.copy(other, tmp_path / "b/my.jsonl")
    twins = f"{path}", f"{namesake}"
    twin_state = next(loader(*twins)).state
    path.write_text(path.read_text(encoding="utf-8").replace("a63", "a36"), encoding="utf-8")
    for items, before in ((both, state), (twins, twin_state)):
        with pytest.raises(UserError, match="cannot resume: the loader's task my.jsonl was"):
            loader(*items, state=before)


def test_state_is_small_json(folder, tokenizer):
    for make in makers(folder, tokenizer).values():
        with make(B=2) as loader:
            for batch in islice(loader, 40):
                assert len(json.dumps(batch.state)) < 1000 and json.loads(json.dumps(batch.state)) == batch.state
                assert loader.state() == batch.state and loader.counts == batch.state["counts"]  # not of those ahead


# --------------------------------------------------------------------------- content


def epochs_of(loader: Loader, n: int) -> list[list[Batch]]:
    """The batches of the first `n` epochs of a loader of single rows (so that none spans two)."""
    epochs: list[list[Batch]] = [[] for _ in range(n)]
    epoch = 0
    for batch in loader:
        epochs[epoch].append(batch)
        epoch = batch.state["epoch"]
        if epoch == n:
            break
    loader.close()
    return epochs


def pieces_of(batches: list[Batch], bos: int) -> Counter:
    return sum((reference.pieces_in(b.inputs.tolist(), b.targets.tolist(), bos) for b in batches), Counter())


def expected_pieces(texts: list[str], tokenizer: RustBPETokenizer, T: int) -> Counter:
    bos = tokenizer.get_bos_token_id()
    return Counter(p for t in texts for p in reference.document_pieces(tokenizer.encode(t), bos, T))


def test_every_document_exactly_once_an_epoch(folder, tokenizer):
    texts = [t for unit in parquets_iter_batched("train", data=folder) for t in unit]
    loader, bos = makers(folder, tokenizer)["text"](B=1), tokenizer.get_bos_token_id()
    first, second = epochs_of(loader, 2)
    assert pieces_of(first, bos) == pieces_of(second, bos) == expected_pieces(texts, tokenizer, T)
    made = [loader.source.window(epoch, 0) for epoch in (0, 1)]
    rows = [to_inputs_and_targets(w.ids, w.learn) for w in made]
    seen = [reference.pieces_in(inputs.tolist(), targets.tolist(), bos) for inputs, targets in rows]
    assert seen[0] != seen[1]  # other row groups come first
    assert second[-1].state["counts"]["documents"] == 2 * len(texts)


def test_a_single_unit_is_shuffled_anew_each_epoch(folder, tokenizer):
    (Path(folder) / "few").mkdir()
    (Path(folder) / "few/x.jsonl").write_text(
        "\n".join(json.dumps({"text": "word " * (1 + i % 5)}) for i in range(300)), encoding="utf-8")
    loader = tokenizing_distributed_data_loader_with_state(tokenizer, 1, T, data=f"{folder}/few")
    assert loader.source.num_units() == 1
    first, second = epochs_of(loader, 2)
    assert len(first) > 5 and [b.inputs.tolist() for b in first] != [b.inputs.tolist() for b in second]


def test_neighbours_of_a_file_part(tmp_path, tokenizer):
    """Best-fit lays documents of one length into rows in the order in which they come."""
    rows = [json.dumps({"text": f"{i:07}"}) for i in range(400)]  # with its BOS, a quarter of a row each
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/x.jsonl").write_text("\n".join(rows), encoding="utf-8")
    loader = tokenizing_distributed_data_loader_with_state(tokenizer, 1, T, data=f"{tmp_path}/texts")
    numbers = [[int(n) for n in re.findall("[0-9]{7}", tokenizer.decode(b.inputs[0].tolist()))]
               for epoch in epochs_of(loader, 1) for b in epoch]
    beside = [a + 1 == b for row in numbers for a, b in zip(row, row[1:])]
    assert len(beside) > 250 and sum(beside) < len(beside) / 10


def test_rows_of_a_window_are_shuffled_anew_each_epoch(tokenizer):
    """Best-fit leaves long conversations first and crumbs last; even a curriculum is spared that within a window."""
    tasks = Conversations({"messages": turn(f"q{i}", "a" * (i % 20))} for i in range(300))
    first, second = ([b.inputs.tolist() for b in epoch]
                     for epoch in epochs_of(conversation_loader(tasks, tokenizer, 1, T, shuffle=False), 2))
    assert sorted(first) == sorted(second) and first != second


def test_validation_is_one_pass_padded_and_the_same_for_any_seed(folder, tokenizer):  # trap: tiny-eval
    texts = list(text_iterator(folder, "val"))
    bos = tokenizer.get_bos_token_id()
    for B, world_size in ((3, 1), (64, 4)):  # the second: far more rows than there are
        loaders = [tokenizing_distributed_data_loader_with_state(
            tokenizer, B, T, "val", data=folder, seed=B, rank=r, world_size=world_size) for r in range(world_size)]
        batches = [list(loader) for loader in loaders]
        assert len({len(b) for b in batches}) == 1  # a rank without rows still takes part
        assert all(b.inputs.shape == b.targets.shape == (B, T) for rank in batches for b in rank)
        assert pieces_of(sum(batches, []), bos) == expected_pieces(texts, tokenizer, T)
    first, second = (tokenizing_distributed_data_loader_with_state(tokenizer, 2, T, "val", data=folder, seed=seed)
                     for seed in (0, 7))
    for one, same in zip(first, second, strict=True):  # in this very order: an evaluation may read the first rows only
        assert torch.equal(one.inputs, same.inputs) and one.state == same.state


def test_pairs_without_state(folder, tokenizer):
    with_state = makers(folder, tokenizer)["text"](B=2)
    plain = tokenizing_distributed_data_loader(tokenizer, 2, T, "train", data=folder, seed=3)
    for batch, (inputs, targets) in islice(zip(with_state, plain, strict=False), 5):
        assert torch.equal(batch.inputs, inputs) and torch.equal(batch.targets, targets)
        assert inputs.dtype == targets.dtype == torch.int64


def test_seeds_one_and_minus_one_differ(folder, tokenizer):  # trap: seed-sign
    streams = []
    for seed in (1, -1):
        with tokenizing_distributed_data_loader_with_state(tokenizer, 8, T, data=folder, seed=seed) as loader:
            streams.append(next(loader).inputs)
    assert not torch.equal(*streams)


def test_conversation_masks_are_exact(folder, tokenizer):  # trap: mask-lost
    tasks = Conversations(chat(i) for i in range(200))
    first, second = epochs_of(conversation_loader(tasks, tokenizer, 1, 48), 2)
    bos = tokenizer.get_bos_token_id()
    rendered = [tokenizer.render_conversation(c) for c in tasks]
    assert max(len(ids) for ids, _ in rendered) <= 48
    assert pieces_of(first, bos) == pieces_of(second, bos) == Counter(
        reference.conversation_piece(ids, mask, 48) for ids, mask in rendered)
    user = tokenizer.encode_special("<|user_start|>")
    assert all(not ((b.targets == user) | (b.targets == bos)).any() for b in first)


def turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_long_conversations_end_at_a_turn_or_are_left_out(folder, tokenizer):  # trap: long-conversation
    first, second = turn("q", "a" * 5), turn("Q", "A" * 20)
    assert len(tokenizer.render_conversation({"messages": first + second})[0]) > T + 1
    exact = turn("", "e" * (T + 1 - 5))  # bos, two for the question, two for the answer: its end is the last target
    over = turn("", "o" * (T + 1 - 4))
    tasks = Conversations({"messages": m} for m in (
        first + second + turn("", ""), exact, over, turn("q" * 500, "a"), turn("q", "a" * 500), over + first))
    tasks.append({"messages": [*first, second[0], {"role": "assistant", "content": [
        {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2" * 30}]}]})
    loader = conversation_loader(tasks, tokenizer, 1, T, epochs=1)
    pieces = pieces_of(list(loader), tokenizer.get_bos_token_id())
    kept = [tokenizer.render_conversation({"messages": m}) for m in (first, exact, first)]
    assert len(kept[1][0]) == T + 1
    assert pieces == Counter(resume_trials.piece(ids, mask, T) for ids, mask in kept)
    end = tokenizer.encode_special("<|assistant_end|>")
    assert all(max(t for t in targets if t >= 0) == end for _, targets in pieces)  # every answer learns to stop
    counts = loader.counts
    assert (counts["documents"], counts["truncated"], counts["skipped"], counts["malformed"]) == (3, 2, 4, 0)


def test_every_row_has_something_to_learn(tokenizer):  # trap: all-masked
    """A one-sided conversation, packed, would be a row (with bad luck a batch) without a target."""
    one_sided = [{"messages": [{"role": "user", "content": "q" * (T - 3)}]} for _ in range(50)]
    silent = [{"messages": turn("q" * (T - 5), "")} for _ in range(10)]  # even an empty answer has an end
    loader = conversation_loader(Conversations(one_sided + silent), tokenizer, 1, T, epochs=1)
    assert [bool((b.targets >= 0).any()) for b in loader] == [True] * 10
    assert loader.counts["skipped"] == 50


def test_rows_of_an_epoch(folder, tokenizer, capsys):
    tasks = Conversations([chat(i) for i in range(300)] + [{"messages": []}, {"text": "abc " * 50}])
    loader = conversation_loader(tasks, tokenizer, 1, T, seed=5, epochs=1)
    assert rows_of_epoch(tasks, tokenizer, T, seed=5) == sum(1 for _ in loader)
    assert capsys.readouterr().out.count("note:") == 1  # the loader's; counting is silent
    with pytest.raises(UserError, match="nothing to train on"):
        rows_of_epoch(Conversations([]), tokenizer, T)


def test_documents_among_conversations_are_learned_whole(tokenizer):
    """All of a document is a target, once; of a conversation only the answer is."""
    loader = conversation_loader(Conversations([{"text": "abc"}, chat(1)]), tokenizer, 1, 32, epochs=1, shuffle=False)
    batch = next(loader)
    ids, mask = tokenizer.render_conversation(chat(1))
    expected = Counter(tokenizer.encode("abc")) + Counter(i for i, m in zip(ids, mask, strict=True) if m)
    assert Counter(batch.targets[batch.targets >= 0].tolist()) == expected
    starts = [n for n, token in enumerate(batch.inputs[0].tolist()) if token == tokenizer.get_bos_token_id()]
    documents = [batch.inputs[0, a:b].tolist() for a, b in zip(starts, [*starts[1:], 32], strict=True)]
    assert [tokenizer.get_bos_token_id(), *tokenizer.encode("abc")] in documents


def test_a_long_document_among_conversations_goes_on_in_pieces(tokenizer):
    """All of it is learned, once, however long; it is no conversation that was cut."""
    text = "".join(chr(97 + i % 26) for i in range(10 * T + 3))
    loader = conversation_loader(Conversations([{"text": text}, {"text": ""}]), tokenizer, 1, T, epochs=1)
    learned = Counter(t for b in loader for t in b.targets.flatten().tolist() if t >= 0)
    assert learned == Counter(tokenizer.encode(text))
    assert (loader.counts["documents"], loader.counts["truncated"], loader.counts["skipped"]) == (1, 0, 1)


class Checked(Conversations):
    """A task that checks its rows when they are read, and knows where they come from."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        if row == "damaged":
            raise UserError("rows.parquet, row 7: not a row")
        if row == "bad":
            raise BadRow("not a row")
        return row

    def where(self, index: int) -> str:
        return f"my.jsonl:{index + 1}"


def test_odd_rows_are_left_out_named_and_counted(folder, tokenizer, capsys):  # trap: empty
    odd = [{"messages": []}, {"messages": [{"role": "system", "content": "be brief"}]},
           {"messages": [{"role": "user", "content": "hello?"}]},
           {"messages": [{"role": "assistant", "content": "hi"}]},
           {"messages": [{"role": "robot", "content": "beep"}, {"role": "assistant", "content": "hi"}]},
           {"messages": [{"role": "robot2", "content": "beep"}]}, None, 5, ["x"], {"text": 5}, "damaged",
           "bad"]
    tasks = Checked([*odd, chat(0)])
    loader = conversation_loader(tasks, tokenizer, 2, 64, epochs=2, shuffle=False)
    assert sum(int((b.targets >= 0).sum()) for b in loader) > 0  # their neighbour is as it was
    counts = loader.counts
    assert (counts["documents"], counts["malformed"], counts["skipped"]) == (2, 22, 2)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6  # one of each kind, not one of each row and epoch
    for line, name in zip(said, ("my.jsonl:1: .* empty", "my.jsonl:2: .* only a system", "my.jsonl:4: .* 'user' must",
                                 "my.jsonl:5: .* unknown role 'robot'", "my.jsonl:10: .* must be a string, not int",
                                 "my.jsonl:11: rows.parquet, row 7"), strict=True):
        assert re.search(name, line), line
    for nothing in (odd, []):
        with pytest.raises(UserError, match="nothing to train on"):  # an endless loader must not spin for ever
            next(conversation_loader(Checked(nothing), tokenizer, 2, 64))


def test_odd_rows_of_a_task_are_named_once(tokenizer, capsys):
    """Validation begins anew every few hundred steps: that must not say the same each time."""

    class Odd(Task):
        def num_examples(self) -> int:
            return 9

        def get_example(self, index: int) -> dict:
            return chat(index) if index else {"messages": []}

    for task in (Odd(), TaskMixture([Odd(), Odd()])):
        assert rows_of_epoch(task, tokenizer, T) > 0  # silent, and no reason for the others to be
        for _ in range(3):
            with conversation_loader(task, tokenizer, 1, T, epochs=1) as loader:
                list(loader)
        assert loader.counts["malformed"] >= 1 and capsys.readouterr().out.count("note:") == 1


def test_counts_hold_what_no_batch_is_made_of(folder, tokenizer):
    """The end of an epoch may be a window of rows that are all left out: they count, also after a resume."""
    tasks = Conversations([chat(i) for i in range(64)] + [{"messages": []}] * 64)
    for B in (1, 64):
        state = None
        while True:
            loader = conversation_loader(tasks, tokenizer, B, T, epochs=1, shuffle=False, state=state)
            batch = next(loader, None)
            if batch is None:
                break
            state = json.loads(json.dumps(batch.state))
        assert loader.counts["documents"] == loader.counts["malformed"] == 64


def test_curriculum_keeps_its_order(folder, tokenizer):
    tasks = Conversations(chat(i) for i in range(400))
    first, = epochs_of(conversation_loader(tasks, tokenizer, 1, T, shuffle=False), 1)
    text = tokenizer.decode([t for b in first for t in b.inputs.flatten().tolist()])
    assert text.index("q399<|") > text.index("q50<|")


def test_impossible_shapes_are_refused(folder, tokenizer):
    for kw in ({"B": 0}, {"B": 2, "rank": 2, "world_size": 2}):
        with pytest.raises(UserError):
            makers(folder, tokenizer)["text"](**kw)
    with pytest.raises(UserError, match="T at least 2"):
        tokenizing_distributed_data_loader_with_state(tokenizer, 1, 1, data=folder)
    with pytest.raises(UserError, match="-1 workers"):
        makers(folder, tokenizer)["text"](1, workers=-1)


def test_ranks_of_a_machine_share_its_cores(folder, tokenizer, monkeypatch):
    monkeypatch.setattr(dataloader, "cpu_cores", lambda: 12)
    for ranks, threads in (("1", 8), ("3", 4), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        with makers(folder, tokenizer)["text"](B=1) as text, makers(folder, tokenizer)["chats"](B=1) as chats:
            assert text.source.threads == chats.source.threads == threads


def test_a_window_of_long_rows_fits_into_memory(monkeypatch):
    monkeypatch.undo()
    size = windows.window_size
    assert [size(T) // T for T in (2, 2048, 4096, 8192, 32768, 131072)] == [2048, 2048, 2048, 1024, 256, 256]


# --------------------------------------------------------------------------- the threads


def loader_threads() -> int:
    return sum(t.name == "nanochat-loader" and t.is_alive() for t in threading.enumerate())


def numbers(n: int, made: list[int]):
    for i in range(n):
        made.append(i)
        yield i


def test_an_error_in_either_stage_is_raised_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise UserError("shard_3.parquet: broken")

    def fails_at_3(i: int) -> int:
        return i if i < 3 else i // 0

    for source, error in ((items(), UserError), (iter(range(1, 100)), ZeroDivisionError)):
        inner = Prefetch(source)
        outer = Prefetch(map(fails_at_3, inner), ahead=4, behind=inner)
        assert [next(outer), next(outer)] == [1, 2]
        with pytest.raises(error):
            next(outer)
        assert loader_threads() == 0  # in the second case the first stage had more to make
        with pytest.raises(StopIteration):
            next(outer)


class Panic(BaseException):
    """As extensions in Rust raise it."""


def test_what_is_no_exception_is_raised_too():
    def items():
        yield 1
        raise Panic("index out of bounds")

    prefetch = Prefetch(items())
    assert next(prefetch) == 1
    with pytest.raises(Panic):
        next(prefetch)


def test_a_loader_may_be_closed_by_its_own_thread():
    """Where the garbage collector runs when the last reference is gone, nobody can say."""
    ready, after = threading.Event(), []

    def items():
        yield 1
        ready.wait()
        prefetch.close()
        after.append("closed")
        yield 2

    prefetch = Prefetch(items())
    assert next(prefetch) == 1
    ready.set()
    assert list(prefetch) == []
    prefetch._thread.join()
    assert after == ["closed"]


def test_a_slow_consumer_does_not_let_items_pile_up():
    made: list[int] = []
    cut: list[int] = []
    inner = Prefetch(numbers(100, made), ahead=1)
    prefetch = Prefetch((cut.append(i) or i for i in inner), ahead=3, behind=inner)
    for i in range(20):
        assert next(prefetch) == i
        if i % 5 == 0:
            time.sleep(0.02)  # time to run ahead
        assert len(cut) <= i + 1 + 3 and len(made) <= len(cut) + 1 + 1
    prefetch.close()
    assert loader_threads() == 0


def test_threads_end_when_a_loader_is_closed_dropped_or_used_up(folder, tokenizer):
    gc.collect()
    assert loader_threads() == 0
    make = makers(folder, tokenizer)
    closed, dropped = make["text"](B=1), make["text"](B=1)
    next(closed), next(dropped)
    assert loader_threads() == 4
    closed.close()
    closed.close()  # twice is fine
    assert loader_threads() == 2
    assert list(islice(closed, 1)) == []
    del dropped
    assert loader_threads() == 0
    used_up = make["val"](B=1)
    list(used_up)
    used_up.close()
    closed_early = make["text"](B=1)  # while its first window is being made
    closed_early.close()
    assert loader_threads() == 0


def test_without_workers_there_is_no_thread(folder, tokenizer):
    before = threading.active_count()
    for name, make in makers(folder, tokenizer).items():
        with make(B=2, workers=0) as alone, make(B=2, workers=3) as helped:
            wanted = [(digest(b.inputs, b.targets), b.state) for b in islice(helped, 20)]
            helped.close()
            for batch, same in zip(islice(alone, 20), wanted, strict=True):
                assert threading.active_count() == before, name
                assert (digest(batch.inputs, batch.targets), batch.state) == same
        assert list(islice(alone, 1)) == []  # closed


@pytest.mark.parametrize("how", ["interrupted", "left open"])
def test_a_program_ends_at_once_whatever_the_threads_do(how, tmp_path):
    """Ctrl-C while it waits for a batch; and an ordinary end without `close()`."""
    program = f"""
import itertools, signal, time
from nanochat.prefetch import Prefetch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
def slow():
    for i in itertools.count():
        yield i
        time.sleep(0.05 if i < 3 else 0.5)
inner = Prefetch(slow())
outer = Prefetch((i for i in inner), ahead=4, behind=inner)
for _ in range(3):
    next(outer)
print("ready", flush=True)
while {how == "interrupted"}:
    next(outer)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    if how == "interrupted":
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == (0 if how == "left open" else -signal.SIGINT), errors
    assert errors == "" if how == "left open" else errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_breaks_meanwhile_reaches_the_consumer(folder, tokenizer, workers):
    """A disk that rots: the files were checked when the loader was made. Nothing of the row group is trained on."""
    texts = corpus(folder).units("train")
    loader = makers(folder, tokenizer)["text"](B=1, workers=workers)
    path = texts[-1].path
    raw = bytearray(path.read_bytes())
    raw[40:200] = bytes(160)  # a page, not the footer
    path.write_bytes(raw)
    with pytest.raises(UserError, match=str(path)):
        for _ in islice(loader, 500):
            pass
    loader.close()


# --------------------------------------------------------------------------- real ranks


def one_rank(rank: int, folder: str) -> None:
    """What rank `rank` of two gets, and what both say when they do not read the same."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    make = makers(folder, byte_tokenizer())["text"]
    with make(B=2, rank=rank, world_size=2) as loader:
        found = [[b.inputs.tolist(), b.targets.tolist(), b.state] for b in islice(loader, 20)]
    with pytest.raises(UserError, match="rank 1 reads other data than rank 0"):  # each went on with its own batch
        make(B=2, rank=rank, world_size=2, state=found[3 + rank][2])
    with pytest.raises(UserError) as refused:
        conversation_loader([chat(i) for i in range(100 + rank)], byte_tokenizer(), 2, T, rank=rank,
                            world_size=2)
    Path(folder, f"rank{rank}.json").write_text(json.dumps([found, str(refused.value)]), encoding="utf-8")
    torch.distributed.destroy_process_group()


def test_real_ranks_share_a_batch_and_must_read_the_same(folder, tokenizer, monkeypatch):
    torch.multiprocessing.spawn(one_rank, (folder,), nprocs=2)
    (first, said), (second, also_said) = (
        json.loads(Path(folder, f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    monkeypatch.undo()  # the ranks have windows of the size that they have in a run
    monkeypatch.setenv("NANOCHAT_BASE_DIR", f"{folder}/base")
    with makers(folder, tokenizer)["text"](B=4) as alone:
        for one, (inputs, targets, state), (more_inputs, more_targets, same) in zip(alone, first, second, strict=False):
            assert one.state == state == same
            assert one.inputs.tolist() == inputs + more_inputs and one.targets.tolist() == targets + more_targets
    assert said == also_said and "rank 1 reads other data than rank 0 (conversations 101 there, 100 here)" in said


# --------------------------------------------------------------------------- real text


@pytest.mark.skipif(not os.environ.get("NANOCHAT_TEST_DATA"), reason="NANOCHAT_TEST_DATA is not set")
def test_real_documents_fill_the_rows(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    data = str(Path(os.environ["NANOCHAT_TEST_DATA"]))
    with tokenizing_distributed_data_loader_with_state(tokenizer, 64, 512, data=data) as loader:
        supervised = []
        for batch in islice(loader, 2048 // 64):  # a window: single batches differ, its emptiest row is in one of them
            assert batch.inputs.shape == (64, 512)
            supervised.append((batch.targets >= 0).float().mean().item())
        assert loader.utilisation >= 0.995
        assert sum(supervised) / len(supervised) >= 0.995 - 1 / 512  # a continuation's BOS is used, but no target
        state = batch.state
        following = next(loader)
    with tokenizing_distributed_data_loader_with_state(tokenizer, 64, 512, data=data, state=state) as resumed:
        again = next(resumed)
    assert torch.equal(again.inputs, following.inputs) and torch.equal(again.targets, following.targets)
