"""The server as a whole: the real process with its worker, clients that behave and clients that do not.

What a request may look like is tested in test_openai_api.py, the door in test_http_guard.py, the worker alone in
test_worker.py, the page in test_page.py, other people's clients in test_serving_clients.py.

Run: python -m pytest tests/test_serving.py
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import httpx2
import psutil
import pytest

from nanochat.http_guard import Guard
from nanochat.serving import Server, Settings, check, page_and_policy, serve
from nanochat.serving_metrics import Metrics
from nanochat.worker_pool import STOP_SECONDS, WorkerPool
from tests.chat_server import ROOT, ChatServer, chat_server, wait_until

CHAT = "/v1/chat/completions"


def ask(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 200, "temperature": 0, **more}


def events(response: httpx2.Response) -> list[dict]:
    """What a stream said; trap `sse-payload`: an event is a line that begins with "data: ", whatever stands in it."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def metric(server: ChatServer, name: str, **labels: str) -> float:
    """The sum over what fits."""
    found = 0.0
    for line in httpx2.get(server.url + "/metrics", timeout=30).text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            found += float(line.rsplit(" ", 1)[1])
    return found


def idle(server: ChatServer) -> bool:
    """No row is written and none waits: what a client that left must not hold."""
    return metric(server, "nanochat_rows") == 0


@pytest.fixture(scope="module")
def server():
    with chat_server("--max_rows=4", "--max_queue=4", delay=0.02) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


# --------------------------------------------------------------------------- answers


@pytest.mark.parametrize("text", ["hi", "café 🦊 日本", "data: x\n\ndata: [DONE]\n\n", "a\u2028b\u2029c\x85d\r\ne",
                                  "<|assistant_end|>"])
def test_streamed_or_not_the_answer_is_the_same(client, text):
    whole = client.post(CHAT, json=ask(text, seed=1)).json()
    chunks = events(client.post(CHAT, json=ask(text, seed=1, stream=True, stream_options={"include_usage": True})))
    assert whole["choices"][0]["message"]["content"] == text
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == text
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["usage"] == whole["usage"]
    assert len({c["id"] for c in chunks}) == 1


def test_tool_calls(client):
    message = client.post(CHAT, json=ask("calc: 12/60")).json()["choices"][0]["message"]
    parts = [{"type": "python", "text": "12/60"}, {"type": "python_output", "text": "0.2"},
             {"type": "text", "text": "done"}]
    assert message["content"] == "done" and message["parts"] == parts
    streamed = [p for c in events(client.post(CHAT, json=ask("calc: 12/60", stream=True)))
                for p in c["choices"][0]["delta"].get("parts", [])]
    for kind in ("python", "python_output"):
        assert "".join(p["text"] for p in streamed if p["type"] == kind) == {"python": "12/60"}.get(kind, "0.2")
    again = {"messages": [{"role": "user", "content": "calc: 12/60"}, message, {"role": "user", "content": "so"}]}
    assert client.post(CHAT, json=again).json()["choices"][0]["message"]["content"] == "so"


def test_turns_that_do_not_fit(client):
    context = client.get("/v1/models").json()["data"][0]["context"]
    turns = [{"role": role, "content": "x" * 500} for _ in range(10) for role in ("user", "assistant")]
    body = {"messages": [*turns, {"role": "user", "content": "hi"}], "max_tokens": 5}
    assert len(turns) * 500 > context
    refused = client.post(CHAT, json=body)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    fitted = client.post(CHAT, json={**body, "truncation": "auto"}).json()
    assert fitted["choices"][0]["message"]["content"] == "hi" and fitted["dropped_turns"] > 0
    first = events(client.post(CHAT, json={**body, "truncation": "auto", "stream": True}))[0]
    assert first["dropped_turns"] == fitted["dropped_turns"]


