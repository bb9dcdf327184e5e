"""What hangs is named and ended in bounded time; what moves is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from nanochat.watchdog import STALLED, WAITS, Watchdog, alive, blamed


@pytest.mark.parametrize(("places", "said"), [
    ({0: (7, "the loader")}, "it hangs in: the loader"),
    ({0: (7, f"{WAITS}: x"), 1: (6, "the loader"), 2: (7, f"{WAITS}: x")}, "rank 1 hangs in: the loader"),
    ({0: (7, f"{WAITS}: x"), 1: (4, f"{WAITS}: y")}, f"rank 1 hangs in: {WAITS}: y"),  # stopped before it said more
    ({0: (7, f"{WAITS}: x"), 1: None}, "rank 1 gives no sign of life"),
    ({0: (7, "forward"), 1: (7, "forward"), 2: (8, f"{WAITS}: x")},
     "rank 0 hangs in: forward; rank 1 hangs in: forward"),
    ({0: (7, "an evaluation"), 1: (5, f"{WAITS}: y")}, f"rank 1 hangs in: {WAITS}: y"),  # it, too, has exchanges
    ({0: (7, "an evaluation"), 1: (7, f"{WAITS}: y")}, "rank 0 hangs in: an evaluation"),
    ({0: (7, f"{WAITS}: x"), 1: (7, f"{WAITS}: x")}, f"all 2 ranks hang, rank 0 in: {WAITS}: x (a network or disk that "
     "all need?)"),
])
def test_who_is_to_blame(places, said):
    assert blamed(places) == said


HANGS = """
import ctypes, sys
from nanochat.watchdog import Watchdog
with Watchdog(0.5, "; see to it") as watchdog:
    watchdog("the step")
    watchdog("the loader, which is to give the batch of step 7")
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)  # for ever, and no signal handler of Python's is ever run
"""


def test_a_main_thread_that_hangs_in_c_is_ended_with_a_line_and_its_stack():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == STALLED
    assert done.stderr.startswith("error: no progress for 0.5 s: it hangs in: the loader, which is to give the batch "
                                  "of step 7; see to it\n")
    assert 'File "<string>", line 9' in done.stderr  # where it was


def test_what_moves_or_is_done_is_left_alone():
    with Watchdog(0.4) as watchdog:
        for i in range(12):
            watchdog(f"step {i}") if i < 6 else alive()
            time.sleep(0.1)
        assert watchdog._place == (7, "step 5")  # such signs of life do not count: a rank may give more than others
        alive("the answers of the others")
        assert watchdog._place == (8, "the answers of the others")
    alive("nowhere")
    time.sleep(0.8)  # nobody watches any more
    with Watchdog(0) as watchdog:
        time.sleep(0.2)
    assert not watchdog._thread.is_alive()


def test_an_end_or_a_step_within_the_grace_is_no_hang():
    """The clock has run out, and then it moves, or all is done: nobody is killed (this process would be)."""
    with Watchdog(0.8) as watchdog:
        time.sleep(1.0)
        watchdog("a step that took a little longer")
        time.sleep(0.5)
    with Watchdog(0.8) as watchdog:
        time.sleep(1.0)
    time.sleep(0.8)


MUTE = """
import os, time
from nanochat.watchdog import Watchdog
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
os.dup2(writer, 1)
with Watchdog(0.4):
    time.sleep(600)
"""


def test_it_ends_the_process_also_when_nobody_can_be_told():
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", MUTE], timeout=120, env={**os.environ}).returncode == STALLED
    assert time.monotonic() - started < 60
