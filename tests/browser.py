"""What a test of the page needs beside the server: a real Chromium under watch, and a bad line to the server.

    with chromium() as browser, chat_server(delay=0) as server, Line(server.url) as line:
        visit = Visit(browser, server.url)
        visit.page.fill("#question", "Hello")
        visit.check()       # AssertionError: it asked another site, or wrote an error to the console

`Line` stands between a browser and the server: it passes answers on in pieces of any size, holds one back in the middle
until it is told to go on, or breaks off. So no test needs to be quick to see a stream while it is under way.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

# Counts what must never run, and what the browser refused: `Visit.check` looks at it.
WATCH = """
    window.hits = [];
    window.hit = () => window.hits.push("hit");
    addEventListener("securitypolicyviolation", (event) => window.hits.push(event.violatedDirective));
"""

# Brings the page back to its first moment, by its own means.
RESET = """() => {
    document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
    state.running.forEach(({ abort }) => abort.abort());
    localStorage.clear();
    state.running.clear();
    state.conversations.clear();
    loadSettings();
    setTheme("system");
    $("notice").hidden = true;
    state.editing = false;
    state.draft = "";
    setField("");
    open(null);
    window.hits = [];
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium; without it, or without playwright, the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-test.txt)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses to run as root
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


class Visit:
    """One person's browser: its own storage, one page or more, all that went wrong, and what was asked of the model."""

    def __init__(self, browser: Any, url: str, **settings: Any):
        self.url = url
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()  # parts of console errors that belong to the test
        self.bodies: list[Any] = []
        self.context = browser.new_context(**{"reduced_motion": "reduce", **settings})  # else every click waits for it
        self.context.add_init_script(WATCH)
        self.context.set_default_timeout(20_000)
        self.context.on("request", self._requested)
        self.page = self.open()

    def open(self, fragment: str = "") -> Any:
        page = self.context.new_page()
        page.on("console", lambda message: message.type == "error" and self._erred(message.text))
        page.on("pageerror", lambda error: self._erred(str(error)))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(f"{self.url}/{fragment}")
        page.wait_for_selector("#model strong")
        return page

    def again(self) -> Visit:
        """As if it were new. A new page would be surer, but costs ten times as much: `renew` is for who needs it."""
        self.page.unroute_all()
        self.page.evaluate(RESET)
        self.problems, self.expected, self.bodies = [], (), []
        return self

    def renew(self) -> None:
        """The page once more, with nothing kept."""
        self.page.evaluate("localStorage.clear(), Storage.prototype.setItem = null")  # or what runs would be saved
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector("#model strong")

    def check(self) -> None:
        for page in self.context.pages:
            self.problems += page.evaluate("window.hits")
        assert self.problems == []

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((f"{self.url}/", "data:")):
            self.problems.append(f"asked {request.url}")
        if request.method == "POST":
            self.bodies.append(request.post_data_json)

    def _erred(self, text: str) -> None:
        if not any(part in text for part in self.expected):
            self.problems.append(text)


class Line:
    """A proxy to `upstream` (an address) whose answers to POST come as badly as one asks for."""

    def __init__(self, upstream: str):
        self.upstream = urlsplit(upstream)
        self.piece = 65536  # bytes in a piece
        self.hold_at: int | None = None  # after so many bytes it waits for `go`
        self.cut_at: int | None = None  # after so many bytes the connection ends
        self.go = threading.Event()
        line = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # each piece is on its way at once

            def do_GET(self) -> None:
                line._pass(self)

            def do_POST(self) -> None:
                line._pass(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Line:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def behave(self, piece: int = 65536, hold_at: int | None = None, cut_at: int | None = None) -> None:
        self.piece, self.hold_at, self.cut_at = piece, hold_at, cut_at
        self.go.clear()

    def _pass(self, request: BaseHTTPRequestHandler) -> None:
        """One request to the server and its answer back; the browser may have gone meanwhile."""
        own = f"{self.upstream.scheme}://{self.upstream.netloc}"
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in request.headers.items() if k not in ("Host", "Origin", "Connection")}
        headers["Host"] = self.upstream.netloc
        if "Origin" in request.headers:
            headers["Origin"] = own  # to the server the page must look like its own
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=60)
        with contextlib.closing(connection), contextlib.suppress(ConnectionError):
            connection.request(request.command, request.path, body or None, headers)
            answer = connection.getresponse()
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    request.send_header(name, value)
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            self._pieces(request, answer, badly=request.command == "POST")

    def _pieces(self, request: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, badly: bool) -> None:
        sent = 0
        stops = sorted({at for at in (self.hold_at, self.cut_at) if badly and at is not None})
        while data := answer.read1(self.piece if badly else 65536):
            while stops and stops[0] < sent + len(data):
                head, data = data[: stops[0] - sent], data[stops[0] - sent :]
                self._write(request, head)
                sent += len(head)
                if stops[0] == self.hold_at:
                    self.go.wait()
                if stops.pop(0) == self.cut_at:
                    request.close_connection = True  # no last chunk: the browser knows that something is missing
                    return
            self._write(request, data)
            sent += len(data)
        request.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def _write(request: BaseHTTPRequestHandler, data: bytes) -> None:
        if data:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
