"""The HTTP server: OpenAI's API and the chat page, in front of workers that own the model.

    serve(Settings(port=8000), [([sys.executable, "-m", "nanochat.worker"], {})])     # what scripts/chat_web.py does

A request's life: `Guard` (http_guard.py) lets it in; FastAPI validates it (openai_api.py); `WorkerPool.submit` hands it
to a worker, or refuses it when enough wait; its pieces come back as they are written and go out as one JSON answer or
as server-sent events. A client that leaves closes its ticket, and the worker drops its rows before the next token.
Nothing here waits for the model, and torch is not even imported. There is nothing to run here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import os
import re
import resource
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from nanochat import openai_api as api
from nanochat.answer_settings import AnswerSettings
from nanochat.answers import ChatForm, Choice, CompletionForm, Form, usage_of
from nanochat.common import UserError, check_at_least, say
from nanochat.http_guard import MAX_CONNECTIONS, OURS, REQUEST_SECONDS, Guard, HTTPError, PatientProtocol, as_json
from nanochat.serving_metrics import Metrics
from nanochat.worker_pool import Command, Ticket, WorkerFailed, WorkerPool

PAGE = Path(__file__).with_name("ui.html")
DRAIN_SECONDS = 30  # when told to stop, answers in work have so long to be finished
T = TypeVar("T")


@dataclass
class Settings(AnswerSettings):
    """Where the server listens, how much it takes on, and how it draws chats where a request does not say."""

    host: str = "127.0.0.1"
    """Address to listen on. Only programs of this machine reach the default; any other should have an --api_key."""
    port: int = 8000
    """Port to listen on (0: a free one)."""
    api_key: str = ""
    """Ask for this key on every path but /health. Better in NANOCHAT_API_KEY: others on this machine see a flag."""
    max_rows: int = 16
    """Answers that a worker writes at the same time."""
    max_queue: int = 64
    """Answers that may wait for a place, for each worker; more are refused with status 429."""
    log_prompts: bool = False
    """Write what people ask into the log. Without it no word of theirs is ever logged."""


def answer_settings(settings: Settings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(AnswerSettings)}


# --------------------------------------------------------------------------- answers on their way


class Events(StreamingResponse):
    """Server-sent events. Whatever ends it, the client's leaving too, closes the ticket."""

    def __init__(self, ticket: Ticket, events: AsyncIterator[bytes]):
        super().__init__(events, media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.ticket = ticket

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ticket.close()


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + as_json(content) + b"\n\n"


async def events_of(ticket: Ticket, form: Form, num_choices: int, usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events; what has come together meanwhile goes out together, and nothing is kept."""
    tokens = 0
    dropped = ticket.started["dropped_turns"]
    for i in range(num_choices):
        if (opening := form.opening(i)) is not None:
            yield event(form.piece([opening], **({"dropped_turns": dropped} if dropped and i == 0 else {})))
    try:
        async for batch in ticket.batches():
            out = b""
            for _, index, kind, text, entries, end in batch:
                tokens += end["completion_tokens"] if end else 0
                finish = end["finish"] if end else ""
                if (chunk := form.chunk(index, kind, text, entries, finish)) is not None:
                    out += event(form.piece([chunk]))
            if out:
                yield out
        if usage:
            yield event(form.piece([], usage=usage_of(tokens, ticket.started)))
        yield b"data: [DONE]\n\n"
    except HTTPError as e:  # too late for a status
        yield event(e.body())


# --------------------------------------------------------------------------- the application


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(content), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


async def unless_left(work: Awaitable[T], request: Request) -> T:
    """The result of `work`, which is cancelled when the client leaves."""
    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPError(400, "the client left")  # nobody reads that
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def page_and_policy(page: str) -> tuple[bytes, str]:
    """The page, and the policy that lets its own script and style run and nothing else (CSP level 3)."""
    def hashes(tag: str) -> str:
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(x.encode()).digest()).decode()}'" for x in inline)

    return page.encode(), (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
                           "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
                           "frame-ancestors 'none'; require-trusted-types-for 'script'")


class Server:
    """The routes and what they share."""

    def __init__(self, settings: Settings, pool: WorkerPool, metrics: Metrics):
        self.settings, self.pool, self.metrics = settings, pool, metrics
        self.defaults = answer_settings(settings)
        self.created = int(time.time())
        self.page, self.policy = page_and_policy(PAGE.read_text(encoding="utf-8"))

    def model(self) -> dict[str, Any]:
        """The model's entry in /v1/models."""
        info = self.pool.info
        return {"id": f"nanochat-{info['tag']}-{info['source']}", "object": "model", "created": self.created,
                "owned_by": "nanochat", "context": info["context"], "data": info["data"], "step": info["step"],
                "defaults": self.defaults}

    def application(self) -> FastAPI:
        errors = {status: {"model": api.ErrorResponse, "description": what} for status, what in {
            400: "The request cannot be met.", 401: "The API key is missing or wrong.", 403: "A foreign page or name.",
            404: "There is no such model.", 408: "It took too long to arrive.", 413: "It is too large.",
            415: "It is not JSON.", 429: "Enough requests wait: Retry-After says when to come back.",
            503: "No worker is ready."}.items()}

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            await self.pool.stop()

        # /docs would load its scripts from elsewhere
        app = FastAPI(title="nanochat", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
                      redirect_slashes=False)
        app.add_exception_handler(HTTPError, lambda _, e: json_answer(e.body(), e.status, e.headers))
        app.add_exception_handler(RequestValidationError, lambda _, e: json_answer(invalid(e).body(), 400))
        app.add_exception_handler(Exception, lambda _, e: json_answer(OURS.body(), OURS.status))  # and Guard logs it
        app.add_exception_handler(HTTPException, lambda _, e: json_answer(  # 404, 405, a body that is no JSON
            HTTPError(e.status_code, str(e.detail)).body(), e.status_code, e.headers))

        few = {status: errors[status] for status in (401, 403)}

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return Response(self.page, headers={"Content-Security-Policy": self.policy, "Cache-Control": "no-cache",
                                                "X-Frame-Options": "DENY"}, media_type="text/html; charset=utf-8")

        @app.get("/health", responses={503: {"model": api.Health}}, response_model=api.Health)
        async def health() -> Response:
            status = "stopping" if self.pool.stopping else "ok" if self.pool.ready else "no worker"
            return json_answer({"status": status}, 200 if status == "ok" else 503)

        @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **few}, response_class=Response)
        async def metrics() -> Response:
            return Response(self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

        @app.get("/v1/models", response_model=api.ModelList, responses=few)
        async def models() -> Response:
            return json_answer({"object": "list", "data": [self.model()]})

        @app.get("/v1/models/{model}", response_model=api.ModelObject, responses={**few, 404: errors[404]})
        async def one_model(model: str) -> Response:
            self.check_model(model)
            return json_answer(self.model())

        @app.post("/v1/chat/completions", response_model=api.ChatCompletion, responses={
            **errors, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}})
        async def chat_completions(body: api.ChatRequest, request: Request) -> Response:
            return await self.chat(body, request)

        @app.post("/v1/completions", response_model=api.Completion, responses={
            **errors, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}})
        async def completions(body: api.CompletionRequest, request: Request) -> Response:
            return await self.complete(body, request)

        return app

    def check_model(self, name: str | None) -> None:
        if name is not None and name != (own := self.model()["id"]):
            raise HTTPError(404, f"the model {name[:100]!r} does not exist: this server has {own}", "model_not_found",
                            "model")

    async def chat(self, body: api.ChatRequest, request: Request) -> Response:
        try:
            messages = api.conversation_of(body.messages)
        except UserError as e:
            raise HTTPError(400, str(e), "invalid_messages", "messages") from e
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        asked = {"messages": messages, "max_tokens": self.settings.max_tokens if limit is None else limit,
                 "truncation": body.truncation or "disabled",
                 "logprobs": (body.top_logprobs or 0) if body.logprobs else None}
        defaults = {name: self.defaults[name] for name in ("temperature", "top_k", "top_p")}
        return await self.answer(body, request, asked, defaults, 1, ChatForm)

    async def complete(self, body: api.CompletionRequest, request: Request) -> Response:
        asked = {"prompts": body.prompts, "max_tokens": 16 if body.max_tokens is None else body.max_tokens,
                 "echo": bool(body.echo), "logprobs": body.logprobs}
        defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # OpenAI's
        return await self.answer(body, request, asked, defaults, len(body.prompts), CompletionForm)

    async def answer(self, body: api.Completable, request: Request, asked: dict[str, Any], defaults: dict[str, Any],
                     num_prompts: int, form_class: type[Form]) -> Response:
        """What both kinds of requests have in common, from the check of the model's name to the answer."""
        self.check_model(body.model)
        n = body.n or 1
        seed = secrets.randbits(63) if body.seed is None else body.seed
        sampling = {name: value if (value := getattr(body, name)) is not None else default
                    for name, default in defaults.items()}
        if self.settings.log_prompts:
            say(ascii(asked.get("messages", asked.get("prompts"))), file=sys.stderr)
        rows = n * num_prompts
        ticket = self.pool.submit({**asked, **sampling, "n": n, "seed": seed, "stop": body.stops}, rows)
        try:
            await unless_left(ticket.start(), request)
            form = form_class(self.model()["id"], asked["logprobs"] is not None)
            if body.stream:
                usage = bool(body.stream_options and body.stream_options.include_usage)
                return Events(ticket, events_of(ticket, form, rows, usage))
            choices = [Choice() for _ in range(rows)]

            async def collect() -> None:
                async for batch in ticket.batches():
                    for piece in batch:
                        choices[piece[1]].take(piece)

            await unless_left(collect(), request)
        except BaseException:
            ticket.close()
            raise
        answer = form.whole(choices, ticket.started)
        if dropped := ticket.started["dropped_turns"]:
            answer["dropped_turns"] = dropped
        return json_answer(answer)


