"""Requests that nobody should send, and texts that look like special tokens, in any number.

    python -m tests.chaos --malformed=10000          # three minutes, one server: its memory, too
    python -m tests.chaos --user-strings=100000

`malformed`: a real server with a small random model gets requests that are wrong in every way that came to mind, one
connection each, some of them beside each other. Wanted: no status of 500 or above, errors in OpenAI's form, a server
and a worker that are still the same processes and answer the next request, and no memory that stays taken.

`user-strings`: texts with the names of special tokens in them, whole, split over parts and in disguise, in every field
of a request that holds text, go through validation and rendering; the ids are compared with those of an oracle that
knows the layout and encodes each text as ordinary bytes. There is nothing else to run here.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil

from nanochat import openai_api as api
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer
from nanochat.worker import Request, prompts_of
from tests.chat_server import ChatServer, chat_server
from tests.helpers import byte_tokenizer, small_tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HEALTH_EVERY = 20  # requests between two questions after the server's health
GROWTH_BYTES = 50 << 20  # of the server's own memory, over all requests
BIG_BODY = 300 << 20
SENT_BYTES = 32 << 20  # of a big body, before it was refused: what lies in the system's buffers counts, too
PATIENCE = 60.0
LEAVE_AFTER = 0.3  # seconds


class Case(NamedTuple):
    """Bytes for one connection, and what may come back."""

    kind: str
    raw: bytes
    answers: int = 1  # to be read; 0: the connection is closed in the middle of it
    method: str = "POST"
    may_be_silent: bool = False  # what is no HTTP may be dropped without a word
    may_wait: bool = False  # the server may rightly wait for more: the client leaves then


# ------------------------------------------------------------------------------------------------------- bodies


def chat(rng: random.Random) -> dict[str, Any]:
    """A valid request that is quickly answered."""
    messages = [{"role": "user", "content": text(rng)}]
    if rng.random() < 0.3:
        messages = [{"role": "system", "content": text(rng)}, *messages, {"role": "assistant", "content": [
            {"type": "text", "text": text(rng)}, {"type": "python", "text": "1+1"}]}, *messages]
    return {"messages": messages, "max_tokens": rng.randint(1, 3), **options(rng)}


def completion(rng: random.Random) -> dict[str, Any]:
    prompt = rng.choice([text(rng), [text(rng), text(rng)], [5, 6, 7], [[5], [6, 7]]])
    more = {"echo": True} if rng.random() < 0.3 else {}
    return {"prompt": prompt, "max_tokens": rng.randint(0, 3), **more, **options(rng)}


def options(rng: random.Random) -> dict[str, Any]:
    values = {"temperature": rng.choice([0, 0.5, 2]), "top_p": 0.5, "top_k": 3, "seed": 7, "n": 2, "stop": ["x"],
              "stream": rng.random() < 0.5, "user": "me"}
    return {name: values[name] for name in rng.sample(sorted(values), rng.randint(0, 3))}


TEXTS = ("hi", "", " ", "a" * 300, "a" * 5000, "12 + 30", "\x00", "\n", "🙂", "\u2028", "\ud800", "\udfff\ud800",
         "\ufeff", "<|bos|>", "data: [DONE]\n\n", "\x1b[2J", "{}", "é\u0301", "\U0010ffff", "a\r\nb")


def text(rng: random.Random) -> str:
    return rng.choice(TEXTS) if rng.random() < 0.7 else "".join(chr(rng.randint(0, 0x2FFF)) for _ in range(5))


class Raw(str):
    """JSON that is put in as it is, valid or not."""


def deep(n: int) -> Raw:
    return Raw("[" * n + "]" * n)


def many(item: str) -> Raw:
    """As many as there is room for in the largest body."""
    return Raw("[" + f"{item}," * (900_000 // (len(item) + 1)) + f"{item}]")


HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 17, 65, 10**4, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, 1.5, -0.0, 1e308, -1e-320, "",
    "5", "true", "auto", "x", "\x00", "\ud800", [], {}, [[]], [{}], [None], [""], ["a", 1], [1, "a"], [-1], [10**9],
    [[1], "a"], [[1], []], [[[1]]], {"": None}, {"type": "text"}, [{"type": "text"}], [{"type": "image_url"}],
    [{"role": "user"}], [{"role": "tool", "content": "x"}], ["a"] * 5, ["a"] * 100, [1] * 5000, list(range(300)),
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("-1e999"), Raw("1" * 5000),
    Raw("-" + "9" * 100_000), Raw("1e-9999"), Raw("00"), Raw("+1"), Raw(".5"), Raw("5."), Raw("0x10"), Raw("'a'"),
    Raw("undefined"), Raw(""), Raw("1 2"), Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u0000"'), Raw('"\\x41"'),
    Raw('"a\nb"'), Raw('"\t"'), Raw('"\x00"'), Raw("// c\n1"), Raw("1,"), Raw("[1,]"), Raw('{"a":1,}'), deep(50),
    deep(2000), deep(100_000), Raw('{"a":' * 2000 + "1" + "}" * 2000), Raw("[" * 100_000), Raw('{"a":' * 100_000),
    {"a" * 100_000: 1}, "a" * 500_000, many("-1"), many("1"), many("{}"), many("null"), many('"a"'), many("[]"),
    Raw("{" + ",".join(f'"{i}":1' for i in range(80_000)) + "}"), many('{"role":"user","content":"a"}'),
)
FIELDS = ("model", "messages", "prompt", "stream", "stream_options", "n", "temperature", "top_p", "top_k", "seed",
          "stop", "user", "store", "metadata", "frequency_penalty", "presence_penalty", "logit_bias", "max_tokens",
          "max_completion_tokens", "logprobs", "top_logprobs", "truncation", "response_format", "tools", "tool_choice",
          "parallel_tool_calls", "modalities", "echo", "suffix", "best_of", "role", "content", "parts", "name", "type",
          "text", "unknown", "__proto__", "__class__", "", "\ud800", "a" * 1000, "self", "model_config", "$ref",
          "refusal", "tool_calls", "include_usage")


LONG_CHAT = (b'{"truncation":"auto","messages":['
             + b'{"role":"user","content":"a"},{"role":"assistant","content":"b"},' * 15_000
             + b'{"role":"user","content":"a"}]}')


def written(value: Any, rng: random.Random) -> str:
    """As JSON; in dicts a key may come twice."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        pairs = [f"{json.dumps(k)}:{written(v, rng)}" for k, v in value.items()]
        if pairs and rng.random() < 0.03:
            pairs.append(rng.choice(pairs))
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(v, rng) for v in value) + "]"
    return json.dumps(value, ensure_ascii=rng.random() < 0.7)


