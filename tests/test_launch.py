"""Several ranks for real: torchrun, two "machines" under a stand-in for SLURM, signals, deaths, what each rank writes.

Every start of two ranks takes seconds, so few runs serve many checks. Run: python -m pytest tests/test_launch.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from nanochat import launch
from nanochat.checkpoint_manager import find_last_step, load_meta, saved_steps
from nanochat.run import read_metrics
from scripts import base_train
from tests.helpers import small_tokenizer, write_corpus

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("--depth=1", "--head_dim=32", "--max_seq_len=32", "--device_batch_size=2", "--total_batch_size=256",
         "--no-compile", "--eval_tokens=1000", "--log_every=1", "--device_type=cpu", "--dtype=float32")
SIX_STEPS = ("--num_iterations=6", "--save_every=3", "--deterministic")
RUN = Path("base_checkpoints", "d1")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "scripts.base_train")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base directory with a tokenizer, and a corpus beside it that nobody has looked at yet."""
    base = tmp_path_factory.mktemp("launch")
    small_tokenizer().save(base / "tokenizer")
    write_corpus(base / "corpus", 120)
    return base


STARTED: list[subprocess.Popen] = []


def start(base: Path, *arguments: str) -> subprocess.Popen:
    """`python ARGUMENTS`, its output in one stream."""
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    STARTED.append(subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, encoding="utf-8"))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """A test that fails half-way must not leave its ranks training for ever."""
    yield
    for process in STARTED:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            process.communicate()
    STARTED.clear()


def until(process: subprocess.Popen, beginning: str) -> str:
    """Read its output up to a line that begins so."""
    seen = ""
    for line in process.stdout:
        seen += line
        if line.startswith(beginning):
            return seen
    raise AssertionError(f"it ended before it said {beginning!r}:\n{seen}")


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of the ranks, in order."""
    below = [p for p in psutil.Process(process.pid).children(recursive=True) if "RANK" in p.environ()]
    return sorted(below, key=lambda p: int(p.environ()["RANK"]))


def flags(base: Path, *more: str) -> list[str]:
    return [f"--data={base / 'corpus'}", *SIZES, *more]


@pytest.fixture(scope="module")
def two_ranks(base) -> tuple[Path, str]:
    """Six deterministic steps on two ranks: (the run's directory, all that was printed)."""
    process = start(base, *TWO, *flags(base, *SIX_STEPS))
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return base / RUN, out


def cut_back(base: Path, to: Path, step: int = 3) -> Path:
    """A copy of a base directory in which the run has come as far as step 3 (or 0: nowhere)."""
    ignored = ["corpus", "one", "*000006*", ".lock"] if step else ["corpus", "one", "base_checkpoints"]
    shutil.copytree(base, to, ignore=shutil.ignore_patterns(*ignored))
    return to


def on_one_rank(base: Path, data: Path, **changes) -> Path:
    """The same six steps in this process, under another base directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        base_train.main(base_train.Config(
            data=str(data), depth=1, head_dim=32, max_seq_len=32, device_batch_size=2, total_batch_size=256,
            compile=False, eval_tokens=1000, log_every=1, device_type="cpu", dtype="float32", num_iterations=6,
            save_every=3, deterministic=True, **changes))
    return base / RUN


def same_weights(*directories: Path) -> bool:
    one, *others = (load_file(d / "model_000006.safetensors") for d in directories)
    return all(torch.equal(w, other[k]) for other in others for k, w in one.items())


@pytest.mark.slow
def test_each_rank_writes_its_part_and_rank_0_the_rest_once(two_ranks):  # trap: mkdir-rank
    directory, out = two_ranks
    assert sorted(p.name for p in directory.glob("*_00*")) == [
        f"{name}_{step:06d}{rest}" for name, rests in
        (("meta", (".json",)), ("model", (".safetensors",)), ("optim", ("_rank0.safetensors", "_rank1.safetensors")))
        for step in (3, 6) for rest in rests]
    assert len([name for name in load_meta(directory, 6)["files"] if name.startswith("optim_")]) == 2
    assert out.count("converting 120 file(s)") <= 1 and "2 ranks, cpu (1 threads)" in out
    assert out.count("saved step 6") == out.count("step     6 | validation") == out.count("step     6/6 |") == 1
    records = read_metrics(directory / "log.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    state = load_meta(directory, 6)["state"]
    assert state["tokens"] == 6 * 256 and 0 < state["supervised_tokens"] <= 6 * 256  # of all ranks
    report = json.loads((directory.parents[1] / "report" / "base_train.json").read_text(encoding="utf-8"))
    assert report["ranks"] == 2 and report["tokens"] == 6 * 256
    assert report["mfu"] is None and report["matmul_share"] > 0  # trap: mfu-constant (of a CPU: not known)


@pytest.mark.slow
def test_one_rank_and_two_give_the_same_bits_also_when_one_goes_on_from_two(two_ranks, base, tmp_path, capsys):
    directory, out = two_ranks
    one = on_one_rank(cut_back(base, base / "one", 0), base / "corpus")
    gone_on = on_one_rank(cut_back(base, tmp_path / "gone_on"), base / "corpus", resume=True)
    said = capsys.readouterr().out
    assert "at step 3 of 6" in said
    assert same_weights(directory, one, gone_on)
    losses = [[r["loss"] for r in read_metrics(d / "log.jsonl")] for d in (directory, one, gone_on)]
    assert losses[0] == losses[1] == losses[2]
    validations = [line for line in (out + said).splitlines() if "| validation" in line]
    assert len(validations) == 3 and len(set(validations)) == 1


@pytest.mark.slow
def test_two_machines_under_slurm_go_on_from_one_rank(two_ranks, base, tmp_path):
    """runs/slurm.sh with stand-ins for SLURM's commands: two torchruns that meet over loopback."""
    one = base / "one"
    if not one.exists():  # made by the test before this one, unless this one is run alone
        on_one_rank(cut_back(base, one, 0), base / "corpus")
    gone_on = cut_back(one, tmp_path / "gone_on")
    commands = {
        "scontrol": 'echo localhost',
        ".venv/bin/python": f'exec {sys.executable} "$@"',
        "srun": '[ "$2" = --cpus-per-task=3 ] && shift 2 || exit 9\n'
                'for node in 1 2; do "$@" & pids="$pids $!"; done; for pid in $pids; do wait $pid || exit; done',
    }
    for name, script in commands.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(gone_on), "PATH": f"{tmp_path}:{os.environ['PATH']}",
           "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_NUM_NODES": "2",
           "SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_ID": str(os.getpid()), "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "runs" / "slurm.sh"), "scripts.base_train", *flags(base, *SIX_STEPS)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at step 3 of 6" in done.stdout and done.stdout.count("saved step 6") == 1
    assert same_weights(two_ranks[0], gone_on / RUN)
    assert len([name for name in load_meta(gone_on / RUN, 6)["files"] if name.startswith("optim_")]) == 2


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_queues_the_job_again_when_the_time_is_up_not_when_it_is_cancelled(tmp_path, number, again):
    for name, script in {"scontrol": 'echo "$*" >> scontrol.log; echo localhost',
                         "srun": 'trap "exit 143" TERM; sleep 0.5; echo up; while :; do sleep 0.05; done'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
           "SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    STARTED.append(process := subprocess.Popen(["bash", str(ROOT / "runs" / "slurm.sh")], env=env, cwd=tmp_path,
                                               stdout=subprocess.PIPE, encoding="utf-8"))
    until(process, "up")
    process.send_signal(number)
    assert process.wait(timeout=60) == 143
    assert ("requeue 7" in (tmp_path / "scontrol.log").read_text(encoding="utf-8")) is again


