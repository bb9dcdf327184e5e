"""Requests that nobody should send, a sample of them; python -m tests.chaos sends as many as one likes.

Each of the server's known traps that is about what comes in has its test here; those about who comes in and who leaves
are in test_serving.py and test_http_guard.py. Run: python -m pytest tests/test_serving_fuzz.py
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import psutil
import pytest

from nanochat.serving import Settings
from nanochat.tokenizer import SPECIAL_TOKENS
from tests import serving_fuzz as fuzz
from tests.chat_server import chat_server, save_small_model

CHAT, COMPLETIONS = fuzz.CHAT, fuzz.COMPLETIONS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A small random model of a short context, so that no answer is long."""
    base = tmp_path_factory.mktemp("base")
    save_small_model(base, sequence_len=64)
    with chat_server(parrot=False, base=base) as running:
        yield running


@pytest.fixture(scope="module")
def parrot():
    with chat_server(delay=0.01) as running, httpx2.Client(base_url=running.url, timeout=60) as client:
        running.client = client
        yield running


def post(server, body: dict | bytes, path: str = CHAT) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(server.url + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)


def ask(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 5, **more}


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --------------------------------------------------------------------------- malformed requests


def test_a_sample_of_malformed_requests(server):
    """None is answered with a status of 500 or above, none kills a process, and memory does not pile up."""
    outcome = fuzz.malformed(server, range(300))
    assert outcome.found == []
    assert {200, 400, 403, 404, 405, 415} <= set(outcome.counts)
    assert outcome.counts.total() >= 300


def test_cases_are_of_every_kind_and_the_same_each_time():
    kinds = [fuzz.case(seed).kind for seed in range(500)]
    assert len(set(kinds)) == len(fuzz.KINDS)
    assert fuzz.case(7) == fuzz.case(7) != fuzz.case(8)


def test_what_is_wrong_is_seen():
    """The judge itself: an answer of each sort that it must not let pass."""
    case = fuzz.Case("body", b"")
    good = {"error": {"message": "m", "type": "t", "param": None, "code": None}}
    head = {"content-type": "application/json"}

    def wrong(status: int, body: bytes, headers: dict = head) -> list[str]:
        return list(fuzz.what_is_wrong(case, [fuzz.Answer(status, headers, body)]))

    assert wrong(400, json.dumps(good).encode()) == [] == wrong(200, b'{"a": 1}')
    assert wrong(500, json.dumps(good).encode())[0].startswith("status 500")
    assert wrong(400, b"Bad Request") and wrong(400, b'{"detail": "x"}') and wrong(400, b'{"error": {"message": "m"}}')
    assert wrong(200, b'{"a": NaN}') and wrong(200, '{"a": "é"}'.encode())
    assert wrong(200, b"{}", {**head, "access-control-allow-origin": "*"}) == ["a CORS header"]
    events = {"content-type": "text/event-stream"}
    assert wrong(200, b'data: {}\n\ndata: [DONE]\n\n', events) == []
    assert wrong(200, b"data: {}\n\n", events) and wrong(200, b"data: {\n\ndata: [DONE]\n\n", events)
    assert list(fuzz.what_is_wrong(case, [])) == ["no answer"]


@pytest.mark.parametrize("as_chunks", [False, True])
def test_a_body_of_300_mb_is_refused_early(server, as_chunks):  # trap: Server (a 300 MB body)
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    for path in (CHAT, "/v1/models", "/nowhere"):
        status, sent = fuzz.big_body(server.port, path, as_chunks)
        assert status == 413 or path == "/nowhere"
        assert sent <= fuzz.SENT_BYTES
    assert process.memory_info().rss - before < fuzz.GROWTH_BYTES
    assert post(server, ask("hi")).status_code == 200


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_no_number_that_json_has_not(server, value):  # trap: Server (NaN)
    for field in ("temperature", "top_p", "n", "seed", "max_tokens", "stop", "unknown"):
        for path, start in ((CHAT, '"messages": [{"role": "user", "content": "hi"}]'), (COMPLETIONS, '"prompt": "hi"')):
            status, name = code(post(server, f'{{{start}, "{field}": {value}}}'.encode(), path))
            assert status == 400 and name in ("invalid_value", "invalid_json", "unknown_parameter"), (field, path)


