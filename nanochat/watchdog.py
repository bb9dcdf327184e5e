"""The watchdog of a run: when nothing moves any more, it says which rank, doing what, and ends the process.

    with Watchdog(seconds=1500) as watchdog:
        watchdog("waiting for the loader")      # each call is a sign of life, and says what comes next
        batch = next(batches)                   # work of many minutes calls `alive()` on its way
        watchdog("forward and backward pass")

A rank that hangs stops all: the others wait for it in an exchange, inside C++, where no Python signal reaches them. So
each rank has a thread that looks at the clock. Every second it leaves this rank's place (how many signs of life, and
doing what) in the store of the process group; when a rank has been at one place for `seconds`, it reads the places of
all, and those furthest behind are to blame. The end is hard (`os._exit`): a main thread that hangs cannot be asked to
unwind. What was saved before is whole, as after a kill. (A main thread that hangs while it holds the interpreter's lock
stops this thread too; then the other ranks' end the run, and their launcher this one.) There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nanochat.common import say
from nanochat.ranks import rank_and_world

STALLED = 124  # exit status, that of timeout(1)
WAITS = "waiting for the other ranks"  # how a place begins at which a rank waits and is not itself to blame
HOST_STAYS = 3.0  # seconds
_ANSWER = timedelta(seconds=5)  # for the store, when all the rest hangs
_watching: Watchdog | None = None  # the one that is entered in this process


def alive(place: str = "") -> None:
    """A sign of life from within long work, which need not know whether anybody watches.

    With a place it also says what comes next, as a call of the watchdog does: on all ranks, or on none. Without, it may
    come as often as one likes: who is furthest behind is told by the places.
    """
    if _watching is not None and place:
        _watching(place)
    elif _watching is not None:
        _watching.moved = time.monotonic()


class Watchdog:
    """Call it at each place of the loop; `seconds` without a call end the process (0: never)."""

    def __init__(self, seconds: float, remedy: str = ""):
        self.seconds, self.remedy = seconds, remedy
        self.rank, self.world_size = rank_and_world()
        self._place: tuple[int, str] = (0, "the start")
        self.moved = time.monotonic()  # the last sign of life
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="nanochat-watchdog")
        # A connection of its own: one that the main thread waits on is not to be had.
        self._store = dist.distributed_c10d._get_default_store().clone() if self.world_size > 1 else None
        if self._store is not None:
            self._store.set_timeout(_ANSWER)

    def __call__(self, place: str) -> None:
        self._place, self.moved = (self._place[0] + 1, place), time.monotonic()

    def __enter__(self) -> Watchdog:
        global _watching
        self("the start")
        _watching = self
        if self.seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _watching
        _watching = None
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)  # while it speaks with the store, the store must not go away

    def _watch(self) -> None:
        told = None
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            place, moved = self._place, self.moved
            if self._store is not None and place != told:
                told = place
                self._say_place(place)
            stalled = time.monotonic() - moved > self.seconds
            grace = min(2.0, self.seconds / 2)  # others stopped a little later: they too are to say where
            if stalled and not self._ended.wait(grace) and moved == self.moved:
                self._end(place)

    def _say_place(self, place: tuple[int, str]) -> None:
        try:
            self._store.set(f"nanochat/place/{self.rank}", json.dumps(place))
        except RuntimeError:  # it went with the process that held it; the ranks will notice
            self._store = None

    def _end(self, place: tuple[int, str]) -> None:
        # The store may be what hangs (its machine is frozen or cut off), and not all of its calls know a timeout.
        silent = "rank 0 gives no sign of life: the store of the process group, on its machine, does not answer"
        alone = threading.Timer(2 * _ANSWER.total_seconds(), self._leave, (place, silent))
        alone.daemon = True
        alone.start()
        blame = blamed(self._places(place)) if self._first() else ""
        alone.cancel()
        self._leave(place, blame)

    def _leave(self, place: tuple[int, str], blame: str) -> None:
        try:
            if blame:
                say(f"error: no progress for {self.seconds:g} s: {blame}{self.remedy}", file=sys.stderr)
            if not place[1].startswith(WAITS):
                say(f"rank {self.rank} was here:", file=sys.stderr)
                faulthandler.dump_traceback(all_threads=True)
            if self._store is not None and self.rank == 0:
                time.sleep(HOST_STAYS)  # the store may be in this process, and the others find out a little later
        finally:  # whatever cannot be said any more
            os._exit(STALLED)

    def _first(self) -> bool:
        """Whether no other rank speaks for all of them."""
        try:
            return self._store is None or self._store.add("nanochat/stalled", 1) == 1
        except RuntimeError:
            return True

    def _places(self, own: tuple[int, str]) -> dict[int, tuple[int, str] | None]:
        """Where each rank is; None: it has never said (all had long enough)."""
        places: dict[int, Any] = dict.fromkeys(range(self.world_size))
        for rank in places:
            key = f"nanochat/place/{rank}"
            with contextlib.suppress(RuntimeError):
                if self._store is not None and self._store.check([key]):
                    places[rank] = tuple(json.loads(self._store.get(key)))
        return places | {self.rank: own}


def blamed(places: dict[int, tuple[int, str] | None]) -> str:
    """Who holds up the others, of where all ranks are: `(signs of life, doing what)`.

    The ranks that are furthest behind, and of those the ones that do not wait for others.

    `{0: (7, "waiting for the other ranks"), 1: (6, "forward")} -> "rank 1 hangs in: forward"`
    """
    silent = [rank for rank, place in places.items() if place is None]
    known = {rank: place for rank, place in places.items() if place is not None}
    behind = min((count for count, _ in known.values()), default=0)
    last = {rank: place for rank, place in known.items() if place[0] == behind}
    guilty = {rank: place for rank, place in last.items() if not place[1].startswith(WAITS)} or last
    if len(places) == 1:
        return f"it hangs in: {known[0][1]}"
    if silent:
        return f"rank {', '.join(map(str, silent))} gives no sign of life"
    if len(guilty) == len(places):
        return f"all {len(places)} ranks hang, rank 0 in: {known[0][1]} (a network or disk that all need?)"
    return "; ".join(f"rank {rank} hangs in: {place}" for rank, (_, place) in guilty.items())
