"""The workers as the server sees them: processes that are started, given requests, watched, and started anew.

    pool = WorkerPool([(["python", "-m", "nanochat.worker"], {})], max_rows=16, max_queue=64, metrics=Metrics())
    await pool.start()                          # until every model is loaded; WorkerFailed if one cannot be
    ticket = pool.submit({"prompts": [...], "n": 1, ...}, rows=1)       # HTTPError 429: come back later
    await ticket.start()                        # HTTPError if the worker refuses it
    async for batch in ticket.batches(): ...    # lists of pieces; HTTPError 503 if the worker dies
    ticket.close()                              # nobody waits for it any more; harmless if it is over

One request goes to one worker, the one with the fewest answers in work. There is nothing to run here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from nanochat.common import say
from nanochat.http_guard import HTTPError
from nanochat.serving_metrics import Metrics

Command = tuple[list[str], dict[str, str]]  # a worker's command line, and additions to its environment
LONGEST_LINE = 2**26  # of what a worker says
STOP_SECONDS = 5.0  # a worker that does not end by itself after so long is killed
LONGEST_PAUSE = 30.0  # between two attempts to start one that keeps dying


class WorkerFailed(Exception):
    """A worker ended before it was ready; `status` is its exit status. It has said why itself, unless it was killed."""

    def __init__(self, status: int):
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"a worker {how} before it was ready" + (": is there enough memory?" if status == -9 else ""))
        self.status = status


class Ticket:
    """One request in work: its pieces as they come."""

    def __init__(self, worker: WorkerProcess, id: int, rows: int):
        self.worker, self.id, self.open_rows = worker, id, rows
        self.started: dict[str, Any] = {}
        self.began = time.perf_counter()  # until its first piece is there
        self._lines: asyncio.Queue[dict[str, Any] | list[Any]] = asyncio.Queue()

    def put(self, line: dict[str, Any] | list[Any]) -> None:
        """From the worker."""
        if isinstance(line, list) and self.began:
            self.worker.pool.metrics.first.observe(time.perf_counter() - self.began)
            self.began = 0.0
        if isinstance(line, list) and line[5] is not None:
            self.open_rows -= 1
        if self.open_rows == 0 or (isinstance(line, dict) and "error" in line):
            self.open_rows = 0
            self.worker.tickets.pop(self.id, None)
        self._lines.put_nowait(line)

    async def start(self) -> None:
        """Wait until the worker has taken it; HTTPError if it refuses."""
        self.started = (await self._next())["started"]

    async def batches(self) -> AsyncIterator[list[list[Any]]]:
        """The pieces, all that are there at a time. HTTPError when the worker fails."""
        while self.open_rows or not self._lines.empty():
            batch = [await self._next()]
            while not self._lines.empty():
                batch.append(await self._next())
            yield batch

    async def _next(self) -> Any:
        line = await self._lines.get()
        if isinstance(line, dict) and "error" in line:
            error = line["error"]
            raise HTTPError(error.get("status", 400), error["message"], error["code"], error["param"])
        return line

    def close(self) -> None:
        """Its rows are wanted no more."""
        if self.open_rows:
            self.open_rows = 0
            self.worker.pool.metrics.left.inc()
            self.worker.tickets.pop(self.id, None)
            self.worker.tell({"cancel": self.id})


class WorkerProcess:
    """One worker, from this side."""

    def __init__(self, pool: WorkerPool, number: int, command: list[str], environment: dict[str, str]):
        self.pool, self.number, self.command = pool, number, command
        self.environment = {**os.environ, **environment}
        self.process: asyncio.subprocess.Process | None = None
        self.info: dict[str, Any] | None = None  # once it is ready
        self.tickets: dict[int, Ticket] = {}
        self._reader: asyncio.Task[None] | None = None

    @property
    def rows(self) -> int:
        """Answers in work or waiting."""
        return sum(ticket.open_rows for ticket in self.tickets.values())

    def tell(self, line: dict[str, Any]) -> None:
        if self.process is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(json.dumps(line).encode("ascii") + b"\n")

    async def start(self) -> None:
        """Until the model is loaded."""
        # a session of its own: Ctrl-C at the terminal is for the server, which ends its workers when it is done
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self.environment,
            limit=LONGEST_LINE, start_new_session=True)
        line = await self.process.stdout.readline()
        if not line:
            raise WorkerFailed(await self.process.wait())
        self.info = self.pool.info = json.loads(line)["ready"]
        self.pool.metrics.workers.inc()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        metrics = self.pool.metrics
        active, waiting = (metrics.rows.labels(str(self.number), state) for state in ("active", "waiting"))
        try:
            while line := await self.process.stdout.readline():
                message = json.loads(line)
                if "pieces" in message:
                    active.set(message["active"])
                    waiting.set(message["waiting"])
                    metrics.tokens.inc(message["tokens"])
                    for piece in message["pieces"]:
                        if (ticket := self.tickets.get(piece[0])) is not None:
                            ticket.put(piece)
                elif (ticket := self.tickets.get(message["id"])) is not None:
                    metrics.prompt_tokens.inc(message.get("started", {}).get("prompt_tokens", 0))
                    ticket.put(message)
        except (ConnectionError, ValueError):  # ValueError: a line that is too long or no JSON
            self.process.kill()  # nobody reads what it writes any more: it would wait for that for ever
        self.info = None
        active.set(0)
        waiting.set(0)
        metrics.workers.dec()
        gone = {"message": "the worker has died; the next one is being started", "code": "worker_died", "param": None,
                "status": 503}
        for ticket in list(self.tickets.values()):
            ticket.put({"error": gone})
        if not self.pool.stopping:
            self._reader = asyncio.create_task(self._start_anew())

    async def _start_anew(self) -> None:
        pause = 1.0
        while True:
            status = await self.process.wait()
            say(f"worker {self.number} ended with status {status}: starting it anew", file=sys.stderr)
            self.pool.metrics.restarts.inc()
            try:
                return await self.start()
            except (WorkerFailed, OSError):
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def stop(self) -> None:
        """Close its input, which ends it; kill it if that takes too long, or if it still loads and would not see it."""
        if self._reader is not None and self.info is None:
            self._reader.cancel()  # it was being started anew
        if self.process is None or self.process.returncode is not None:
            return
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_SECONDS if self.info else 0)
        except asyncio.TimeoutError:
            self.process.kill()
            await self.process.wait()


class WorkerPool:
    """All workers, and who gets which request. At most `max_rows` answers are written at once by each, and
    `max_queue` wait."""

    def __init__(self, commands: Sequence[Command], max_rows: int, max_queue: int, metrics: Metrics):
        self.max_rows, self.max_queue, self.metrics = max_rows, max_queue, metrics
        self.stopping = False
        self.info: dict[str, Any] = {}  # of the model; all workers have the same
        self.workers = [WorkerProcess(self, i, *command) for i, command in enumerate(commands)]
        self._ids = itertools.count(1)

    async def start(self) -> None:
        starts = [asyncio.create_task(worker.start()) for worker in self.workers]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            await self.stop()
            raise

    @property
    def ready(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.info is not None]

    def room(self, rows: int = 1) -> WorkerProcess:
        """The worker with the least to do, HTTPError when all have enough, or none is there."""
        if self.stopping or not self.ready:
            raise HTTPError(503, "the server is stopping" if self.stopping else "no worker is ready: try again soon",
                            "unavailable", headers={"Retry-After": "5"})
        worker = min(self.ready, key=lambda w: w.rows)
        if worker.rows and worker.rows + rows > self.max_rows + self.max_queue:
            self.metrics.refused.inc()
            raise HTTPError(429, f"{worker.rows} answers are in work or waiting, which is enough: try again soon",
                            "queue_full", headers={"Retry-After": "1"})
        return worker

    def submit(self, request: dict[str, Any], rows: int) -> Ticket:
        """Hand a request to a worker; HTTPError when none has room for it."""
        worker = self.room(rows)
        ticket = Ticket(worker, next(self._ids), rows)
        worker.tickets[ticket.id] = ticket
        worker.tell({"id": ticket.id, **request})
        return ticket

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*(worker.stop() for worker in self.workers))