def test_models(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "nanochat-parrot-sft" and model["data"] == "pocket"
    assert client.get("/v1/models/" + model["id"]).json() == model
    assert client.get("/v1/models/gpt-4").status_code == 404
    assert client.post(CHAT, json=ask("a", model=model["id"])).status_code == 200
    assert client.post(CHAT, json=ask("a", model="gpt-4")).json()["error"]["code"] == "model_not_found"


def test_no_other_origin_is_ever_invited(client):
    """Trap: wildcard CORS with credentials."""
    for method, path in (("GET", "/"), ("GET", "/v1/models"), ("OPTIONS", CHAT), ("POST", CHAT)):
        answer = client.request(method, path, headers={"Origin": "http://evil.example"})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_page_may_run_its_own_script_only(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http" not in policy and answer.headers["x-frame-options"] == "DENY"
    for any_answer in (answer, client.get("/v1/models"), client.get("/nowhere")):
        assert any_answer.headers["x-content-type-options"] == "nosniff"
        assert any_answer.headers["referrer-policy"] == "no-referrer"
    _, other = page_and_policy("<style>a</style><script>b</script>")
    assert other != policy and other.count("sha256-") == 2


# --------------------------------------------------------------------------- clients that leave


def leave(server: ChatServer, stream: bool, wait: float, how: str) -> None:
    body = json.dumps(ask("x" * 150, stream=stream)).encode()
    s = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    s.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
              f"content-length: {len(body)}\r\n\r\n".encode() + body)
    time.sleep(wait)
    if how == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "half":
        s.shutdown(socket.SHUT_WR)
        s.settimeout(30)
        while s.recv(65536):  # the server sees it as gone, and closes
            pass
    s.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(server, stream, how):
    """Trap: a client leaves but its tokens go on. Each asks for 150 tokens, three seconds of work."""
    assert wait_until(lambda: idle(server))
    tokens, left = metric(server, "nanochat_completion_tokens_total"), metric(server, "nanochat_left_total")
    threads = [threading.Thread(target=leave, args=(server, stream, wait, how)) for wait in (0.0, 0.1, 0.2, 0.3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wait_until(lambda: idle(server))
    written = metric(server, "nanochat_completion_tokens_total") - tokens
    assert 1 <= metric(server, "nanochat_left_total") - left <= 4  # who left before the question was read is none
    assert written < 4 * 100, f"{written} tokens were written for clients that had left"


def test_tokens_after_leaving(server):
    """At most two more once the client has left: it is slow enough that there is no doubt about which are which."""
    assert wait_until(lambda: idle(server))
    with httpx2.stream("POST", server.url + CHAT, json=ask("slowly: " + "x" * 150, stream=True), timeout=60) as answer:
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)
    before = metric(server, "nanochat_completion_tokens_total")
    assert wait_until(lambda: idle(server))
    assert metric(server, "nanochat_completion_tokens_total") - before <= 2


# --------------------------------------------------------------------------- too much at once


def test_what_does_not_fit_the_queue_is_refused(server, client):
    assert wait_until(lambda: idle(server))
    results: list[httpx2.Response] = []

    def one() -> None:
        results.append(httpx2.post(server.url + CHAT, json=ask("x" * 50), timeout=120))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    health = client.get("/health")  # answers meanwhile: the event loop waits for nothing
    for thread in threads:
        thread.join()
    assert health.status_code == 200
    accepted = [r for r in results if r.status_code == 200]
    refused = [r for r in results if r.status_code == 429]
    assert len(accepted) + len(refused) == 20 and len(accepted) >= 8 and refused
    assert all(r.json()["choices"][0]["message"]["content"] == "x" * 50 for r in accepted)
    assert all(int(r.headers["retry-after"]) >= 1 and r.json()["error"]["code"] == "queue_full" for r in refused)
    assert metric(server, "nanochat_refused_total") >= len(refused)
    assert wait_until(lambda: idle(server))


def test_rows_of_one_request_count(server, client):
    assert wait_until(lambda: idle(server))
    with client.stream("POST", CHAT, json=ask("slowly: " + "x" * 100, n=6, stream=True)) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert httpx2.post(server.url + CHAT, json=ask("a", n=3)).status_code == 429  # 6 + 3 > 4 + 4
        with httpx2.stream("POST", server.url + CHAT, json=ask("a", n=2, stream=True)) as fits:
            assert fits.status_code == 200
    assert wait_until(lambda: idle(server))


# --------------------------------------------------------------------------- what is logged


def test_prompts_stay_out_of_the_log(server):
    """Trap: prompts in logs. Also those of requests that are refused, whatever they were refused for."""
    asked = [ask("sesame"), ask("sesame", stream=True), ask("a", stop="sesame"), ask("a", sesame=1),
             ask("a", model="sesame"), ask("sesame" * 5000), {"messages": "sesame"}]
    before = server.log().count(f"POST {CHAT} ")
    for body in asked:
        httpx2.post(server.url + CHAT, json=body, timeout=60)
    httpx2.post(server.url + CHAT, content=b'{"sesame', headers={"content-type": "application/json"})
    httpx2.get(server.url + "/v1/models?q=sesame", timeout=60)
    assert wait_until(lambda: server.log().count(f"POST {CHAT} ") == before + len(asked) + 1)
    assert "sesame" not in server.log()


# --------------------------------------------------------------------------- the end, and what dies


def test_sigterm_lets_answers_finish():
    with chat_server("--log_prompts", delay=0.02) as server:
        (worker,) = server.workers()
        with httpx2.stream("POST", server.url + CHAT, json=ask("x" * 100, stream=True), timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert wait_until(lambda: refuses(server))  # nobody new is let in
            text = "\n".join(lines)
        assert text.rstrip().endswith("data: [DONE]") and text.count('"content":"x"') == 100
        assert server.stop() == -signal.SIGTERM
        assert wait_until(lambda: not worker.is_running())
        assert "x" * 100 in server.log()  # for this was asked for


def refuses(server: ChatServer) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5):
            return False
    except OSError:
        return True


def test_loopback_unless_told_otherwise_and_ctrl_c():
    """Trap: 0.0.0.0 by default."""
    with chat_server() as server:
        listening = [c for c in psutil.Process(server.process.pid).net_connections("inet")
                     if c.status == psutil.CONN_LISTEN]
        assert [c.laddr.ip for c in listening] == [Settings().host] == ["127.0.0.1"]
        assert server.stop(signal.SIGINT) == 130
        assert "Traceback" not in server.log()


def test_a_worker_that_dies_is_replaced_and_none_outlives_the_server():
    with chat_server(delay=0.02) as server:
        (worker,) = server.workers()
        with httpx2.stream("POST", server.url + CHAT, json=ask("x" * 150, stream=True), timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            threading.Timer(0.2, worker.kill).start()
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "worker_died"
        assert wait_until(lambda: httpx2.get(server.url + "/health").status_code == 503)
        gone = httpx2.post(server.url + CHAT, json=ask("hi"))
        assert gone.status_code == 503 and gone.headers["retry-after"]
        assert wait_until(lambda: httpx2.get(server.url + "/health").status_code == 200, 120)
        answer = httpx2.post(server.url + CHAT, json=ask("hi"), timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "hi"
        assert metric(server, "nanochat_worker_restarts_total") == 1
        (worker,) = server.workers()
        server.process.kill()
        assert wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_two_workers_share_the_work():
    with chat_server("--num_workers=2", "--max_rows=1", "--max_queue=0", delay=0.02) as server:
        assert len(server.workers()) == 2
        threads = [threading.Thread(target=httpx2.post, args=(server.url + CHAT,),
                                    kwargs={"json": ask("x" * 100), "timeout": 60}) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: metric(server, "nanochat_rows", state="active") == 2)
        assert httpx2.post(server.url + CHAT, json=ask("a")).status_code == 429
        for thread in threads:
            thread.join()


# --------------------------------------------------------------------------- the command


@pytest.mark.parametrize("flags, said", [
    (["--temperature=5"], "--temperature=5.0 is impossible"), (["--max_rows=0"], "--max_rows=0 is impossible"),
    (["--num_workers=-1"], "--num_workers=-1 is impossible"), (["--max_tokens=0"], "--max_tokens=0 is impossible"),
    (["--host=192.0.2.1", "--port=1"], "cannot listen on 192.0.2.1 port 1"), (["--port=99999"], "ports end at"),
    (["--host=a..b"], "cannot listen on a..b"), (["--port=0"], "no sft model"), (["--port=0", "--sauce=x"], "--sauce"),
])
def test_what_cannot_be_is_one_line(flags, said, tmp_path):
    done = subprocess.run([sys.executable, "-m", "scripts.chat_web", *flags], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path)}, timeout=120)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_a_worker_that_is_killed_while_it_loads(capfd):
    """It cannot say why, so the server does: by far the likeliest is too little memory."""
    with pytest.raises(SystemExit) as end:
        serve(Settings(port=0), [([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {})])
    assert end.value.code == 1
    assert capfd.readouterr().err == ("error: a worker was killed by signal 9 before it was ready: is there enough "
                                      "memory?\n")


def test_when_one_worker_cannot_start_the_others_are_not_waited_for(capfd):
    """Nor are they when Ctrl-C comes while models load: these do not look at their input yet."""
    begin = time.monotonic()
    with pytest.raises(SystemExit) as end:
        serve(Settings(port=0), [([sys.executable, "-c", "import time; time.sleep(60)"], {}),
                                 ([sys.executable, "-c", "raise SystemExit(3)"], {})])
    assert end.value.code == 3 and capfd.readouterr().err == ""  # it has said why
    assert time.monotonic() - begin < STOP_SECONDS


def test_our_own_faults_are_told_in_the_form_of_errors(capfd):
    """Trap: FastAPI's own page for a failure is plain text."""
    pool = WorkerPool([], 1, 1, Metrics())
    app = Guard(Server(Settings(), pool, pool.metrics).application(), pool.metrics)  # no model: /v1/models fails
    sent = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app({"type": "http", "method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "headers": [],
                     "query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http"}, receive, send))
    assert sent[0]["status"] == 500 and json.loads(sent[1]["body"])["error"]["type"] == "server_error"
    assert "KeyError at" in capfd.readouterr().err


def test_defaults_are_checked_as_requests_are():
    check(Settings(temperature=0, top_k=0, top_p=1.0, max_tokens=1))
