"""One kind of clients of bench/serving.py in a process of its own: `python bench/_serving_clients.py JOB`.

JOB is a JSON object; the last line printed is one too. Only the standard library, and as little work as possible a
token: on two cores the clients take from the server what they need themselves. Clocks are `time.monotonic`, which all
processes share; figures are of what happened from `begin` until `end`.

    {"task": "load", "port": 8000, "begin": 1.0, "end": 9.0, "clients": 64, "first": 0, "finish": true}
        closed loops of streamed chats, request number `first` and on; who is refused asks again a quarter of a second
        later; `finish`: answers that are on their way at the end are waited for; `start`: when they come, all at once
    {"task": "slow", ..., "sockets": 500}      a head byte by byte, a body byte by byte, nothing at all
    {"task": "health", ..., "every": 0.05}     a new connection for each look at /health
    {"task": "leave", "port": 8000, "count": 1000, "together": 64, "first": 0}     chats that nobody waits for
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

HOST = "127.0.0.1"
SLOW_STEPS = 20  # the slow sockets' bytes are spread over a second in so many groups
PATIENCE = 60.0
TEXT = b'"delta":{"content":'  # of a chunk with text, not of the one that opens an answer
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Job = dict[str, Any]


# --------------------------------------------------------------------------- what is asked


def word(i: int) -> str:
    """The i-th made-up word, one token of the benchmark's tokenizer: `0 -> " aaaa"`."""
    return " " + "".join(LETTERS[i // 26**place % 26] for place in (3, 2, 1, 0))


def request(k: int, num_words: int) -> dict[str, Any]:
    """Request number k: always the same one. 8 to 64 words, 16 to 96 tokens to be written."""
    r = random.Random(k)
    text = "".join(word(r.randrange(num_words)) for _ in range(r.randint(8, 64)))
    return {"messages": [{"role": "user", "content": text}], "max_tokens": r.randint(16, 96), "temperature": 0.6,
            "top_k": 50, "top_p": 1.0, "seed": k}


def post(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode("ascii")
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(content), content))


def streamed(body: dict[str, Any]) -> bytes:
    return post({**body, "stream": True, "stream_options": {"include_usage": True}})


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET over a connection of its own."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def metrics(port: int) -> dict[str, float]:
    """Every figure of /metrics by its name with its labels."""
    _, body = get(port, "/metrics")
    lines = [line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def rows(figures: dict[str, float]) -> int:
    """Answers being written or waiting."""
    return int(sum(value for name, value in figures.items() if name.startswith("nanochat_rows{")))


# --------------------------------------------------------------------------- load


class Load:
    """What all clients of the load share."""

    def __init__(self, job: Job):
        self.port, self.begin, self.end, self.num_words = job["port"], job["begin"], job["end"], job["num_words"]
        self.numbers = itertools.count(job["first"])
        self.busy: set[Client] = set()
        self.tokens = self.finished = self.broken = self.without_retry_after = self.accepted = 0
        self.first: list[float] = []  # seconds to the first token
        self.gaps: list[float] = []  # seconds between two tokens
        self.refused: list[float] = []  # seconds to a 429


class Client(asyncio.Protocol):
    """One closed loop: the next chat when the last one is over."""

    def __init__(self, load: Load):
        self.load, self.loop = load, asyncio.get_running_loop()
        self.body = b""  # of the next request; kept when it was refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if time.monotonic() >= self.load.end:
            return
        self.body = self.body or streamed(request(next(self.load.numbers), self.load.num_words))
        self.tail, self.status, self.tokens, self.usage = b"", 0, 0, 0
        self.load.busy.add(self)
        self.sent = self.last = time.monotonic()
        self.transport.write(self.body)

    def data_received(self, data: bytes) -> None:
        now, load = time.monotonic(), self.load
        self.tail += data
        if not self.status:
            if len(self.tail) < 12:
                return
            self.status = int(self.tail[9:12])
            load.accepted += self.status == 200
        if self.status != 200:
            return self.take_refusal(now)
        end = self.tail.rfind(b"\n\n") + 2  # whole events
        if end >= 2:
            self.take_events(end, now)
        if self.usage and self.tail.endswith(b"0\r\n\r\n"):  # the end of the chunked body
            load.busy.discard(self)
            load.finished += 1
            if load.begin <= now < load.end:
                load.tokens += self.usage - self.tokens  # tokens without a text of their own
            self.body = b""
            self.ask()

    def take_events(self, end: int, now: float) -> None:
        load = self.load
        if n := self.tail.count(TEXT, 0, end):
            if load.begin <= now < load.end:
                (load.gaps if self.tokens else load.first).append(now - self.last)
                load.gaps += [0.0] * (n - 1)  # they came together
                load.tokens += n
            self.tokens += n
            self.last = now
        if b'"choices":[]' in self.tail:
            self.usage = int(re.search(rb'"completion_tokens":(\d+)', self.tail)[1])
        self.tail = self.tail[end:]

    def take_refusal(self, now: float) -> None:
        head, found, body = self.tail.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not found or length is None or len(body) < int(length[1]):
            return
        load = self.load
        load.busy.discard(self)
        if self.status == 429:
            if load.begin <= now:
                load.refused.append(now - self.sent)
            load.without_retry_after += re.search(rb"\r\nretry-after: \d+\r\n", head + b"\r\n", re.I) is None
        else:
            load.broken += 1
        self.loop.call_later(0.25, self.ask)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.load.busy:
            self.load.busy.discard(self)
            self.load.broken += 1
        if time.monotonic() < self.load.end:
            self.loop.create_task(self.loop.create_connection(lambda: Client(self.load), HOST, self.load.port))


async def load_task(job: Job) -> dict[str, Any]:
    load, loop = Load(job), asyncio.get_running_loop()
    await asyncio.sleep(job.get("start", 0.0) - time.monotonic())
    await asyncio.gather(*(loop.create_connection(lambda: Client(load), HOST, load.port)
                           for _ in range(job["clients"])))
    await asyncio.sleep(load.end - time.monotonic())
    while job["finish"] and load.busy and time.monotonic() < load.end + PATIENCE:
        await asyncio.sleep(0.05)
    return {"tokens": load.tokens, "first": load.first, "gaps": load.gaps, "refused": load.refused,
            "finished": load.finished, "accepted": load.accepted, "broken": load.broken,
            "unfinished": len(load.busy), "without_retry_after": load.without_retry_after}


# --------------------------------------------------------------------------- slow sockets


class Slow(asyncio.Protocol):
    """A connection that wastes the server's time. `kind` 0: a head, 1: a body, 2: nothing."""

    def __init__(self, kind: int, seen: Counter[str]):
        self.kind, self.seen, self.transport = kind, seen, None
        self.drip = itertools.chain(b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ", itertools.repeat(ord("a")))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.seen["opened"] += 1
        if self.kind == 1:
            transport.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
                            b"\r\nContent-Length: 100000\r\n\r\n")
            self.drip = itertools.repeat(ord(" "))

    def step(self) -> None:
        if self.kind != 2:
            self.transport.write(bytes([next(self.drip)]))

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 "):
            self.seen[f"status {data[9:12].decode()}"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.seen["closed by the server"] += 1


async def slow_task(job: Job) -> dict[str, Any]:
    loop, seen = asyncio.get_running_loop(), Counter[str]()
    slots: list[Slow | None] = [None] * job["sockets"]
    for step in itertools.count():
        for i in range(step % SLOW_STEPS, len(slots), SLOW_STEPS):
            if slots[i] is None or slots[i].transport is None:
                slots[i] = None
                with contextlib.suppress(OSError):
                    _, slots[i] = await loop.create_connection(lambda i=i: Slow(i % 3, seen), HOST, job["port"])
            else:
                slots[i].step()
        if time.monotonic() >= job["end"]:
            open_now = sum(slot is not None and slot.transport is not None for slot in slots)
            return {**seen, "open at the end": open_now}
        await asyncio.sleep(1 / SLOW_STEPS)


# --------------------------------------------------------------------------- health


def health_task(job: Job) -> dict[str, Any]:
    """One look after the other. When one took so long that the next is late, that one's time counts from when it was
    due: else a slow server would be asked less, and look faster."""
    seconds, wrong, due = [], 0, time.monotonic()
    while due < job["end"]:
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
            begin = time.monotonic()  # this process may have been woken late, which is not the server's doing
        else:
            begin = due
        status, _ = get(job["port"], "/health")
        if due >= job["begin"]:
            seconds.append(time.monotonic() - begin)
            wrong += status != 200
        due += job["every"]
    return {"seconds": seconds, "wrong": wrong}


# --------------------------------------------------------------------------- those that leave

WAYS = ("close", "half", "reset")
MOMENTS = ("before the first token", "in the middle")


async def leave(port: int, body: dict[str, Any], stream: bool, moment: str, way: str, r: random.Random) -> str:
    """Ask, and be gone. Returns what happened: "left", "refused", "answered" (it was too fast), "hung"."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(streamed(body) if stream else post(body))
        if moment == MOMENTS[0]:
            await asyncio.sleep(r.uniform(0, 0.02))
        elif stream:
            seen, wanted = b"", r.randint(1, 12)
            while seen.count(TEXT) < wanted:
                if not (data := await reader.read(65536)):
                    return "broken"
                seen += data
                if not seen.startswith(b"HTTP/1.1 200"[: len(seen)]):
                    return "refused"
                if b"[DONE]" in seen:
                    return "answered"
        else:
            with contextlib.suppress(asyncio.TimeoutError):
                data = await asyncio.wait_for(reader.read(12), r.uniform(0.1, 1.0))
                return "answered" if data.startswith(b"HTTP/1.1 200") else "refused"
        if way == "half":  # it could still read: the server takes it for gone all the same, and says so by closing
            writer.write_eof()
            try:
                await asyncio.wait_for(reader.read(), PATIENCE)
            except asyncio.TimeoutError:
                return "hung"
        elif way == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "left"
    except ConnectionError:
        return "broken"
    finally:
        writer.transport.abort()


async def leave_task(job: Job) -> dict[str, Any]:
    seen, numbers = Counter[str](), itertools.count()

    async def one_after_the_other() -> None:
        while (k := next(numbers)) < job["count"]:
            r = random.Random(k)
            body = request(job["first"] + k, job["num_words"]) | {"max_tokens": 1000}  # it is gone long before
            while (what := await leave(job["port"], body, k % 2 == 0, MOMENTS[k // 2 % 2], WAYS[k // 4 % 3], r)
                   ) == "refused":
                seen[what] += 1
                await asyncio.sleep(0.1)
            seen[what] += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(job["together"])))
    return dict(seen)


def main() -> None:
    job = json.loads(sys.argv[1])
    task = {"load": load_task, "slow": slow_task, "health": health_task, "leave": leave_task}[job["task"]]
    result = task(job)
    print(json.dumps(asyncio.run(result) if asyncio.iscoroutine(result) else result))


if __name__ == "__main__":
    main()
