"""Ranks that are killed, stopped or hang, without a launcher that would clear up: those that are left must end by
themselves, soon, with a status and a line that say why; and any number of ranks goes on to the same weights.

    python -m tests.chaos --rank-kills=100 --rank-changes=30 --hangs=30

The processes come from fork_server.py, with the environment that torchrun would give them.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from nanochat.watchdog import STALLED
from tests.fork_server import HANGS, SLOW, Child
from tests.kills import STEPS, Outcome, Trial, World, Wrong, many_trials, trains

WORLD_SIZES = (1, 2, 4)
BOUND = 30.0  # seconds from the death of one rank to the end of all; each that waits for its neighbour adds six
STALL = 3.0  # seconds: the watchdog's setting


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_ranks(trial: Trial, world_size: int, *flags: str, ill: int = -1, **changes: Any) -> list[Child]:
    """The next processes of a trial; `changes` (see `Attempt`) are for rank `ill` alone, -1: for all."""
    port, attempts = free_port(), []
    for rank in range(world_size):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        mine = changes if ill in (rank, -1) else {}
        environment = {key: str(value) for key, value in ranks.items()} if world_size > 1 else {}
        attempts.append(trial.world.attempt(trial.stage, trial.base, *flags, environment=environment, **mine))
    return trial.world.forks.start(*attempts)


def wait_for_line(trial: Trial, first: Child, rng: random.Random) -> None:
    """Until a random instant of a run that has its process group: some lines after that, and a moment."""
    lines = rng.randint(0, 2 * (STEPS - trial.last))

    def reached() -> bool:
        _, begun, rest = first.said().partition(" parameters, ")
        return bool(begun) and rest.count("\n") > lines

    trial.world.forks.until(reached)
    trial.world.forks.wait(rng.uniform(0.0, 0.3))


def left_over(world: World) -> list[int]:
    """Processes that come from the server, beside itself."""
    server = world.forks.process.pid
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != server and os.getsid(process.pid) == server:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def all_ended(trial: Trial, ranks: list[Child], since: float, bound: float) -> None:
    """All processes must end within `bound` seconds after `since`."""
    if not trial.world.forks.wait(bound - (time.monotonic() - since)):
        alive = [rank for rank, child in enumerate(ranks) if child.status is None]
        trial.world.forks.kill()
        told = "".join(f"\nrank {r}: {ranks[r].said()[-300:]}{ranks[r].complained()[-1000:]}" for r in alive)
        raise Wrong(f"rank {', '.join(map(str, alive))} still there after {bound:.0f} s{told}")
    longest = max(child.ended for child in ranks) - since
    trial.world.outcome.longest = max(trial.world.outcome.longest, longest)
    until = time.monotonic() + 2.0  # a git that asked for the state of the code for the report ends by itself
    while (left := left_over(trial.world)) and time.monotonic() < until:
        time.sleep(0.02)
    if left:
        trial.wrong(f"processes {left} are left")


def last_place(record: Path) -> str:
    """Where a process has killed itself (see `die_at`)."""
    return json.loads(record.read_text(encoding="utf-8"))[-1] if record.exists() else "nowhere"


# ------------------------------------------------------------------------------------------------------------ kills


def rank_kill_trial(trial: Trial, rng: random.Random) -> None:
    """Four ranks, one of which is killed, up to twice; then 1, 2 or 4 go on to the end."""
    trial.one_rank = False
    forks = trial.world.forks
    for _ in range(rng.randint(1, 2)):
        victim, at_call = rng.randrange(4), rng.random() < 0.5
        record = trial.world.folder / "calls.json"
        record.unlink(missing_ok=True)
        die = {"call": rng.randint(1, 100 if victim == 0 else 40), "when": rng.choice(("before", "in", "after")),
               "below": str(trial.base), "record": str(record)}
        ranks = start_ranks(trial, 4, ill=victim, die=die if at_call else None)
        killed = ranks[victim]
        if at_call:
            forks.until(lambda: any(child.status is not None for child in ranks))  # noqa: B023
        else:
            wait_for_line(trial, ranks[0], rng)
            killed.send(signal.SIGKILL)
        forks.until(lambda: killed.status is not None)  # noqa: B023
        all_ended(trial, ranks, killed.ended, BOUND)
        others = [child.status for child in ranks if child is not killed]
        trial.check(ranks[0])
        if not any(others) and trial.last == STEPS:  # too late
            break
        trial.log.append(f"rank {victim} of 4 killed " + (last_place(record) if at_call else "at an instant"))
        trial.world.outcome.counts["rank kills"] += 1
        trial.world.outcome.counts["rank kills at an I/O call"] += at_call
        if killed.status != -signal.SIGKILL or not all(status == 1 for status in others) and trial.last < STEPS:
            trial.wrong(f"the ranks ended with {[child.status for child in ranks]}" + "".join(
                f"\nrank {r}: {child.said()[-300:]}{child.complained()[-1500:]}" for r, child in enumerate(ranks)))
    ranks = start_ranks(trial, rng.choice(WORLD_SIZES))
    trial.log.append(f"{len(ranks)} ranks to the end")
    trial.finish(ranks[0])


def change_trial(trial: Trial, rng: random.Random) -> None:
    """1, 4 and 2 ranks in turn (or in another order), each stopped by a SIGTERM to one of them; then to the end."""
    trial.one_rank = False
    sizes = (1, 4, 2) if rng.random() < 0.5 else tuple(rng.choices(WORLD_SIZES, k=4))
    for world_size in sizes[:-1]:
        ranks = start_ranks(trial, world_size, slow=SLOW)
        trial.world.forks.until(lambda: trains(ranks[0]))  # noqa: B023
        trial.world.forks.wait(rng.uniform(0.0, SLOW * 8))
        sent = time.monotonic()
        ranks[rng.randrange(world_size)].send(signal.SIGTERM)
        all_ended(trial, ranks, sent, BOUND)
        trial.check(ranks[0])
        statuses = [child.status for child in ranks]
        if trial.last < STEPS and set(statuses) != {143}:  # (else it came too late)
            trial.wrong(f"the ranks ended with {statuses}: {ranks[0].complained()[-300:]}")
        trial.log.append(f"{world_size} ranks until step {trial.last}")
        trial.world.outcome.counts["changes"] += 1
    trial.finish(start_ranks(trial, sizes[-1])[0])


# ------------------------------------------------------------------------------------------------------------ hanging


def hang_trial(trial: Trial, rng: random.Random, what: str = "") -> None:
    """One of two ranks hangs in a pass ("loss"), in its loader or while it writes answers ("token"), or is "stopped" by
    SIGSTOP; or one process "alone" hangs in its loader."""
    trial.one_rank = False
    writes = ("token",) if trial.stage.script == "chat_rl" else ()
    what = what or rng.choice(("loss", "loader", "stopped", "alone", *writes))
    world_size, ill = (1, 0) if what == "alone" else (2, rng.randrange(2))
    steps = rng.randint(1, STEPS - 1)
    hang = {"loss": ("loss", 2 * steps), "loader": ("loader", steps), "alone": ("loader", steps),
            "token": ("token", 8 + 4 * steps)}.get(what)  # the exam before the first step has 8
    if hang:
        ranks = start_ranks(trial, world_size, f"--stall_seconds={STALL}", ill=ill, hang=hang)
        trial.world.forks.until(lambda: HANGS in ranks[ill].said())
    else:
        ranks = start_ranks(trial, world_size, f"--stall_seconds={STALL}", slow=SLOW)
        wait_for_line(trial, ranks[0], rng)
        ranks[ill].send(signal.SIGSTOP)
    begun = time.monotonic()
    trial.log.append(f"rank {ill} of {world_size}: {what}")
    others = [child for child in ranks if what != "stopped" or child is not ranks[ill]]
    trial.world.forks.until(lambda: all(child.status is not None for child in others), BOUND)
    took = time.monotonic() - begun
    ranks[ill].send(signal.SIGKILL)  # one that is stopped knows no other end
    trial.world.forks.kill()
    if all(child.status == 0 for child in others):  # too late
        trial.check(ranks[0])
        return trial.finish()
    told = "".join(child.complained() for child in ranks)
    if took >= BOUND or any(child.status != STALLED for child in others):
        trial.wrong(f"they ended with {[child.status for child in ranks]} after {took:.0f} s: {told[-1000:]}")
    who = "it" if world_size == 1 else f"rank {ill}"
    where = {"loss": ("hangs in: the forward and backward pass",), "stopped": ("",),
             "token": ("hangs in: the loader", "hangs in: answering held-out problems")}
    where = where.get(what, ("hangs in: the loader",))
    errors = re.findall("^error: (.*)$", told, re.MULTILINE)  # a rank that cannot ask whether another has spoken does
    named = all(f"no progress for {STALL:g} s: {who} " in e for e in errors)
    if not errors or not named or not any(place in errors[0] for place in where):
        trial.wrong(f"who hangs, and where, is not said: {errors or told}")
    trial.world.outcome.longest = max(trial.world.outcome.longest, took)
    trial.world.outcome.counts["hangs"] += 1
    trial.world.outcome.counts[f"hangs: {what}"] += 1
    trial.check(ranks[0])
    trial.finish()


# ------------------------------------------------------------------------------------------------------------ running


def rank_kill_trials(kills: int, seed: int = 0, processes: int = 1) -> Outcome:
    """At least so many kills of one of four ranks."""
    return many_trials(rank_kill_trial, "rank kills", kills, seed, processes)


def change_trials(changes: int, seed: int = 0, processes: int = 1) -> Outcome:
    """At least so many changes of the number of ranks."""
    return many_trials(change_trial, "changes", changes, seed, processes)


def hang_trials(hangs: int, seed: int = 0, processes: int = 1) -> Outcome:
    """At least so many ranks that hang."""
    return many_trials(hang_trial, "hangs", hangs, seed, processes)
