"""What stands between the network and the application: who may come in, how much, how slowly, and what is logged.

    app = Guard(fastapi_app, metrics, api_key="...", only_local=True)
    uvicorn.Config(app, http=PatientProtocol)

`Guard` is plain ASGI around everything: the key, foreign pages (Host, Origin), size and kind of a body, headers of
every answer, one line of log without what people wrote, and a last catch, so that no error shows its words. What ASGI
cannot see is `PatientProtocol`'s: requests that never end, clients that do not read, too many connections. There is
nothing to run here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat.common import say
from nanochat.serving_metrics import Metrics

MAX_BODY = 2**20  # bytes of a request's body
MAX_BODIES = 2**26  # bytes of all bodies that are being read at one moment
REQUEST_SECONDS = 15.0  # a request must have come in full after so long, and an idle connection is closed
STALL_SECONDS = 30.0  # a client that takes nothing for so long is gone
STALL_BYTES = 2**14  # what counts as nothing
READ_BYTES = 2**13  # at once: 256 KiB (asyncio's own) of chunks of one byte would be a second of work in one go
MAX_CONNECTIONS = 4096  # at once; serving.py may lower it to what the system allows
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
           (b"cross-origin-resource-policy", b"same-origin")]
JSON_PATHS = {"/v1/chat/completions", "/v1/completions"}  # all that takes a body
QUIET = {"/health", "/metrics"}  # asked every few seconds by machines: not worth a line


class HTTPError(Exception):
    """An answer in OpenAI's form of errors."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None,
                 headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


OURS = HTTPError(500, "this is our fault; the server's log says where")