def test_a_start_without_a_number_of_ranks_says_what_it_wants(capsys):
    assert launch.main([]) == launch.main(["2"]) == launch.main(["two", "scripts.base_train"]) == 2
    assert capsys.readouterr().err.count("usage: python -m nanochat.launch RANKS MODULE") == 3


@pytest.mark.slow
def test_a_signal_to_any_rank_saves_and_a_death_ends_all(base):
    """SIGTERM to rank 1 alone: all finish the step, save and leave. So they do when the launcher is killed, who cannot
    pass anything on. SIGKILL to rank 1: rank 0 does not wait for it.
    """
    many = flags(base, "--model_tag=signals", "--num_iterations=100000", "--save_every=0", "--resume")
    process = start(base, *TWO, *many)
    until(process, "step     5")
    ranks = ranks_of(process)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    step = find_last_step(base / "base_checkpoints" / "signals")
    assert process.returncode != 0 and step > 5 and f"saved step {step}" in out
    assert out.count(f"stopped by SIGTERM after step {step}, saved") == 1 and "exitcode  : 143" in out
    assert not any(rank.is_running() for rank in ranks)

    process = start(base, *TWO, *many)
    assert f"at step {step} of 100000" in until(process, f"step {step + 2:5d}")
    ranks = ranks_of(process)
    process.kill()
    still_there = psutil.wait_procs(ranks, timeout=60)[1]
    for rank in still_there:
        rank.kill()
    assert not still_there, "they train on for ever"
    assert "the launcher is gone: stopping after this step, then saving" in process.communicate(timeout=60)[0]
    step, before = find_last_step(base / "base_checkpoints" / "signals"), step
    assert step > before

    process = start(base, *TWO, *many)
    assert f"at step {step} of 100000" in until(process, f"step {step + 2:5d}")
    ranks = ranks_of(process)
    ranks[1].kill()
    out = process.communicate(timeout=120)[0]
    assert "rank 0 stopped: its connection to another rank is gone" in out
    blamed = out[out.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in blamed and "SIGKILL" in blamed and "rank      : 0" not in blamed
    assert process.returncode != 0 and not any(rank.is_running() for rank in ranks)
    assert find_last_step(base / "base_checkpoints" / "signals") == step  # the last checkpoint is intact


@pytest.mark.slow
def test_an_error_on_one_rank_is_everybodys_and_one_of_all_is_said_once(two_ranks, base):
    process = start(base, *TWO, *flags(base, *SIX_STEPS))  # in the place of a finished run
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and out.count("holds a run at step 6: --resume goes on with it") == 1
    assert "error on rank" not in out  # it is everybody's
    assert "Traceback" not in out[: out.index("holds a run")]

    broken = base / "base_checkpoints" / "broken"
    (broken / "optim_000003_rank1.safetensors").mkdir(parents=True)  # where only rank 1 wants to write
    process = start(base, "-m", "nanochat.launch", "2", "scripts.base_train",
                    *flags(base, *SIX_STEPS, "--model_tag=broken"))
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "saved step" not in out  # the save runs beside the steps that follow it
    assert "stopped: rank 1 failed while saving step 3: " in out and "[rank1]: Traceback" in out
    assert "rank 1 of 2 was the first to end: exit status 1" in out  # the one that was well did not overtake it
    assert saved_steps(broken) == []  # what the other rank wrote is no checkpoint
