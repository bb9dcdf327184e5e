"""Power losses and full disks, a share of them; and that the trials see what they are for."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from nanochat import checkpoint_manager as cm
from nanochat import common, files, run, tensor_file
from tests import power_loss
from tests.power_loss import BLOCK, ROOT, Change, Disk, Entry, Killed, Recorder, Sync


def test_a_run_survives_power_losses():
    assert power_loss.power_loss_trials(100, seed=5) == []


@pytest.mark.slow
def test_a_run_survives_many_power_losses():
    assert power_loss.power_loss_trials(500, seed=6) == []


@pytest.mark.parametrize("kill_at", range(0, 24, 2))
def test_killed_before_its_folders_were_safe(kill_at, tmp_path):
    """Folders are made, and only then fsynced: the process after the one that was killed in between finds them made."""
    history, folder = power_loss.History(), tmp_path / "recorded"
    folder.mkdir()
    with power_loss.quick(), Recorder(folder) as recorder:
        recorder.kill_at = kill_at
        with pytest.raises(Killed):
            power_loss.one_process(random.Random(1), power_loss.checkpoints(folder), 2, recorder, history)
        recorder.kill_at = -1
        power_loss.one_process(random.Random(2), power_loss.checkpoints(folder), 2, recorder, history)
    Disk(recorder.operations).write_survivor(tmp_path / "left", random.Random(3), 0.0)
    with power_loss.quick():
        promised = history.promised(len(recorder.operations))
        assert promised >= 0 and power_loss.wrong_after(tmp_path / "left", history, promised, further=True) == ""


def test_saves_survive_full_disks():
    assert power_loss.full_disk_trials(every=9) == []


@pytest.mark.slow
def test_saves_survive_disks_that_are_full_at_any_call():
    assert power_loss.full_disk_trials() == []


# ------------------------------------------------------------------------------------------- what the trials must see


class NoSyncOfFiles:
    """The module `os`, whose fsync is for directories only."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.fsync(fd)


def no_sync_of_files(monkeypatch):
    monkeypatch.setattr(files, "os", NoSyncOfFiles())


def no_sync_of_directories(monkeypatch):
    monkeypatch.setattr(files, "fsync_dir", lambda path: None)


def no_sync_of_the_log(monkeypatch):
    monkeypatch.setattr(cm, "fsync_file", lambda path: None)