def changed(value: Any, rng: random.Random) -> Any:
    """With something hostile at some place in it: put in, put in its place, or taken out."""
    if isinstance(value, dict) and value and rng.random() < 0.75:
        made = dict(value)
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.3:
            made[rng.choice(FIELDS)] = rng.choice(HOSTILE)
        elif kind < 0.4:
            del made[name]
        else:
            made[name] = changed(value[name], rng)
        return made
    if isinstance(value, list) and value and rng.random() < 0.75:
        i = rng.randrange(len(value))
        return [*value[:i], changed(value[i], rng), *value[i + 1 :]]
    return rng.choice(HOSTILE)


def body_bytes(rng: random.Random) -> bytes:
    """JSON, nearly JSON, or something else."""
    kind = rng.random()
    body = rng.choice([chat, completion])(rng)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        body = changed(body, rng)
    made = written(body, rng).encode("utf-8", "surrogatepass")  # half characters as the three bytes that are no UTF-8
    if kind < 0.6:
        return made
    if kind < 0.7:
        return made[: rng.randint(0, len(made))]
    if kind < 0.8:  # bytes changed, put in, taken out
        at = rng.randint(0, len(made))
        return made[:at] + rng.choice([b"\xff", b"\xc0\x80", b"\x00", b"\xed\xa0\x80", b'"', b"{", b"\\", b"\n",
                                       b"\xf4\x90\x80\x80"]) + made[at + rng.randint(0, 2) :]
    if kind < 0.9:
        return rng.choice([made.decode("utf-8", "replace").encode("utf-16"), b"\xef\xbb\xbf" + made, made + made,
                           made + b"x",
                           b"\x00" * 10 + made, b"a=1&b=2", b"<xml/>", b"\x1f\x8b\x08\x00" + made,
                           made.decode("utf-8", "replace").encode("utf-32")])
    return rng.choice([b"", b" ", b"null", b"[]", b"{}", b'""', b"0", b"NaN", b"true", b"[" * 200_000, b"\xff\xfe",
                       b'"\\ud800"', rng.randbytes(rng.randint(1, 2000)), b" " * 500_000 + b"{}", b"9" * 300_000,
                       b"{" * 1000, LONG_CHAT])


