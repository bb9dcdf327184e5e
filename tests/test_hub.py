"""Files from the hub: listed, fetched, verified, resumed; from a mirror on loopback that also breaks on purpose.

Hundreds of random schedules of faults: `python -m tests.chaos downloads`; a sample of them runs here.

Run: python -m pytest tests/test_hub.py
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from filelock import FileLock

from nanochat import common, hub
from nanochat.common import UserError, download_file_with_lock, get_base_dir
from nanochat.files import sha256_file
from nanochat.hub_file import described
from tests.download_faults import ForkServer, Watcher, run_schedules
from tests.hub_mirror import KINDS, Fault, Faults, Mirror, Repo, describe, git_id

ROOT = Path(__file__).resolve().parents[1]
REPO = "someone/texts"
SIZES = {"data/a.parquet": 300_000, "data/b.parquet": 70_000, "data/c.parquet": 0, "other/d.parquet": 1,
         "small.jsonl": 5_000}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A repository of a few files of random bytes: nothing here looks inside."""
    folder = tmp_path_factory.mktemp("repo")
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    return folder


@pytest.fixture
def mirror(source, monkeypatch):
    """The repository on loopback, and this process as if started with `HF_ENDPOINT` set to it."""
    from huggingface_hub import constants

    with Mirror({REPO: source}, stall=1000) as mirror:
        monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
        template = mirror.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        for name in ("BACKOFF", "BACKOFF_MAX", "RETRY_AFTER_MAX"):
            monkeypatch.setattr(hub, name, 0.01)
        monkeypatch.setattr(common, "DOWNLOAD_PAUSE", 0.01)
        yield mirror


@pytest.fixture
def impatient(monkeypatch) -> None:
    """For mirrors that fall silent."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)


def fetch_all(folder: Path, **options) -> list[Path]:
    listing = hub.list_files(REPO)
    return hub.fetch(listing, listing.files, folder, **options)


def content_requests(mirror: Mirror, name: str) -> list[str]:
    """The ranges that were asked for of a file, in order."""
    return [a.range for a in mirror.asked if a.path.endswith(name) and a.status != 302]


def threads_since(before: set[threading.Thread]) -> list[threading.Thread]:
    """The downloading threads that have begun since (the mirror's are its own)."""
    new = set(threading.enumerate()) - before
    return [t for t in new if t.name.endswith("(_work)")]


def until(condition) -> None:
    """Wait for something that must happen, but not for ever."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def killed(process: subprocess.Popen):
    """A process that is gone afterwards, however the test ends and whatever signals it ignores."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def visible(folder: Path) -> list[str]:
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in files if not p.as_posix().startswith("."))


def only(name: str, *faults: Fault):
    """Faults for the first answers about one file."""
    left = list(faults)
    return lambda asked: left.pop(0) if asked == name and left else None


# --------------------------------------------------------------------------- what there is


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_listing_names_commit_sizes_and_hashes(mirror, source, page):
    mirror.page = page
    listing = hub.list_files(REPO)
    assert (listing.repo, listing.revision) == (REPO, mirror.repos[REPO].commit)
    assert [f.name for f in listing.files] == sorted(n for n in SIZES if n.endswith(".parquet"))
    for file in listing.files:
        assert (file.bytes, file.sha256) == (SIZES[file.name], sha256_file(source / file.name))
    assert hub.list_files(REPO, revision=listing.revision) == listing
    assert [f.name for f in hub.list_files(REPO, under="other").files] == ["other/d.parquet"]
    in_git = hub.list_files(REPO, suffix=".jsonl").files[0]
    assert (in_git.sha256, in_git.blob_id) == ("", git_id((source / "small.jsonl").read_bytes()))


def test_a_folder_is_no_file_whatever_its_name(mirror, tmp_path):
    (tmp_path / "repo/folder.parquet").mkdir(parents=True)
    (tmp_path / "repo/folder.parquet/e.parquet").write_bytes(b"text")
    mirror.repos[REPO] = Repo(tmp_path / "repo")
    assert [f.name for f in hub.list_files(REPO).files] == ["folder.parquet/e.parquet"]


def test_the_token_stays_with_the_hub_wherever_it_sends_us(mirror, source, tmp_path):
    """Every answer is a redirect to another host, and so is the address of the next page."""
    mirror.moved, mirror.page = True, 1
    fetch_all(tmp_path / "out")
    assert visible(tmp_path / "out") == visible(source)[:4]
    assert {(a.token, a.status == 307) for a in mirror.asked} == {("Bearer hf_secret", True), ("", False)}
    mirror.asked.clear()
    path = download_file_with_lock(f"{mirror.url}/{SMALL}", "small.jsonl")
    assert path.read_bytes() == (source / "small.jsonl").read_bytes()
    assert [(a.token, a.status) for a in mirror.asked] == [("", 307), ("", 200)]


