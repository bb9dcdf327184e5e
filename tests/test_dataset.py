"""Where text comes from: every kind of file, every way one can be broken, and a validation split that stays put."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import dataset, documents, hub, sources
from nanochat.common import UserError
from nanochat.dataset import (
    Config,
    chosen_data,
    corpus,
    data_dir,
    download_single_file,
    dry_run,
    list_parquet_files,
    on_hub,
    parquets_iter_batched,
    prepare,
    read_unit,
    text_iterator,
)
from nanochat.documents import build_once, split_long_text
from nanochat.manifest import load_manifest, locked, looks_the_same
from nanochat.sources import FINEWEB_EDU, Source, in_reading_order, parse_source
from tests.hub_mirror import Fault, Mirror

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def base_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "texts").mkdir()
    return tmp_path / "texts"


def write_parquet(path: Path, texts: list, group: int = 5, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path, row_group_size=group)
    return path


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def numbered(a: int, b: int) -> list[str]:
    return [f"document number {i}" for i in range(a, b)]


def texts_of(folder: Path | str, split: str) -> list[str]:
    return [t for unit in corpus(folder).units(split) for t in read_unit(unit)]


# --------------------------------------------------------------------------- every kind of file


def test_nested_files_of_all_kinds_all_arrive_once(folder):
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/one.txt").write_text("a text of one file, naïve 日本", encoding="utf-8")
    (folder / "a/b/two.md").write_bytes(b"\xef\xbb\xbf# with a byte order mark")
    rows = [json.dumps({"text": t}) for t in numbered(0, 30)]
    (folder / "three.jsonl").write_text("\n".join([*rows, "", json.dumps({"text": " "})]), encoding="utf-8")
    write_parquet(folder / "a/four.parquet", [*numbered(80, 180), None, ""])  # 21 row groups: read in place
    write_parquet(folder / "five.parquet", numbered(30, 80), group=100)  # one: its documents are split instead
    (folder / ".hidden.txt").write_text("not me", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    train, val = texts_of(folder, "train"), texts_of(folder, "val")
    assert sorted(train + val) == sorted(
        [*numbered(0, 180), "a text of one file, naïve 日本", "# with a byte order mark"])
    assert train and val


def test_a_corpus_subfolder_is_the_corpus(folder):
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k/train.jsonl").write_text('{"question": "no text here"}', encoding="utf-8")
    write_parquet(folder / "corpus/x.parquet", numbered(0, 100))
    assert len(texts_of(folder, "train")) == 95


def test_text_iterator_caps_documents_and_total(folder):
    write_parquet(folder / "x.parquet", ["abcdefghij" * 3] * 100)
    texts = list(text_iterator(folder, "train", max_chars=100, doc_cap=7))
    assert texts == ["abcdefg"] * 15
    assert len(list(text_iterator(folder, "val"))) == 5


def test_text_iterator_samples_the_whole(folder):
    write_parquet(folder / "x.parquet", numbered(0, 200))
    sample, whole = list(text_iterator(folder)), texts_of(folder, "train")
    assert sorted(sample) == sorted(whole) and sample[:50] != whole[:50]


def test_seed_names(folder):
    files = [write_parquet(folder / f"{i}.parquet", numbered(50 * i, 50 * i + 50)) for i in range(2)]
    assert list_parquet_files(folder) == files
    whole = list(parquets_iter_batched("train", data=folder))
    shared = [list(parquets_iter_batched("train", start=r, step=3, data=folder)) for r in range(3)]
    assert len(whole) == 19 and all(shared[i % 3][i // 3] == whole[i] for i in range(19))


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 20))
def test_split_text_is_whole(text, limit):
    pieces = list(split_long_text(text, limit))
    assert "".join(pieces) == text or not text[len("".join(pieces)):].strip()  # a blank end may go
    assert all(0 < len(p) <= limit for p in pieces)


def test_one_book_is_many_documents(folder):
    lines = [f"line {i} of the book\n" for i in range(10_000)]
    (folder / "book.txt").write_text("".join(lines), encoding="utf-8")
    train, val = texts_of(folder, "train"), texts_of(folder, "val")
    assert len(train) > 5 and 0 < len(val) <= len(train) / 5
    assert sorted("".join(train + val).splitlines(keepends=True)) == sorted(lines)  # no line is cut in two


# --------------------------------------------------------------------------- the split


def test_validation_never_moves_when_files_are_added(folder):  # trap: val-moves
    write_parquet(folder / "m.parquet", numbered(0, 100))
    (folder / "m.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in numbered(100, 300)), encoding="utf-8")
    val, fingerprint = texts_of(folder, "val"), corpus(folder).fingerprint
    train = set(texts_of(folder, "train"))
    assert len(val) == 5 + 20 and not train & set(val)
    write_parquet(folder / "a.parquet", numbered(300, 400))
    write_parquet(folder / "z.parquet", numbered(400, 500))
    (folder / "0.txt").write_text("one more", encoding="utf-8")
    copies = "\n".join(json.dumps({"text": t}) for t in numbered(100, 300))
    (folder / "copies.jsonl").write_text(copies, encoding="utf-8")  # of validation documents too
    prepare(folder)
    assert sorted(texts_of(folder, "val")) == sorted(val)
    after = texts_of(folder, "train")
    assert set(after) == train | set(numbered(300, 500)) | {"one more"} and not set(after) & set(val)
    assert corpus(folder).fingerprint != fingerprint


def test_the_split_is_the_same_on_another_machine(folder, tmp_path, monkeypatch):
    write_parquet(folder / "x.parquet", numbered(0, 200))
    (folder / "y.txt").write_text("word " * 200_000, encoding="utf-8")
    first = corpus(folder)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    second = corpus(folder)
    assert second.fingerprint == first.fingerprint and second.manifest != first.manifest
    assert [(u.path.name, u.row_group) for u in second.val] == [(u.path.name, u.row_group) for u in first.val]


def test_one_shard_leaves_text_to_train_on(folder):  # trap: one-shard
    for group in (5, 50, 100, 1000):  # each time as if for the first
        write_parquet(folder / "only.parquet", numbered(0, 100 + group), group=group)
        train, val = texts_of(folder, "train"), texts_of(folder, "val")
        assert len(train) + len(val) == 100 + group and 0 < len(val) <= 20
        corpus(folder).manifest.unlink()


def test_two_documents_are_enough_and_one_is_not(folder):
    (folder / "a.txt").write_text("first", encoding="utf-8")
    with pytest.raises(UserError, match="one document only"):
        corpus(folder)
    (folder / "b.txt").write_text("first", encoding="utf-8")  # a copy is not a second one
    with pytest.raises(UserError, match="one document only"):
        corpus(folder)
    (folder / "b.txt").write_text("second", encoding="utf-8")
    assert {*texts_of(folder, "train"), *texts_of(folder, "val")} == {"first", "second"}


def test_validation_text_that_comes_again_is_no_training_text(folder):
    """Pinned row groups of a file read in place; their documents stand in files that are converted, too."""
    write_parquet(folder / "x.parquet", numbered(0, 300))
    write_jsonl(folder / "first.jsonl", numbered(300, 400))
    val, train = set(texts_of(folder, "val")), set(texts_of(folder, "train"))
    assert any(u.path.name == "x.parquet" for u in corpus(folder).val) and not val & train
    assert val | train == set(numbered(0, 400))
    write_jsonl(folder / "later.jsonl", numbered(0, 500))
    prepare(folder)
    assert not val & set(texts_of(folder, "train")) and set(texts_of(folder, "train")) | val == set(numbered(0, 500))
    away = (folder / "x.parquet").rename(folder / "x.away")
    write_jsonl(folder / "third.jsonl", numbered(0, 600))
    with pytest.raises(UserError, match="is gone or changed"):
        prepare(folder)
    away.rename(folder / "x.parquet")  # what was converted while it was gone is not used
    prepare(folder)
    assert not val & set(texts_of(folder, "train")) and set(texts_of(folder, "val")) == val


def test_text_may_be_pinned_in_two_ways(folder):
    write_parquet(folder / "x.parquet", numbered(0, 300))
    made = corpus(folder)
    write_jsonl(folder / "x.jsonl", read_unit(made.val[0]))
    made.manifest.unlink()
    assert set(texts_of(folder, "val")) == set(read_unit(made.val[0])) and len(texts_of(folder, "train")) == 295


@pytest.mark.parametrize(("first", "then"), [("corpus", "texts"), ("texts", "corpus")])
def test_a_corpus_subfolder_that_comes_or_goes_is_told(folder, first, then):
    inner = folder / "corpus"
    write_jsonl(folder / "a.jsonl", numbered(0, 100))
    if first == "corpus":
        write_jsonl_in(inner)
    made = corpus(folder)
    assert made.folder.name == first
    if first == "corpus":
        away = inner.rename(folder / "away")
    else:
        write_jsonl_in(inner)
    message = rf"/{first} was taken in for .*/texts, which now means .*/{then}: rename or put back .*/corpus, or delete"
    for use in (corpus, prepare):
        with pytest.raises(UserError, match=rf"{message} {made.manifest} .then a new validation"):
            use(folder)
    if first == "corpus":
        away.rename(inner)
    else:
        inner.rename(folder / ".corpus")
    assert corpus(folder) == made


def write_jsonl_in(folder: Path) -> None:
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", numbered(100, 200))


def test_the_smallest_hashes_of_many_documents_are_pinned(folder, monkeypatch):
    monkeypatch.setattr("nanochat.split.MAX_VAL_DOCUMENTS", 7)
    texts = numbered(0, 1000)
    write_jsonl(folder / "x.jsonl", texts)
    smallest = sorted(map(documents.document_hash, texts))[:7]
    assert sorted(map(documents.document_hash, texts_of(folder, "val"))) == smallest


def test_lost_validation_text_is_named(folder):
    write_parquet(folder / "x.parquet", numbered(0, 100))
    pinned = corpus(folder).val[0].path
    write_parquet(folder / "y.parquet", numbered(100, 200))
    prepare(folder)
    pinned.rename(folder / "renamed.parquet")  # same content: still the validation text
    prepare(folder)
    assert len(texts_of(folder, "val")) == 5
    (folder / "renamed.parquet").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="validation text of .* is gone or changed .*x.parquet"):
            prepare(folder)
    (folder / "x.parquet").write_bytes(b"PAR1 something else PAR1")
    with pytest.raises(UserError, match="missing renamed.parquet, extra x.parquet"):
        corpus(folder)


def test_a_lost_validation_document_is_told(folder):
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"text number {i}", encoding="utf-8")
    [[lost, *others]] = [texts_of(folder, "val")]
    (folder / f"{lost.split()[-1]}.txt").unlink()
    with pytest.raises(UserError, match=rf"is gone or changed \(1 of {1 + len(others)} documents\).*pin a new split"):
        prepare(folder)


def test_a_folder_without_training_text_is_refused(folder):
    write_jsonl(folder / "x.jsonl", numbered(0, 100))
    write_jsonl(folder / "x.jsonl", texts_of(folder, "val"))
    with pytest.raises(UserError, match="leaves no training text beside the validation split"):
        prepare(folder)


def test_conversion_happens_once_and_again_after_a_change(folder, capsys):
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in numbered(0, 50)), encoding="utf-8")
    first = corpus(folder)
    assert corpus(folder) == first
    assert capsys.readouterr().out.count("converting") == 1
    (folder / "b.txt").write_text("more", encoding="utf-8")
    second = prepare(folder)
    (folder / "b.txt").write_text("something else", encoding="utf-8")
    assert len({first.fingerprint, second.fingerprint, prepare(folder).fingerprint}) == 3
    assert "something else" in texts_of(folder, "train") and "more" not in texts_of(folder, "train")
    assert capsys.readouterr().out.count("converting") == 2


def age(path: Path, days: int) -> None:
    os.utime(path, (time.time() - days * 86400,) * 2)


def test_conversions_that_somebody_may_read_are_kept(folder):
    """A run asks for its corpus once and reads it for weeks, whatever is taken in meanwhile."""
    made = []
    for i in range(5):
        write_jsonl(folder / f"{i}.jsonl", numbered(i * 40, i * 40 + 40))
        made.append(prepare(folder))
    before = [[read_unit(unit) for unit in one.train] for one in made]
    folders = [one.files[0].path.parent for one in made]
    assert len(set(folders)) == 5 and all(path.is_dir() for path in folders)
    for path in folders[2:]:
        age(path, 31)
    age(folders[1], 29)
    assert corpus(folder) == made[-1]  # by which it is in use, and no longer old
    write_jsonl(folder / "5.jsonl", numbered(200, 240))
    prepare(folder)
    assert [path.is_dir() for path in folders] == [True, True, False, False, True]
    assert [[read_unit(unit) for unit in made[i].train] for i in (0, 1, 4)] == [before[i] for i in (0, 1, 4)]
    kept = {path.name.removesuffix(".lock") for path in made[0].manifest.parent.glob("shards-*")}
    assert kept == set(load_manifest(made[0].manifest).converted) and len(kept) == 4
    with pytest.raises(UserError, match=r"shards-.*parquet is gone: run the same command again, which makes"):
        read_unit(made[2].train[0])
    (folder / "x.parquet").unlink(missing_ok=True)
    with pytest.raises(UserError, match="x.parquet: not a readable parquet"):  # of one's own: nobody makes it again
        read_unit(dataset.Unit(folder / "x.parquet", 0, 1, 1))


def test_large_row_groups_are_rewritten(folder, monkeypatch):
    monkeypatch.setattr("nanochat.split.MAX_ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(documents, "GROUP_ROWS", 16)
    monkeypatch.setattr(documents, "SHARD_CHARS", 1000)
    write_parquet(folder / "x.parquet", numbered(0, 1000), group=40)  # 25: enough to be read in place
    made = corpus(folder)
    assert len(made.files) > 3 and max(u.rows for u in made.train) <= 16
    assert len(texts_of(folder, "train")) + len(texts_of(folder, "val")) == 1000


# --------------------------------------------------------------------------- bad input


def broken(path: Path) -> None:
    path.write_bytes(b"PAR1 this is not parquet PAR1")


def truncated(path: Path) -> None:
    write_parquet(path, numbered(0, 100))
    path.write_bytes(path.read_bytes()[:-20])


CASES = {
    "broken": ("x.parquet", broken, "x.parquet: not a readable parquet file"),
    "truncated": ("x.parquet", truncated, "x.parquet: not a readable parquet file"),
    "no bytes": ("x.parquet", lambda p: p.write_bytes(b""), "x.parquet: not a readable parquet file"),
    "no column": ("x.parquet", lambda p: write_parquet(p, ["a"], column="b"), r"no column named 'text' \(it has b"),
    "not strings": ("x.parquet", lambda p: write_parquet(p, [1, 2]), "column 'text' holds int64"),
    "latin-1": ("x.txt", lambda p: p.write_bytes(b"Stra\xdfe"), r"x.txt: not UTF-8 at byte 4 \(0xdf\)"),
    "latin-1 line": ("x.jsonl", lambda p: p.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}'), "x.jsonl:2: not UTF-8"),
    "bad json": ("x.jsonl", lambda p: p.write_bytes(b'{"text": "a"}\n\n{"text" "b"}'), "x.jsonl:3: not valid JSON"),
    "no text": ("x.jsonl", lambda p: p.write_bytes(b'{"txt": "a"}'), 'x.jsonl:1: not an object with a "text" string'),
    "a number": ("x.jsonl", lambda p: p.write_bytes(b'{"text": 7}'), "x.jsonl:1: not an object"),
    "a list": ("x.jsonl", lambda p: p.write_bytes(b"[1]"), "x.jsonl:1: not an object"),
    "half a pair": ("x.jsonl", lambda p: p.write_bytes(rb'{"text": "\ud800"}'), "x.jsonl:1: text holds a lone"),
    "deep": ("x.jsonl", lambda p: p.write_bytes(b"[" * 100_000), "x.jsonl:1"),
    "blank": ("x.txt", lambda p: p.write_bytes(b" \n"), "hold no text"),
    "no files": ("x.png", lambda p: p.write_bytes(b""), "no .txt, .md, .jsonl, .parquet file below"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_files_are_named(case, folder, base_dir):
    name, make, message = CASES[case]
    make(folder / name)
    for _ in range(2):  # a failure must leave nothing behind that a second try takes for good
        with pytest.raises(UserError, match=message):
            corpus(folder)
    assert not list(base_dir.rglob("*.parquet"))


def test_a_parquet_row_that_is_not_utf8_is_named(folder):
    raw = pa.array([b"fine"] * 25 + [b"caf\xe9"] + [b"fine"] * 74, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"text": text}), folder / "x.parquet", row_group_size=4)
    with pytest.raises(UserError, match=r"x.parquet: document 1 of row group 6 is not UTF-8 at byte 3"):
        texts_of(folder, "train") + texts_of(folder, "val")


def test_missing_and_empty_folders(folder, tmp_path):
    for where, message in ((tmp_path / "nowhere", "does not exist"), (folder, "is empty")):
        with pytest.raises(UserError, match=message):
            data_dir(where)
    (folder / "x.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        data_dir(folder / "x.txt")
    with pytest.raises(UserError, match="split 'test' is unknown"):
        write_parquet(folder / "x.parquet", numbered(0, 100)) and corpus(folder).units("test")


# --------------------------------------------------------------------------- once, whole, and one at a time


def test_build_once_leaves_nothing_half_made(tmp_path):
    def dies(folder: Path) -> None:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        build_once(tmp_path / "made", dies)
    assert not list(tmp_path.glob(".made-*"))
    (tmp_path / ".made-stale").mkdir()  # as a killed process leaves it
    made = build_once(tmp_path / "made", lambda folder: (folder / "x").write_text("x", encoding="utf-8"))
    assert [p.name for p in made.iterdir()] == ["x"] and not list(tmp_path.glob(".made-*"))
    assert made.stat().st_mode & 0o777 == 0o755  # as readable as any other folder
    assert build_once(tmp_path / "made", dies) == made  # it is there: nothing is filled again


def test_full_disk_is_one_line(tmp_path):
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no space left to make"):
        build_once(tmp_path / "made", fill)


def _make_corpus(folder: str, out) -> None:
    try:
        out.put(corpus(folder).fingerprint)
    except BaseException as e:
        out.put(repr(e))


def test_processes_at_once_agree(folder):
    """Some prepare the folder, the others wait for them; all see one corpus, and nothing is left over."""
    write_jsonl(folder / "a.jsonl", numbered(0, 5000))
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_make_corpus, args=(str(folder), out)) for _ in range(3)]
    for w in workers:
        w.start()
    assert {out.get(timeout=240) for _ in workers} == {corpus(folder).fingerprint}
    for w in workers:
        w.join(timeout=60)
    assert len(list(corpus(folder).manifest.parent.glob("shards-*/"))) == 1


def test_only_who_has_something_to_write_waits(folder, monkeypatch):
    write_parquet(folder / "x.parquet", numbered(0, 1000))
    write_jsonl(folder / "y.jsonl", numbered(1000, 1100))
    first, made = corpus(folder), []

    def start() -> threading.Thread:
        thread = threading.Thread(target=lambda: made.append(corpus(folder)), daemon=True)
        thread.start()
        return thread

    shards = next(f.path.parent for f in first.files if f.path.name.startswith("train"))
    more = folder / "z.jsonl"
    for disturb, mend in ((lambda: os.utime(folder / "x.parquet"), lambda: None),  # its stat is to be recorded
                          (lambda: shutil.rmtree(shards), lambda: None),
                          (lambda: (shards / "train-00000.parquet").write_bytes(b""), lambda: None),
                          (lambda: write_jsonl(more, numbered(0, 9)), more.unlink)):  # who has the lock may take it in
        made.clear()
        with locked(first.manifest):
            start().join(timeout=20)
            assert made == [first]  # it is ready
            disturb()
            there = {path: path.stat().st_size for path in shards.glob("*")}
            second = start()
            second.join(timeout=0.1)
            assert second.is_alive()  # and nothing is made meanwhile
            assert {path: path.stat().st_size for path in shards.glob("*")} == there
            mend()
        second.join(timeout=60)
        assert made == [first, first]
    before = first.manifest.stat()
    assert corpus(folder) == prepare(folder) == first
    monkeypatch.chdir(folder.parent)
    assert corpus(Path(folder.name)).fingerprint == first.fingerprint
    assert first.manifest.stat().st_ino == before.st_ino  # with nothing new to say it is not written


def test_what_is_ready_is_read_where_nothing_can_be_written(mirror, folder):
    write_jsonl(folder / "x.jsonl", numbered(0, 1000))
    for data in (folder, f"{HUB}:2"):
        made = corpus(data)
        lock = made.manifest.with_suffix(".lock")
        lock.unlink()
        lock.mkdir()  # for root no folder is read-only; a lock that cannot be had does the same
        for path in made.manifest.parent.glob("shards-*/"):
            age(path, 31)
        assert corpus(data) == made and list(text_iterator(data))
        os.utime(made.folder / ("x.jsonl" if data == folder else "s1.parquet"))
        with pytest.raises(UserError, match="cannot write to .*: set NANOCHAT_BASE_DIR to a folder where you can"):
            corpus(data)


def _full(*arguments) -> None:
    raise OSError(28, "No space left on device")


def test_places_that_cannot_be_written_are_one_line(base_dir, folder, monkeypatch):
    base_dir.mkdir()
    for name in ("hub_data", "pocket_data", "datasets"):
        (base_dir / name).write_text("in the way", encoding="utf-8")
    write_jsonl(folder / "x.jsonl", numbered(0, 30))
    for use in (lambda: data_dir("hub:me/texts"), lambda: data_dir("pocket"), lambda: corpus(folder)):
        with pytest.raises(UserError, match="cannot (create|make|write to) .*set NANOCHAT_BASE_DIR to a folder") as e:
            use()
        assert "\n" not in str(e.value)
    (base_dir / "datasets").unlink()
    monkeypatch.setattr("nanochat.manifest.atomic_write", _full)
    with pytest.raises(UserError, match="cannot write to .*No space left"):
        corpus(folder)
    with pytest.raises(UserError, match="data folder ~no-such-user/x cannot be read"):
        data_dir("~no-such-user/x")
    with pytest.raises(UserError, match=r"data folder x+ (cannot be read|does not exist)"):
        data_dir("x" * 5000)


def test_a_file_that_changes_while_it_is_converted_is_told(folder, monkeypatch):
    path = write_jsonl(folder / "x.jsonl", numbered(0, 100))

    def write_shards(*arguments) -> None:
        documents.write_shards(*arguments)
        with open(path, "a", encoding="utf-8") as f:
            f.write('{"text": "one more"}\n')

    monkeypatch.setattr("nanochat.split.write_shards", write_shards)
    with pytest.raises(UserError, match="texts changed while it was converted: run it again"):
        corpus(folder)
    monkeypatch.undo()
    assert "one more" in texts_of(folder, "train") + texts_of(folder, "val")


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the suite runs in the background it is ignored
from nanochat import configurator, dataset, documents
add = documents._ShardWriter.add
def slow_add(self, text):
    add(self, text)
    if text.endswith("1500"):  # in the middle of the second row group
        print("asleep", flush=True)
        time.sleep(60)
documents._ShardWriter.add = slow_add
configurator.main(dataset.main, dataset.Config)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_while_preparing_leaves_nothing_half_made(folder, base_dir, sign):
    write_jsonl(folder / "a.jsonl", numbered(0, 3000))
    child = subprocess.Popen([sys.executable, "-c", SLOW, f"--folder={folder}"], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    assert [child.stdout.readline() for _ in range(2)][1] == b"asleep\n"
    assert list(base_dir.glob("datasets/*/.shards-*/train-*"))
    child.send_signal(sign)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == ((-9, b"") if sign == signal.SIGKILL else (130, b"interrupted\n"))
    assert not list(base_dir.glob("datasets/*/manifest.json")) + list(base_dir.glob("datasets/*/shards-*/"))
    write_jsonl(folder / "b.jsonl", numbered(3000, 3100))  # another conversion clears away, too, what that one left
    made = corpus(folder)
    assert sum(u.rows for u in [*made.train, *made.val]) == 3100
    assert not list(base_dir.rglob(".shards-*"))


def test_pocket_is_generated_once(pocket_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    made = corpus("pocket")
    assert made.train and made.val and data_dir("pocket") == data_dir("pocket")
    assert made.label == "pocket" and list_parquet_files() == [f.path for f in made.files]
    away = made.files[0].path.rename(made.folder / "away")
    with pytest.raises(UserError, match=f"missing {made.files[0].path.name}: .*delete {data_dir('pocket')} and /"):
        corpus("pocket")
    away.rename(made.files[0].path)
    assert corpus("pocket") == made


# --------------------------------------------------------------------------- names of sources


SOURCES = {
    "pocket": Source("pocket"), "my/texts": Source("my/texts"), "./hub": Source("./hub"), "hubs": Source("hubs"),
    "fineweb-edu": Source("", FINEWEB_EDU), "hub": Source("", FINEWEB_EDU), "hub:8": Source("", FINEWEB_EDU, shards=8),
    "fineweb-edu:240": Source("", FINEWEB_EDU, shards=240),
    "hub:me/my-texts": Source("", "me/my-texts"), "hub:me/t_1.0/en/a": Source("", "me/t_1.0", "en/a"),
    "hub:me/t@v2": Source("", "me/t", revision="v2"), "hub:me/t@refs/pr/1:3": Source("", "me/t", "", "refs/pr/1", 3),
    "hub:me/t/en@v2:3": Source("", "me/t", "en", "v2", 3), "hub:me/t:3": Source("", "me/t", shards=3),
}


@pytest.mark.parametrize("data", SOURCES)
def test_sources_are_understood(data):
    expected = SOURCES[data]
    assert parse_source(data) == Source(data, expected.repo, expected.under, expected.revision, expected.shards)
    assert on_hub(data) is bool(expected.repo) and not on_hub(Path(data))


@pytest.mark.parametrize("data", ["hub:", "hub:me", "hub:m/t:x", "hub:m/t@", "fineweb-edu:", "hub:m/t:-1", "hub:a b/c",
                                  "fineweb-edu:" + "9" * 5000, "hub:m/t:" + "9" * 5000, "fineweb-edu:\u0663",
                                  "hub:m/t:\u0663"])
def test_sources_that_are_not_understood_are_refused(data):
    with pytest.raises(UserError, match=f"--data={data} is not understood: give pocket, fineweb-edu"):
        corpus(data)


@pytest.mark.parametrize(("flags", "message"), [
    ({"folder": "a", "source": "hub"}, "two sources"), ({"shards": -1}, "-n -1: give the number"),
    ({"source": "my_texts"}, "no source: .* --from=my_texts"), ({"folder": "x", "shards": 3}, "-n 3 goes with a hub"),
    ({"source": "pocket", "shards": 3}, "-n 3 goes with"), ({"source": "hub:3", "shards": 4}, "two numbers"),
    ({"source": "hub:0"}, "1 training shard or more")])
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        chosen_data(Config(**flags))


def test_flags_name_a_source():
    assert chosen_data(Config())[0] == "pocket" and chosen_data(Config(shards=3))[0] == "fineweb-edu:3"
    assert chosen_data(Config(source="hub:me/t", shards=3))[0] == "hub:me/t:3"
    assert chosen_data(Config(source="hub:3", shards=3))[0] == "hub:3"
    assert chosen_data(Config(folder="hub")) == (Path("hub"), Source("./hub"))
    assert chosen_data(Config(folder="my/texts")) == (Path("my/texts"), Source("my/texts"))


@pytest.mark.parametrize("name", ["pocket", "hub", "fineweb-edu"])
def test_a_folder_may_be_called_like_a_source(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / name / "x.parquet", numbered(0, 100))
    made = prepare(name)
    assert made.label == f"./{name}" and corpus(f"./{name}") == corpus(Path(name)) == made
    assert made.folder.resolve() == tmp_path / name and not on_hub(made.label)


# --------------------------------------------------------------------------- the hub, from a mirror on loopback

REPO = "me/texts"
HUB = f"hub:{REPO}"


def shard_texts(i: int) -> list[str]:
    return numbered(1000 * i, 1000 * i + 60)


@pytest.fixture
def repo(tmp_path) -> Path:
    """Six shards of 60 documents, in row groups of 20."""
    for i in range(6):
        write_parquet(tmp_path / f"repo/s{i}.parquet", shard_texts(i), group=20)
    (tmp_path / "repo/README.md").write_text("about it", encoding="utf-8")
    return tmp_path / "repo"


@contextlib.contextmanager
def served(folder: Path, monkeypatch, name: str = REPO, **options):
    """The folder as a repository on loopback, and this process as if started with `HF_ENDPOINT` set to it."""
    from huggingface_hub import constants

    with Mirror({name: folder}, **options) as mirror:
        monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
        template = mirror.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for pause in ("BACKOFF", "BACKOFF_MAX", "RETRY_AFTER_MAX"):
            monkeypatch.setattr(hub, pause, 0.01)
        yield mirror


@pytest.fixture
def mirror(repo, monkeypatch):
    with served(repo, monkeypatch) as mirror:
        yield mirror


def offline(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_first_file_is_validation_and_the_next_n_are_training(mirror):
    for n in (2, 4, 1):
        assert texts_of(f"{HUB}:{n}", "val") == shard_texts(0)
        assert texts_of(f"{HUB}:{n}", "train") == sum((shard_texts(i) for i in range(1, n + 1)), [])
    assert [f.path.name for f in corpus(f"{HUB}:1").files] == ["s0.parquet", "s1.parquet"]


def test_the_same_name_means_the_same_text_whatever_else_is_fetched(mirror):
    before, made = list(text_iterator(f"{HUB}:2", max_chars=1500)), corpus(f"{HUB}:2")
    assert corpus(f"{HUB}:5").fingerprint != made.fingerprint
    assert list(text_iterator(f"{HUB}:2", max_chars=1500)) == before and corpus(f"{HUB}:2") == made


def test_nothing_is_fetched_once_the_corpus_is_there(mirror):  # trap: mid-run-download
    corpus(f"{HUB}:3")
    asked = len(mirror.asked)
    for split in ("train", "val"):
        assert list(text_iterator(f"{HUB}:3", split)) and list(parquets_iter_batched(split, data=f"{HUB}:2"))
    assert corpus(f"{HUB}:3", verify=True) and len(mirror.asked) == asked


def test_without_a_number_it_is_what_was_last_asked_for(mirror, capsys):
    assert len(corpus(HUB).files) == 6  # 8, or what there is
    dataset.main(Config(source=HUB, shards=2))
    assert "use it with  --data=hub:me/texts:2" in capsys.readouterr().out
    assert len(corpus(HUB).files) == 3
    dataset.main(Config(source=f"{HUB}:3"))
    assert len(corpus(HUB).files) == 4
    sources.remember(parse_source(HUB), 4)
    assert len(corpus(HUB).files) == 5
    with pytest.raises(UserError, match="ask for at most 5 training shards instead of 6"):
        sources.remember(parse_source(HUB), 6)
    assert len(corpus(HUB).files) == 5  # what cannot be had is not remembered


def test_a_corpus_that_is_there_is_asked_nothing_more(mirror, folder, monkeypatch):
    """A run resolves its source once; whatever becomes of the folder, or is asked for elsewhere, does not reach it."""
    write_parquet(folder / "x.parquet", numbered(0, 100))
    dataset.main(Config(source=HUB, shards=2))
    begun = [(data, corpus(data), list(text_iterator(data)), list(parquets_iter_batched("val", data=data)))
             for data in (folder, HUB)]
    write_jsonl(folder / "more.jsonl", numbered(200, 210))
    sources.remember(parse_source(HUB), 5)
    offline(monkeypatch)
    for data, made, *texts in begun:
        with pytest.raises(UserError, match="could not fetch 3 of 3|extra more.jsonl"):
            corpus(data)
        assert corpus(made) is made
        assert [list(text_iterator(made)), list(parquets_iter_batched("val", data=made))] == texts


def test_without_a_network_what_is_there_can_be_used(mirror, monkeypatch):
    made = corpus(f"{HUB}:2")
    offline(monkeypatch)
    assert corpus(f"{HUB}:2") == made and corpus(f"{HUB}:1")
    with pytest.raises(UserError, match=r"could not fetch 1 of 1 file\(s\) of me/texts: s3.parquet .*HF_HUB_OFFLINE"):
        corpus(f"{HUB}:3")
    with pytest.raises(UserError, match="me/other cannot be listed: HF_HUB_OFFLINE"):
        corpus("hub:me/other")


def test_a_source_stays_at_its_commit(mirror, repo, monkeypatch):
    made = corpus(f"{HUB}:2")
    write_parquet(repo / "a_new_first.parquet", numbered(0, 10))
    with served(repo, monkeypatch) as later:
        assert corpus(f"{HUB}:2") == made and not later.asked
        manifest = json.loads(made.manifest.read_text(encoding="utf-8"))
        assert manifest["revision"] == mirror.repos[REPO].commit and "a_new_first.parquet" not in manifest["listing"]
        assert texts_of(f"{HUB}@{later.repos[REPO].commit}:1", "val") == numbered(0, 10)  # another source of its own


def test_hub_files_that_differ_are_refused_and_lost_ones_are_fetched_again(mirror):
    made = corpus(f"{HUB}:3")
    (made.folder / "s2.parquet").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"truncated s2.parquet \(14 of .*delete the wrong ones there"):
        corpus(f"{HUB}:2")
    assert corpus(f"{HUB}:1")  # what is not asked for does not matter
    (made.folder / "s2.parquet").unlink()
    assert corpus(f"{HUB}:3").fingerprint == made.fingerprint
    write_parquet(made.folder / "mine.parquet", ["mine"])
    with pytest.raises(UserError, match="extra mine.parquet"):
        corpus(f"{HUB}:3")


def test_a_file_that_was_there_before_is_not_trusted(mirror):
    folder = data_dir(HUB)
    (folder / "s1.parquet").write_bytes(b"left over")
    assert texts_of(f"{HUB}:1", "train") == shard_texts(1)


def test_a_folder_of_a_repository_is_a_source(repo, monkeypatch):
    write_parquet(repo / "en/only.parquet", numbered(0, 200))
    with served(repo, monkeypatch):
        train, val = texts_of(f"{HUB}/en", "train"), texts_of(f"{HUB}/en", "val")  # one file: it is divided
        assert sorted(train + val) == sorted(numbered(0, 200)) and 0 < len(val) <= 20
        assert corpus(f"{HUB}/en:1").fingerprint == corpus(f"{HUB}/en").fingerprint
        with pytest.raises(UserError, match=r"has 1 parquet file\(s\), one for validation: ask for at most 1 .* of 2"):
            corpus(f"{HUB}/en:2")
    assert data_dir(f"{HUB}/en") != data_dir(HUB) != data_dir(f"{HUB}@v2")


def test_copies_of_the_validation_shard_are_no_training_text(repo, monkeypatch):
    shutil.copy(repo / "s0.parquet", repo / "s2.parquet")
    write_parquet(repo / "s3.parquet", shard_texts(0)[:30] + shard_texts(3)[30:], group=20)
    with served(repo, monkeypatch):
        assert texts_of(f"{HUB}:2", "train") == shard_texts(1) and texts_of(f"{HUB}:2", "val") == shard_texts(0)
        monkeypatch.setattr("nanochat.split.MAX_ROW_GROUP_BYTES", 100)  # all are converted: documents are seen, too
        assert texts_of(f"{HUB}:3", "train") == shard_texts(1) + shard_texts(3)[30:]
        assert texts_of(f"{HUB}:3", "val") == shard_texts(0)


def test_hub_files_of_large_row_groups_are_converted(mirror, monkeypatch):
    monkeypatch.setattr("nanochat.split.MAX_ROW_GROUP_BYTES", 100)
    made = corpus(f"{HUB}:2")
    assert {f.path.parent.name.partition("-")[0] for f in made.files} == {"shards"}
    assert texts_of(f"{HUB}:2", "val") == shard_texts(0)
    assert texts_of(f"{HUB}:2", "train") == shard_texts(1) + shard_texts(2)
    assert texts_of(f"{HUB}:1", "train") == shard_texts(1) and corpus(f"{HUB}:2") == made


def test_hub_files_of_one_row_group_are_read_where_they_lie(repo, monkeypatch):
    for i in range(2):
        write_parquet(repo / f"one/{i}.parquet", shard_texts(i), group=100)
    with served(repo, monkeypatch):
        made = corpus(f"{HUB}/one")
    assert [f.path.parent.name for f in made.files] == ["one", "one"]
    assert texts_of(f"{HUB}/one", "val") == shard_texts(0)


def test_hub_files_that_were_touched_are_hashed_once(mirror, monkeypatch):
    made = corpus(f"{HUB}:1")
    os.utime(made.files[1].path)
    assert corpus(f"{HUB}:1") == made
    monkeypatch.setattr("nanochat.manifest.hash_with_ranges", None)  # known again: nothing is read
    assert corpus(f"{HUB}:1") == made


def test_a_repository_without_text_is_named(repo, monkeypatch):
    write_parquet(repo / "en/x.parquet", ["a"], column="content")
    with served(repo, monkeypatch), pytest.raises(UserError, match="x.parquet: no column named 'text' .it has content"):
        corpus(f"{HUB}/en")


def test_a_run_does_not_wait_for_a_process_that_fetches_more(mirror):
    """One fetches all, and its last shard stalls; the other needs only what is there, or what comes."""
    mirror.stall, mirror.faults = 60, lambda name: Fault("stall") if name == "s5.parquet" else None
    corpus(f"{HUB}:1")
    other = threading.Thread(target=corpus, args=(f"{HUB}:5",), daemon=True)
    other.start()
    while not any(a.path.endswith("s5.parquet") and a.sent for a in mirror.asked):
        time.sleep(0.005)
    assert texts_of(f"{HUB}:1", "train") and len(corpus(f"{HUB}:4").files) == 5
    mirror.faults = lambda name: None
    mirror.closing.set()  # the stall ends, the rest is asked for
    assert other.join(timeout=60) is None and not other.is_alive()
    assert len(corpus(f"{HUB}:5").files) == 6


def test_what_another_process_writes_meanwhile_stays(mirror, monkeypatch):
    """One lists while the other does, and describes a file while the other records another one."""
    source, list_files, describe = parse_source(HUB), hub.list_files, sources.describe
    path = sources.hub_manifest(source)

    def also_listed(*arguments, **options) -> hub.Listing:
        found = list_files(*arguments, **options)
        with locked(path) as manifest:
            manifest.source, manifest.listing = REPO, dataclasses.replace(found, files=found.files[:4])
            manifest.save()
        return found

    def also_recorded(file: Path):
        entry = describe(file)
        with locked(path) as manifest:
            manifest.files["s3.parquet"] = entry
            manifest.save()
        return entry

    monkeypatch.setattr(hub, "list_files", also_listed)
    monkeypatch.setattr(sources, "describe", also_recorded)
    files = sources.listed(source).listing.files
    assert len(files) == len(load_manifest(path).listing.files) == 4
    sources.fetch_missing(source, files[1:2])
    assert set(load_manifest(path).files) == {"s1.parquet", "s3.parquet"}
    (data_dir(HUB) / "s1.parquet").unlink()
    sources.fetch_missing(source, files[1:2])  # the same bytes, but another file
    assert looks_the_same(data_dir(HUB) / "s1.parquet", load_manifest(path).files["s1.parquet"])


def test_several_at_once_share_the_work(mirror, monkeypatch):
    made: list = []
    hashed: list = []

    def noted(real):
        return lambda path, *more: hashed.append(path.name) or real(path, *more)

    monkeypatch.setattr(sources, "describe", noted(sources.describe))
    monkeypatch.setattr(hub, "what_is_wrong", noted(hub.what_is_wrong))
    together, fetch = threading.Barrier(4), hub.fetch
    monkeypatch.setattr(hub, "fetch", lambda *a, **options: together.wait(60) is not None and fetch(*a, **options))
    threads = [threading.Thread(target=lambda: made.append(corpus(f"{HUB}:5"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(made) == 4 and all(one == made[0] for one in made) and texts_of(f"{HUB}:5", "val") == shard_texts(0)
    sizes = {f.path.name: f.bytes for f in made[0].files}
    assert len(sizes) == 6 and {name: mirror.sent(name) for name in sizes} == sizes  # each came once
    assert len(hashed) == 12 and set(sizes) < set(hashed)  # and was read twice: what came, what lies there


def test_download_single_file(mirror, monkeypatch):
    assert download_single_file(2, HUB) == download_single_file("s2.parquet", HUB) == data_dir(HUB) / "s2.parquet"
    assert mirror.sent("s1.parquet") == 0 and mirror.sent("s2.parquet") == (data_dir(HUB) / "s2.parquet").stat().st_size
    for which in (6, -1, "s9.parquet"):
        with pytest.raises(UserError, match=f"has no file {which}: give 0 to 5, or one like s0.parquet"):
            download_single_file(which, HUB)
    with pytest.raises(UserError, match="pocket is not on the hub"):
        download_single_file(0, "pocket")
    with served(mirror.repos[REPO].files["s0.parquet"].path.parent, monkeypatch, FINEWEB_EDU):
        assert download_single_file(0).name == "s0.parquet" and texts_of("fineweb-edu:2", "val") == shard_texts(0)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(mirror, folder, base_dir, tmp_path):
    write_jsonl(folder / "a.jsonl", numbered(0, 100))
    base_dir.mkdir()
    before = tree(tmp_path)
    size = sum(mirror.repos[REPO].files[f"s{i}.parquet"].bytes for i in range(3))
    hub_lines = "\n".join(dry_run(f"{HUB}:2"))
    assert f"fetch 3 of 3 file(s) of me/texts ({mirror.repos[REPO].commit[:12]}): {size:,} bytes" in hub_lines
    assert f"disk: {size:,} bytes needed, " in hub_lines and " free in " in hub_lines
    folder_lines = "\n".join(dry_run(folder))
    assert "would convert 1 of 1 file(s)" in folder_lines and "take in" not in folder_lines
    assert "would make the pocket world" in "\n".join(dry_run("pocket"))
    assert tree(tmp_path) == before and not mirror.sent()
    corpus(f"{HUB}:1")
    corpus(folder)
    (folder / "a.jsonl").rename(folder / "b.jsonl")
    before = tree(tmp_path)
    assert "fetch 1 of 3" in "\n".join(dry_run(f"{HUB}:2")) and "fetch 0 of 2" in "\n".join(dry_run(f"{HUB}:1"))
    lines = list(dry_run(folder))
    assert lines[:2] == ["would take in: added b.jsonl", "would take in: removed a.jsonl"] and tree(tmp_path) == before


@pytest.mark.parametrize("data", [f"{HUB}:2", "a folder"])
def test_a_disk_that_is_too_small_is_told_before_the_work(mirror, folder, monkeypatch, data):
    write_jsonl(folder / "a.jsonl", numbered(0, 100))
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Disk)
    with pytest.raises(UserError, match=r"needs [\d,]+ bytes and the disk has 100 free: .*NANOCHAT_BASE_DIR"):
        corpus(folder if data == "a folder" else data)
    assert not mirror.sent() and not list(folder.parent.glob("base/datasets/*/*shards-*/"))


class _Disk:
    free = 100


# --------------------------------------------------------------------------- the command


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "nanochat.dataset", *arguments], cwd=ROOT, timeout=120,
                          env={**os.environ, **env}, capture_output=True, encoding="utf-8", check=False)


def test_command_line_on_the_hub(repo, base_dir, tmp_path):
    """The way a person goes: a mirror is named, shards are fetched (by two processes), then the network is gone."""
    with Mirror({REPO: repo}, slow=0.001) as mirror:
        env = {"HF_ENDPOINT": mirror.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda n: command(f"--source={HUB}", "-n", n, **env), "22"))
        for done in both:
            assert done.returncode == 0 and "120 documents in 6 row group(s)" in done.stdout, done.stderr
            assert "60 documents in 3 row group(s)" in done.stdout and "with  --data=hub:me/texts:2" in done.stdout
        assert mirror.sent() == sum(mirror.repos[REPO].files[f"s{i}.parquet"].bytes for i in range(3))
        asked = len(mirror.asked)
        again = command(f"--source={HUB}", "--verify", **{**env, "HF_HUB_OFFLINE": "1"})
        assert again.returncode == 0 and "verified     3 file(s)" in again.stdout and len(mirror.asked) == asked
    failed = command(f"--source={HUB}:3", **{**env, "HF_HUB_OFFLINE": "1"})
    assert failed.returncode == 2 and failed.stderr.startswith("error: could not fetch 1 of 1 file(s)")
    assert failed.stderr.count("\n") == 1


def test_command_line_on_a_folder(folder, capsys):
    write_parquet(folder / "x.parquet", numbered(0, 100))
    done = command(f"--from={folder}")
    assert done.returncode == 0 and f"use it with  --data={folder}" in done.stdout, done.stderr
    (folder / "y.txt").write_text("y", encoding="utf-8")
    refused = command("--folder", str(folder), "--verify")
    assert refused.returncode == 2 and "extra y.txt" in refused.stderr and refused.stderr.count("\n") == 1
    dataset.main(Config(folder=str(folder)))
    assert capsys.readouterr().out.startswith("added y.txt\n")
    for where, message in (("/nowhere", "data folder /nowhere does not exist"), (folder / "x.parquet", "is a file")):
        with pytest.raises(UserError, match=message):
            dataset.main(Config(folder=str(where)))


def test_a_name_that_looks_like_a_repository_gets_a_hint():
    with pytest.raises(UserError, match="not exist: .*for the dataset of that name on the hub: --data=hub:me/texts"):
        corpus("me/texts")
    with pytest.raises(UserError, match="does not exist") as e:
        corpus("/me/texts")
    assert "--data=hub" not in str(e.value)


@pytest.mark.parametrize(("there", "read"), [
    ("shard_0 shard_1 shard_2", "shard_0 shard_1 shard_2"),
    ("data/test-0 data/train-0 data/train-1 data/validation-0 data/validation-1",
     "data/validation-0 data/train-0 data/train-1"),
    ("test/0 train/0 train/1", "test/0 train/0 train/1"),
    ("a b/Val_1 c", "b/Val_1 a c"),
    ("test-0 test-1", "test-0 test-1"),  # a folder of nothing else, chosen on purpose
    ("latest-0 value-0 values", "latest-0 value-0 values"),
])
def test_files_that_a_repository_holds_out_are_not_trained_on(there, read):
    files = tuple(hub.HubFile(name, 1, "") for name in there.split())
    assert [f.name for f in in_reading_order(files)] == read.split()