# ------------------------------------------------------------------------------------------------------- requests


def request(path: bytes, body: bytes, method: bytes = b"POST", headers: tuple[bytes, ...] = (),
            version: bytes = b"HTTP/1.1",
            plain: bool = True, length: bool = True) -> bytes:
    """`plain`: with the headers that a request should have."""
    lines = [method + b" " + path + b" " + version]
    if plain:
        lines += [b"Host: 127.0.0.1", b"Content-Type: application/json"]
    lines += [b"Content-Length: %d" % len(body)] if length else []
    return b"\r\n".join([*lines, *headers, b"", b""]) + body


def chunked(body: bytes, size: int = 1000) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def good(rng: random.Random) -> tuple[bytes, bytes]:
    path, make = rng.choice([(CHAT, chat), (COMPLETIONS, completion)])
    return path.encode(), json.dumps(make(rng)).encode()


def bad_body(rng: random.Random) -> Case:
    body = body_bytes(rng)
    path = (CHAT if b"messages" in body else COMPLETIONS).encode()
    if rng.random() < 0.15:
        return Case("body", request(path, chunked(body), headers=(b"Transfer-Encoding: chunked",), length=False))
    return Case("body", request(path, body))


def bad_length(rng: random.Random) -> Case:
    path, body = good(rng)
    length = rng.choice([b"-1", b"+5", b"5, 5", b"5,6", b"abc", b"", b" ", b"0x10", b"1e3", b"9" * 30, b"9" * 5000,
                         b"\xb2", b"1048577", b"314572800", b"0", b"1", b"%d" % (len(body) - 1), b"5\x00", b"\t5\t"])
    more = rng.choice([(), (b"Content-Length: 3",), (b"Transfer-Encoding: chunked",)])
    return Case("length", request(path, body, headers=(b"Content-Length: " + length, *more), length=False),
                may_be_silent=True,
                may_wait=True)


def bad_chunks(rng: random.Random) -> Case:
    path, body = good(rng)
    sent = rng.choice([body, b"zz\r\n" + body, b"-5\r\nhello\r\n", b"FFFFFFFFFFFFFFFFFFFF\r\n" + body,
                       b"5;" + b"x" * 5000 + b"\r\nhello\r\n", b"5\nhello\n0\n\n", b"5\r\nhelloXX" + chunked(body),
                       chunked(body)[:-2] + b"X: y\r\n\r\n", b"\r\n\r\n", b"5\r\nhel\x00o\r\n0\r\n\r\n",
                       chunked(body, 1), b"0" * 1000 + b"\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", rng.randbytes(200)])
    kind = rng.choice([b"chunked", b"chunked", b"chunked", b"Chunked", b"gzip, chunked", b"identity",
                       b"chunked, chunked", b"x", b"\x0bchunked"])
    return Case("chunks", request(path, sent, headers=(b"Transfer-Encoding: " + kind,), length=False),
                may_be_silent=True, may_wait=True)