@pytest.mark.parametrize("half", [rb'"\ud800"', rb'"a\udfffb"', rb'"\udc00\ud800"', b'"\xed\xa0\x80"', b'"\xff"'])
def test_half_a_character_is_refused(server, half):  # trap: Server (lone surrogates)
    for body, path in ((b'{"messages": [{"role": "user", "content": %b}]}', CHAT), (b'{"prompt": %b}', COMPLETIONS),
                       (b'{"prompt": ["a", %b]}', COMPLETIONS), (b'{"prompt": "a", "stop": %b}', COMPLETIONS),
                       (b'{"prompt": "a", "user": %b}', COMPLETIONS), (b'{"prompt": "a", %b: 1}', COMPLETIONS),
                       (b'{"prompt": "a", "model": %b}', COMPLETIONS), (b'{"prompt": "a", "metadata": {"x": %b}}',
                                                                        COMPLETIONS),
                       (b'{"messages": [{"role": %b, "content": "a"}]}', CHAT)):
        assert post(server, body % half, path).status_code in (400, 404), body
    whole = post(server, rb'{"messages": [{"role": "user", "content": "\ud83d\ude42"}], "max_tokens": 1}')
    assert whole.status_code == 200  # both halves of one


@pytest.mark.parametrize("count", ["-1", "-2147483649", "-1" + "0" * 30, "2147483648", "1" + "0" * 5000, "1.5", '"5"',
                                   "true", "[1]"], ids=lambda count: count[:12])
def test_counts_that_cannot_be(server, count):  # trap: Server (negative or huge token counts)
    for field in ("max_tokens", "max_completion_tokens", "n", "top_k", "logprobs", "top_logprobs"):
        for path, start in ((CHAT, '"messages": [{"role": "user", "content": "hi"}]'), (COMPLETIONS, '"prompt": "hi"')):
            if count == "true" and (path, field) == (CHAT, "logprobs"):
                continue  # there it is what it should be
            answer = post(server, f'{{{start}, "{field}": {count}}}'.encode(), path)
            assert answer.status_code == 400, (field, path)
            assert len(answer.content) < 1000  # what was sent is not sent back
    # the largest that may be: the context is the bound
    allowed = post(server, ask("hi", max_tokens=2**31 - 1, temperature=0)).json()
    assert allowed["choices"][0]["finish_detail"] in ("context", "stop", "bos")
    assert allowed["usage"]["total_tokens"] <= 64


def test_other_requests_are_answered_while_one_is_being_written(parrot):  # trap: Server (the event loop is blocked)
    """Before the long answer ends all of these have theirs; the order says it, not a time."""
    order: list[str] = []
    began = threading.Event()

    def long_answer() -> None:
        with parrot.client.stream("POST", CHAT, json=ask("x" * 200, max_tokens=300, temperature=0,
                                                         stream=True)) as answer:
            for line in answer.iter_lines():
                began.set()
                if line == "data: [DONE]":
                    order.append("long")

    thread = threading.Thread(target=long_answer)
    thread.start()
    assert began.wait(60)
    for path in ("/health", "/v1/models", "/metrics", "/", "/openapi.json"):
        assert parrot.client.get(path).status_code == 200
        order.append(path)
    assert parrot.client.post(CHAT, json=ask("hi", temperature=0)).json()["choices"][0]["message"]["content"] == "hi"
    order.append("short")
    thread.join()
    assert order == ["/health", "/v1/models", "/metrics", "/", "/openapi.json", "short", "long"]


