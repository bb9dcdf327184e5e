"""Between the network and the application: slow, endless, foreign and unauthorised clients, over real sockets.

Run: python -m pytest tests/test_http_guard.py
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time

import pytest
import uvicorn

from nanochat import http_guard
from nanochat.http_guard import Guard, HTTPError, PatientProtocol, as_json, is_local
from nanochat.serving_metrics import Metrics
from tests.chat_server import wait_until


class Application:
    """Says how long the body was; "/broken" raises; "/big" sends 16 MiB, "/endless" for ever."""

    def __init__(self) -> None:
        self.sent, self.left = 0, threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            return await send({"type": "lifespan.shutdown.complete"})
        if scope["path"] == "/broken":
            raise RuntimeError("secret words")
        body = (await receive()).get("body", b"")
        said = b"%d" % len(body)
        if scope["path"] == "/big":
            said = b"x" * 2**24
        length = [] if scope["path"] == "/endless" else [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        if scope["path"] == "/endless":
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                self.sent += 65536
                await asyncio.sleep(0)
            return self.left.set()
        await send({"type": "http.response.body", "body": said})


class Running:
    """uvicorn with the guard, in a thread."""

    def __init__(self, **settings):
        self.application, self.metrics = Application(), Metrics()
        self.guard = Guard(self.application, self.metrics, **settings)
        self.server = uvicorn.Server(uvicorn.Config(self.guard, http=PatientProtocol, ws="none", log_level="critical",
                                                    timeout_keep_alive=1, port=0))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        assert wait_until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, method: str = "GET", path: str = "/", body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Status and what came after the head, from one connection."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items() if v)]
        if body or method == "POST":
            lines.append(f"content-length: {len(body)}")
        if "host" not in headers:
            lines.append(f"host: 127.0.0.1:{self.port}")
        lines.append("connection: close")
        with self.connect() as s:
            s.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            return answer(read_all(s))

    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


def read_all(s: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def answer(data: bytes) -> tuple[int, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def open_server():
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(http_guard, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(http_guard, "STALL_SECONDS", 0.5)
    running = Running()
    yield running
    running.stop()


# --------------------------------------------------------------------------- who may come in


@pytest.mark.parametrize("host, local", [
    ("127.0.0.1:8000", True), ("localhost", True), ("LOCALHOST:1", True), ("[::1]:80", True), ("127.1.2.3", True),
    ("a.localhost", True), ("localhost.", True), ("evil.example", False), ("127.0.0.1.evil.example", False),
    ("localhost.evil", False), ("10.0.0.1", False), ("[::2]", False), ("0.0.0.0", False), ("", False), ("[", False),
])
def test_names_of_this_machine(host, local):
    assert is_local(host) is local


def test_foreign_names_and_pages_are_refused(open_server):
    assert open_server.ask(host="evil.example")[0] == 403  # DNS rebinding
    assert open_server.ask(host="")[0] == 400  # HTTP/1.1 without a Host
    own = f"http://127.0.0.1:{open_server.port}"
    for origin, status in ((own, 200), ("http://evil.example", 403), ("null", 403), (own + "0", 403), ("", 200),
                           ("http://[", 403)):
        assert open_server.ask("POST", body=b"{}", content_type="application/json", origin=origin)[0] == status, origin


@pytest.mark.parametrize("kind, status", [("application/json", 200), ("Application/JSON; charset=utf-8", 200),
                                          ("text/plain", 415), ("", 415), ("application/x-www-form-urlencoded", 415)])
def test_only_json_is_taken(open_server, kind, status):
    """What a form of another site can send without asking is not taken."""
    assert open_server.ask("POST", "/v1/completions", body=b"{}", content_type=kind)[0] == status
    assert open_server.ask("POST", body=b"{}", content_type=kind)[0] == 200  # a path that takes no body says 405 itself


def test_the_key():
    running = Running(api_key="sé:same")
    try:
        basic = base64.b64encode("anyone:sé:same".encode()).decode()
        for authorization, status in (("", 401), ("Bearer wrong", 401), ("Bearer", 401), ("sé:same", 401),
                                      (f"Basic {basic}", 200), (f"basic  {basic} ", 200), ("Basic ////", 401),
                                      ("Basic !", 401),
                                      ("Basic " + base64.b64encode(b"sesame").decode(), 401)):
            assert running.ask(authorization=authorization)[0] == status, authorization
        with running.connect() as s:  # bytes, as clients send them
            s.sendall("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                      "authorization: Bearer sé:same\r\n\r\n".encode())
            assert answer(read_all(s))[0] == 200
        assert running.ask(path="/health")[0] == 200  # asked by machines that have no key
        assert running.ask(path="/healthy")[0] == running.ask(path="//health")[0] == 401
        assert json.loads(running.ask()[1])["error"]["code"] == "invalid_api_key"
        assert running.ask(host="any.example", authorization=f"Basic {basic}")[0] == 200  # a key is enough
    finally:
        running.stop()


# --------------------------------------------------------------------------- how much


def test_bodies_are_bounded(open_server):
    assert open_server.ask("POST", body=b"x" * 2**20, content_type="application/json") == (200, b"%d" % 2**20)
    assert open_server.ask("POST", body=b"x" * (2**20 + 1), content_type="application/json")[0] == 413
    with open_server.connect() as s:  # of unknown length: refused while it still comes
        s.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(40):
            s.sendall(chunk)
        s.sendall(b"0\r\n\r\n")
        assert answer(read_all(s))[0] == 413
    with open_server.connect() as s:  # a length that lies: nothing of it needs to come
        s.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  b"content-length: 99999999999999999999\r\nexpect: 100-continue\r\n\r\n")
        assert s.recv(1000).startswith(b"HTTP/1.1 413")


def test_all_bodies_together_are_bounded(open_server, monkeypatch):
    monkeypatch.setattr(http_guard, "MAX_BODIES", 100_000)
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 90000\r\n\r\n"
    with open_server.connect() as first, open_server.connect() as second:
        first.sendall(head + b"x" * 80_000)
        assert wait_until(lambda: open_server.guard.held == 80_000)
        second.sendall(head + b"x" * 80_000)
        data = read_all(second)
        assert answer(data)[0] == 429 and b"retry-after: 1" in data
        first.sendall(b"x" * 10_000)
        assert answer(read_all(first)) == (200, b"90000")
    assert wait_until(lambda: open_server.guard.held == 0)


def test_a_head_is_bounded(open_server):
    with open_server.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: " + b"x" * 200_000)
        assert answer(read_all(s))[0] == 400


def test_connections_are_bounded(open_server, monkeypatch):
    monkeypatch.setattr(PatientProtocol, "max_connections", 3)
    assert wait_until(lambda: open_server.connections() == 0)
    few = [open_server.connect() for _ in range(3)]
    assert wait_until(lambda: open_server.connections() == 3)
    with open_server.connect() as one_more:
        assert answer(read_all(one_more))[0] == 503
    for s in few:
        s.close()
    assert wait_until(lambda: open_server.connections() == 0)
    assert open_server.ask()[0] == 200


# --------------------------------------------------------------------------- how slowly


def test_silent_and_slow_clients_are_dropped(impatient):
    """Slow connections: the head a byte at a time, the body a byte at a time, and nothing at all."""
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    silent, slow_head, slow_body = (impatient.connect() for _ in range(3))
    slow_body.sendall(head)
    assert wait_until(lambda: impatient.connections() == 3)
    begin = time.monotonic()
    sent = 0
    while impatient.connections() and time.monotonic() - begin < 30:
        for s, byte in ((slow_head, head[sent : sent + 1]), (slow_body, b"x")):
            try:
                s.send(byte)
            except OSError:
                continue
        sent += 1
        time.sleep(0.05)
    assert impatient.connections() == 0
    assert read_all(silent) == b""  # it never asked
    assert answer(read_all(slow_head))[0] == answer(read_all(slow_body))[0] == 408
    assert impatient.ask("POST", body=b"x" * 10, content_type="application/json") == (200, b"10")


def test_a_second_request_has_its_own_time(impatient):
    with impatient.connect() as s:
        for _ in range(3):
            time.sleep(0.3)  # less than a request may take, more in all
            s.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
            time.sleep(0.1)
            s.sendall(b"\r\n")
            data = b""
            while not data.endswith(b"\r\n\r\n0"):  # the head and the one byte of the body
                assert (more := s.recv(1000))
                data += more
            assert data.startswith(b"HTTP/1.1 200")


def test_a_long_answer_may_take_longer_than_a_request(impatient):
    with impatient.connect() as s:
        s.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        end = time.monotonic() + 1.2
        while time.monotonic() < end:  # reading all the time
            assert s.recv(2**20)
    assert impatient.application.left.wait(30)  # and its leaving is noticed


def test_a_client_that_does_not_read_is_dropped(impatient):
    with impatient.connect() as s:
        s.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert impatient.application.left.wait(30)
        assert impatient.application.sent < 100 * 2**20


@pytest.mark.parametrize("more", ["", "connection: close\r\n"])
def test_an_answer_in_one_piece_is_taken_or_dropped(impatient, more):
    """It is written at once and complete for us: only the transport still holds it, and would for ever."""
    with impatient.connect() as s:
        s.sendall(f"GET /big HTTP/1.1\r\nhost: localhost\r\n{more}\r\n".encode())
        assert wait_until(lambda: impatient.connections() == 1)
        assert wait_until(lambda: impatient.connections() == 0)  # nothing of it is read
    with impatient.connect() as s:
        s.sendall(f"GET /big HTTP/1.1\r\nhost: localhost\r\n{more}\r\n".encode())
        taken, begin = 0, time.monotonic()
        while taken < 2**24 and (data := s.recv(2**18)):  # slowly, but always going on
            taken += len(data)
            time.sleep(0.015)
        assert taken >= 2**24 and time.monotonic() - begin > 0.7


@pytest.mark.parametrize("second", [b"GET / HT", b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx"])
def test_a_request_that_came_with_another_has_its_time_too(impatient, second):
    with impatient.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n" + second)
        assert wait_until(lambda: impatient.connections() == 1)
        try:
            time.sleep(0.2)
            s.sendall(b"x")  # which ends the time of an idle connection, but not that of a request
        finally:
            assert wait_until(lambda: impatient.connections() == 0, 5)


def test_tiny_chunks_hold_nobody_up(open_server):
    with open_server.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n")
        assert open_server.ask("POST", body=b"xy", content_type="application/json") == (200, b"2")
        s.setblocking(False)
        with pytest.raises(BlockingIOError):
            s.recv(1)  # the other's answer came first
        s.setblocking(True)
        assert s.recv(1000).startswith(b"HTTP/1.1 200")


def test_what_is_left_of_a_refused_body_may_not_come_for_ever(impatient):
    with impatient.connect() as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500000\r\n\r\nx")
        assert s.recv(1000).startswith(b"HTTP/1.1 415")
        assert wait_until(lambda: impatient.connections() == 0)
        assert b"HTTP/1.1" not in read_all(s)  # no second answer


def test_who_left_is_not_counted_as_answered(open_server):
    with open_server.connect() as s:
        s.sendall(b"POST /left HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  b"content-length: 9\r\n\r\nx")
        assert wait_until(lambda: open_server.connections() == 1)
        time.sleep(0.1)
    assert wait_until(lambda: b'path="other",status="left"' in open_server.metrics.text())


def test_rubbish_is_answered_or_dropped(open_server):
    for rubbish in (b"\x00\xff\x16\x03\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n",
                    b"GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
                    b"GET / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
                    b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n\x00\x00rubbish\r\n\r\n"):
        with open_server.connect() as s:
            s.sendall(rubbish)
            s.shutdown(socket.SHUT_WR)
            data = read_all(s)
            assert not data or 200 <= answer(data)[0] < 500, rubbish
    assert wait_until(lambda: open_server.connections() == 0)
    assert open_server.ask()[0] == 200


# --------------------------------------------------------------------------- what is said


def test_errors_do_not_show_their_words(open_server, capfd):
    """Trap: prompts in logs."""
    status, body = open_server.ask(path="/broken?q=secret")
    said = capfd.readouterr()
    assert status == 500 and json.loads(body)["error"]["type"] == "server_error"
    assert "RuntimeError at" in said.err and "/broken 500" in said.err
    assert "secret" not in body.decode() + said.err.replace('raise RuntimeError("secret words")', "") + said.out


def test_the_log_is_one_line_whatever_is_asked(open_server, capfd):
    open_server.ask(path="/a%0ab%1b[31m" + "x" * 300)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "/a" in line]
    assert r"/a\nb\x1b[31m" in line and len(line) < 200


def test_what_json_cannot_say_is_no_answer():
    assert as_json({"a": "\ud800é\u2028"}) == b'{"a":"\\ud800\\u00e9\\u2028"}'
    with pytest.raises(ValueError):
        as_json(float("nan"))
    assert HTTPError(429, "m", "c").body()["error"] == {"message": "m", "type": "rate_limit_error", "param": None,
                                                        "code": "c"}
