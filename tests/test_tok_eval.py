"""tok_eval: honest figures, what is absent is said to be absent, a table and a picture in the report card.

Run: python -m pytest tests/test_tok_eval.py        (NANOCHAT_TEST_DATA=FOLDER: with the published vocabularies)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import tiktoken

from nanochat.report import Report
from nanochat.sample_texts import SAMPLES
from nanochat.tokenizer import SPECIAL_TOKENS, HuggingFaceTokenizer, RustBPETokenizer, split_pattern
from scripts import tok_eval

TEST_DATA = os.environ.get("NANOCHAT_TEST_DATA")
needs_vectors = pytest.mark.skipif(not TEST_DATA, reason="NANOCHAT_TEST_DATA is not set")
SCRIPTS = {"Cyrillic": "CYRILLIC", "Greek": "GREEK", "Chinese": "CJK", "Japanese": ("HIRAGANA", "KATAKANA", "CJK"),
           "Korean": "HANGUL", "Arabic": "ARABIC", "Hindi": "DEVANAGARI"}


@pytest.fixture(scope="module")
def trained() -> RustBPETokenizer:
    return HuggingFaceTokenizer.train_from_iterator(["the cat sat on the mat " * 9, *SAMPLES.values()], 400)


@pytest.fixture
def base(tmp_path, monkeypatch, trained) -> Path:
    """A base folder with a tokenizer; text; no published ranks anywhere."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NANOCHAT_TEST_DATA", raising=False)
    trained.save(tmp_path / "base" / "tokenizer")
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(f"Note {i}: the cat sat, naïve 🐈.\n", encoding="utf-8")
    return tmp_path


def fill_cache(folder: Path, name: str) -> Path:
    """Put the published files where tiktoken keeps what it has downloaded; the path of the last."""
    folder.mkdir(exist_ok=True)
    for address in tok_eval.PUBLISHED[name].sha256:
        file = folder / hashlib.sha1((tok_eval.BLOBS + address).encode("ascii")).hexdigest()
        shutil.copyfile(Path(TEST_DATA) / "tokenizer_vectors" / address.split("/")[-1], file)
    return file


# --------------------------------------------------------------------------- the samples


def test_samples_are_paragraphs_in_normal_form():
    for label, text in SAMPLES.items():
        assert 600 <= len(text.encode("utf-8")) <= 1500, label
        assert unicodedata.is_normalized("NFC", text), label
    assert {"English", "Python", "C", "HTML", "numbers", "LaTeX", "emoji", *SCRIPTS} == set(SAMPLES)


@pytest.mark.parametrize(("label", "script"), SCRIPTS.items())
def test_a_sample_is_written_in_its_script(label, script):
    letters = [c for c in SAMPLES[label] if c.isalpha()]
    assert all(unicodedata.name(c).startswith(script) for c in letters), label


# --------------------------------------------------------------------------- the figures


def test_bytes_are_utf8_and_tokens_are_counted_one_by_one(trained):
    bytes_only = RustBPETokenizer({bytes([b]): b for b in range(256)}, split_pattern(), {})
    parts = ["naïve", "水", "🐈", ""]
    results = tok_eval.measure({"x": parts}, {"ours": trained, "bytes": bytes_only})
    assert results["x"]["bytes"] == 6 + 3 + 4
    assert results["x"]["tokens"] == {"ours": sum(len(trained.encode(p)) for p in parts), "bytes": 13}


def test_a_tokenizer_that_loses_text_is_not_measured(trained):
    class Loses(RustBPETokenizer):
        def decode_bytes(self, ids):
            return super().decode_bytes(ids)[:-1]

    lossy = Loses(dict(trained._ranks), trained.pattern, {})
    with pytest.raises(RuntimeError, match="tokenizer theirs does not give the text 'x' back"):
        tok_eval.measure({"x": ["cat"]}, {"ours": trained, "theirs": lossy})


def test_table_and_bars_hold_the_same_figures():
    results = {"A": {"bytes": 400, "tokens": {"ours": 100, "GPT-2": 125}},
               "B": {"bytes": 90, "tokens": {"ours": 45, "GPT-2": 30}}}
    table = tok_eval.comparison_table(results, "title", ["One.", "Two."])
    assert list(table["columns"]) == ["text", "bytes", "ours", "GPT-2", "vs GPT-2"]
    assert table["rows"][0] == ["A", 400, 4.0, 3.2, 0.25]  # a token of ours holds a quarter more
    assert table["rows"][1][:4] == ["B", 90, 2.0, 3.0] and table["rows"][1][4] == pytest.approx(-1 / 3)
    assert table["note"] == "One. Two."
    bars = tok_eval.comparison_bars(results, "title")
    assert bars["groups"] == ["A", "B"]
    assert bars["series"] == {"ours": [4.0, 2.0], "GPT-2": [3.2, 3.0]}


# --------------------------------------------------------------------------- the stage and its part of the card


def widest(printed: str) -> int:
    """Characters of the longest line, those that name this test's folder aside: pytest chooses how long that is."""
    return max(len(line) for line in printed.splitlines() if not line.startswith("converting "))