def bad_headers(rng: random.Random) -> Case:
    path, body = good(rng)
    lines = rng.choice([
        (b"Expect: 100-continue",), (b"Expect: 200-ok",), (b"X: " + b"a" * 100_000,), (b"a" * 100_000 + b": x",),
        tuple(b"X-%d: y" % i for i in range(5000)), (b"X: a\x00b",), (b"X\x00: a",), (b"no colon",), (b": x",),
        (b"X : y",), (b"X: y",          b" folded"), (b"\xff\xfe: x",), (b"X: \xff\xfe",), (b"Host: evil.example",),
        (b"Origin: http://evil.example",), (b"Origin: null",), (b"Origin: http://[",), (b"Origin: \xff",),
        (b"Authorization: Basic " + base64.b64encode(b"\xff:\xff"),), (b"Authorization: Basic ====",),
        (b"Authorization: Bearer \xff",), (b"Cookie: " + b"a=b; " * 2000,), (b"Connection: x, close",),
        (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13"),
        (b"Upgrade: h2c", b"Connection: Upgrade", b"HTTP2-Settings: x"), (b"Content-Encoding: gzip",),
        (b"Accept: \x01",), (b"Content-Type: text/html",), (b"X-Forwarded-For: " + b"1.2.3.4, " * 500,),
        (b"Range: bytes=0-0",), (b"TE: trailers",), (b"Accept-Encoding: " + b"gzip," * 1000,),
        (b"X-HTTP-Method-Override: DELETE",), (b"Connection: keep-alive, " + b"x," * 2000,),
    ])
    return Case("headers", request(path, body, headers=lines), may_be_silent=True)


def bad_kind(rng: random.Random) -> Case:
    """Another content type, another host, none, twice."""
    path, body = good(rng)
    kind = rng.choice([b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"",
                       b"application/json; charset=utf-16", b"application/JSON;charset=\xff", b"application/xml",
                       b"json", b"application/json, text/html", b"*/*", b";"])
    host = rng.choice([b"127.0.0.1", b"localhost:1", b"evil.example", b"[::1]", b"[", b"", b"127.0.0.1:99999999",
                       b"a" * 5000, b"127.0.0.1@evil.example", b"\xff", b"2130706433", b"localhost.", b"127.0.0.1:x",
                       b"[::1", b"]", b"[fe80::1%25eth0]", b"x.localhost"])
    lines = (b"Host: " + host, b"Content-Type: " + kind)
    drop = rng.randint(0, 3)
    return Case("kind", request(path, body, headers=lines[drop % 2 : 2] if drop < 2 else lines, plain=False,
                                version=rng.choice([b"HTTP/1.1", b"HTTP/1.0"])), may_be_silent=True)


PATHS = (b"/", b"/v1", b"/v1/", b"/v1/chat", b"//v1/models", b"/v1/models/", b"/v1/models/x", b"/v1/models/%00",
         b"/v1/models/%ff%fe", b"/v1/models/%zz", b"/v1/models/%", b"/v1/models/" + b"a" * 5000,
         b"/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", b"/../../etc/passwd", b"/v1/models/../../x", b"/v1/models?x=%ff",
         b"/v1/models?" + b"a=b&" * 1000, b"http://evil.example/v1/models", b"http://127.0.0.1/v1/models", b"*",
         b"evil:80", b"/docs", b"/redoc", b"/openapi.json", b"/health", b"/metrics", b"/V1/Models",
         b"/v1/models/nanochat-d2-sft", b"/\xff", b"/a b", b"", b"/v1/models#x", b"/v1/models/\\", b"/favicon.ico",
         b"/v1/embeddings", b"/v1/models/%ED%A0%80", b"/v1/models/%0d%0aX:%20y", b"/%F0%9F%99%82", b"/v1;a=b",
         CHAT.encode(), COMPLETIONS.encode(), CHAT.encode() + b"/", b"/v1/models/nanochat-d2-sft/x",
         b"/" + b"a/" * 3000)
METHODS = (b"GET", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"PROPFIND",
           b"G\x00T", b"", b"A" * 5000, b"P\xffST", b"POST", b"PRI", b"GET /", b'"')


def bad_target(rng: random.Random) -> Case:
    method, path = rng.choice(METHODS), rng.choice(PATHS)
    body = rng.choice([b"", b"", b"{}", b"x" * 100])
    version = rng.choice([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1",
                                              b"HTTP/1.1 x", b"", b"FOO/1.1"])
    return Case("target", request(path, body, method, version=version), method=method.decode("latin-1") or "GET",
                may_be_silent=True)


def cut_off(rng: random.Random) -> Case:
    """Half of a request, and the client leaves."""
    raw = request(*good(rng)) if rng.random() < 0.7 else bad_body(rng).raw
    return Case("cut off", raw[: rng.randint(0, len(raw) - 1)], answers=0)


def pipelined(rng: random.Random) -> Case:
    """Several in one go; where one is refused, the connection may end."""
    n = rng.randint(2, 6)
    raw = b"".join(request(*good(rng)) if rng.random() < 0.7 else bad_body(rng).raw for _ in range(n))
    return Case("pipelined", raw + rng.choice([b"", b"", b"rubbish", b"\r\n\r\n", b"\x00" * 100]), answers=n,
                may_be_silent=True,
                may_wait=True)


def no_http(rng: random.Random) -> Case:
    tls = bytes.fromhex("16030100a5010000a10303") + rng.randbytes(160)
    raw = rng.choice([tls, b"SSH-2.0-OpenSSH_9.2\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50,
                      b"\x00" * 1000, rng.randbytes(rng.randint(1, 3000)), b"EHLO x\r\n", b"GET\r\n\r\n",
                      b"GET / \r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"*1\r\n$4\r\nPING\r\n", b"a" * 100_000,
                      b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r", b"{}\r\n\r\n",
                      b"GET  /  HTTP/1.1\r\n\r\n", b"\xff" * 70_000, b"\n"])
    return Case("no HTTP", raw, method="GET", may_be_silent=True, may_wait=True)


KINDS: dict[Callable[[random.Random], Case], int] = {
    bad_body: 50, bad_length: 6, bad_chunks: 7, bad_headers: 8, bad_kind: 6, bad_target: 10, cut_off: 6, pipelined: 3,
    no_http: 4}


def case(seed: int) -> Case:
    rng = random.Random(f"malformed {seed}")
    return rng.choices(list(KINDS), list(KINDS.values()))[0](rng)


# ------------------------------------------------------------------------------------------------------- sending them


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def send(port: int, case: Case) -> list[Answer]:
    """On a connection of its own; [] where the server only closed it. TimeoutError where it did not even do that."""
    answers: list[Answer] = []
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as s:
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            s.sendall(case.raw)
        with contextlib.suppress(ConnectionError, http.client.BadStatusLine):  # closed, and nothing more is to be read
            file = s.makefile("rb")  # one for all answers: what is read too far stays in it
            buffered = SimpleNamespace(makefile=lambda mode: file)
            for _ in range(case.answers):
                if case.may_wait and not answers and not select.select([s], [], [], LEAVE_AFTER)[0]:
                    break
                response = http.client.HTTPResponse(buffered, method=case.method)
                response._close_conn = lambda: None  # it would close the file that holds the next answer
                response.begin()
                answers.append(Answer(response.status, {k.lower(): v for k, v in response.getheaders()},
                                      response.read()))
                if response.will_close:
                    break
    return answers


def strict_json(body: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(body.decode("ascii"), parse_constant=refuse)


def what_is_wrong(case: Case, answers: list[Answer]) -> Iterator[str]:
    if case.answers and not answers and not case.may_be_silent:
        yield "no answer"
    for status, headers, body in answers:
        kind = headers.get("content-type", "")
        if status >= 500:
            yield f"status {status}: {body[:200]!r}"
        if any(name.startswith("access-control") for name in headers):
            yield "a CORS header"
        try:
            if status >= 400 and (case.method != "HEAD" or body):
                error = strict_json(body)["error"]
                if set(error) != {"message", "type", "param", "code"} or not isinstance(error["message"], str):
                    yield f"an error in another form: {body[:200]!r}"
            elif kind.startswith("application/json") and body:
                strict_json(body)
            elif kind.startswith("text/event-stream"):
                events = body.decode("ascii").split("\n\n")
                if events[-2:] != ["data: [DONE]", ""] and '"error"' not in events[-2]:
                    yield f"a stream that ends with {events[-2:]}"
                for line in events[:-2]:
                    strict_json(line.removeprefix("data: ").encode())
        except (ValueError, KeyError, TypeError) as e:
            yield f"{type(e).__name__} ({e}) in {status} {body[:200]!r}"


def healthy(server: ChatServer, workers: list[int]) -> str:
    """"" or what is wrong."""
    if server.process.poll() is not None:
        return f"the server ended with status {server.process.returncode}"
    if [worker.pid for worker in server.workers()] != workers:
        return "a worker died"
    answers = send(server.port, Case("health", request(b"/health", b"", b"GET", length=False), method="GET"))
    if [(a.status, a.body) for a in answers] != [(200, b'{"status":"ok"}')]:
        return f"/health says {answers}"
    return ""


class Outcome(NamedTuple):
    """What came of some requests."""

    found: list[str]
    counts: Counter
    grown: int  # bytes

    def __str__(self) -> str:
        statuses = ", ".join(f"{n} {status}" for status, n in sorted(self.counts.items(), key=str))
        return f"{statuses}; the server grew by {self.grown / 2**20:.1f} MB"


def malformed(server: ChatServer, seeds: range) -> Outcome:
    """One after the other; ends where the server is broken, for all that follows would be as well."""
    process = psutil.Process(server.process.pid)
    workers = [worker.pid for worker in server.workers()]
    before = process.memory_info().rss
    found: list[str] = []
    counts: Counter = Counter()
    for seed in seeds:
        made = case(seed)
        try:
            answers = send(server.port, made)
            wrong = list(what_is_wrong(made, answers))
        except TimeoutError:
            answers, wrong = [], ["neither an answer nor an end"]
        except (OSError, http.client.HTTPException) as e:
            answers, wrong = [], [f"{type(e).__name__}: {e}"]
        counts.update([answer.status for answer in answers] or ["silent"])
        found += [f"seed {seed}, {made.kind}: {what}; {made.raw[:300]!r}" for what in wrong]
        if (seed % HEALTH_EVERY == 0 or seed == seeds[-1]) and (ill := healthy(server, workers)):
            return Outcome([*found, f"after seed {seed}: {ill}"], counts, 0)
    grown = process.memory_info().rss - before
    if grown > GROWTH_BYTES:
        found.append(f"the server grew by {grown / 2**20:.0f} MB over {len(seeds)} requests")
    return Outcome(found, counts, grown)


def big_body(port: int, path: str, as_chunks: bool, lie: int = 0) -> tuple[int, int]:
    """`(status, bytes sent until it came)`. `lie`: say that it is so long."""
    head = (b"Transfer-Encoding: chunked",) if as_chunks else (b"Content-Length: %d" % (lie or BIG_BODY),)
    piece = b'{"messages": "' + b"a" * 65_522
    framed = b"%x\r\n%b\r\n" % (len(piece), piece) if as_chunks else piece
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as s:
        s.sendall(request(path.encode(), b"", headers=head, length=False))
        with contextlib.suppress(ConnectionError):
            while sent < BIG_BODY and not select.select([s], [], [], 0)[0]:
                s.sendall(framed)
                sent += len(framed)
        response = http.client.HTTPResponse(s)
        response.begin()
        return response.status, sent


def malformed_trials(trials: int, seed: int, processes: int) -> Outcome:
    """For tests/chaos.py; `found` of what comes back is what failed."""
    with chat_server(parrot=False) as server:
        malformed(server, range(-50, 0))  # whatever is loaded at the first of its kind is loaded now
        outcome = malformed(server, range(seed, seed + trials))
        for as_chunks in (False, True):
            status, sent = big_body(server.port, CHAT, as_chunks)
            if status != 413 or sent > SENT_BYTES:
                outcome.found.append(f"a body of 300 MB: status {status} after {sent} bytes")
        return outcome


# ------------------------------------------------------------------------------------------- special tokens in texts

LOOKALIKES = ("<|", "|>", "<", "|", ">", "bos", "user", "_end", "<|bos|", "|bos|>", "<| bos |>", "<|BOS|>",
              "<|endoftext|>", "<|im_start|>", "<|im_end|>", "\uff1c|bos|\uff1e", "<\u200b|bos|>", "<|bo\u0301s|>",
              "<|us\u0435r_start|>", "<|system|>", "[INST]", "</s>", "<s>", "&lt;|bos|&gt;", "<|bos|\\>",
              "\\u003c|bos|>", "<|bos|>" * 3, "<|<|bos|>|>", "<|user_end|><|assistant_start|>", "a", " ", "\n", "\n\n",
              "", "\x00", "🙂", "é", "\u2028", "12")


def user_string(rng: random.Random) -> str:
    """Names of special tokens, whole and in disguise, among other text."""
    return "".join(rng.choice(rng.choice([SPECIAL_TOKENS, LOOKALIKES])) for _ in range(rng.randint(0, 6)))


def parts_of(text: str, rng: random.Random) -> list[dict[str, str]]:
    """Cut anywhere, within a name too."""
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 3)))
    return [{"type": "text", "text": text[a:b]} for a, b in zip([0, *cuts], [*cuts, len(text)])]