@pytest.mark.parametrize("token", ["hf_\u00e9", "\u5b57"])
def test_a_token_that_is_none_is_one_line(mirror, tmp_path, monkeypatch, token):
    listing = hub.list_files(REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match="^HF_TOKEN holds characters .* or unset it$"):
        hub.list_files(REPO)
    with pytest.raises(UserError, match="^HF_TOKEN holds characters .* or unset it$"):
        hub.fetch(listing, listing.files, tmp_path)
    assert not visible(tmp_path)


def test_an_entry_of_the_tree_is_a_file_or_refused():
    entry = {"type": "file", "path": "a", "size": 5, "oid": "b" * 40}
    in_git = hub.HubFile("a", 5, "", "b" * 40)
    assert described(entry) == described({**entry, "lfs": None}) == in_git
    assert described({**entry, "lfs": {"oid": "c" * 64}}) == replace(in_git, sha256="c" * 64)
    for odd in ({"size": -5}, {"size": 1 << 60}, {"size": "5"}, {"size": None}, {"size": True}, {"oid": "b" * 39},
                {"oid": None}, {"lfs": {}, "oid": ""}, {"lfs": {"oid": ""}}, {"lfs": {"oid": "C" * 64}}, {"lfs": [1]},
                {"lfs": {"size": 5}}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            described({**entry, **odd})


def test_a_size_that_no_file_has_is_one_line(mirror, source):
    mirror.repos[REPO].files["x"] = replace(describe(source / "data/a.parquet", "x.parquet"), bytes=-5)
    with pytest.raises(UserError, match=r"it says that 'x.parquet' has -5 bytes \("):
        hub.list_files(REPO)


def test_git_ids_are_gits():
    assert git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"repo": "someone/else"}, "there is no dataset someone/else at http"),
     ({"repo": "one"}, "there is no dataset one at"),
     ({"repo": "a b/c"}, "a name is OWNER/NAME"),
     ({"repo": "a/b/c"}, "a name is OWNER/NAME"),
     ({"repo": REPO, "revision": "v9"}, "has no revision 'v9'"),
     ({"repo": REPO, "under": "nowhere"}, "has no folder 'nowhere'"),
     ({"repo": REPO, "suffix": ".zip"}, "has no .zip file")],
)
def test_what_cannot_be_listed_is_one_line_with_a_remedy(mirror, arguments, words):
    with pytest.raises(UserError, match=words) as e:
        hub.list_files(**arguments)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["503", "429 wait", "429", "stall"])
def test_listing_tries_again(mirror, impatient, kind):
    left = [Fault(kind)] * 2
    mirror.faults = lambda path: left.pop() if left else None
    assert len(hub.list_files(REPO).files) == 4 and not left


@pytest.mark.parametrize(("kind", "words"), [("503", "HTTP 503"), ("stall", "time"), ("403", "set HF_TOKEN")])
def test_listing_gives_up(mirror, impatient, kind, words):
    mirror.faults = lambda path: Fault(kind)
    with pytest.raises(UserError, match=words):
        hub.list_files(REPO)
    assert len(mirror.asked) == (1 if kind == "403" else hub.LIST_ATTEMPTS)


