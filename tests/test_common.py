"""The ground floor: safe writes, ranks, devices, cleaning up."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from nanochat import common
from nanochat.common import UserError, atomic_write, compute_cleanup, compute_init, get_dist_info, resolve_dtype


def test_atomic_write_replaces_whole_files_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    atomic_write(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    atomic_write(path, b"\xff")
    assert path.read_bytes() == b"\xff" and os.listdir(path.parent) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(common.os, "fsync", fail)
    with pytest.raises(OSError):
        atomic_write(path, "new")
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_base_dir_that_cannot_be_made_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set NANOCHAT_BASE_DIR"):
        common.get_base_dir()


def test_dist_info_comes_from_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert get_dist_info() == (False, 0, 0, 1)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert get_dist_info() == (True, 5, 1, 8)


def test_print0_speaks_on_rank_0_only(monkeypatch, capsys):
    common.print0("a")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    common.print0("b")
    assert capsys.readouterr().out == "a\n"


def test_cleanup_asks_the_process_group_not_the_environment(monkeypatch, tmp_path):  # trap: group-cleanup
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    compute_cleanup()  # torchrun's variables, but no group: nothing to leave, no error
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    monkeypatch.delenv("RANK")  # a group, but no variables: it is left all the same
    compute_cleanup()
    assert not dist.is_initialized()


def test_compute_init_seeds_everything_and_refuses_absent_devices():
    first = [compute_init("cpu", seed=3)[-1], torch.rand(2).tolist()]
    assert [compute_init("cpu", seed=3)[-1], torch.rand(2).tolist()] == first
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(UserError, match=f"{absent} is not available here: choose one of cpu"):
        compute_init(absent)


def test_dtype_is_one_explicit_choice():
    assert resolve_dtype("float32", "cpu") == torch.float32
    assert resolve_dtype("auto", "cpu") == (torch.bfloat16 if common.cpu_has_native_bf16() else torch.float32)
    assert resolve_dtype("auto", "mps") == torch.float32
    with pytest.raises(UserError, match="float16"):
        resolve_dtype("float16", "cpu")


def test_progress_yields_all_items_in_silence_without_a_terminal(capsys):
    assert list(common.progress(range(5), description="x")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_no_compiler_is_said_in_words(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "no C++ compiler" in common.compile_problem("cpu")
