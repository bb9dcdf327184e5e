"""bench/dataloader.py from end to end on a few kilobytes, and that it sees what is dropped and what is padding."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.common import UserError
from nanochat.packing import pack_documents
from tests.helpers import write_corpus

BOS = 9000


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module: it is a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    monkeypatch.delenv("NANOCHAT_TEST_DATA", raising=False)
    return importlib.import_module("dataloader")


@pytest.fixture
def data(tmp_path) -> str:
    """Documents in corpus/, chats in sft/."""
    write_corpus(tmp_path / "data/corpus", documents=120)
    (tmp_path / "data/sft").mkdir()
    turns = [[("user", f"What is {i}?"), ("assistant", f"It is {i}.")] for i in range(80)]
    chats = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in turns]
    (tmp_path / "data/sft/chats.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    return str(tmp_path / "data")


def documents(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end).astype(np.uint16) for size, end in zip(sizes, ends, strict=True)]


def test_end_to_end(bench, data, capsys):
    bench.main(bench.Config(data=data, seq_len=32, buffer=20, packing_megabytes=0.01, vocab_size=300, rounds=2))
    *before, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["tokens_dropped"] == 0 and 0.5 < figures["utilisation"] <= 1
    for name in ("packing_vs_scan", "end_to_end_tokens_per_second", "conversations_tokens_per_second",
                 "cpu_s_per_million_tokens_rank_of_8"):
        assert figures[name] > 0
    assert {*figures["packing"]} == {"long documents", "chats"}
    assert all(kind[who]["tokens_dropped"] == 0 for kind in figures["packing"].values() for who in ("ours", "scan"))
    assert sum("packing chats, ours" in line for line in before) == 2
    assert any("rank 3 of 8" in line for line in before)


def test_what_is_dropped_and_what_is_padding_is_seen(bench):
    given = documents([30, 3, 9, 20, 1, 1])
    packed = pack_documents(given, BOS, 8)
    used = packed.used / packed.ids[:, 1:].size
    assert bench.check(iter([(packed.ids, packed.learn)]), given, BOS) == (pytest.approx(used), 0)
    assert used < 1  # there is padding to be seen
    assert bench.check(iter([(packed.ids[1:], packed.learn[1:])]), given, BOS)[1] > 0
    unlearned = packed.learn.copy()
    unlearned[0, 3] = False
    assert bench.check(iter([(packed.ids, unlearned)]), given, BOS)[1] == 1


def test_windows_hold_all_documents_in_order(bench):
    given = documents([5, 40, 1, 1, 1, 30])
    made = list(bench.windows(given, 40))
    assert [len(w) for w in made] == [2, 4] and [d for w in made for d in w] == given


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"seq_len": 1}, {"buffer": 0}, {"packing_megabytes": 0}])
def test_impossible_settings(bench, wrong):
    with pytest.raises(UserError):
        bench.main(bench.Config(**wrong))
