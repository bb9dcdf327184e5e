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


def test_the_arithmetic(bench):
    """Ratios are ours over theirs, by CPU seconds; of two kinds the worse one; medians of the rounds."""
    def kind(ours, scan, tuned, used, dropped):
        figures = {"utilisation": used, "tokens_dropped": dropped}
        return {"ours_vs_scan": ours / scan, "ours_vs_tuned_scan": ours / tuned, "ours": figures}

    packing = {"long documents": kind(80e6, 2e6, 8e6, 0.99, 0), "chats": kind(60e6, 1e6, 2e6, 0.98, 3)}
    costs = {"documents": [bench.Cost(1000, wall, 2 * wall) for wall in (1.0, 50.0, 2.0)],
             "conversations": [bench.Cost(1000, 4.0, 4.0)], "documents, rank 3 of 8": [bench.Cost(1000, 1.0, 0.5)]}
    figures = bench.summary(packing, costs)
    assert (figures["packing_vs_scan"], figures["packing_vs_tuned_scan"]) == (40, 10)
    assert (figures["utilisation"], figures["tokens_dropped"]) == (0.98, 3)
    assert (figures["end_to_end_tokens_per_second"], figures["conversations_tokens_per_second"]) == (500, 250)
    assert (figures["cpu_s_per_million_tokens"], figures["cpu_s_per_million_tokens_rank_of_8"]) == (4000, 500)


def test_packers_take_turns_and_are_compared_by_cpu_seconds(bench, monkeypatch):
    seconds = {"ours": [1.0, 9.0, 2.0], "scan": [40.0, 40.0, 80.0], "tuned scan": [10.0, 10.0, 10.0]}
    turns: list[str] = []

    def noted(who, pack):
        return lambda *args: turns.append(who) or pack(*args)

    def timed(run):
        cpu = seconds[turns[-1]][turns.count(turns[-1]) - 1]
        return bench.Cost(run(), 100 * cpu, cpu)

    for who, pack in bench.PACKERS.items():
        monkeypatch.setitem(bench.PACKERS, who, noted(who, pack))
    monkeypatch.setattr(bench, "timed", timed)
    result = bench.measure_packing({"chats": documents([5, 5, 10])}, BOS, bench.Config(seq_len=8, rounds=3))["chats"]
    assert turns[:9] == ["ours", "scan", "tuned scan", "scan", "tuned scan", "ours", "tuned scan", "ours", "scan"]
    assert (result["ours"]["tokens_per_cpu_s"], result["ours"]["tokens_per_s"]) == (20 / 2, 20 / 200)
    assert (result["ours_vs_scan"], result["ours_vs_tuned_scan"]) == (20, 5)


def test_one_epoch_counts_the_positions_in_use_of_all_ranks(bench):
    class Stub:
        rows, T, utilisation = 8, 10, 0.5

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

        def __iter__(self):
            return iter([type("Batch", (), {"state": {"epoch": e}})() for e in (0, 0, 1, 1)])

    assert bench.one_epoch(Stub) == 3 * 8 * 10 * 0.5


def test_windows_hold_all_documents_in_order(bench):
    given = documents([5, 40, 1, 1, 1, 30])
    made = list(bench.windows(given, 40))
    assert [len(w) for w in made] == [2, 4] and [d for w in made for d in w] == given


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"seq_len": 1}, {"buffer": 0}, {"packing_megabytes": 0}])
def test_impossible_settings(bench, wrong):
    with pytest.raises(UserError):
        bench.main(bench.Config(**wrong))