KNOWN = {name for model in (api.ChatRequest, api.CompletionRequest, api.Message, api.Part, api.StreamOptions)
         for name in model.model_fields}


def invalid(error: RequestValidationError) -> HTTPError:
    """What FastAPI found, in one line; never what the person wrote, which may be long, or no text at all."""
    first = error.errors()[0]
    path = [str(x) for x in first["loc"][1:] if isinstance(x, int) or x in KNOWN]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        name = ascii(str(first["loc"][-1])[:100])
        return HTTPError(400, f"unknown parameter {name}", "unknown_parameter", param)
    if first["type"] == "json_invalid":
        return HTTPError(400, "the body is not valid JSON", "invalid_json")
    why = first["msg"].removeprefix("Value error, ")
    return HTTPError(400, f"{param or 'the body'}: {why}", "invalid_value", param)


# --------------------------------------------------------------------------- the process


def listen(host: str, port: int) -> socket.socket:
    """UserError where that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        return sock
    except (OSError, UnicodeError) as e:  # UnicodeError: no name can be like that
        why = getattr(e, "strerror", None) or e
        raise UserError(f"cannot listen on {host} port {port}: {why}; choose another --host or --port") from e


def raise_file_limit() -> int:
    """As many open files as the system lets us have; returns how many connections that is enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft - 100))


