"""Signals, the run's lock, the random states: what surrounds a run, with real signals and real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.common import UserError
from nanochat.rng import rng_state, set_rng_state, untouched
from nanochat.run import MetricsLog, RunLock, StopSignals, read_metrics

ROOT = Path(__file__).resolve().parents[1]


def start(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, encoding="utf-8")


# --------------------------------------------------------------------------- signals

STOPS = """
import sys
from nanochat import configurator
from nanochat.run import Stopped, StopSignals
from dataclasses import dataclass

@dataclass
class Config:
    "nothing to set"

def main(config):
    with StopSignals() as stop:
        print("ready", flush=True)
        while not stop.requested:
            pass
    raise Stopped(stop.requested, 7)

sys.argv = ["a_stage"]
configurator.main(main, Config)
"""

HANGS = """
import ctypes
from nanochat.run import StopSignals
mutex = ctypes.create_string_buffer(64)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
with StopSignals():
    print("ready", flush=True)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)  # for ever: no handler of Python's is run
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_was_asked_to_end_says_by_which_signal(number, status):
    process = start(STOPS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"stopped by {number.name} after step 7, saved: --resume goes on" in said and "Traceback" not in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_leaves_at_once_also_out_of_c(number, status):
    process = start(HANGS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # a launcher that passes it on along two ways: the same request
    process.send_signal(signal.SIGHUP)  # the terminal closes as well
    time.sleep(StopSignals.AGAIN + 0.2)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=20) == status
    process.communicate()


FORKS = """
import os, signal, time
from nanochat.run import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    for _ in range(2):  # children that some library forks, and ends
        if (child := os.fork()) == 0:
            time.sleep(60)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        time.sleep(stop.AGAIN + 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print("asked", flush=True)
    while not stop.requested:
        time.sleep(0.01)
print("saved", flush=True)
"""


def test_signals_of_forked_children_are_not_ours():
    process = start(FORKS)
    assert process.stdout.readline() == "ready\n" and process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n" and process.wait(timeout=60) == 0
    process.communicate()


def test_a_reader_that_dies_costs_no_run(tmp_path):
    """`... | tee log` and Ctrl-C: tee is gone, and every print would be an error."""
    code = """
import os, signal, sys
from pathlib import Path
from nanochat.common import print0
from nanochat.run import StopSignals
with StopSignals() as stop:
    print0("ready")
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGINT)
    for i in range(100):
        print0("step", i)
    assert stop.requested
Path(sys.argv[1]).write_text("saved", encoding="utf-8")
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0 and (tmp_path / "file").read_text(encoding="utf-8") == "saved"


def test_what_was_ignored_stays_ignored_and_only_one_rank_speaks(capfd):
    """nohup ignores SIGHUP: the terminal's end is then no reason to stop."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer)
    try:
        with StopSignals(speaks=False) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested == signal.SIGINT
        assert signal.set_wakeup_fd(wakeup) == writer  # it was given back
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(reader)
        os.close(writer)
    assert capfd.readouterr().err == ""


def test_a_lock_whose_directory_is_gone_does_not_hide_the_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path / "run"):
        (tmp_path / "run" / ".lock").unlink()
        (tmp_path / "run").rmdir()
        raise ZeroDivisionError


def test_handlers_are_given_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopSignals(speaks=False) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGTERM  # the first one counts
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert signal.set_wakeup_fd(-1) == -1


# --------------------------------------------------------------------------- the lock

HOLDS = """
import os, signal, sys
from nanochat.run import RunLock
with RunLock(sys.argv[1], int(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_lock_names_its_holder_and_dies_with_him(tmp_path, capsys, rank):
    def holder(end: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path), str(rank), end], cwd=ROOT,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        assert process.stdout.readline() == "held\n"
        return process

    process = holder("die")
    with pytest.raises(UserError) as e:
        RunLock(tmp_path, rank)
    assert f"another process (pid {process.pid} on " in str(e.value) and " since 20" in str(e.value)
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)
    with RunLock(tmp_path, 1 - rank):  # each rank has one of its own
        process.communicate(timeout=60)
    capsys.readouterr()
    with RunLock(tmp_path, rank):  # the file is there and names a dead process: no obstacle, but a line
        assert f"note: the last process in {tmp_path} (pid {process.pid} on " in capsys.readouterr().out
    process = holder("well")
    process.communicate(timeout=60)
    with RunLock(tmp_path, rank):
        assert capsys.readouterr().out == ""  # it ended by itself


def test_a_lock_file_with_anything_in_it_is_no_obstacle(tmp_path):
    for text in ("", "{", "[]", '{"pid": 1}', "\0" * 100, json.dumps({"pid": None, "host": 1})):
        (tmp_path / ".lock").write_text(text, encoding="utf-8")
        with RunLock(tmp_path):
            pass


# --------------------------------------------------------------------------- the log


def test_a_log_that_is_not_what_was_written_is_refused_and_one_that_is_gone_is_said(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    log = MetricsLog(path)
    log.log(1, loss=2.5)
    mark = log.mark()
    log.log(2, loss=1.5)
    whole = path.read_bytes()
    for damaged in (whole.replace(b"2.5", b"2.4"), whole[: mark["bytes"] - 1], b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"log.jsonl is damaged.*delete it"):
            MetricsLog(path, mark)
    path.write_bytes(whole[: mark["bytes"]] + b"\xff\0 torn by a power loss")
    MetricsLog(path, mark).log(2, loss=1.0)
    assert [r["loss"] for r in read_metrics(path)] == [2.5, 1.0]
    path.unlink()
    MetricsLog(path, mark).log(2, loss=1.0)
    assert "is gone: the curve of this run begins anew" in capsys.readouterr().out
    assert [r["step"] for r in read_metrics(path)] == [2]


# --------------------------------------------------------------------------- random states


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()),
            float(torch.rand(1)), float(torch.randn(1)), *torch.randperm(5).tolist()]


def test_random_states_come_back_through_json():
    random.gauss(0, 1)  # half a pair of Gaussians is part of the state
    np.random.randn()
    state = json.loads(json.dumps(rng_state()))
    first = draw()
    assert draw() != first
    set_rng_state(state)
    assert draw() == first


def test_what_only_looks_leaves_them_untouched():
    state = rng_state()
    with pytest.raises(ZeroDivisionError), untouched():
        draw()
        raise ZeroDivisionError
    assert rng_state() == state