def no_sync_of_new_directories(monkeypatch):
    def make_dirs(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path

    for module in (common, files, cm, run):
        monkeypatch.setattr(module, "make_dirs", make_dirs)
    monkeypatch.setattr(run, "sync_parents", lambda path: None)


def written_in_place(monkeypatch):
    def write_file(path: Path, pieces: Any, mode: int = 0o644) -> str:
        files.make_dirs(path.parent)
        content = b"".join(pieces)
        with open(path, "wb") as f:
            f.write(content)
        files.fsync_file(path)
        files.fsync_dir(path.parent)
        return hashlib.sha256(content).hexdigest()

    for module in (files, tensor_file):
        monkeypatch.setattr(module, "write_file", write_file)


def meta_first(monkeypatch):
    later = []

    def write_tensors(path: Path, tensors: dict) -> str:
        path.write_bytes(b"")
        later.append((path, tensors))
        return hashlib.sha256(b"".join(tensor_file.tensor_pieces(tensors))).hexdigest()

    def atomic_write(path: Path, data: str) -> None:
        files.atomic_write(path, data)
        while later:
            tensor_file.write_tensors(*later.pop())

    monkeypatch.setattr(cm, "write_tensors", write_tensors)
    monkeypatch.setattr(cm, "atomic_write", atomic_write)


@pytest.mark.parametrize("mistake", [no_sync_of_files, no_sync_of_directories, no_sync_of_the_log, meta_first,
                                     no_sync_of_new_directories, written_in_place])
def test_mistakes_are_found(mistake, monkeypatch):
    mistake(monkeypatch)
    assert power_loss.power_loss_trials(50, seed=3) != []


def test_a_save_that_hides_a_full_disk_is_found(monkeypatch):
    monkeypatch.setattr(files, "FULL", ())
    found = power_loss.full_disk_trials(every=20)
    assert found and all("names no file" in line or "does not say" in line for line in found)


# ------------------------------------------------------------------------------------------- the recorder and the disk


def survivors(operations: list, tmp_path: Path, chance: float, n: int = 1) -> list[dict[str, bytes | None]]:
    """Files and directories (None) of `n` states that a power loss may leave."""
    states = []
    for i in range(n):
        folder = tmp_path / f"left {len(list(tmp_path.iterdir()))}"
        Disk(operations).write_survivor(folder, random.Random(i), chance)
        states.append({p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
                       for p in folder.rglob("*")})
    return states


def test_what_is_recorded_is_what_happened(tmp_path):
    """With nothing lost, the replay is the folder itself: whatever opened, appended, cut, renamed or removed there."""
    folder = tmp_path / "watched"
    folder.mkdir()
    with Recorder(folder) as recorder:
        files.make_dirs(folder / "a" / "b")
        files.atomic_write(folder / "a" / "b" / "text", "x" * 3000)
        files.atomic_write(folder / "a" / "b" / "text", "y")
        for mode in ("ab", "ab", "r+b"):
            with open(folder / "a" / "log", mode) as f:
                f.write(b"line\n")
        with open(folder / "lock", "w", encoding="utf-8") as f:
            f.write("long text")
        with open(folder / "lock", "r+", encoding="utf-8") as f:
            f.truncate()
            f.write("é")
        (folder / "gone").write_bytes(b"1")
        (folder / "gone").unlink()
        (folder / "empty").mkdir()
        (folder / "empty").rmdir()
        (folder / "empty").mkdir()
        (tmp_path / "outside").write_bytes(b"is not recorded")
    there = {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
    assert survivors(recorder.operations, tmp_path, 1.0) == [there]
    assert there["lock"] == "é".encode() and there["a/log"] == b"line\nline\n"
    assert survivors(recorder.operations, tmp_path, 0.0) == [{"a": None, "a/b": None, "a/b/text": b"y"}]


def test_what_goes_past_the_recorder_is_an_error(tmp_path):
    for change in (lambda: io.FileIO(tmp_path / "x", "w").close(), lambda: os.symlink("x", tmp_path / "y"),
                   lambda: os.link(tmp_path / "x", tmp_path / "z"), lambda: os.truncate(tmp_path / "x", 0)):
        with pytest.raises(AssertionError, match="not recorded"), Recorder(tmp_path):
            change()


def test_what_was_killed_does_nothing_more(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.kill_at = 2  # the temporary file is made and written to
        with pytest.raises(Killed):
            files.atomic_write(tmp_path / "x", "text")
        assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
        assert len(recorder.operations) == 2 and recorder.dead


def test_bytes_that_were_not_synced_may_be_there_or_not(tmp_path):
    old, new = b"o" * (3 * BLOCK), b"n" * (4 * BLOCK)
    safe = [Entry(ROOT, added="f", target=1), Sync(ROOT), Change(1, 0, old), Sync(1)]
    operations = [*safe, Change(1, 0, new)]
    assert survivors(operations, tmp_path, 0.0) == [{"f": old}]
    assert survivors(operations, tmp_path, 1.0) == [{"f": new}]
    states = [state["f"] for state in survivors(operations, tmp_path, 0.5, 200)]
    assert {len(state) for state in states} == {len(old), len(new)}
    assert {tuple(state[begin : begin + 1] for begin in range(0, 3 * BLOCK, BLOCK)) for state in states} == {
        (a, b, c) for a in (b"o", b"n") for b in (b"o", b"n") for c in (b"o", b"n")}  # each block for itself
    assert any(state[-BLOCK:] == bytes(BLOCK) for state in states if len(state) == len(new))  # the length came first
    assert any(len(set(state[:BLOCK])) == 2 for state in states)  # torn
    assert {state["f"] for state in survivors([*operations, Sync(1)], tmp_path, 0.3, 20)} == {new}


def test_entries_that_were_not_synced_may_be_there_or_not(tmp_path):
    operations = [Entry(ROOT, added="d", target=1, is_folder=True), Entry(1, added="t", target=2), Change(2, 0, b"x"),
                  Sync(2), Entry(1, removed="t", added="f", target=2)]
    seen = survivors(operations, tmp_path, 0.6, 100)
    assert {} in seen and {"d": None} in seen  # lost with all that is in it; and without it
    assert {"d": None, "d/t": b"x"} in seen and {"d": None, "d/f": b"x"} in seen
    assert all(not {"d/t", "d/f"} <= state.keys() for state in seen)  # a rename is one step
    assert survivors([*operations, Sync(1)], tmp_path, 0.0) == [{}]  # its own entry is its parent's
    assert survivors([*operations, Sync(1), Sync(ROOT)], tmp_path, 0.0) == [{"d": None, "d/f": b"x"}]