def test_an_endpoint_that_is_no_hub(mirror, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", mirror.url + "/nothing/here")
    with pytest.raises(UserError, match="there is no dataset"):
        hub.list_files(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(UserError, match="cannot be listed at http://127.0.0.1:9: .*HF_ENDPOINT"):
        hub.list_files(REPO)


def test_a_repository_does_not_choose_where_files_go(mirror, source, tmp_path, capsys):
    for name in ("../up.parquet", "/root.parquet", "a\\b.parquet", "data/.hidden.parquet", "c:x.parquet",
                 "a/../b.parquet", "a//b.parquet", "a\n.parquet"):
        bad = hub.HubFile(name, 1, "0" * 64)
        with pytest.raises(UserError, match="is not fetched"):
            hub.fetch(hub.Listing(REPO, "0" * 40, (bad,)), [bad], tmp_path / "out")
        mirror.repos[REPO].files["x"] = describe(source / "data/a.parquet", name)
        assert len(hub.list_files(REPO).files) == 4
        assert f"1 file(s) of {REPO} are left out, for names like {name!r}" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no .zip file"):
        mirror.repos[REPO].files["x"] = describe(source / "data/a.parquet", ".x.zip")
        hub.list_files(REPO, suffix=".zip")
    assert not (tmp_path / "up.parquet").exists() and not (tmp_path / "out").exists()


def test_a_name_as_long_as_a_name_can_be(mirror, source, tmp_path):
    name = "\u5b57" * 82 + ".parquet"  # 254 bytes
    mirror.repos[REPO].files = {name: describe(source / "data/a.parquet", name)}
    [path] = fetch_all(tmp_path)
    assert path.name == name and sha256_file(path) == sha256_file(source / "data/a.parquet")


# --------------------------------------------------------------------------- fetching


def test_fetched_files_are_there_and_right(mirror, source, tmp_path):
    landed: list[tuple[str, Path, int]] = []
    out = tmp_path / "out"
    paths = fetch_all(out, landed=lambda f, p: landed.append((f.name, p, threading.get_ident())))
    assert [p.relative_to(out).as_posix() for p in paths] == visible(out) == sorted(visible(source))[:4]
    for path in paths:
        assert path.read_bytes() == (source / path.relative_to(out)).read_bytes()
    assert sorted(landed) == [(p.relative_to(out).as_posix(), p, threading.get_ident()) for p in paths]
    tokens = {(a.token, "/cdn/" in a.path) for a in mirror.asked}
    assert tokens == {("Bearer hf_secret", False), ("", True)}  # the token is for the hub, not for its store
    assert {a.encoding for a in mirror.asked if "/api/" not in a.path} == {"identity"}  # else no offset means anything


def test_what_is_there_is_not_fetched_again(mirror, source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    listing, landed = hub.list_files(REPO), []
    hub.fetch(listing, listing.files, tmp_path)
    sent = mirror.sent()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # needs no network at all
    hub.fetch(listing, listing.files, tmp_path, landed=lambda f, p: landed.append(f))
    assert mirror.sent() == sent == sum(f.bytes for f in listing.files)
    assert set(landed) == set(listing.files)
    for damage in (b"x" * SIZES["data/b.parquet"], b"short"):  # right length and not; another file is not touched
        (tmp_path / "data/b.parquet").write_bytes(damage)
        with pytest.raises(UserError, match=r"1 of 4 .*data/b.parquet \(HF_HUB_OFFLINE is set\)"):
            hub.fetch(listing, listing.files, tmp_path)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.fetch(listing, listing.files, tmp_path)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert (tmp_path / "data/b.parquet").read_bytes() == (source / "data/b.parquet").read_bytes()
    assert mirror.sent() == sent + 2 * SIZES["data/b.parquet"]


def test_what_is_trusted_is_not_read_again_and_nothing_is_written(mirror, tmp_path):
    listing = hub.list_files(REPO)
    hub.fetch(listing, listing.files, tmp_path)
    shutil.rmtree(tmp_path / ".hub")
    (tmp_path / "data/a.parquet").write_bytes(b"never looked at")
    landed = []
    before = sorted(tmp_path.rglob("*"))
    hub.fetch(listing, listing.files, tmp_path, trusted=lambda f, p: p == tmp_path / f.name,
              landed=lambda f, p: landed.append(f))
    assert landed == list(listing.files)
    hub.fetch(listing, [], tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "data/a.parquet").unlink()  # what is not there is not asked about
    hub.fetch(listing, listing.files, tmp_path, trusted=lambda f, p: True)
    assert (tmp_path / "data/a.parquet").stat().st_size == 300_000


def test_who_waited_for_a_file_finds_what_the_other_has_recorded(mirror, tmp_path):
    """`landed` is through before the lock is free, and `trusted` is asked under it: no rank hashes it once more."""
    listing = hub.list_files(REPO)
    [file] = [f for f in listing.files if f.name == "data/a.parquet"]
    recorded, answers, waiting = [], [], threading.Event()

    def record(file: hub.HubFile, path: Path) -> None:
        other.start()
        assert waiting.wait(30)
        time.sleep(0.3)  # the other one polls the lock meanwhile: if it were free, it would get it
        recorded.append(file)

    def is_recorded(file: hub.HubFile, path: Path) -> bool:
        answers.append(file in recorded)
        waiting.set()
        return answers[-1]

    other = threading.Thread(target=hub.fetch, args=(listing, [file], tmp_path), kwargs={"trusted": is_recorded})
    hub.fetch(listing, [file], tmp_path, landed=record)
    other.join()
    assert answers == [False, True]  # at the start, and under the lock


def test_what_has_been_checked_is_on_the_disk_before_it_has_its_name(mirror, source, tmp_path, monkeypatch):
    """Bytes, name, folder: in this order, or a machine that loses power keeps a name without its bytes."""
    get_base_dir()  # which is a folder of its own, made durable too
    events, real = [], {name: getattr(os, name) for name in ("fsync", "replace")}
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_ino), real["fsync"](fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(Path(b).name), real["replace"](a, b)))
    listing = hub.list_files(REPO, under="other")
    for get in (lambda: hub.fetch(listing, listing.files, tmp_path)[0],
                lambda: download_file_with_lock(f"{mirror.url}/{SMALL}", "new/small.jsonl")):
        path = get()
        assert events == [path.stat().st_ino, path.name, path.parent.stat().st_ino]
        events.clear()


def test_offline_says_so(mirror, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.list_files(REPO)
    assert not mirror.asked


def test_small_files_are_checked_by_their_git_id(mirror, source, tmp_path):
    listing = hub.list_files(REPO, suffix=".jsonl")
    mirror.faults = only("small.jsonl", Fault("wrong"), Fault("cut"), Fault("wrong", 0.0))
    hub.fetch(listing, listing.files, tmp_path)
    assert (tmp_path / "small.jsonl").read_bytes() == (source / "small.jsonl").read_bytes()
    assert content_requests(mirror, "small.jsonl") == ["", "", "bytes=2500-", ""]


def test_a_broken_download_goes_on_where_it_broke(mirror, tmp_path):
    mirror.faults = only("data/a.parquet", Fault("cut", 0.5), Fault("503"), Fault("less", 0.5))
    fetch_all(tmp_path)
    assert content_requests(mirror, "data/a.parquet") == ["", "bytes=150000-", "bytes=150000-", "bytes=225000-"]
    assert mirror.sent("data/a.parquet") == 300_000  # each byte once


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_is_got_over(mirror, impatient, source, tmp_path, kind):
    mirror.faults = only("data/a.parquet", Fault("cut", 0.3), Fault(kind, 0.6))
    fetch_all(tmp_path)
    assert (tmp_path / "data/a.parquet").read_bytes() == (source / "data/a.parquet").read_bytes()
    asked = content_requests(mirror, "data/a.parquet")
    assert asked[:2] == ["", "bytes=90000-"]
    if kind in ("whole", "more"):  # it has come, with no more to ask for
        assert len(asked) == 2
    elif kind in ("wrong", "416", "shifted"):  # from byte 0
        assert asked[2:] == [""]
    elif kind in ("cut", "stall", "less"):
        assert asked[2:] == ["bytes=216000-"]
    else:
        assert asked[2:] == ["bytes=90000-"]


def test_bytes_of_an_earlier_run_are_used_if_they_are_right(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    mirror.faults = only("data/a.parquet", Fault("cut", 0.5), Fault("503"))
    with pytest.raises(UserError, match=r"data/a.parquet \(HTTP 503, 2 attempts\)"):
        fetch_all(tmp_path)
    assert "data/a.parquet" not in visible(tmp_path)
    fetch_all(tmp_path)
    assert mirror.sent("data/a.parquet") == 300_000
    assert not list((tmp_path / ".hub").glob("*.part"))


def test_rotten_bytes_of_an_earlier_run_are_thrown_away(mirror, source, tmp_path):
    listing = hub.list_files(REPO)
    job = hub._Job(listing, tmp_path, lambda f, p: False)
    job.staging.mkdir(parents=True)
    for file, size in zip(listing.files, (1000, 70_000, 5, 2)):  # some, all, and more than there are
        job.part(file).write_bytes(b"\xff" * size)
    fetch_all(tmp_path)
    for file in listing.files:
        assert (tmp_path / file.name).read_bytes() == (source / file.name).read_bytes()
    assert content_requests(mirror, "data/a.parquet") == ["bytes=1000-", ""]


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [(Fault("wrong"), "its SHA-256 is not the one that the hub names, 8 attempts", 8),
     (Fault("503"), "HTTP 503, 8 attempts", 8),
     (Fault("cut", 0.0), ".*, 8 attempts", 8),
     (Fault("404"), "HTTP 404", 1),
     (Fault("401"), "HTTP 401, set HF_TOKEN", 1)],
)
def test_what_cannot_be_had_is_named_and_the_others_are_there(mirror, tmp_path, fault, reason, requests):
    mirror.faults = Faults(0, rate=0, always={"data/a.parquet": fault})
    landed = []
    with pytest.raises(UserError, match=rf"could not fetch 1 of 4 .*data/a.parquet \({reason}\)") as e:
        fetch_all(tmp_path, workers=1, landed=lambda f, p: landed.append(f.name))
    assert "\n" not in str(e.value)
    assert sorted(landed) == visible(tmp_path) == ["data/b.parquet", "data/c.parquet", "other/d.parquet"]
    assert len(content_requests(mirror, "data/a.parquet")) == requests


@pytest.mark.parametrize(("kind", "reason"), [("wrong", "its SHA-256 is not"), ("shifted", "HTTP 206 with another")])
def test_attempts_are_bounded_though_each_brings_bytes(mirror, tmp_path, kind, reason):
    asked = mirror.asked

    def faults(name: str) -> Fault | None:
        if name != "data/a.parquet" or len(asked) > 60:  # in the end it would come
            return None
        return Fault(kind if asked[-1].range else "cut")

    mirror.faults = faults
    with pytest.raises(UserError, match=rf"data/a.parquet \({reason} .*, 16 attempts\)"):
        fetch_all(tmp_path, workers=1)
    assert content_requests(mirror, "data/a.parquet") == ["", "bytes=150000-"] * 8


def test_a_byte_a_request_is_no_progress_but_a_little_more_is(mirror, tmp_path):
    mirror.faults = only("data/a.parquet", *[Fault("cut", 4e-6)] * 60)
    with pytest.raises(UserError, match=r"data/a.parquet \(.*, 8 attempts\)"):
        fetch_all(tmp_path, workers=1)
    assert content_requests(mirror, "data/a.parquet")[-2:] == ["bytes=6-", "bytes=7-"]
    mirror.faults = only("data/a.parquet", *[Fault("cut", 0.004)] * 20)  # a hundredth in three requests
    fetch_all(tmp_path, workers=1)


def test_more_bytes_than_there_should_be_are_not_taken(mirror, tmp_path):
    listing = hub.list_files(REPO)
    shorter = replace(listing.files[0], bytes=1000)
    with pytest.raises(UserError, match=r"\(more than the 1,000 bytes that it should have, 8 attempts\)"):
        hub.fetch(listing, [shorter], tmp_path)
    assert not visible(tmp_path) and not list((tmp_path / ".hub").glob("*.part"))


def test_bytes_of_another_revision_are_not_used(mirror, source, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    mirror.faults = only("data/a.parquet", Fault("cut", 0.5), Fault("503"))
    with pytest.raises(UserError, match="could not fetch 1 of 4"):
        fetch_all(tmp_path / "out")
    shutil.copytree(source, tmp_path / "second")
    (tmp_path / "second/data/a.parquet").write_bytes(b"other text")
    mirror.repos[REPO] = Repo(tmp_path / "second")
    mirror.asked.clear()
    fetch_all(tmp_path / "out")
    assert (tmp_path / "out/data/a.parquet").read_bytes() == b"other text"
    assert content_requests(mirror, "data/a.parquet") == [""]


class Counted(FileLock):
    """A lock that notes who tried to get it, and whether it was ready to wait."""

    tries: list[tuple[str, bool]] = []
    names: dict[str, str] = {}

    def acquire(self, *args, **options):
        self.tries.append((self.names.get(Path(self.lock_file).name, ""), options["blocking"]))
        return super().acquire(*args, **options)


@pytest.fixture
def counted(mirror, tmp_path, monkeypatch):
    listing = hub.list_files(REPO)
    job = hub._Job(listing, tmp_path, lambda f, p: False)
    Counted.tries, Counted.names = [], {f"{job.part(f).name}.lock": f.name for f in listing.files}
    monkeypatch.setattr(hub, "FileLock", Counted)


def test_a_file_that_somebody_else_fetches_is_waited_for_last(mirror, tmp_path, counted):
    listing, landed = hub.list_files(REPO), []
    job = hub._Job(listing, tmp_path, lambda f, p: False)
    job.staging.mkdir(parents=True)
    elsewhere = FileLock(f"{job.part(listing.files[0])}.lock", thread_local=False)
    elsewhere.acquire()

    def on_landing(file: hub.HubFile, path: Path) -> None:
        landed.append(file)
        if len(landed) == 3:  # all others, with the one worker there is
            threading.Thread(target=release_when_waited_for).start()

    def release_when_waited_for() -> None:  # it waits, and does not ask again and again
        try:
            until(lambda: len(Counted.tries) >= 5)
        finally:
            elsewhere.release()

    hub.fetch(listing, listing.files, tmp_path, workers=1, landed=on_landing)
    assert landed == [*listing.files[1:], listing.files[0]]
    assert Counted.tries == [(f.name, False) for f in listing.files] + [(listing.files[0].name, True)]


def test_an_error_of_the_caller_ends_what_waits_for_a_lock(mirror, tmp_path, counted):
    listing = hub.list_files(REPO)
    job = hub._Job(listing, tmp_path, lambda f, p: False)
    job.staging.mkdir(parents=True)
    before = set(threading.enumerate())

    def landed(file, path):
        until(lambda: any(patient for _, patient in Counted.tries))
        raise ZeroDivisionError

    with FileLock(f"{job.part(listing.files[0])}.lock"):
        with pytest.raises(ZeroDivisionError):
            hub.fetch(listing, listing.files[:2], tmp_path, landed=landed)
        for thread in threads_since(before):
            thread.join(30)
            assert not thread.is_alive()


def test_an_error_of_the_caller_ends_what_is_being_received(mirror, tmp_path):
    before = set(threading.enumerate())

    def landed(file, path):
        until(lambda: mirror.sent("data/a.parquet"))
        raise ZeroDivisionError

    mirror.slow = 0.3
    listing = hub.list_files(REPO)
    with pytest.raises(ZeroDivisionError):
        hub.fetch(listing, listing.files[:3:2], tmp_path, landed=landed)  # a large one and an empty one
    for thread in threads_since(before):
        thread.join()
    assert visible(tmp_path) == ["data/c.parquet"]
    assert 0 < mirror.sent("data/a.parquet") < 300_000


def test_the_disk_needs_room_for_what_is_still_to_come(mirror, tmp_path, monkeypatch):
    listing, needed = hub.list_files(REPO), []
    job = hub._Job(listing, tmp_path, lambda f, p: False)
    job.staging.mkdir(parents=True)
    job.part(listing.files[0]).write_bytes(b"x" * 100_000)
    monkeypatch.setattr(hub, "check_disk", lambda folder, size: needed.append(size))
    hub.fetch(listing, listing.files, tmp_path)
    hub.fetch(listing, listing.files, tmp_path)
    assert needed == [200_000 + 70_000 + 1, 0]


def test_disk_that_is_too_small(mirror, tmp_path):
    words = r"needs 1,152,921,504,606,846,976 bytes and the disk has [\d,]+ free: .*NANOCHAT_BASE_DIR"
    with pytest.raises(UserError, match=words):
        hub.check_disk(tmp_path / "not/yet/there", 1 << 60)
    hub.check_disk(tmp_path / "not/yet/there", 1)
    huge = hub.HubFile("huge.parquet", 1 << 60, "0" * 64)
    with pytest.raises(UserError, match="and the disk has"):
        hub.fetch(hub.Listing(REPO, "0" * 40, (huge,)), [huge], tmp_path)
    assert not mirror.asked


def test_folder_that_cannot_be_written(mirror, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write to .*NANOCHAT_BASE_DIR"):
        fetch_all(tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/data").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write to .*NANOCHAT_BASE_DIR"):
        fetch_all(tmp_path / "out")


def test_what_a_server_asks_to_wait():
    assert hub._asked_to_wait({"Retry-After": "7"}) == 7
    assert 50 < hub._asked_to_wait({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert hub._asked_to_wait({"Retry-After": formatdate(time.time() - 60, usegmt=True)}) == 0
    assert hub._asked_to_wait({"RateLimit": '"resolvers";r=0;t=55'}) == 55
    assert hub._asked_to_wait({"RateLimit": '"resolvers";r=9;t=55'}) is None
    for odd in ({}, {"Retry-After": "soon"}, {"Retry-After": "-5"}, {"Retry-After": ""}):
        assert hub._asked_to_wait(odd) is None


def test_pauses_grow_up_to_a_bound_and_obey_the_server():
    for failures, low, high in ((0, 0.5, 1), (1, 1, 2), (3, 4, 8), (5, 15, 30), (1000, 15, 30)):
        assert low <= hub._pause(failures, None) <= high
    assert 7 <= hub._pause(0, 7) <= 8
    assert hub.RETRY_AFTER_MAX <= hub._pause(0, 1e9) <= hub.RETRY_AFTER_MAX + 1


# --------------------------------------------------------------------------- real processes


def online(url: str, **more: str) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", **more}


FETCH = ("import signal, sys; from nanochat import hub\n"
         "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background has it ignored
         "try:\n"
         "    listing = hub.list_files(sys.argv[1])\n"
         "    print(*hub.fetch(listing, listing.files, sys.argv[2]), sep='\\n')\n"
         "except hub.UserError as e: sys.exit(str(e))")


def test_a_mirror_from_the_command_line(source, tmp_path):
    """`HF_ENDPOINT` and `HF_HUB_OFFLINE` as a person sets them; and the library's own download takes its answers."""
    folders = [str(source), f"--repo={REPO}", str(source / "other"), "--repo=me/other", "--port=0"]
    command = [sys.executable, "-m", "tests.hub_mirror", *folders]
    with killed(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8")) as server:
        lines = [server.stdout.readline().strip() for _ in range(3)]
        assert lines[:2] == [f"serving {REPO} (5 files, 0.4 MB)", "serving me/other (1 files, 0.0 MB)"]
        url = lines[2].removeprefix("HF_ENDPOINT=")
        library = ("import sys; from huggingface_hub import snapshot_download as d\n"
                   f"d('{REPO}', repo_type='dataset', local_dir=sys.argv[2])")
        runs = [(FETCH, "me/other", "ours", online(url)), (library, REPO, "library", online(url)),
                (FETCH, REPO, "offline", online(url, HF_HUB_OFFLINE="1"))]
        started = [subprocess.Popen([sys.executable, "-c", code, repo, str(tmp_path / folder)], cwd=ROOT, env=env,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
                   for code, repo, folder, env in runs]
        outputs = [p.communicate(timeout=60) for p in started]
        server.terminate()  # by default a suite in the background has SIGINT ignored
        assert server.wait(timeout=60) == -signal.SIGTERM
    assert [p.returncode for p in started] == [0, 0, 1], outputs
    assert visible(tmp_path / "ours") == ["d.parquet"]
    assert visible(tmp_path / "library") == visible(source)
    assert outputs[2][1] == f"{REPO} cannot be listed: HF_HUB_OFFLINE is set (unset it, or use --data=pocket)\n"


def test_ctrl_c_ends_it_at_once_and_keeps_what_has_arrived(mirror, tmp_path):
    mirror.faults = lambda name: Fault("stall", 0.5) if name == "data/a.parquet" else None
    mirror.stall = 1000
    command = [sys.executable, "-c", FETCH, REPO, str(tmp_path / "out")]
    environment = online(mirror.url, HF_HUB_DOWNLOAD_TIMEOUT="1000")
    with killed(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)) as process:
        while len(visible(tmp_path / "out")) < 3 or not list((tmp_path / "out/.hub").glob("*.part")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()  # it would take 1000 s to notice by itself
        process.wait()
    assert b"KeyboardInterrupt" in error and process.returncode != 0
    mirror.faults = lambda name: None
    [part] = (tmp_path / "out/.hub").glob("*.part")
    had = part.stat().st_size
    fetch_all(tmp_path / "out")
    assert had and content_requests(mirror, "data/a.parquet") == ["", f"bytes={had}-"]


def test_two_processes_share_the_work(mirror, source, tmp_path):
    mirror.slow = 0.01
    forks = ForkServer(mirror.url, read_timeout=60)
    try:
        both = [forks.start(REPO, tmp_path / "out", tmp_path / f"result{i}") for i in range(2)]
        assert [process.outcome() for process in both] == [None, None]
    finally:
        forks.close()
    assert visible(tmp_path / "out") == visible(source)[:4]
    assert mirror.sent() == sum(size for name, size in SIZES.items() if name.endswith(".parquet"))  # each byte once


def test_random_faults_and_kills(tmp_path, monkeypatch):
    """Ten of the schedules; `python -m tests.chaos downloads` runs as many as one likes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    totals: Counter = Counter()
    assert run_schedules(10, seed=5, totals=totals) == []
    assert totals["schedules"] == 10 and totals["kills"] and totals["second"] and totals["resumed"]


def test_the_watcher_sees_what_it_is_there_for(tmp_path):
    watcher = Watcher(tmp_path, {"a.parquet": b"right"})
    watcher.look()
    (tmp_path / "a.parquet").write_bytes(b"right")
    watcher.look()
    assert watcher.wrong == []
    (tmp_path / "b").write_bytes(b"wrong")
    os.replace(tmp_path / "b", tmp_path / "a.parquet")
    watcher.look()
    assert watcher.wrong == ["a.parquet was seen with wrong content"]


# --------------------------------------------------------------------------- download_file_with_lock

SMALL = f"datasets/{REPO}/resolve/main/small.jsonl"


def test_a_plain_file_is_fetched_once(mirror, source):
    path = download_file_with_lock(f"{mirror.url}/{SMALL}", "words/small.jsonl")
    assert path == common.get_base_dir() / "words/small.jsonl"
    assert path.read_bytes() == (source / "small.jsonl").read_bytes()
    assert download_file_with_lock(f"{mirror.url}/{SMALL}", "words/small.jsonl") == path
    assert [a.token for a in mirror.asked] == [""]  # one request; the hub's token is not for any address


def test_a_plain_file_is_whole_and_right_or_not_there(mirror, impatient, source):
    url, good = f"{mirror.url}/{SMALL}", sha256_file(source / "small.jsonl")
    mirror.faults = only("small.jsonl", Fault("cut"), Fault("503"), Fault("wrong"), Fault("stall"))
    path = download_file_with_lock(url, "a", sha256=good)
    assert sha256_file(path) == good and len(mirror.asked) == 5
    mirror.faults = lambda name: Fault("wrong")
    with pytest.raises(UserError, match=r"could not download .http.*SHA-256 is not the one .*put the file at"):
        download_file_with_lock(url, "b", sha256=good)
    mirror.faults = lambda name: Fault("cut")
    with pytest.raises(UserError, match="could not download"):
        download_file_with_lock(url, "c")
    assert visible(path.parent) == ["a"] and not list(path.parent.glob(".*.part"))
    path.write_bytes(b"altered")
    mirror.faults = lambda name: None
    assert sha256_file(download_file_with_lock(url, "a", sha256=good.upper())) == good


def test_a_plain_file_that_cannot_lie_where_it_should(mirror, tmp_path):
    base = common.get_base_dir()
    (base / "folder").mkdir()
    (base / "file").write_text("in the way", encoding="utf-8")
    for name in ("../up", "a/../../up", str(tmp_path / "abs"), "", ".", "folder"):
        with pytest.raises(UserError, match="cannot be the name of a file in .*: choose a name"):
            download_file_with_lock(f"{mirror.url}/{SMALL}", name)
    with pytest.raises(UserError, match=r"cannot write .*/file/x \(.*\): .*NANOCHAT_BASE_DIR"):
        download_file_with_lock(f"{mirror.url}/{SMALL}", "file/x")
    assert visible(tmp_path) == ["nanochat_base/file"] and not mirror.asked


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_a_folder_that_only_its_owner_may_write_to(mirror, source, monkeypatch):
    """What is there can be used by others; what is not is one line. (In a process that is nobody's, if we are root.)"""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        base = Path(name)
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
        listing = hub.list_files(REPO)
        hub.fetch(listing, listing.files, base / "out")
        path = download_file_with_lock(f"{mirror.url}/{SMALL}", "small.jsonl")
        shutil.rmtree(base / "out/.hub")
        for folder in (base / "out", base):
            folder.chmod(0o555)
        try:
            as_nobody(mirror, listing, base / "out", path)
        finally:
            base.chmod(0o755)
            (base / "out").chmod(0o755)


def as_nobody(mirror: Mirror, listing: hub.Listing, folder: Path, path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            if os.getuid() == 0:
                os.setuid(65534)
            hub.fetch(listing, listing.files, folder, trusted=lambda f, p: True)
            for sha256 in ("", sha256_file(path)):
                assert download_file_with_lock(f"{mirror.url}/{SMALL}", "small.jsonl", sha256=sha256) == path
            for act in (lambda: hub.fetch(listing, listing.files, folder),
                        lambda: download_file_with_lock(f"{mirror.url}/{SMALL}", "new")):
                with pytest.raises(UserError, match=r"cannot write .*\(Permission denied\): .*NANOCHAT_BASE_DIR"):
                    act()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_plain_file_that_will_never_come(mirror, monkeypatch):
    from huggingface_hub import constants

    for url, words in ((f"{mirror.url}/nothing", "HTTP 404"), ("file:///etc/hostname", "protocol"), ("nonsense", ""),
                       (f"{mirror.url}/a\nb", "non-printable"), ("http://\ud800/", ""), ("http://[", ""), ("", "")):
        with pytest.raises(UserError, match=re.escape(f"could not download {url!r}: ") + f".*{words}") as e:
            download_file_with_lock(url, "d")
        assert str(e.value).isprintable()
    assert len(mirror.asked) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        download_file_with_lock(f"{mirror.url}/{SMALL}", "d")


def test_one_of_several_processes_downloads_a_plain_file(mirror, source):
    mirror.slow = 0.05  # 19 blocks: the others come while the first is at it
    code = ("import sys; from nanochat.common import download_file_with_lock; from nanochat.files import sha256_file; "
            "print(sha256_file(download_file_with_lock(sys.argv[1], 'x')))")
    command = [sys.executable, "-c", code, f"{mirror.url}/datasets/{REPO}/resolve/main/data/a.parquet"]
    started = [subprocess.Popen(command, cwd=ROOT, env=online(mirror.url), stdout=subprocess.PIPE) for _ in range(3)]
    path = common.get_base_dir() / "x"
    while any(process.poll() is None for process in started):
        assert not path.exists() or path.stat().st_size == 300_000  # never half of it
        time.sleep(0.01)
    hashes = {process.communicate()[0].decode().strip() for process in started}
    assert hashes == {sha256_file(source / "data/a.parquet")}
    assert len(content_requests(mirror, "data/a.parquet")) == 1
