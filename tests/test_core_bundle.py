"""Bundles of CORE: the same tasks from a folder, a zip file and the hub; what is wrong with one is said in one line.

Run: NANOCHAT_TEST_DATA=FOLDER python -m pytest tests/test_core_bundle.py     (FOLDER has the bundle as core/)
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import stat
import zipfile
from itertools import islice
from pathlib import Path

import pytest
import yaml

from nanochat import common, hub
from nanochat.common import UserError, get_base_dir
from tasks import core_bundle
from tasks.core_bundle import CoreTask, bundle_dir, load_bundle
from tests.core_trials import KINDS, random_task, write_bundle
from tests.hub_mirror import Mirror

DATA = os.environ.get("NANOCHAT_TEST_DATA", "")
NAME = "me/core"


def some_tasks() -> list[CoreTask]:
    return [random_task(random.Random(i), kind, rows=4) for i, kind in enumerate(KINDS)]


def in_the_published_form(tasks: list[CoreTask]) -> dict[str, str]:
    """The files of a bundle that has core.yaml and a table of baselines, in a folder of its own."""
    listed = [{"label": task.label, "dataset_uri": f"x/{task.label}.jsonl", "num_fewshot": [task.num_fewshot],
               "icl_task_type": task.kind, "has_categories": False,
               **({} if task.delimiter == " " else {"continuation_delimiter": task.delimiter})} for task in tasks]
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["Eval Task", "Task Category", "Random baseline", "Description"])
    rows.writerows([task.label, "x", 100 * task.baseline, 'commas, "quotes"'] for task in tasks)
    rows.writerow(["of_no_task", "x", "", "y"])
    files = {"core.yaml": yaml.safe_dump({"icl_tasks": listed}), "eval_meta_data.csv": table.getvalue()}
    files |= {f"eval_data/x/{task.label}.jsonl": "".join(json.dumps(row) + "\n" for row in task.rows) for task in tasks}
    return {f"eval_bundle/{name}": text for name, text in files.items()}


def write_zip(path: Path, files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def error_of(core: Path, data: str = "pocket") -> str:
    with pytest.raises(UserError) as e:
        load_bundle(data, str(core))
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000
    return str(e.value)


# --------------------------------------------------------------------------- where it is


def test_a_folder_and_a_zip_file_hold_the_same_tasks(tmp_path):
    tasks = some_tasks()
    folder = write_bundle(tmp_path / "data" / "core", tasks)
    assert load_bundle(core=str(folder)) == load_bundle(str(tmp_path / "data")) == tasks
    path = write_zip(tmp_path / "b.zip", {**in_the_published_form(tasks), "__MACOSX/eval_bundle/._core.yaml": b"\0\5"})
    assert load_bundle(core=str(path)) == tasks
    unpacked = bundle_dir("pocket", str(path))
    assert unpacked.is_relative_to(get_base_dir() / "core_data") and unpacked.name == "eval_bundle"
    before = (unpacked / "core.yaml").stat()
    assert load_bundle(core=str(path)) == tasks and (unpacked / "core.yaml").stat() == before  # unpacked once
    os.utime(write_zip(path, in_the_published_form(tasks[:2])), ns=(1, 1))
    assert load_bundle(core=str(path)) == tasks[:2]  # another file of the same name


def test_a_bundle_of_the_hub_is_fetched_once_and_pinned(tmp_path, monkeypatch):
    from huggingface_hub import constants

    tasks, repo = some_tasks(), tmp_path / "repo"
    for name, text in {**in_the_published_form(tasks), "pytorch_model.bin": "x" * 100}.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(text, encoding="utf-8")
    write_zip(repo / "eval_bundle.zip", in_the_published_form(tasks))
    for name in ("BACKOFF", "BACKOFF_MAX", "RETRY_AFTER_MAX"):
        monkeypatch.setattr(hub, name, 0.01)
    monkeypatch.setattr(common, "DOWNLOAD_PAUSE", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Mirror({NAME: repo}) as mirror:
        monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            mirror.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(core_bundle, "BUNDLE_URL", f"{mirror.url}/datasets/{NAME}/resolve/main/eval_bundle.zip")
        assert load_bundle(core=f"hub:{NAME}") == tasks == load_bundle(core=f"hub:{NAME}/eval_bundle")
        assert mirror.sent("pytorch_model.bin") == mirror.sent("eval_bundle.zip") == 0  # not of a bundle
        assert load_bundle("fineweb-edu:8") == tasks and mirror.sent("eval_bundle.zip") > 0
        with pytest.raises(UserError, match="hub:nobody/core|nobody/core"):
            load_bundle(core="hub:nobody/core")
    assert load_bundle(core=f"hub:{NAME}") == tasks == load_bundle("fineweb-edu:8")  # without network


@pytest.mark.parametrize("name", ["../../../../evil", "/evil", "eval_bundle/../../../../evil", "..\\..\\evil",
                                  "a/b/../../../evil"])
def test_a_zip_file_writes_nothing_outside_of_its_folder(tmp_path, name):
    tasks = some_tasks()
    path = write_zip(tmp_path / "b.zip", {**in_the_published_form(tasks), name: "bad"})
    assert load_bundle(core=str(path)) == tasks
    found = list(tmp_path.rglob("*evil*"))
    assert found and all(p.is_relative_to(get_base_dir() / "core_data") for p in found) and not Path("/evil").exists()


def test_a_link_in_a_zip_file_is_a_file(tmp_path):
    link = zipfile.ZipInfo("eval_bundle/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "b.zip", in_the_published_form(some_tasks()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert (bundle_dir("pocket", str(path)) / "link").read_text(encoding="utf-8") == "/etc/passwd"
    assert not (bundle_dir("pocket", str(path)) / "link").is_symlink()


def test_a_zip_file_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(core_bundle, "MOST_BYTES", 10**6)
    files = in_the_published_form(some_tasks())
    large = write_zip(tmp_path / "large.zip", {**files, "eval_bundle/zeros": bytes(3 * 10**6)})
    assert large.stat().st_size < 10**5 and "would unpack to 0.0 GB in 6 files" in error_of(large)
    lies = large.read_bytes().replace((3 * 10**6).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "lies.zip").write_bytes(lies)
    assert "not a readable zip" in error_of(tmp_path / "lies.zip")
    monkeypatch.setattr(core_bundle, "MOST_FILES", 100)
    many = write_zip(tmp_path / "many.zip", {**files, **{f"eval_bundle/{i}": b"" for i in range(101)}})
    assert "106 files" in error_of(many)
    assert not [p for p in tmp_path.rglob("*") if p.name in ("zeros", "99")]


def test_a_damaged_zip_file_is_one_line_or_the_same(tmp_path):
    """A byte changed somewhere, or the end cut off; in each way that a zip file can be compressed."""
    tasks, rng, refused = some_tasks(), random.Random(0), 0
    for i in range(80):
        method = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED)[i % 4]
        path = tmp_path / f"{i}.zip"
        data = bytearray(write_zip(path, in_the_published_form(tasks), method).read_bytes())
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(data[: rng.randrange(len(data))] if i % 10 == 9 else data)
        try:
            assert load_bundle(core=str(path)) == tasks
        except UserError as e:
            assert "\n" not in str(e) and "cannot make" not in str(e)  # the zip is to blame, not the folder
            refused += 1
    assert 30 < refused < 80


def test_what_no_zip_file_should_be(tmp_path):
    data = bytearray(write_zip(tmp_path / "a.zip", in_the_published_form(some_tasks())).read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1  # "encrypted"
            at = data.find(mark, at + 1)
    (tmp_path / "locked.zip").write_bytes(data)
    assert "not a readable zip" in error_of(tmp_path / "locked.zip")
    (tmp_path / "text.zip").write_text("no zip", encoding="utf-8")
    assert "not a readable zip" in error_of(tmp_path / "text.zip")
    assert "not a readable zip" in error_of(write_zip(tmp_path / "clash.zip", {"a": "a file", "a/b": "in a folder"}))
    assert "there is no file" in error_of(tmp_path / "none.zip")
    assert "no evaluation bundle" in error_of(write_zip(tmp_path / "empty.zip", {}))
    assert "no evaluation bundle" in error_of(tmp_path / "nowhere")
    assert "no evaluation bundle" in error_of(tmp_path / "text.zip" / "..")


# --------------------------------------------------------------------------- what it holds


GOOD = {"multiple_choice": {"query": "q", "choices": ["a", "b"], "gold": 1},
        "schema": {"context_options": ["a", "b"], "continuation": "c", "gold": 0},
        "language_modeling": {"context": "a", "continuation": "b"}}
BAD_ROWS = [
    ("multiple_choice", {"query": 1}, '"query"'), ("multiple_choice", {"choices": ["a"]}, "two texts"),
    ("multiple_choice", {"choices": "ab"}, '"choices"'), ("multiple_choice", {"choices": ["a", 1]}, "two texts"),
    ("multiple_choice", {"gold": 2}, '"gold" is 2'), ("multiple_choice", {"gold": -1}, '"gold" is -1'),
    ("multiple_choice", {"gold": True}, '"gold"'), ("multiple_choice", {"gold": "1"}, '"gold"'),
    ("schema", {"context_options": []}, "two texts"), ("schema", {"continuation": None}, '"continuation"'),
    ("schema", {"gold": 5}, '"gold" is 5'), ("language_modeling", {"context": ["a"]}, '"context"'),
    ("language_modeling", {"continuation": 4}, '"continuation"'),
]


@pytest.mark.parametrize(("kind", "change", "words"), BAD_ROWS, ids=str)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, kind, change, words):
    rows = [GOOD[kind], {**GOOD[kind], "more": "than needed"}, {**GOOD[kind], **change}]
    write_bundle(tmp_path, [CoreTask("t", kind, 0, " ", 0.0, rows)])
    said = error_of(tmp_path)
    assert said.startswith(f"{tmp_path}/eval_data/kind/t.jsonl:3: ") and words in said


def test_a_line_that_is_no_row(tmp_path):
    path = tmp_path / "eval_data" / "kind" / "t.jsonl"
    for line, words in ((b"{", "not JSON"), (b"[1]", "JSON object"), (b"\xff", "UTF-8"), (b"[" * 10**5, "t.jsonl:2"),
                        (b'{"gold": ' + b"1" * 5000 + b"}", "t.jsonl:2"), (b'{"query": "a", "query": "b"}', "twice")):
        write_bundle(tmp_path, [CoreTask("t", "multiple_choice", 0, " ", 0.0, [GOOD["multiple_choice"]])])
        path.write_bytes(path.read_bytes() + line + b"\n")
        said = error_of(tmp_path)
        assert said.startswith(f"{path}:2: ") and words in said
    path.write_bytes(b"\n")
    assert "has no rows" in error_of(tmp_path)
    path.unlink()
    assert f"{path} is missing" in error_of(tmp_path)


BAD_ENTRIES = [
    {"label": None}, {"label": ["t"]}, {"icl_task_type": "generation"}, {"icl_task_type": 1}, {"num_fewshot": "3"},
    {"num_fewshot": -1}, {"num_fewshot": 10**9}, {"num_fewshot": True}, {"num_fewshot": 10**4000},
    {"random_baseline_pct": 100}, {"random_baseline_pct": -1}, {"random_baseline_pct": None},
    {"random_baseline_pct": float("nan")}, {"random_baseline_pct": float("inf")}, {"random_baseline_pct": 10**4000},
    {"continuation_delimiter": None}, {"dataset_uri": 3}, {"dataset_uri": "../../t.jsonl"}, {"dataset_uri": ""},
    {"dataset_uri": "/etc/passwd"}, {"dataset_uri": "kind/none.jsonl"}, {"dataset_uri": "a\0b"},
    {"dataset_uri": "x" * 5000},
]


@pytest.mark.parametrize("change", BAD_ENTRIES, ids=lambda change: str(change)[:40])
def test_a_bad_entry_of_the_list_is_one_line(tmp_path, change):
    write_bundle(tmp_path, [CoreTask("t", "schema", 0, " ", 0.0, [GOOD["schema"]])])
    path = tmp_path / "tasks.json"
    listed = json.loads(path.read_text(encoding="utf-8"))
    assert len(load_bundle(core=str(tmp_path))) == 1
    listed["tasks"][0] |= change
    path.write_text(json.dumps(listed), encoding="utf-8")
    assert error_of(tmp_path).startswith(str(tmp_path))


def test_two_tasks_of_one_name(tmp_path):
    write_bundle(tmp_path, [CoreTask("t", "schema", 0, " ", 0.0, [GOOD["schema"]])] * 2)
    assert "lists t 2 times" in error_of(tmp_path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]\n" for last, this in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(("name", "text"), [
    ("tasks.json", "{"), ("tasks.json", "[]"), ("tasks.json", '{"tasks": 1}'), ("tasks.json", '{"tasks": []}'),
    ("tasks.json", '{"tasks": [1]}'), ("tasks.json", "[" * 10**5), ("tasks.json", '{"tasks": [{}]}'),
    ("core.yaml", ""), ("core.yaml", "icl_tasks: ["), ("core.yaml", "icl_tasks: {a: 1}"), ("core.yaml", "- a"),
    ("core.yaml", "icl_tasks: [{label: t}]"), ("core.yaml", "icl_tasks: [{label: [t]}]"),
    ("core.yaml", "icl_tasks: [{label: other}]"), ("core.yaml", "icl_tasks: [{}]"), ("core.yaml", "[" * 1000),
    ("core.yaml", f"{BOMB}icl_tasks: [{{label: *i}}]"), ("core.yaml", f"{BOMB}icl_tasks: [{{label: t, more: *i}}]"),
    ("core.yaml", f"{BOMB}icl_tasks: [{{label: t, num_fewshot: *i, icl_task_type: schema, dataset_uri: t}}]"),
    ("core.yaml", "icl_tasks: [!!python/object/apply:os.system [echo]]"), ("core.yaml", "a: \x01"),
], ids=lambda text: text[-40:])
def test_a_list_that_is_none_is_one_line(tmp_path, name, text):
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nt,25\n", encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert error_of(tmp_path).startswith(str(tmp_path))


@pytest.mark.parametrize("table", [None, b"", b"Task,Baseline\nt,1\n", b"Eval Task,Random baseline\nt,\n", b"\xff\xfe",
                                   b"Eval Task,Random baseline\nt,much\n", b"Eval Task,Random baseline\nt\n"], ids=str)
def test_a_table_without_the_baseline_is_one_line(tmp_path, table):
    for name, text in in_the_published_form([CoreTask("t", "schema", 0, " ", 0.0, [GOOD["schema"]])]).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    folder = tmp_path / "eval_bundle"
    assert len(load_bundle(core=str(folder))) == 1
    if table is None:
        (folder / "eval_meta_data.csv").unlink()
    else:
        (folder / "eval_meta_data.csv").write_bytes(table)
    assert error_of(folder).startswith(str(folder))


@pytest.mark.skipif(not DATA, reason="NANOCHAT_TEST_DATA names no folder")
def test_both_lists_of_the_real_bundle_say_the_same(tmp_path):
    """Of each task two rows: the whole bundle is read in test_core_eval.py."""
    core = Path(DATA) / "core"
    for path in (core / "eval_data").rglob("*.jsonl"):
        copy = tmp_path / path.relative_to(core)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(path, encoding="utf-8") as f:
            copy.write_text("".join(islice(f, 2)), encoding="utf-8")
    (tmp_path / "tasks.json").write_bytes((core / "tasks.json").read_bytes())
    tasks = load_bundle(core=str(tmp_path))
    assert len(tasks) == 22
    (tmp_path / "tasks.json").unlink()
    for name in ("core.yaml", "eval_meta_data.csv"):
        (tmp_path / name).write_bytes((core / name).read_bytes())
    assert load_bundle(core=str(tmp_path)) == tasks


def test_the_command_line_lists_the_tasks(tmp_path, capsys):
    tasks = some_tasks()
    core_bundle.main(core_bundle.Config(core=str(write_bundle(tmp_path, tasks))))
    assert capsys.readouterr().out.splitlines() == [
        f"{t.label}: {t.kind}, 4 rows, {t.num_fewshot} shots, baseline 25.0%" for t in tasks]