def test_absent_vocabularies_are_said_to_be_absent(base, capsys):
    tok_eval.main(tok_eval.Config(data=str(base / "text")))
    absent = "Absent: not compared with GPT-2, GPT-4, GPT-4o"
    printed = capsys.readouterr().out
    assert absent in printed
    assert widest(printed) <= 120 and "…" not in printed

    report = Report(base / "base" / "report")
    card = report.generate()["stages"]["tok_eval"]
    assert list(card["compression"]) == ["validation", *SAMPLES]
    for row in card["compression"].values():
        assert list(row["tokens"]) == ["ours"] and 1 <= row["bytes"] / row["tokens"]["ours"] < 10
    assert card["not_compared_with"] == ["GPT-2", "GPT-4", "GPT-4o"]
    assert card["validation_bytes_per_token"] > 1
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert absent in markdown and "| text | bytes | ours |\n" in markdown and "pocket" not in markdown
    assert f"Vocabularies without special tokens: ours {400 - len(SPECIAL_TOKENS)}." in markdown
    english = f"| English | {len(SAMPLES['English'].encode('utf-8'))} | "
    assert english in markdown
    assert "![tok_eval](tok_eval_compression_bars.png)" in markdown
    assert (report.folder / "tok_eval_compression_bars.png").read_bytes().startswith(b"\x89PNG")


def test_figures_from_the_pocket_world_say_so(base, monkeypatch):
    monkeypatch.setattr(tok_eval, "text_iterator", lambda *a, **k: iter(["the cat"]))  # generating it takes a while
    tok_eval.main(tok_eval.Config())
    Report(base / "base" / "report").generate()
    markdown = (base / "base" / "report" / "report.md").read_text(encoding="utf-8")
    assert "## tok_eval (pocket)" in markdown and "| validation (pocket) | 7 | " in markdown
    assert "| English (pocket)" not in markdown


@needs_vectors
def test_published_vocabularies_are_in_the_card(base, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_TEST_DATA", TEST_DATA)
    tok_eval.main(tok_eval.Config(data=str(base / "text")))
    printed = capsys.readouterr().out
    assert "Absent" not in printed and widest(printed) <= 120 and "…" not in printed
    report = Report(base / "base" / "report")
    card = report.generate()["stages"]["tok_eval"]
    assert card["not_compared_with"] == []
    for row in card["compression"].values():
        assert list(row["tokens"]) == ["ours", "GPT-2", "GPT-4", "GPT-4o"]
    tokens = card["compression"]["Hindi"]["tokens"]
    assert tokens["GPT-2"] > tokens["GPT-4"] > tokens["GPT-4o"]  # what each later one was made to be better at
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "| text | bytes | ours | GPT-2 | vs GPT-2 | GPT-4 | vs GPT-4 | GPT-4o | vs GPT-4o |" in markdown
    assert "Absent" not in markdown and "GPT-2 50,256, GPT-4 100,256, GPT-4o 199,998." in markdown


# --------------------------------------------------------------------------- where the published ones come from


@needs_vectors
def test_folder_and_tiktokens_cache_give_the_same(base, monkeypatch):
    fill_cache(base / "cache", "GPT-2")
    fill_cache(base / "cache", "GPT-4")
    cached = tok_eval.published_tokenizers()
    assert list(cached) == ["GPT-2", "GPT-4"]
    monkeypatch.setenv("NANOCHAT_TEST_DATA", TEST_DATA)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    from_folder = tok_eval.published_tokenizers()
    assert list(from_folder) == ["GPT-2", "GPT-4", "GPT-4o"]
    for name, tokenizer in cached.items():
        for text in SAMPLES.values():
            assert tokenizer.encode(text) == from_folder[name].encode(text)


@needs_vectors
def test_nothing_damaged_or_half_there_is_used_or_fetched(base, monkeypatch):
    """tiktoken answers a damaged or missing file with a download: it must not even be asked."""
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail(f"tiktoken was asked for {name}"))
    fill_cache(base / "cache", "GPT-2").unlink()  # one of its two files
    file = fill_cache(base / "cache", "GPT-4")
    file.write_bytes(file.read_bytes().replace(b"IQ== 0", b"IQ== 1", 1))
    folder = base / "test_data" / "tokenizer_vectors"
    folder.mkdir(parents=True)
    (folder / "patterns.json").write_text("{}", encoding="utf-8")
    (folder / "o200k_base.tiktoken").write_bytes(b"IQ== 0\n")
    monkeypatch.setenv("NANOCHAT_TEST_DATA", str(base / "test_data"))
    assert tok_eval.published_tokenizers() == {}
    assert file.exists()


def test_a_cache_that_is_turned_off_is_not_used(base, monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail(f"tiktoken was asked for {name}"))
    monkeypatch.setattr(tok_eval, "_holds", lambda path, sha256: True)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(base))  # tiktoken does not look here either then
    assert tok_eval.published_tokenizers() == {}
