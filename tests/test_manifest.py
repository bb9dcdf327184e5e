"""The manifest: every difference from it has a name, and the validation split stays where it was pinned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nanochat import manifest
from nanochat.common import UserError
from nanochat.dataset import corpus, prepare, read_unit
from nanochat.documents import row_group_texts
from nanochat.manifest import describe, hash_with_ranges, load_manifest, locked, printable, some_of, text_files


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "texts").mkdir()
    return tmp_path / "texts"


def write_parquet(path: Path, texts: list[str], group: int = 5, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=group, **options)
    return path


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def numbered(a: int, b: int) -> list[str]:
    return [f"document number {i:06d}" for i in range(a, b)]


def texts_of(made, split: str) -> list[str]:
    return [t for unit in made.units(split) for t in read_unit(unit)]


def change_in_place(path: Path, position: int) -> None:
    """Another byte there; size, modification time and inode as before, as a tool that wants to hide it would do."""
    before = path.stat()
    with open(path, "r+b") as f:
        f.seek(position)
        old = f.read(1)
        f.seek(position)
        f.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --------------------------------------------------------------------------- what differs is named


@pytest.fixture
def mixed(folder) -> Path:
    """Files read in place and files that are converted, taken into the manifest."""
    write_parquet(folder / "a/in_place.parquet", numbered(0, 200))
    write_jsonl(folder / "lines.jsonl", numbered(200, 260))
    (folder / "plain.txt").write_text("a text of its own", encoding="utf-8")
    corpus(folder)
    return folder


CHANGES = {
    "missing": (lambda p: p.unlink(), "missing {}"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-3]), r"truncated {} \([\d,]+ of [\d,]+ bytes\)"),
    "emptied": (lambda p: p.write_bytes(b""), r"truncated {} \(0 of"),
    "grown": (lambda p: p.write_bytes(p.read_bytes() + b"\n"), r"altered {} \([\d,]+ instead of"),
    "altered": (lambda p: change_in_place(p, 8), r"altered {} \(its SHA-256 differs\)"),
    "end altered": (lambda p: change_in_place(p, p.stat().st_size - 5), r"altered {} \(its SHA-256 differs\)"),
}


@pytest.mark.parametrize("name", ["a/in_place.parquet", "lines.jsonl", "plain.txt"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_differs_is_refused_by_name(mixed, change, name):
    alter, message = CHANGES[change]
    path, content = mixed / name, (mixed / name).read_bytes()
    alter(path)
    for _ in range(2):  # the refusal is no way in
        with pytest.raises(UserError, match=message.format(name) + r".*nanochat.dataset --from=/\S*texts$"):
            corpus(mixed)
    path.write_bytes(content)
    assert len(texts_of(corpus(mixed), "train")) > 200


def test_a_file_more_is_refused_by_name(mixed):
    write_jsonl(mixed / "more.jsonl", numbered(900, 905))
    with pytest.raises(UserError, match=r"extra more.jsonl: .*--from="):
        corpus(mixed)
    assert "document number 000900" in texts_of(prepare(mixed), "train") and corpus(mixed)


def test_all_that_differs_is_named_at_once(mixed):
    (mixed / "plain.txt").unlink()
    change_in_place(mixed / "lines.jsonl", 12)
    (mixed / "new.md").write_text("new", encoding="utf-8")
    with pytest.raises(UserError, match=r"missing plain.txt, altered lines.jsonl \(.*\), extra new.md"):
        corpus(mixed)


def test_what_only_looks_different_is_fine(mixed, monkeypatch):
    before = corpus(mixed)
    os.utime(mixed / "plain.txt")
    copy = shutil.copy(mixed / "lines.jsonl", mixed / "copy")
    os.replace(copy, mixed / "lines.jsonl")
    (mixed / "a/in_place.parquet").chmod(0o600)
    assert corpus(mixed) == before
    monkeypatch.setattr(manifest, "hash_with_ranges", None)  # known again: nothing is read
    assert corpus(mixed) == before


def test_a_change_within_the_tick_of_the_clock_is_seen(folder):
    for i in range(10):
        path = write_jsonl(folder / "x.jsonl", numbered(100 * i, 100 * i + 10))
        entry = describe(path)
        assert time.time_ns() - path.stat().st_ctime_ns >= manifest.TICK_NS  # some kernels' clocks move in large steps
        change_in_place(path, 12)
        status = path.stat()
        assert (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) != entry.stat


def test_verify_reads_every_byte(mixed, monkeypatch):
    path = mixed / "a/in_place.parquet"
    change_in_place(path, 40)
    with locked(corpus_manifest(mixed)) as found:
        status = path.stat()  # as a disk that rots does it: nothing but the content differs
        found.files["a/in_place.parquet"] = dataclasses.replace(
            found.files["a/in_place.parquet"], stat=(status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        found.save()
    corpus(mixed)
    with pytest.raises(UserError, match="altered a/in_place.parquet"):
        corpus(mixed, verify=True)


def corpus_manifest(folder: Path) -> Path:
    return next(Path(os.environ["NANOCHAT_BASE_DIR"]).glob(f"datasets/{folder.name}-*/manifest.json"))


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_text_that_rots_after_the_check_is_never_read(folder, compression, dictionary):
    texts = numbered(0, 300)
    path = write_parquet(folder / "x.parquet", texts, group=10, compression=compression, use_dictionary=dictionary)
    made = corpus(folder)
    unit = made.train[7]
    place = path.read_bytes().find(texts[10 * unit.row_group + 3].encode())
    assert (place > 0) == (compression == "none")
    column = pq.ParquetFile(path).metadata.row_group(unit.row_group).column(0)
    change_in_place(path, place + 20 if place > 0 else column.data_page_offset + column.total_compressed_size // 2)
    if compression == "none":  # parquet itself sees nothing
        assert row_group_texts(path, unit.row_group) != texts[10 * unit.row_group : 10 * unit.row_group + 10]
    with pytest.raises(UserError, match=rf"x.parquet: row group {unit.row_group} has changed since the file was check"):
        read_unit(unit)
    assert [read_unit(u) for u in made.train if u != unit]


def test_damaged_conversions_are_made_again(mixed, capsys):
    before = corpus(mixed)
    shard = next(f.path for f in before.files if f.path.name.startswith("train"))
    change_in_place(shard, 30)
    with pytest.raises(UserError, match="has changed"):
        texts_of(before, "train")
    again = corpus(mixed)
    assert "is damaged (altered train-00000.parquet" in capsys.readouterr().out
    assert texts_of(again, "train") and again.fingerprint == before.fingerprint
    shutil.rmtree(shard.parent)
    assert texts_of(corpus(mixed), "val") == texts_of(again, "val")


# --------------------------------------------------------------------------- the file itself


def test_the_manifest_is_json_that_says_what_it_should(mixed):
    path = corpus(mixed).manifest
    d = json.loads(path.read_text(encoding="utf-8"))
    assert (d["version"], d["source"]) == (2, str(mixed))
    for name, entry in d["files"].items():
        content = (mixed / name).read_bytes()
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert d["files"]["a/in_place.parquet"]["rows"] == 200 and len(d["files"]["a/in_place.parquet"]["row_groups"]) == 40
    again = load_manifest(path)
    again.path, again.held = path.with_name("copy.json"), True
    again.save()
    assert again.path.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_an_older_manifest_keeps_its_split(mixed, capsys):
    made = corpus(mixed)
    now = json.loads(made.manifest.read_text(encoding="utf-8"))
    sha256 = now["files"]["a/in_place.parquet"]["sha256"]
    pins = {"units": [["a/in_place.parquet", sha256, i] for i in (3, 4)], "documents": now["pins"]["documents"][::-2],
            "rewrite": []}  # another split than one would choose today
    files = {k: {"bytes": f["bytes"], "mtime_ns": 1, "sha256": f["sha256"], "row_groups": []}
             for k, f in now["files"].items()}
    old = {"version": 1, "folder": str(mixed), "val": pins, "files": files, "converted": {}}
    made.manifest.write_text(json.dumps(old), encoding="utf-8")
    (mixed / "plain.txt").write_text("altered since then", encoding="utf-8")
    (mixed / "new.txt").write_text("new since then", encoding="utf-8")
    capsys.readouterr()
    upgraded = corpus(mixed)
    said = capsys.readouterr().out
    assert said.count("is of an older version") == 1 and "added new.txt\nchanged plain.txt\n" in said
    assert [u.row_group for u in upgraded.val if u.path.name == "in_place.parquet"] == [3, 4]
    assert sum(u.rows for u in upgraded.val) == 2 * 5 + len(pins["documents"])
    assert corpus(mixed) == upgraded and upgraded.fingerprint != made.fingerprint
    assert json.loads(made.manifest.read_text(encoding="utf-8"))["version"] == 2


@pytest.mark.parametrize(("text", "message"), [
    ("", "cannot be read"), ("[]", "cannot be read"), ('{"version": 2}', "cannot be read"),
    ('{"version": 2, "files": {"x": {}}}', "cannot be read"), ('{"version": 3}', "written by a newer nanochat"),
    ('{"version": "x"}', "cannot be read")])
def test_a_manifest_that_cannot_be_used_is_named(mixed, text, message):
    path = corpus(mixed).manifest
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"manifest.json .*{message}|manifest.json {message}"):
        corpus(mixed)


@settings(max_examples=25)
@given(st.data(), st.integers(0, 3 << 20))
def test_one_reading_gives_all_hashes(tmp_path_factory, data, size):
    path = tmp_path_factory.getbasetemp() / "hashed"
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    path.write_bytes(content)
    ranges = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=4))
    sha256, crcs = hash_with_ranges(path, ranges)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert crcs == [zlib.crc32(content[a : a + n]) for a, n in ranges]


def test_ranges_across_many_blocks():
    content = os.urandom(5 << 19)  # two and a half blocks
    ranges = [(7, 5 << 18), (0, len(content)), ((1 << 20) - 1, 2), (1 << 20, 1 << 20), (3, 0)]
    with tempfile.NamedTemporaryFile() as f:
        f.write(content)
        f.flush()
        assert hash_with_ranges(Path(f.name), ranges)[1] == [zlib.crc32(content[a : a + n]) for a, n in ranges]


def test_a_file_that_changes_while_it_is_read_is_told(folder, monkeypatch):
    path = write_jsonl(folder / "x.jsonl", numbered(0, 100))

    def and_then_it_grows(path: Path, ranges):
        found = hash_with_ranges(path, ranges)
        path.write_text("another text", encoding="utf-8")
        return found

    monkeypatch.setattr(manifest, "hash_with_ranges", and_then_it_grows)
    with pytest.raises(UserError, match="x.jsonl changed while it was read: wait until it is finished"):
        describe(path)


def test_many_changes_are_cut_short():
    entry = manifest.Entry(1, "a", (), (0, 0, 0))
    after = {"same": entry} | {f"{i}.txt": entry for i in range(30)}
    lines = manifest.changes({"same": entry, "old": entry}, after)
    assert lines[0] == "added 0.txt" and lines[-1] == "and 11 more" and len(lines) == 21
    assert manifest.changes({}, after) == []
    other = dataclasses.replace(entry, sha256="b")
    assert manifest.changes({"same": entry, "old": entry}, {"same": other}) == ["removed old", "changed same"]


def test_names_and_lists_stay_one_line():
    assert printable("a\nb\udcffé 日") == "a\\nb\\udcffé 日"
    assert some_of(["a", "b", "c"], 2) == "a, b and 1 more" and some_of(["a", "b"], 2) == "a, b"


# --------------------------------------------------------------------------- which files there are


def test_links_are_followed_once_and_circles_end(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere/deep"
    elsewhere.mkdir(parents=True)
    for path in (folder / "b.txt", elsewhere / "c.md"):
        path.write_text(f"text of {path.name}", encoding="utf-8")
    (folder / "z/inner").mkdir(parents=True)
    (folder / "z/inner/d.txt").write_text("text of d", encoding="utf-8")
    (folder / "z/inner/up").symlink_to(folder)
    (folder / "z/self").symlink_to("self")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a").symlink_to(folder / "z")  # another way to z: its files are called by their own name
    (folder / "e.txt").symlink_to(elsewhere / "c.md")
    (folder / "z/.hidden").mkdir()
    (folder / "z/.hidden/x.txt").write_text("x", encoding="utf-8")
    (folder / "f.jpeg").write_bytes(b"")
    assert text_files(folder) == ["b.txt", "e.txt", "linked/deep/c.md", "z/inner/d.txt"]
    made = corpus(folder)
    read = texts_of(made, "train") + texts_of(made, "val")
    assert set(read) == {"text of b.txt", "text of c.md", "text of d"} and len(texts_of(made, "val")) == 1


@pytest.mark.parametrize("case", ["loop", "broken", "pipe"])
def test_files_that_cannot_be_read_are_named(mixed, case):
    path = mixed / f"{case}.txt"
    if case == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if case == "loop" else mixed / "nowhere")
    message = {"loop": "cannot be read", "broken": "cannot be read", "pipe": "not a regular file"}[case]
    with pytest.raises(UserError, match=rf"{case}.txt(:| is) {message}"):
        prepare(mixed)
    with pytest.raises(UserError, match=f"extra {case}.txt"):
        corpus(mixed)


def test_files_of_odd_names_are_read(folder, capsys):
    names = ["a b.jsonl", "ö\n.jsonl", "'\".jsonl", os.fsdecode(b"\xff.jsonl"), "$(x).jsonl"]
    for i, name in enumerate(names):
        write_jsonl(folder / name, numbered(10 * i, 10 * i + 10))
    os.rename(write_parquet(folder / "p.parquet", numbered(100, 300)), folder / os.fsdecode(b"p\xfe.parquet"))
    made = prepare(folder)
    assert sorted(texts_of(made, "train") + texts_of(made, "val")) == numbered(0, 50) + numbered(100, 300)
    assert corpus(folder) == made
    (folder / names[3]).unlink()
    with pytest.raises(UserError, match=r"missing \\udcff.jsonl") as e:
        corpus(folder)
    str(e.value).encode("utf-8")
    assert "\n" not in str(e.value)


def test_nanochats_own_files_are_no_text(base_dir, monkeypatch):
    (base_dir / "mine").mkdir(parents=True)
    write_jsonl(base_dir / "mine/x.jsonl", numbered(0, 50))
    made = corpus(base_dir / "mine")  # inside the base directory, but a folder of its own
    for where in (base_dir, base_dir.parent, base_dir / "datasets", made.manifest.parent):
        with pytest.raises(UserError, match="holds files that nanochat makes itself"):
            corpus(where)
    hidden = base_dir.parent / ".cache/nanochat"  # as at its default place below one's home
    hidden.mkdir(parents=True)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(hidden))
    write_jsonl(base_dir.parent / "notes.jsonl", numbered(0, 50))
    assert corpus(base_dir.parent).manifest.is_relative_to(hidden)


@pytest.fixture
def base_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


# --------------------------------------------------------------------------- whatever a person does to a folder


class Folder(RuleBasedStateMachine):
    """Files are added, removed, altered, copied and renamed in any order; sometimes the folder is taken in again.

    The oracle knows what each file holds. Validation text is what it was at first, or the folder is refused because
    some of it is gone; all other text is training text; a folder that was not taken in is refused, and named why.
    """

    def __init__(self):
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="folder-"))
        self.before = os.environ["NANOCHAT_BASE_DIR"]
        os.environ["NANOCHAT_BASE_DIR"] = str(self.top / "base")
        self.folder = self.top / "texts"
        self.folder.mkdir()
        self.files: dict[str, list[str]] = {}  # name -> its documents
        self.number = 0
        self.write("p0.parquet", self.new(100))
        self.write("j0.jsonl", self.new(120))
        made = corpus(self.folder)
        self.val = sorted(texts_of(made, "val"))
        self.pinned_file = {u.path.name: self.files["p0.parquet"] for u in made.val if u.path.name == "p0.parquet"}
        self.pinned_lines = set(self.val) & set(self.files["j0.jsonl"])
        assert len(self.pinned_file) == 1 and len(self.pinned_lines) == 12
        self.taken = dict(self.files)

    def teardown(self):
        os.environ["NANOCHAT_BASE_DIR"] = self.before
        shutil.rmtree(self.top)

    def new(self, n: int) -> list[str]:
        self.number += n
        return numbered(self.number - n, self.number)

    def write(self, name: str, texts: list[str]) -> None:
        (write_parquet if name.endswith("parquet") else write_jsonl)(self.folder / name, texts)
        self.files[name] = texts

    @rule(kind=st.sampled_from(["parquet", "jsonl"]), n=st.integers(1, 60))
    def add(self, kind, n):
        self.write(f"{kind[0]}{self.number}.{kind}", self.new(n))

    @rule(data=st.data())
    @precondition(lambda self: len(self.files) > 1)
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.folder / name).unlink()
        del self.files[name]

    @rule(data=st.data(), keep=st.booleans())
    def alter(self, data, keep):
        """Other text; of lines sometimes only more of it."""
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.write(name, (self.files[name] if keep and name.endswith("jsonl") else []) + self.new(5))

    @rule(data=st.data())
    def copy(self, data):
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.write(f"c{len(self.files)}{name}", self.files[name])

    @rule(data=st.data())
    def quote(self, data):
        """The text of any file once more, as lines."""
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.write(f"q{len(self.files)}.jsonl", [*self.files[name], *self.new(3)])

    @rule(data=st.data())
    def rename_or_touch(self, data):
        name = data.draw(st.sampled_from(sorted(self.files)))
        other = data.draw(st.sampled_from([name, f"r{len(self.files)}{name}"]))
        os.rename(self.folder / name, self.folder / other)
        os.utime(self.folder / other)
        self.files[other] = self.files.pop(name)

    def expected(self, files: dict[str, list[str]]) -> list[str] | None:
        """The training text, or None if validation text is gone."""
        pinned = next(iter(self.pinned_file.values()))
        lines = {t for name, texts in files.items() if name.endswith("jsonl") or len(texts) <= 5 for t in texts}
        if pinned not in files.values() or not self.pinned_lines <= lines:
            return None
        train = []
        for texts in files.values():
            train += [t for t in texts if t not in self.val]
        return sorted(train)

    def agrees(self, made, files: dict[str, list[str]]) -> None:
        val, train = sorted(texts_of(made, "val")), sorted(texts_of(made, "train"))
        assert val == self.val and not set(val) & set(train)
        assert train == self.expected(files)

    @rule()
    def take_in(self):
        if self.expected(self.files) is None:
            with pytest.raises(UserError, match="validation text .* is gone or changed"):
                prepare(self.folder)
        else:
            self.agrees(prepare(self.folder), self.files)
            self.taken = dict(self.files)

    @rule()
    def use(self):
        if self.files == self.taken:
            self.agrees(corpus(self.folder), self.taken)
        else:
            with pytest.raises(UserError, match="is not as its manifest says: (missing|extra|altered|truncated) "):
                corpus(self.folder)

    @invariant()
    def nothing_half_made(self):
        assert not list((self.top / "base").rglob(".shards-*"))


Folder.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
test_validation_stays_whatever_is_done_to_a_folder = Folder.TestCase  # trap: val-moves
