"""Where task rows come from: sets of the hub (pinned, verified, also offline), and random conversations from files.

The mirror on loopback is real, and so are the processes that fetch from it (this one has no network); what needs no
fetching finds the files where an earlier run would have left them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nanochat.common import UserError, get_base_dir
from nanochat.files import sha256_file
from nanochat.hub import HubFile, Listing
from scripts.chat_eval import source_label
from tasks.catalog import make_task
from tasks.common import check_conversation
from tasks.rows import BadRow, ParquetRows, Rows, Shuffled
from tests.conversation_fuzz import run_fuzz
from tests.hub_mirror import Mirror, git_id

MMLU, ARC, GSM8K, SMOLTALK = "cais/mmlu", "allenai/ai2_arc", "openai/gsm8k", "HuggingFaceTB/smol-smoltalk"


def mmlu(n: int, tag: str = "q") -> list[dict]:
    return [{"question": f"{tag}{i}", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": i % 4}
            for i in range(n)]  # fmt: skip


def arc(n: int) -> list[dict]:
    return [{"id": str(i), "question": f"q{i}", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
            for i in range(n)]  # fmt: skip


def gsm8k(n: int) -> list[dict]:
    return [{"question": f"{i}+1?", "answer": f"<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(n)]


def chats(n: int) -> list[dict]:
    return [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}],
             "source": "here"} for i in range(n)]  # fmt: skip


def published() -> dict[str, dict[str, list[dict]]]:
    """Small sets, shaped as those of the hub: repository → file → rows."""
    nested = [{"train": row} for row in mmlu(12, "train ")]  # as it really is in this one split
    return {
        MMLU: {"all/auxiliary_train-00000-of-00002": nested[:5], "all/auxiliary_train-00001-of-00002": nested[5:],
               "all/test-00000-of-00001": mmlu(9), "anatomy/test-00000-of-00001": mmlu(2)},
        ARC: {"ARC-Easy/test-00000-of-00001": arc(6), "ARC-Challenge/train-00000-of-00001": arc(4)},
        GSM8K: {"main/train-00000-of-00001": gsm8k(5), "main/test-00000-of-00001": gsm8k(3),
                "socratic/test-00000-of-00001": gsm8k(2)},
        SMOLTALK: {"data/train-00000-of-00002": chats(6), "data/train-00001-of-00002": chats(4),
                   "data/test-00000-of-00001": chats(3)},
    }  # fmt: skip


def write_set(folder: Path, files: dict[str, list[dict]]) -> Path:
    for name, rows in files.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    (folder / "README.md").write_text("about", encoding="utf-8")
    return folder


def fetched_before(repo: str, files: dict[str, list[dict]]) -> Path:
    """Leave the files and the manifest as a run with a network would have."""
    folder = write_set(get_base_dir() / "task_data" / repo.replace("/", "--"), files)
    paths = sorted(folder.rglob("*.parquet"))
    kept = [HubFile(str(p.relative_to(folder)), p.stat().st_size, sha256_file(p)) for p in paths]
    listing = Listing(repo, "c0ffee" * 6 + "c0ff", tuple(kept))
    (folder / "manifest.json").write_text(json.dumps(asdict(listing)), encoding="utf-8")
    return folder


# --------------------------------------------------------------------------- over the network

CHILD = """
import json, sys
from nanochat.common import UserError
from tasks.catalog import make_task
from tasks.gsm8k import GSM8K
found = {}
for name, split in json.loads(sys.argv[1]):
    try:
        if name == "socratic":
            task = GSM8K("socratic", split, data="hub:any/repo@main:3")
        else:
            task = make_task(name, "fineweb-edu:8", split)
        found[f"{name} {split}"] = [[row["messages"][0]["content"], row["messages"][-1]["content"]] for row in task]
    except UserError as e:
        found[f"{name} {split}"] = str(e)
