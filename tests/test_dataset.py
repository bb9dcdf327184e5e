"""Where text comes from: every kind of file, every way one can be broken, and a validation split that stays put."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import documents
from nanochat.common import UserError
from nanochat.dataset import (
    corpus,
    data_dir,
    list_parquet_files,
    parquets_iter_batched,
    read_unit,
    text_iterator,
)
from nanochat.documents import build_once, split_long_text, write_shards

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


def numbered(a: int, b: int) -> list[str]:
    return [f"document number {i}" for i in range(a, b)]


def texts_of(folder: Path, split: str) -> list[str]:
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
    for group in (5, 50, 100, 1000):
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


def test_lost_validation_text_is_named(folder):
    write_parquet(folder / "x.parquet", numbered(0, 100))
    pinned = corpus(folder).val[0].path
    write_parquet(folder / "y.parquet", numbered(100, 200))
    corpus(folder)
    pinned.rename(folder / "renamed.parquet")  # same content: still the validation text
    assert len(texts_of(folder, "val")) == 5
    (folder / "renamed.parquet").unlink()
    with pytest.raises(UserError, match="validation text of .* is gone or changed .*x.parquet"):
        corpus(folder)


def test_conversion_happens_once_and_again_after_a_change(folder, capsys):
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in numbered(0, 50)), encoding="utf-8")
    first = corpus(folder)
    assert corpus(folder) == first
    assert capsys.readouterr().out.count("converting") == 1
    (folder / "b.txt").write_text("more", encoding="utf-8")
    second = corpus(folder)
    (folder / "b.txt").write_text("something else", encoding="utf-8")
    assert len({first.fingerprint, second.fingerprint, corpus(folder).fingerprint}) == 3
    assert "something else" in texts_of(folder, "train") and "more" not in texts_of(folder, "train")
    assert capsys.readouterr().out.count("converting") == 2


def test_old_conversions_are_forgotten(folder):
    for i in range(5):
        lines = [json.dumps({"text": text}) for text in numbered(i * 40, i * 40 + 40)]
        (folder / f"{i}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        made = corpus(folder)
    kept = list(made.manifest.parent.glob("shards-*/"))
    assert 1 <= len(kept) <= 2 and made.files[0].path.parent in kept


def test_large_row_groups_are_rewritten(folder, monkeypatch):
    monkeypatch.setattr("nanochat.dataset.MAX_ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(documents, "GROUP_ROWS", 16)
    monkeypatch.setattr(documents, "SHARD_CHARS", 1000)
    write_parquet(folder / "x.parquet", numbered(0, 400), group=200)
    made = corpus(folder)
    assert len(made.files) > 3 and max(u.rows for u in made.train) <= 16
    assert len(texts_of(folder, "train")) + len(texts_of(folder, "val")) == 400


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
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in numbered(0, 5000)), encoding="utf-8")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_make_corpus, args=(str(folder), out)) for _ in range(3)]
    for w in workers:
        w.start()
    assert {out.get(timeout=240) for _ in workers} == {corpus(folder).fingerprint}
    for w in workers:
        w.join(timeout=60)


def test_pocket_is_generated_once(pocket_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    made = corpus("pocket")
    assert made.train and made.val and data_dir("pocket") == data_dir("pocket")
    assert made.label == "pocket" and list_parquet_files() == [f.path for f in made.files]


# --------------------------------------------------------------------------- the hub, from a mirror on loopback


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for files of one dataset."""

    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, body: bool) -> None:
        content = self.files.get(self.path.rsplit("/", 1)[-1])
        self.send_response(404 if content is None or "/resolve/" not in self.path else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:08x}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def mirror(tmp_path):
    for i in range(4):
        write_shards(tmp_path, numbered(4000 * i, 4000 * i + 4000), set())
        Mirror.files[f"shard_{i:05d}.parquet"] = (tmp_path / "train-00000.parquet").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "nanochat.dataset", *arguments], cwd=ROOT, timeout=120,
                          env={**os.environ, **env}, capture_output=True, text=True, check=False)


def test_hub_shards_are_fetched_and_the_first_is_validation(mirror, base_dir):
    env = {"HF_ENDPOINT": mirror, "HF_HOME": str(base_dir / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
           "HF_HUB_OFFLINE": "0"}  # loopback only
    done = command("-n", "2", **env)
    assert done.returncode == 0, done.stderr
    assert "8,000 documents" in done.stdout and "4,000 documents" in done.stdout
    val = [(u.path.name, u.row_group) for u in corpus("hub").val]
    assert {name for name, _ in val} == {"shard_00000.parquet"}
    assert command("-n", "3", **env).returncode == 0
    assert [(u.path.name, u.row_group) for u in corpus("hub").val] == val and len(corpus("hub").files) == 4
    offline = command("-n", "4", **{**env, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 2 and "offline mode" in offline.stderr
    failed = command("-n", "9", **env)
    assert failed.returncode == 2 and "could not fetch shard_" in failed.stderr and "Traceback" not in failed.stderr


def test_command_line_on_a_folder(folder):
    write_parquet(folder / "x.parquet", numbered(0, 100))
    for spelling in (f"--from={folder}", f"--folder={folder}"):
        done = command(spelling)
        assert done.returncode == 0 and f"use it with  --data={folder}" in done.stdout, done.stderr
    missing = command("--from=/nowhere")
    assert missing.returncode == 2 and missing.stderr.startswith("error: data folder /nowhere does not exist")
