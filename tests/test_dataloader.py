"""The loaders: every document once an epoch, the same rows for any rank count, an exact resume at any batch."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat import dataloader
from nanochat.common import UserError
from nanochat.dataloader import (
    Batch,
    Loader,
    Prefetch,
    conversation_loader,
    tokenizing_distributed_data_loader,
    tokenizing_distributed_data_loader_with_state,
)
from nanochat.dataset import corpus, parquets_iter_batched, text_iterator
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer, pick_tokenizer_class
from tests.reference import packing as reference

T = 32


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    """A real one without merges: a token is a byte."""
    return pick_tokenizer_class().train_from_iterator(["aaaa"], 256 + len(SPECIAL_TOKENS))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """150 documents of 3 to 80 bytes in 30 row groups, and windows of 12 rows, so that a few batches cross many."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(dataloader, "WINDOW_ROWS", 12)
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
    for i, (_, state) in enumerate(run[:80]):
        for world_size in (1, 2, 4):
            assert global_batches(make, 4, world_size, 2, json.loads(state)) == run[i + 1 : i + 3]


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
    with pytest.raises(UserError, match="data was"):
        tokenizing_distributed_data_loader_with_state(tokenizer, 2, T, data=folder, state=state)


def test_state_is_small_json(folder, tokenizer):
    for make in makers(folder, tokenizer).values():
        with make(B=2) as loader:
            assert len(json.dumps(next(loader).state)) < 500


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
    windows = [loader.source.window(epoch, 0) for epoch in (0, 1)]
    seen = [reference.pieces_in(w.inputs.tolist(), w.targets.tolist(), bos) for w in windows]
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


def test_long_conversations_are_cut_and_counted(folder, tokenizer):  # trap: long-conversation
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * 500}]
    question_too_long = [{"role": "user", "content": "q" * 500}, {"role": "assistant", "content": "a"}]
    answer_at_the_edge = [{"role": "user", "content": "q" * (T - 4)}, {"role": "assistant", "content": "a"}]
    assert tokenizer.render_conversation({"messages": answer_at_the_edge})[1].index(1) == T
    tasks = Conversations({"messages": m} for m in (turns, question_too_long, answer_at_the_edge))
    tasks.append(chat(1))
    loader = conversation_loader(tasks, tokenizer, 1, T, epochs=1)
    pieces = pieces_of(list(loader), tokenizer.get_bos_token_id())
    rendered = [tokenizer.render_conversation(tasks[i], max_tokens=None) for i in (0, 3)]
    assert pieces == Counter(reference.conversation_piece(ids, mask, T) for ids, mask in rendered)
    counts = loader.counts
    assert (counts["documents"], counts["truncated"], counts["skipped"]) == (2, 1, 2)


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


def test_odd_conversations_are_left_out_and_counted(folder, tokenizer, capsys):  # trap: empty
    odd = [{"messages": []}, {"messages": [{"role": "system", "content": "be brief"}]},
           {"messages": [{"role": "user", "content": "hello?"}]},
           {"messages": [{"role": "assistant", "content": "hi"}]},
           {"messages": [{"role": "robot", "content": "beep"}, {"role": "assistant", "content": "hi"}]}]
    loader = conversation_loader(Conversations([*odd, chat(0)]), tokenizer, 2, 64, epochs=2, shuffle=False)
    assert sum(int((b.targets >= 0).sum()) for b in loader) > 0
    counts = loader.counts
    assert (counts["documents"], counts["malformed"], counts["skipped"]) == (2, 8, 2)
    assert capsys.readouterr().out.count("conversation 0 of Conversations is left out") == 1
    for nothing in (odd, []):
        with pytest.raises(UserError, match="nothing to train on"):  # an endless loader must not spin for ever
            next(conversation_loader(Conversations(nothing), tokenizer, 2, 64))


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


# --------------------------------------------------------------------------- the thread


def loader_threads() -> int:
    return sum(t.name == "nanochat-loader" and t.is_alive() for t in threading.enumerate())


def wait_for_threads(n: int) -> None:
    deadline = time.monotonic() + 10
    while loader_threads() > n and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader_threads() == n


def test_an_error_in_the_thread_is_raised_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise UserError("shard_3.parquet: broken")

    prefetch = Prefetch(items())
    assert [next(prefetch), next(prefetch)] == [1, 2]
    with pytest.raises(UserError, match="shard_3"):
        next(prefetch)
    with pytest.raises(StopIteration):
        next(prefetch)


def test_threads_end_when_a_loader_is_closed_dropped_or_used_up(folder, tokenizer):
    gc.collect()
    before = loader_threads()
    make = makers(folder, tokenizer)
    closed, dropped = make["text"](B=1), make["text"](B=1)
    next(closed), next(dropped)
    assert loader_threads() == before + 2
    closed.close()
    closed.close()  # twice is fine
    with pytest.raises(StopIteration):
        for _ in range(100):
            next(closed)
    del dropped
    list(make["val"](B=1))
    gc.collect()
    wait_for_threads(before)


def test_a_broken_shard_reaches_the_consumer(folder, tokenizer):
    unit = corpus(folder).train[-1]
    raw = bytearray(unit.path.read_bytes())
    raw[40:200] = bytes(160)  # a page, not the footer
    stat = unit.path.stat()
    unit.path.write_bytes(raw)
    os.utime(unit.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a disk that rots does it
    with pytest.raises(UserError, match=str(unit.path)):
        for _ in islice(makers(folder, tokenizer)["text"](B=1), 500):
            pass


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