print("FOUND" + json.dumps(found))
"""
EVERY = [("mmlu", "train"), ("mmlu", "test"), ("arc_easy", "test"), ("arc_challenge", "train"), ("gsm8k", "train"),
         ("gsm8k", "test"), ("socratic", "test"), ("smoltalk", "train"), ("smoltalk", "test")]  # fmt: skip


def start(tasks: list[tuple[str, str]], base: Path, url: str) -> subprocess.Popen:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0" if url else "1",
                   "NANOCHAT_BASE_DIR": str(base), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(tasks)], env=environment, stdout=subprocess.PIPE,
                            encoding="utf-8", cwd=Path(__file__).parents[1])


def found_by(process: subprocess.Popen) -> dict:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return json.loads(said.split("FOUND")[1])


def test_hub_sets_are_fetched_once_pinned_and_the_same_without_network(tmp_path):
    sets = published()
    folders = {repo: write_set(tmp_path / "hub" / repo, files) for repo, files in sets.items()}
    base = tmp_path / "base"

    def moves_on(path: str) -> None:
        """Whoever asks what MMLU's latest revision is makes it another one; and has to wait, so that others ask too."""
        if path in (f"/api/datasets/{MMLU}", f"/api/datasets/{MMLU}/revision/main"):
            commits.append(git_id(str(len(commits)).encode()))
            mirror.repos[MMLU].commit = commits[-1]
            time.sleep(1)

    commits: list[str] = []
    with Mirror(folders, faults=moves_on) as mirror:
        both = [start(EVERY, base, mirror.url) for _ in range(2)]  # as two ranks would
        first, second = (found_by(process) for process in both)
        assert first == second
        pinned = json.loads((base / "task_data/cais--mmlu/manifest.json").read_text(encoding="utf-8"))["revision"]
        assert commits == [pinned]  # one of them asked, the other took its word
        asked = [a for a in mirror.asked if a.sent]
        names = [a.path.rsplit("/", 1)[-1] for a in asked]
        assert len(asked) == 11, names  # each file once, and nothing of what was not asked for (anatomy)
    sizes = {name: len(rows) for name, rows in first.items()}
    assert sizes == {"mmlu train": 12, "mmlu test": 9, "arc_easy test": 6, "arc_challenge train": 4, "gsm8k train": 5,
                     "gsm8k test": 3, "socratic test": 2, "smoltalk train": 10, "smoltalk test": 3}  # fmt: skip
    assert {question for question, _ in first["smoltalk test"]} == {f"q{i}" for i in range(3)}
    assert all("train " in question for question, _ in first["mmlu train"])
    assert {answer for _, answer in first["arc_easy test"]} == {"B"}
    # the repositories move on: whoever has begun with a revision stays with it
    write_set(folders[MMLU], {"all/test-00000-of-00001": mmlu(9, "other ")})
    (base / "task_data/openai--gsm8k/main/test-00000-of-00001.parquet").unlink()  # of this revision it is fetched again
    with Mirror(folders) as mirror:
        assert found_by(start(EVERY, base, mirror.url)) == first
        assert [a.path for a in mirror.asked if "mmlu" in a.path] == []
    damaged = base / "task_data/allenai--ai2_arc/ARC-Easy/test-00000-of-00001.parquet"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    offline = found_by(start([*EVERY, ("arc_easy", "train")], base, ""))
    assert "could not fetch 1 of 1 file(s) of allenai/ai2_arc: ARC-Easy/test-" in offline.pop("arc_easy test")
    assert "no parquet file named ARC-Easy/train-" in offline.pop("arc_easy train")
    assert offline == {name: rows for name, rows in first.items() if name in offline} and len(offline) == 8


# --------------------------------------------------------------------------- what an earlier run has left


def test_hub_rows_pass_the_same_checks_and_a_bad_one_is_named():
    rows = gsm8k(5)
    rows[3]["answer"] = "5"
    folder = fetched_before(GSM8K, {"main/test-0": gsm8k(4), "main/test-1": rows, "main/train-0": gsm8k(3)})
    with pytest.raises(UserError) as error:
        make_task("gsm8k", "hub", "test")
    assert str(error.value).startswith(f'{folder}/main/test-1.parquet: row 4: "answer" must end with')
    assert len(make_task("gsm8k", "hub", "train")) == 3


def test_bad_conversations_of_the_hub_are_left_out_and_the_first_is_named(capsys):
    rows = chats(5)
    rows[2]["messages"][1]["content"] = " "
    rows[4]["messages"].pop()
    folder = fetched_before(SMOLTALK, {"data/train-0": chats(2), "data/train-1": rows, "data/test-0": rows[4:]})
    task = make_task("smoltalk", "hub", "train")
    assert sorted(c["messages"][0]["content"] for c in task) == ["q0", "q0", "q1", "q1", "q3"]
    said = capsys.readouterr().out
    assert f"2 of 7 conversations of {SMOLTALK}" in said and f"{folder}/data/train-1.parquet: row 3: message 2" in said
    with pytest.raises(UserError, match=r"test-0\.parquet: row 1: .*every other row"):
        make_task("smoltalk", "hub", "test")


