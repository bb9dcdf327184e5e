"""An iterator run ahead in a thread: so that reading, tokenizing and packing happen while the model computes.

    windows = Prefetch(make_windows())                          # one is made while another is used
    batches = Prefetch(cut(windows), ahead=4, behind=windows)   # a second stage, which ends together with the first
    for batch in batches: ...
    batches.close()

There is nothing to run here.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any


class _Hatch:
    """What two threads hand items through: at most `room` of them are made and not yet taken."""

    def __init__(self, room: int):
        self.room, self.items, self.closed = room, deque(), False
        self.changed = threading.Condition()

    def wait_for_room(self) -> bool:
        with self.changed:
            while len(self.items) >= self.room and not self.closed:
                self.changed.wait()
            return not self.closed

    def put(self, kind: str, value: Any = None) -> None:
        with self.changed:
            self.items.append((kind, value))
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


class Prefetch:
    """Runs an iterator in a thread, at most `ahead` items ahead. What it raises is raised here, after the items before.

    `close()` ends the thread at any time, and so does letting go of this object (to which the thread holds no
    reference) and the end of the program. `behind`: the `Prefetch` that `items` reads from; it ends together with this.
    """

    def __init__(self, items: Iterator[Any], ahead: int = 1, behind: Prefetch | None = None):
        self._hatch = _Hatch(ahead)
        self._thread = threading.Thread(target=_produce, args=(items, self._hatch), daemon=True, name="nanochat-loader")
        self._stages = [(self._hatch, self._thread), *(behind._stages if behind else [])]
        self._thread.start()
        self.close = weakref.finalize(self, _end, self._stages)

    def __iter__(self) -> Prefetch:
        return self

    def __next__(self) -> Any:
        hatch = self._hatch
        with hatch.changed:
            while not hatch.items and not hatch.closed:
                alive = self._thread.is_alive()
                if not hatch.changed.wait(timeout=1.0) and not alive and not hatch.items:
                    raise RuntimeError("the loader's thread died without a word")
            if hatch.closed:
                raise StopIteration
            kind, value = hatch.items.popleft()
            hatch.changed.notify_all()
        if kind == "item":
            return value
        self.close()  # the end, or an error: either way nothing follows, and no stage need go on
        raise StopIteration if kind == "end" else value


def _produce(items: Iterator[Any], hatch: _Hatch) -> None:
    try:
        while hatch.wait_for_room():
            try:
                hatch.put("item", next(items))
            except StopIteration:
                return hatch.put("end")
    except BaseException as e:  # also what is no Exception, as the panic of an extension in Rust
        hatch.put("error", e)


def _end(stages: list[tuple[_Hatch, threading.Thread]]) -> None:
    for hatch, _ in stages:  # the last stage first: one whose source is closed takes that for the end of the items
        hatch.close()
    deadline = time.monotonic() + 5  # an item takes a second or two; a disk that hangs must not keep the program
    for _, thread in stages:
        if thread is not threading.current_thread():  # where the garbage collector ran when it let go of the owner
            thread.join(max(0.0, deadline - time.monotonic()))
