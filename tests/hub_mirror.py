"""A small mirror of the dataset hub: hub-shaped answers for folders of this machine; for tests, with faults.

    python -m tests.hub_mirror FOLDER --repo=OWNER/NAME --port=8765     # more: FOLDER2 --repo=OWNER/NAME2
    HF_ENDPOINT=http://127.0.0.1:8765 python -m nanochat.dataset --source=hub:OWNER/NAME -n 2

It answers what the hub's clients ask of it: which commit a revision is, the tree of files with their hashes (in pages),
and the files, by HEAD, GET and ranges. As on the hub, large files and all parquet files are "LFS" files: named by their
SHA-256 and fetched from another host, to which the answer redirects. It serves the files as they were at its start,
needs no token and knows one revision, `main`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

BLOCK = 1 << 14
LFS_BYTES = 10 << 20  # git keeps what is smaller, unless its kind says otherwise
LFS_KINDS = (".parquet", ".arrow", ".bin", ".gz", ".zst", ".safetensors")


@dataclass(frozen=True)
class Entry:
    """One served file: where it lies and what the hub would say about it. `sha256` is "" for a file in git."""

    path: Path
    name: str
    bytes: int
    sha256: str
    blob_id: str

    def as_json(self) -> dict:
        entry = {"type": "file", "oid": self.blob_id, "size": self.bytes, "path": self.name}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.bytes, "pointerSize": 134}
        return entry


def git_id(content: bytes) -> str:
    """`b"hello\\n" -> "ce013625030ba8dba906f756967f9e9ca394464a"`"""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(path: Path, name: str) -> Entry:
    """The entry of one file. An LFS file's git id is that of the pointer that stands in git in its place."""
    content = path.read_bytes()
    if len(content) < LFS_BYTES and not name.endswith(LFS_KINDS):
        return Entry(path, name, len(content), "", git_id(content))
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
    return Entry(path, name, len(content), sha256, git_id(pointer.encode()))


class Repo:
    """The files below a folder as one commit, whose id is a function of their names and content."""

    def __init__(self, folder: str | Path):
        paths = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        entries = [describe(p, p.relative_to(folder).as_posix()) for p in paths]
        self.files = {e.name: e for e in entries if not e.name.startswith(".")}
        self.commit = git_id(json.dumps([[e.name, e.blob_id] for e in entries]).encode())

    def tree(self, under: str) -> list[Entry]:
        return [e for name, e in self.files.items() if not under or name.startswith(f"{under}/")]


# --------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """How one answer goes wrong. `kind` is one of `KINDS`, `at` a place in the body as a share of it."""

    kind: str
    at: float = 0.5


KINDS = ("cut", "wrong", "whole", "shifted", "408", "416", "429", "429 wait", "500", "503", "stall", "less", "more")
# cut     the connection ends after a share of the body     wrong  as many bytes as asked for, one of them another
# whole   200 and all of the file, whatever range was asked for
# shifted 206 and a range that begins earlier than the one asked for
# stall   a share of the body, then silence                 more   a Content-Length too large, then the end
# less    a Content-Length too small, and no more bytes than that


@dataclass
class Faults:
    """Faults drawn from a seed: the n-th request for a file meets the same one in each run. After `most` of them a
    file is served well, so that whoever tries often enough comes through; `always` names files that never are.
    """

    seed: int
    rate: float = 0.5
    most: int = 5
    kinds: tuple[str, ...] = KINDS
    always: dict[str, Fault] = field(default_factory=dict)
    seen: Counter = field(default_factory=Counter)  # requests for each file
    given: Counter = field(default_factory=Counter)  # faults given to each file
    by_kind: Counter = field(default_factory=Counter)

    def __call__(self, name: str) -> Fault | None:
        if name.startswith("/api/"):
            return None
        if name in self.always:
            return self.always[name]
        draw = random.Random(f"{self.seed} {name} {self.seen[name]}")
        self.seen[name] += 1
        if self.given[name] >= self.most or draw.random() >= self.rate:
            return None
        self.given[name] += 1
        fault = Fault(draw.choice(self.kinds), draw.random())
        self.by_kind[fault.kind] += 1
        return fault


# --------------------------------------------------------------------------- the server