def test_it_listens_to_this_machine_only_unless_told(parrot):  # trap: Server (0.0.0.0 by default)
    assert Settings().host == "127.0.0.1"
    listening = [c.laddr for c in psutil.Process(parrot.process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", parrot.port)]


def test_no_cors_header_and_no_word_of_theirs_in_the_log(parrot):  # trap: Server (CORS; prompts in logs)
    secret = "xyzzy-plugh"
    own = parrot.url
    for origin in (own, "http://evil.example", "null", "file://", "http://127.0.0.1",
                   own + ".evil.example"):
        for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("OPTIONS", CHAT), ("GET", "/"), ("POST",
                                                                                                      "/nowhere")):
            answer = parrot.client.request(method, path, json=ask(secret) if method == "POST" else None, headers={
                "Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"})
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert (answer.status_code == 403) == (origin != own), (origin, method, path)
    for body in (ask(secret), ask("a", stop=secret), ask("a", **{secret: 1}), {"prompt": secret}, [secret], secret,
                 ask("a", model=secret), ask(secret * 3000), {"messages": [{"role": secret, "content": secret}]}):
        for path in (CHAT, COMPLETIONS):
            parrot.client.post(path, json=body)
    parrot.client.get("/v1/models", headers={"X-Test": secret, "Authorization": f"Bearer {secret}"})
    parrot.client.get("/v1/models?q=" + secret)
    assert secret not in parrot.log() and "POST" in parrot.log()


# --------------------------------------------------------------------------- texts that look like special tokens


def test_no_text_becomes_a_special_token():
    assert fuzz.user_strings(range(400)) == []


def test_the_oracle_sees_a_text_that_became_one(monkeypatch):
    """Did the server encode with special tokens allowed, each of these would tell."""
    tokenizer = fuzz.byte_tokenizer()
    real = type(tokenizer)._encode_ordinary

    def careless(self, text: str) -> list[int]:
        before, name, after = text.partition("<|bos|>")
        return real(self, before) + ([self.encode_special(name), *careless(self, after)] if name else [])

    monkeypatch.setattr(type(tokenizer), "_encode_ordinary", careless)
    assert len(fuzz.user_strings(range(60))) > 10


def test_special_names_come_back_as_they_were_written(parrot):
    """The parrot repeats the ids that it heard; a special one among them would be no text of its answer, or its end."""
    rng = random.Random(0)
    texts = ["".join(SPECIAL_TOKENS), *filter(None, (fuzz.user_string(rng) for _ in range(2)))]
    for text in texts:
        for content in (text, fuzz.parts_of(text, rng)):
            asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 600, "temperature": 0}
            assert parrot.client.post(CHAT, json=asked).json()["choices"][0]["message"]["content"] == text
    texts += SPECIAL_TOKENS
    echoed = parrot.client.post(COMPLETIONS, json={"prompt": texts, "echo": True, "max_tokens": 0}).json()
    assert [choice["text"] for choice in echoed["choices"]] == texts


# --------------------------------------------------------------------------- the description and what is done


SCHEMATHESIS = """
[checks.positive_data_acceptance]  # a schema cannot say whose turn it is, nor that one field needs another
expected-statuses = ["2xx", 400, 404]
[checks.negative_data_rejection]   # what is wrong may also be too large
expected-statuses = [400, 404, 405, 413, 415]

[[operations]]                     # its hundreds of requests for the two large ones take half a minute
include-method = "POST"
phases.coverage.enabled = false
"""


def test_the_description_is_true(server, tmp_path):
    """schemathesis makes requests from /openapi.json, right ones and wrong ones, and compares what it is answered."""
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS, encoding="utf-8")
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run([program, "run", server.url + "/openapi.json", "--checks=all", "--seed=1", "--no-color",
                           "--generation-database=none", "--continue-on-failure", "--max-examples=8",
                           "--phases=coverage,fuzzing"],
                          cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_nothing_above_broke_the_server(server):
    """Last in this file: the same processes, still answering."""
    with contextlib.closing(httpx2.Client(base_url=server.url, timeout=60)) as client:
        assert client.get("/health").json() == {"status": "ok"}
    assert "Traceback" not in server.log() and " 500 " not in server.log() and "starting it anew" not in server.log()