Layout = list[str | tuple[str]]  # an ordinary text, or ("<|bos|>",)


def asked_and_meant(rng: random.Random) -> tuple[dict[str, Any], list[Layout]]:
    """A request made of such texts, and the tokens that it means: special ones only where the layout has them."""
    if rng.random() < 0.3:
        prompts = [user_string(rng) for _ in range(rng.randint(1, 4))]
        return ({"prompt": prompts[0] if len(prompts) == 1 else prompts, "stop": user_string(rng) or "x",
                 "user": user_string(rng)},
                [[("<|bos|>",), prompt] for prompt in prompts])
    messages: list[dict[str, Any]] = []
    layout: Layout = [("<|bos|>",)]
    system = ""
    if rng.random() < 0.5:
        texts = [user_string(rng) for _ in range(rng.randint(1, 2))]
        messages += [{"role": rng.choice(["system", "developer"]), "content": text} for text in texts]
        system = "\n\n".join(texts) + "\n\n"
    for turn in range(2 * rng.randint(0, 2) + 1):
        text = user_string(rng)
        if turn % 2 == 0:
            texts = [text] if rng.random() < 0.7 else [text, user_string(rng)]  # neighbours are joined
            messages += [{"role": "user", "content": t if rng.random() < 0.5 else parts_of(t, rng),
                          "name": user_string(rng)} for t in texts]
            layout += [("<|user_start|>",), system + "\n\n".join(texts), ("<|user_end|>",)]
            system = ""
            continue
        layout.append(("<|assistant_start|>",))
        if rng.random() < 0.5:
            messages.append({"role": "assistant", "content": text if rng.random() < 0.5 else parts_of(text, rng)})
            layout.append(text)
        else:
            expression, output = user_string(rng), user_string(rng)
            parts = [*parts_of(text, rng), {"type": "python", "text": expression}, {"type": "python_output",
                                                                                    "text": output}]
            messages.append({"role": "assistant", rng.choice(["content", "parts"]): parts})
            layout += [text, ("<|python_start|>",), expression, ("<|python_end|>",), ("<|output_start|>",), output,
                       ("<|output_end|>",)]
        layout.append(("<|assistant_end|>",))
    layout.append(("<|assistant_start|>",))
    return {"messages": messages, "stop": [user_string(rng) or "x"], "user": user_string(rng)}, [layout]