def check(settings: Settings) -> None:
    """UserError for what cannot be: before a model is loaded for it."""
    defaults = answer_settings(settings)
    try:
        api.ChatRequest.model_validate({"messages": [{"role": "user", "content": ""}], **defaults})
    except ValidationError as e:
        name, why = e.errors()[0]["loc"][0], e.errors()[0]["msg"]
        raise UserError(f"--{name}={defaults[name]} is impossible: {why[0].lower()}{why[1:]}") from e
    check_at_least(1, max_rows=settings.max_rows)
    check_at_least(0, max_queue=settings.max_queue, port=settings.port)
    if settings.port > 65535:
        raise UserError(f"--port={settings.port} is impossible: ports end at 65535")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def run(settings: Settings, commands: Sequence[Command]) -> None:
    """Start the workers, serve until told to stop, end the workers."""
    metrics = Metrics()
    pool = WorkerPool(commands, settings.max_rows, settings.max_queue, metrics)
    server = Server(settings, pool, metrics)
    key = settings.api_key or os.environ.get("NANOCHAT_API_KEY", "")
    local = is_loopback(settings.host)
    guarded = Guard(server.application(), metrics, key, only_local=local, room=pool.room)
    PatientProtocol.max_connections = raise_file_limit()
    with contextlib.closing(listen(settings.host, settings.port)) as sock:
        await pool.start()
        info = pool.info
        if not local and not key:
            say("note: anybody who reaches this address may use the model: --api_key asks for a key", file=sys.stderr)
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"nanochat listens on http://{name}:{sock.getsockname()[1]} ({info['tag']} of {info['source']}, "
            f"step {info['step']}, on {info['device']})")
        http = uvicorn.Server(uvicorn.Config(
            guarded, http=PatientProtocol, ws="none", log_level="critical", access_log=False, lifespan="on",
            timeout_keep_alive=int(REQUEST_SECONDS), timeout_graceful_shutdown=DRAIN_SECONDS, server_header=False,
            backlog=1024))
        await http.serve(sockets=[sock])


def serve(settings: Settings, commands: Sequence[Command]) -> None:
    """Serve what these commands start as workers, until SIGTERM or Ctrl-C: no new request is taken then, those in work
    are finished, the workers end."""
    check(settings)
    try:
        asyncio.run(run(settings, commands))
    except WorkerFailed as e:
        if e.status <= 0:  # else it has said why
            say(f"error: {e}", file=sys.stderr)
        sys.exit(e.status if e.status > 0 else 1)