@dataclass
class Asked:
    """One request, as it was understood."""

    method: str
    path: str
    range: str
    token: str
    encoding: str  # the compression that the client would take
    status: int = 0
    sent: int = 0  # bytes of a file


class Mirror(ThreadingHTTPServer):
    """`with Mirror({"OWNER/NAME": folder}) as mirror:` serves from threads of this process, at `mirror.url`.

    `faults(name)` is asked before each answer that carries a file's content, and says how it is to go wrong; before
    other answers it is asked with their path, which begins with `/api/` (a status or a stall can happen to them).
    With `moved` all requests are redirected to another host, which is this one by another name.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folders: dict[str, str | Path], *, port: int = 0, page: int = 1000, stall: float = 2.0,
                 slow: float = 0.0, retry_after: str = "1", faults: Callable[[str], Fault | None] | None = None):
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos = {name: Repo(folder) for name, folder in folders.items()}
        self.page, self.retry_after = page, retry_after  # files a page of the tree; a header
        self.stall, self.slow = stall, slow  # seconds of silence in a stall; seconds after each block
        self.moved = False
        self.faults = faults or (lambda name: None)
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def elsewhere(self) -> str:
        """The same server by another name: no token may follow there."""
        return f"http://localhost:{self.server_address[1]}"

    def sent(self, name: str = "") -> int:
        """Bytes of content sent, of the file `name` or of all."""
        return sum(a.sent for a in self.asked if not name or a.path.endswith(name))

    def __enter__(self) -> Mirror:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request, client_address) -> None:
        """A client that leaves is nothing to report here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Mirror

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        about = (self.headers.get(key, "") for key in ("Range", "Authorization", "Accept-Encoding"))
        self.note = Asked(self.command, path, *about)
        self.server.asked.append(self.note)
        fault = self.server.faults(path) if path.startswith("/api/") else None
        if self.server.moved and self.headers.get("Host", "") in self.server.url:
            self.start(307, {"Location": self.server.elsewhere + self.path}, 0)
        elif fault:
            self.refuse_or_stall(fault)
        elif m := re.fullmatch(r"/api/datasets/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self.with_repo(m[1], m[2] or "main", self.send_info)
        elif m := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            self.query = {k: v[0] for k, v in parse_qs(address.query).items()}
            self.with_repo(m[1], m[2], lambda name, repo: self.send_tree(repo, m[3]))
        elif m := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.with_repo(m[1], m[2], lambda name, repo: self.resolve(name, repo, m[3]))
        elif m := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{64})/(.+)", path):
            self.send_content(self.server.repos[m[1]].files[m[3]])
        else:
            self.refuse(404, "RepoNotFound" if path.startswith("/api/datasets/") else "EntryNotFound")

    # ------------------------------------------------------------------- answers that are not content

    def with_repo(self, name: str, revision: str, answer: Callable[[str, Repo], None]) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", repo.commit):
            return self.refuse(404, "RevisionNotFound")
        answer(name, repo)

    def send_info(self, name: str, repo: Repo) -> None:
        self.send_json({"id": name, "sha": repo.commit, "private": False, "gated": False, "disabled": False,
                        "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": f} for f in repo.files]})

    def send_tree(self, repo: Repo, under: str) -> None:
        entries = repo.tree(under)
        if under and not entries:
            return self.refuse(404, "EntryNotFound")
        start = int(self.query.get("cursor", 0))
        page = [e.as_json() for e in entries[start : start + self.server.page]]
        folders = sorted({e.name.rsplit("/", 1)[0] for e in entries if "/" in e.name}) if start == 0 else []
        page += [{"type": "directory", "oid": git_id(f.encode()), "size": 0, "path": f} for f in folders]
        link = {}
        if start + self.server.page < len(entries):
            here = self.server.elsewhere if self.server.moved else self.server.url
            there = f"{here}{urlsplit(self.path).path}?recursive=True&cursor={start + self.server.page}"
            link = {"Link": f'<{there}>; rel="next"'}
        self.send_json(page, link)

    def resolve(self, name: str, repo: Repo, file: str) -> None:
        """A file's address. LFS files lie elsewhere: a redirect says where, and what to expect there."""
        entry = repo.files.get(file)
        if entry is None:
            return self.refuse(404, "EntryNotFound")
        about = {"X-Repo-Commit": repo.commit}
        if not entry.sha256:
            return self.send_content(entry, {**about, "ETag": f'"{entry.blob_id}"'})
        about |= {"X-Linked-Size": str(entry.bytes), "X-Linked-Etag": f'"{entry.sha256}"', "ETag": f'"{entry.sha256}"',
                  "Location": f"{self.server.elsewhere}/cdn/{name}/{entry.sha256}/{quote(file)}"}
        self.start(302, about, 0)

    def refuse(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        body = code.encode()
        self.start(status, {**(headers or {}), **({"X-Error-Code": code} if code else {})}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def refuse_or_stall(self, fault: Fault) -> None:
        """A fault that has no body to spoil."""
        if fault.kind[:3].isdecimal():
            wait = {"Retry-After": self.server.retry_after} if "wait" in fault.kind else {}
            return self.refuse(int(fault.kind[:3]), "", wait)
        self.server.closing.wait(self.server.stall)
        self.close_connection = True

    def send_json(self, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.start(200, {**(headers or {}), "Content-Type": "application/json"}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def start(self, status: int, headers: dict[str, str], length: int) -> None:
        self.note.status = status
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    # ------------------------------------------------------------------- content

    def send_content(self, entry: Entry, headers: dict[str, str] | None = None) -> None:
        """The file, or the range of it that was asked for; or what a fault makes of it."""
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{entry.sha256 or entry.blob_id}"', **(headers or {})}
        with self.server.lock:
            fault = self.server.faults(entry.name) if self.command == "GET" else None
        kind, at = (fault.kind, fault.at) if fault else ("", 0.0)
        if kind[:3].isdecimal():
            return self.refuse_or_stall(fault)
        first, status = 0, 200
        if (m := re.fullmatch(r"bytes=(\d+)-(\d*)", self.note.range)) and kind != "whole":
            first, status = int(m[1]), 206
            if first >= entry.bytes:
                return self.refuse(416, "", {"Content-Range": f"bytes */{entry.bytes}"})
            first //= 2 if kind == "shifted" else 1
        last = min(int(m[2]), entry.bytes - 1) if status == 206 and m[2] else entry.bytes - 1
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{entry.bytes}"
        length = last + 1 - first
        keep = int(at * length)  # what a broken answer really carries
        self.start(status, headers, {"less": keep, "more": length + 1 + keep}.get(kind, length))
        if self.command == "HEAD":
            return
        flip = first + min(keep, length - 1) if kind == "wrong" else -1
        self.send_bytes(entry.path, first, keep if kind in ("cut", "stall", "less") else length, flip)
        if kind == "stall":
            self.server.closing.wait(self.server.stall)
        if kind in ("cut", "stall", "more"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def send_bytes(self, path: Path, first: int, length: int, flip: int) -> None:
        """`length` bytes from `first` on, with the byte at `flip` (if not negative) changed."""
        with open(path, "rb") as f:
            f.seek(first)
            while length > 0 and (block := f.read(min(BLOCK, length))):
                if first <= flip < first + len(block):
                    changed = bytearray(block)
                    changed[flip - first] ^= 1
                    block = bytes(changed)
                self.wfile.write(block)
                self.note.sent += len(block)
                first, length = first + len(block), length - len(block)
                if self.server.slow:
                    self.server.closing.wait(self.server.slow)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub_mirror", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="+", help="what to serve")
    parser.add_argument("--repo", action="append", required=True, help="OWNER/NAME of each folder")
    parser.add_argument("--port", type=int, default=8765, help="0: any that is free")
    args = parser.parse_intermixed_args()
    if len(args.folder) != len(args.repo) or not all(Path(f).is_dir() for f in args.folder):
        parser.error("give folders that exist, and a --repo=OWNER/NAME for each")
    with Mirror(dict(zip(args.repo, args.folder)), port=args.port) as mirror:
        for name, repo in mirror.repos.items():
            size = sum(e.bytes for e in repo.files.values()) / 1e6
            print(f"serving {name} ({len(repo.files)} files, {size:,.1f} MB)", flush=True)
        print(f"HF_ENDPOINT={mirror.url}", flush=True)
        try:
            mirror.thread.join()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