def ids_meant(layout: Layout, special: dict[str, int]) -> list[int]:
    """With a tokenizer whose ordinary tokens are the 256 bytes."""
    return [i for item in layout for i in ([special[item[0]]] if isinstance(item, tuple) else item.encode())]


@cache
def merging_tokenizer() -> RustBPETokenizer:
    return small_tokenizer()


def user_strings(seeds: range) -> list[str]:
    """What is wrong, a line each."""
    found = []
    small = merging_tokenizer()
    special = {name: byte_tokenizer().encode_special(name) for name in SPECIAL_TOKENS}
    special_ids = {small.encode_special(name) for name in SPECIAL_TOKENS}
    model = SimpleNamespace(config=SimpleNamespace(sequence_len=10**6))
    engines = [SimpleNamespace(tokenizer=tokenizer, model=model) for tokenizer in (byte_tokenizer(), small)]
    for seed in seeds:
        asked, meant = asked_and_meant(random.Random(f"user string {seed}"))
        of_bytes, of_merges = (rendered(asked, engine) for engine in engines)
        if of_bytes != [ids_meant(layout, special) for layout in meant]:
            found.append(f"seed {seed}: {ascii(asked)}: other ids")
        # with merges: as many special tokens as the layout has, and all between them the text
        for ids, layout in zip(of_merges, meant):
            if [small.id_to_token(i) for i in ids if i in special_ids] != [x[0] for x in layout if isinstance(x,
                                                                                                              tuple)]:
                found.append(f"seed {seed}: {ascii(asked)}: a special token inside a text")
            if small.decode(ids) != "".join(x if isinstance(x, str) else x[0] for x in layout):
                found.append(f"seed {seed}: {ascii(asked)}: another text")
    return found


def rendered(asked: dict[str, Any], engine: Any) -> list[list[int]]:
    """As the server does it: validated from JSON, brought into our form, rendered by the worker."""
    asked = json.loads(json.dumps(asked))
    settings = {"id": 1, "n": 1, "max_tokens": 1, "temperature": 1.0, "top_k": None, "top_p": 1.0, "seed": 0}
    if "prompt" in asked:
        body = api.CompletionRequest.model_validate(asked)
        return prompts_of(Request(**settings, prompts=body.prompts, stop=body.stops), engine)[0]
    body = api.ChatRequest.model_validate(asked)
    return prompts_of(Request(**settings, messages=api.conversation_of(body.messages), stop=body.stops), engine)[0]


def user_string_trials(trials: int, seed: int, processes: int) -> list[str]:
    """For tests/chaos.py: what failed."""
    from tests.chaos import spread

    batches = [range(begin, min(begin + 500, seed + trials)) for begin in range(seed, seed + trials, 500)]
    return [line for part in spread(user_strings, batches, processes) for line in part]
