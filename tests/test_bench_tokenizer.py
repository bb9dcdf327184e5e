"""bench/tokenizer.py from end to end on a few kilobytes, its arithmetic, and that it sees a difference where one is.

Without the rivals' own environment (that would need the network): tiktoken and tokenizers are ours too, and our own
rustbpe stands in for rustbpe 0.1.0.
"""

import base64
import importlib
import json
import sys
from pathlib import Path

import pytest

from nanochat.common import UserError
from tests.helpers import TEXT, write_corpus

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built (no Rust toolchain)")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built: only its source folder is here", allow_module_level=True)


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module: it is a script, and finds its helpers beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    monkeypatch.delenv("NANOCHAT_TEST_DATA", raising=False)
    module = importlib.import_module("tokenizer")
    here = dict.fromkeys(("ours", "rustbpe", "tokenizers", "tiktoken", "tiktoken-numpy"), sys.executable)
    monkeypatch.setattr(module, "interpreters", lambda rivals: here)
    return module


@pytest.fixture
def small_bench(bench, tmp_path):
    """A `Bench` over a page of text, with ranks of 300 tokens at hand."""
    texts = bench.write_texts(tmp_path / "texts", TEXT)
    config = bench.Config(megabytes=1, vocab_sizes=(300,), rounds=1, hf_megabytes=1)
    made = bench.Bench(config, bench.interpreters(()), texts, tmp_path)
    made.work("ours", "train", vocab_size=300, out=str(made.ranks("ours", 300)))
    return made


def test_end_to_end(bench, tmp_path, capsys):
    data = write_corpus(tmp_path / "data")
    bench.main(bench.Config(data=str(data), megabytes=0.01, vocab_sizes=(300,), rounds=2, hf_rounds=1,
                            hf_megabytes=0.005, check_megabytes=0.02))
    *before, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["mismatches"] == 0
    assert [what.split(", ")[-1] for what in figures["mismatches_in"]] == ["rustbpe", "tokenizers", "tiktoken"]
    for name in ("train_vs_rustbpe", "train_vs_hf", "encode_vs_tiktoken", "encode_vs_hf"):
        assert figures[name] > 0 and figures[name + "_wall"] > 0
    assert figures["counting_mb_per_cpu_s"] > 0
    rounds = {(m["task"], m["vocab_size"], m["rival"]): m["rounds"] for m in figures["measurements"]}
    trained = {("train", size, who): 1 if who == "tokenizers" else 2
               for size in (256, 300) for who in ("ours", "rustbpe", "tokenizers")}
    encoded = {("encode", 300, who): 1 if who == "tokenizers" else 2
               for who in ("ours", "tiktoken", "tiktoken-numpy", "tokenizers")}
    assert rounds == trained | encoded
    assert any("split and count" in line for line in before)
    assert list((tmp_path / "nanochat_base" / "bench").iterdir()) == []  # nothing is left behind


def test_the_order_rotates(small_bench):
    for round, first in enumerate(["ours", "rustbpe", "tokenizers", "ours"]):
        small_bench.config.rounds = small_bench.config.hf_rounds = 4
        assert [key.rival for key in small_bench.keys(round) if key.task == "train"][0] == first


def test_other_merges_are_counted(small_bench):
    lines = small_bench.ranks("ours", 300).read_bytes().splitlines(keepends=True)
    lines[256], lines[257] = lines[257], lines[256]
    small_bench.ranks("rustbpe", 300).write_bytes(b"".join(lines[:-1]))  # two changed places, one is missing
    small_bench.config.rivals = ("rustbpe",)
    assert small_bench.mismatches() == {"merges of 300, rustbpe": 3}


def test_other_ids_are_counted(small_bench, monkeypatch):
    ranks, right = small_bench.ranks("ours", 300), small_bench.work
    assert small_bench.different_documents("tiktoken", small_bench.texts, ranks, r"\S+|\s") == 0
    monkeypatch.setattr(small_bench, "work", lambda rival, task, **job: right(
        rival, task, **job | ({"pattern": "[a-z ]+|."} if rival == "tiktoken" else {})))
    assert 0 < small_bench.different_documents("tiktoken", small_bench.texts, ranks, r"\S+|\s") <= len(TEXT)


def test_a_worker_that_fails_says_why(small_bench):
    with pytest.raises(UserError, match="(?s)measurement of tiktoken .encode. failed.*No such file"):
        small_bench.work("tiktoken", "encode", ranks="nowhere")


def test_tokenizer_json_has_the_same_vocabulary(bench, small_bench):
    from tokenizers import Tokenizer

    path = small_bench.ranks("ours", 300)
    bench.write_tokenizer_json(path)
    tokens = [base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()]
    loaded = Tokenizer.from_file(f"{path}.json")
    assert loaded.get_vocab_size() == len(tokens) == 300
    ids = loaded.encode(TEXT[0], add_special_tokens=False).ids
    assert b"".join(tokens[i] for i in ids).decode("utf-8") == TEXT[0] and len(ids) < len(TEXT[0])


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"megabytes": 0}, {"vocab_sizes": ()}, {"vocab_sizes": (256,)}, {"hf_megabytes": -1}]
)
def test_impossible_settings(bench, wrong):
    with pytest.raises(UserError):
        bench.main(bench.Config(**wrong))


def test_the_default_data(bench, monkeypatch):
    assert bench.source("") == ("pocket", "pocket")
    assert bench.source("mine") == ("mine", "mine")
    monkeypatch.setenv("NANOCHAT_TEST_DATA", "/data")
    assert bench.source("")[0] == "/data/corpus"
    assert bench.source("pocket") == ("pocket", "pocket")


def test_the_arithmetic(bench):
    """Medians of the rounds; merging by difference; the worst vocabulary; the best tiktoken; seconds per byte."""
    def cost(*cpu, bytes=10_000_000):
        same = {"peak": 5e6, "growth": None, "bytes": bytes}
        return [{"cpu": c, "wall": c / 2, "cpu_in_all": c + 1, **same} for c in cpu]

    results = {
        bench.Key("train", 256, "ours"): cost(1.0, 9.0, 1.0), bench.Key("train", 256, "rustbpe"): cost(10.0),
        bench.Key("train", 300, "ours"): cost(2.0), bench.Key("train", 300, "rustbpe"): cost(14.0),
        bench.Key("train", 400, "ours"): cost(3.0), bench.Key("train", 400, "rustbpe"): cost(15.0),
        bench.Key("encode", 300, "ours"): cost(1.0),
        bench.Key("encode", 300, "tiktoken"): cost(12.0), bench.Key("encode", 300, "tiktoken-numpy"): cost(9.0),
        bench.Key("encode", 300, "tokenizers"): cost(8.0, bytes=2_000_000),
    }
    figures = bench.summary(results, (300, 400))
    assert figures["counting_mb_per_cpu_s"] == 10
    assert figures["counting_vs_rustbpe"] == 10
    assert figures["train_vs_rustbpe"] == figures["train_vs_rustbpe_wall"] == 5
    assert figures["vocab_sizes"]["300"]["train_vs_rustbpe"] == 7
    assert figures["merging_vs_rustbpe"] == 2.5  # 5 / 2, not 4 / 1
    assert figures["encode_vs_tiktoken"] == 9
    assert figures["encode_vs_tiktoken_in_all"] == 5
    assert figures["encode_vs_hf"] == 40
    assert figures["train_vs_hf"] is None
    assert figures["peak_memory_vs_rustbpe"] == 1