def as_json(content: Any) -> bytes:
    """ASCII, so that half a character in it is no error, and no client's idea of a line break splits it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


# --------------------------------------------------------------------------- ASGI


class Guard:
    """The application behind a door. `only_local`: it listens on loopback, so its name must be local, too. `room`
    raises HTTPError when no question has a place."""

    def __init__(self, app: Any, metrics: Metrics, api_key: str = "", only_local: bool = True,
                 room: Callable[[], Any] = lambda: None):
        self.app, self.metrics, self.api_key = app, metrics, api_key
        self.only_local, self.room = only_local, room
        self.held = 0  # bytes of bodies that are not here in full

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, left = time.perf_counter(), 0, False
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}

        async def noted_receive() -> dict[str, Any]:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        async def guarded_send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = 0 if left else message["status"]  # which nobody reads
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            self.check(scope, headers)
            if scope["method"] == "POST":
                self.room()  # here, too: when many come at once, reading and validating what is refused takes long
            inner = await self.with_body(noted_receive) if scope["method"] == "POST" else noted_receive
            await self.app(scope, inner, guarded_send)
        except HTTPError as e:
            await refuse(e, guarded_send)
        except Exception as e:  # its own words may hold what people wrote, so only its kind and place are logged
            say(f"{type(e).__name__} at\n{''.join(traceback.format_tb(e.__traceback__)[-4:])}", file=sys.stderr)
            if not (status or left):
                await refuse(OURS, guarded_send)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.answered(scope["path"], str(status or "left"), seconds)
            if scope["path"] not in QUIET:
                path = scope["path"][:100].encode("unicode_escape").decode("ascii")
                say(f"{time.strftime('%H:%M:%S')} {scope['method'][:10]} {path} "
                    f"{status or 'left'} {seconds:.2f} s", file=sys.stderr)

    def check(self, scope: dict[str, Any], headers: dict[bytes, str]) -> None:
        """HTTPError for whoever may not come in."""
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.only_local and not self.api_key and host and not is_local(host):
            raise HTTPError(403, "this server is for this machine only, and knows no such name of it", "foreign_host")
        if origin is not None and urlsplit_host(origin) != host.lower():
            raise HTTPError(403, "a page of another site may not use this server", "foreign_origin")
        if self.api_key and scope["path"] != "/health" and not self._has_key(headers.get(b"authorization", "")):
            raise HTTPError(401, "the API key is missing or wrong", "invalid_api_key",
                            headers={"WWW-Authenticate": 'Basic realm="nanochat", charset="UTF-8"'})
        length = headers.get(b"content-length", "0")
        if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > MAX_BODY):
            raise HTTPError(413, f"the body is larger than {MAX_BODY} bytes", "body_too_large")
        kind = headers.get(b"content-type", "").split(";")[0].strip().lower()
        if scope["method"] == "POST" and scope["path"] in JSON_PATHS and kind != "application/json":
            raise HTTPError(415, "send the request as Content-Type: application/json", "unsupported_media_type")

    async def with_body(self, receive: Any) -> Any:
        """Read the whole body, HTTPError when it is too large: what came until then is all that we ever hold. Returns
        the `receive` of an application that is given the body in one piece."""
        body, more = b"", True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HTTPError(400, "the client left before the body was here")  # nobody reads that
                part, more = message.get("body", b""), message.get("more_body", False)
                body += part
                self.held += len(part)
                if len(body) > MAX_BODY:
                    raise HTTPError(413, f"the body is larger than {MAX_BODY} bytes", "body_too_large")
                if self.held > MAX_BODIES:
                    raise HTTPError(429, "too many requests are being sent at once: try again soon", "too_many_bodies",
                                    headers={"Retry-After": "1"})
        finally:
            self.held -= len(body)
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def once() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        return once

    def _has_key(self, authorization: str) -> bool:
        scheme, _, rest = authorization.partition(" ")
        given = rest.strip().encode("latin-1")  # the bytes that were sent
        if scheme.lower() == "basic":  # what a browser asks a person for: any name, the key as password
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self.api_key.encode())


async def refuse(error: HTTPError, send: Any) -> None:
    """Send an error as the whole answer."""
    content = as_json(error.body())
    extra = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *extra]})
    await send({"type": "http.response.body", "body": content})


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: else a page elsewhere has pointed its own name here ("rebinding").

    `"127.0.0.1:8000", "localhost", "[::1]:80" -> True`; `"attacker.example" -> False`
    """
    name = urlsplit_host(f"//{host}")
    name = (name[1:].split("]")[0] if name.startswith("[") else name.split(":")[0]).rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def urlsplit_host(url: str) -> str:
    """Name and port, as a Host header has them; "" for what is no URL."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


# --------------------------------------------------------------------------- connections


class PatientProtocol(H11Protocol):
    """Uvicorn's, with an end to its patience.

    A request (head and body) must have arrived REQUEST_SECONDS after it began, or after the connection was made; what
    is still to come of a body that was refused may take as long. A client that takes less than STALL_BYTES of its
    answer in STALL_SECONDS is dropped, which ends the answer's work.
    """

    max_connections = MAX_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _untaken = 0  # bytes of an answer, when `_stalled` was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        if len(self.connections) > self.max_connections:
            self._last_words(503, "too many connections", "too_many_connections")
        else:
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._begin()  # the first byte of the next request
        super().data_received(data)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.LocalProtocolError:  # rubbish behind a request that is being answered
            self.transport.abort()
        state = self.conn.their_state
        if state not in (h11.IDLE, h11.SEND_BODY):
            if self._deadline is not None:
                self._deadline.cancel()  # it is here in full
                self._deadline = None
        elif self._deadline is None and (state is h11.SEND_BODY or self.conn.trailing_data[0]):
            self._begin()  # it came together with the request before it

    def _begin(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        answered = self.conn.their_state is h11.SEND_BODY and self.cycle.response_started
        asked = self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]
        if answered or not asked:
            self._close()
        else:
            self._last_words(408, f"the request took longer than {REQUEST_SECONDS:.0f} s to arrive", "too_slow")

    def _last_words(self, status: int, message: str, code: str) -> None:
        """Answer without the application, and close."""
        if not self.transport.is_closing():
            body = as_json(HTTPError(status, message, code).body())
            self.transport.write(b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
                                 b"content-length: %d\r\n\r\n%b" % (status, len(body), body))
        self._close()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._last_words(400, "this is not HTTP", "invalid_http")
        else:
            self._close()

    # what is written and not taken yet

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def _close(self) -> None:
        """Close; the transport would wait for ever for a client that does not take what is written already."""
        self.transport.close()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None and not self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None

    def _watch(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        self._untaken = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALL_SECONDS, self._check) if self._untaken else None

    def _check(self) -> None:
        if self.transport.get_write_buffer_size() > self._untaken - STALL_BYTES:
            self.transport.abort()
        else:
            self._watch()