def test_what_the_hub_has_no_set_for_comes_from_the_pocket_world(pocket_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    for name in ("identity", "simplespelling"):
        task, pocket = make_task(name, "hub:me/texts", "test"), make_task(name, "pocket", "test")
        assert list(task)[:9] == list(pocket)[:9]
        assert source_label(task, "hub:me/texts") == {"data": "pocket"} and source_label(task, "pocket") == {}
    assert source_label(make_task("gsm8k", "pocket", "test"), "fineweb-edu:8") == {}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_what_is_all_there_is_only_read(monkeypatch):
    """Another user's base folder, or one on a disk that is mounted for reading."""
    with tempfile.TemporaryDirectory() as base:  # (root's own pytest folder is closed to all others)
        monkeypatch.setenv("NANOCHAT_BASE_DIR", base)
        folder = fetched_before(GSM8K, {"main/test-0": gsm8k(4)})
        before = sorted(Path(base).rglob("*"))
        places = [path for path in (Path(base), *before) if path.is_dir()]
        for path in places:
            path.chmod(0o555)
        me = os.geteuid()
        try:
            if me == 0:
                os.seteuid(65534)  # root may write anywhere
            with pytest.raises(OSError):
                (folder / "x").touch()
            assert len(make_task("gsm8k", "hub", "test")) == 4
        finally:
            os.seteuid(me)
            for path in places:
                path.chmod(0o755)
        assert sorted(Path(base).rglob("*")) == before


def test_a_published_set_has_the_fingerprint_of_its_files():
    sets = {"main/test-0": gsm8k(4), "main/test-1": gsm8k(5), "main/train-0": gsm8k(4)}
    folder = fetched_before(GSM8K, sets)
    train, test = (make_task("gsm8k", "hub", split).fingerprint() for split in ("train", "test"))
    fetched_before(GSM8K, {**sets, "main/train-0": gsm8k(5)})
    assert make_task("gsm8k", "hub", "test").fingerprint() == test != train
    assert make_task("gsm8k", "hub", "train").fingerprint() not in (train, test)
    (folder / "main/test-1.parquet").unlink()
    fetched_before(GSM8K, {"main/test-0": gsm8k(4)})
    assert make_task("gsm8k", "hub", "test").fingerprint() != test


def test_nothing_fetched_and_no_network(tmp_path):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        make_task("gsm8k", "hub", "test")
    assert not list(tmp_path.rglob("manifest.json"))  # what failed pins nothing
    folder = fetched_before(GSM8K, {"main/test-0": gsm8k(4)})
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json is damaged: remove it"):
        make_task("gsm8k", "hub", "test")


def test_parquet_rows_are_one_list(tmp_path):
    write_set(tmp_path, {"a": mmlu(5), "b": mmlu(0) or mmlu(1), "c": [{"train": row} for row in mmlu(3)]})
    rows = ParquetRows([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert list(rows) == mmlu(5) + mmlu(1) and rows[-1] == rows[5] == mmlu(1)[0]
    assert [rows.where(i) for i in (0, 4, 5)] == [f"{tmp_path}/{x}" for x in
                                                  ("a.parquet: row 1", "a.parquet: row 5", "b.parquet: row 1")]
    assert ParquetRows([tmp_path / "c.parquet"])[2] == mmlu(3)[2]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            rows[outside]

    def check(row: dict) -> None:
        if row["answer"] == 0:
            raise BadRow("zero")

    assert [i for i, _ in rows.problems(check)] == [0, 4, 5]
    with pytest.raises(UserError, match="other columns"):
        ParquetRows([tmp_path / "a.parquet", tmp_path / "c.parquet"])
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"b\.parquet is not a readable"):
        ParquetRows([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_the_order_of_the_rest_is_the_same_without_the_bad_ones():
    for n in (50, 1500):
        rows = Rows(range(n), "numbers")
        assert list(Shuffled(rows, without={3, 7})) == [i for i in Shuffled(rows) if i not in (3, 7)]
        assert sorted(Shuffled(rows)) == rows != list(Shuffled(rows))
    fingerprints = {Shuffled(rows, **kw).fingerprint for rows in (rows, Rows(range(n), "others"))
                    for kw in ({}, {"seed": 1}, {"without": {3, 7}}, {"without": {37}})}  # fmt: skip
    assert len(fingerprints) == 8


# --------------------------------------------------------------------------- random conversations


# trap: empty (and system only, one-sided, unknown roles, anything else)
def test_random_conversations_load_or_are_named_and_all_are_accounted_for():
    assert run_fuzz(300, seed=1) == []


@pytest.mark.parametrize("row", [None, 5, "x", [], {}, {"messages": 5}, {"messages": [None]}, {"text": "x"}])
def test_what_is_no_conversation_is_a_bad_row(row):
    with pytest.raises(BadRow):
        check_conversation(row)
