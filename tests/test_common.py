"""The ground floor: safe writes, ranks, devices, cleaning up."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nanochat import common, configurator
from nanochat.common import UserError, compute_cleanup, compute_init, get_dist_info, resolve_dtype
from nanochat.files import atomic_write
from nanochat.ranks import OtherRankFailed

ROOT = Path(__file__).resolve().parents[1]


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


def test_peak_flops_are_of_this_very_device_or_unknown():  # trap: mfu-constant
    bf16, f32 = torch.bfloat16, torch.float32
    assert common.peak_flops_by_name("NVIDIA H100 80GB HBM3", bf16) == 989.4e12
    assert common.peak_flops_by_name("NVIDIA H100 PCIe", bf16) == 756e12
    assert common.peak_flops_by_name("NVIDIA A100-SXM4-40GB", f32) == 156e12
    assert common.peak_flops_by_name("NVIDIA A100 80GB PCIe", bf16) == 312e12
    assert common.peak_flops_by_name("Tesla V100-SXM2-16GB", bf16) is None  # it has no such unit
    for unknown in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L", "NVIDIA H20",
                    "NVIDIA GeForce RTX 3090 Ti", "", "Something New"):
        assert common.peak_flops_by_name(unknown, bf16) is None
    assert common.peak_flops_by_name("NVIDIA H200", torch.float64) is None
    assert common.peak_flops(torch.device("cpu"), bf16) is None


def threads(persons: str | None, ranks_here: int, deterministic: bool = False) -> str:
    """What `threads_per_rank` says in a rank whose torchrun was started by a person who set OMP_NUM_THREADS or not."""
    code = f"from nanochat.common import threads_per_rank, cpu_cores; print(threads_per_rank({deterministic}))"
    torchrun = (f"import os, subprocess, sys; os.environ.setdefault('OMP_NUM_THREADS', '1'); "
                f"os.environ |= {{'TORCHELASTIC_RUN_ID': 'x', 'LOCAL_WORLD_SIZE': '{ranks_here}'}}; "
                f"subprocess.run([sys.executable, '-c', {code!r}], check=True)")
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    env |= {"OMP_NUM_THREADS": persons} if persons else {}
    return subprocess.run([sys.executable, "-c", torchrun], env=env, cwd=ROOT, capture_output=True, check=True,
                          encoding="utf-8").stdout.strip()


def test_ranks_share_the_cores_unless_a_person_said_otherwise():
    cores = common.cpu_cores()
    assert threads(None, ranks_here=2) == str(max(1, cores // 2))  # the 1 is torchrun's, not a person's
    assert threads(None, ranks_here=10**6) == "1"
    assert threads("3", ranks_here=2) == "None"  # as torch has it, which is what OMP_NUM_THREADS says
    assert threads(None, ranks_here=1, deterministic=True) == "1"


def test_deterministic_mode_is_refused_off_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="--deterministic works on the CPU only, not on cuda"):
        compute_init("cuda", deterministic=True)


def test_what_all_ranks_find_before_they_have_met_is_said_by_one_a_machine(monkeypatch, capsys):
    """A command of one process under torchrun; the third rank is the first of another machine."""
    monkeypatch.setattr(sys, "argv", ["tok_train"])
    said = []
    for rank, local_rank in ((0, 0), (1, 1), (2, 0)):
        for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", 4)):
            monkeypatch.setenv(name, str(value))
        with pytest.raises(SystemExit, match="2"):
            configurator.main(lambda config: None, Nothing)
        said.append(capsys.readouterr().err)
    line = "tok_train works in one process: start it without torchrun, python -m ... tok_train\n"
    assert said == [f"error: {line}", "", f"error on rank 2: {line}"]
    configurator.main(lambda config: None, Nothing, distributed=True)


def test_only_a_closed_connection_is_another_ranks_fault(monkeypatch):
    """What else gloo and NCCL complain of keeps its traceback, and so does all that comes before the ranks have met."""
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711. Maybe it died")
    assert configurator._failure_elsewhere(gone) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert configurator._failure_elsewhere(gone) is None  # no process group yet
    failed = OtherRankFailed("rank 0 failed while saving step 3: OSError: x")
    assert configurator._failure_elsewhere(failed) == "stopped: rank 0 failed while saving step 3: OSError: x"
    monkeypatch.setattr("nanochat.ranks.rank_and_world", lambda: (1, 2))
    said = configurator._failure_elsewhere(gone)
    assert said.startswith("rank 1 stopped: its connection to another rank is gone ([../gloo") and "4711" in said
    assert configurator._failure_elsewhere(RuntimeError("gloo: Invalid scalar type")) is None
    assert configurator._failure_elsewhere(RuntimeError("NCCL Error 5: invalid usage")) is None
    assert configurator._failure_elsewhere(OSError("Connection reset by peer")) is None  # a download's


@dataclass
class Nothing:
    """A command without settings."""


def test_the_c_library_keeps_freed_memory_where_it_can():
    import platform

    assert common.keep_freed_memory() == (sys.platform == "linux" and platform.libc_ver()[0] == "glibc")
