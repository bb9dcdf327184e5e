"""The process that owns a model and answers requests with it: JSON lines in, JSON lines out.

    python -m nanochat.worker --source=sft            # what the server starts, one for each GPU; by hand it works too:
    {"id": 1, "messages": [{"role": "user", "content": "hi"}], "n": 1, "max_tokens": 8, "temperature": 0, ...}

Why a process: the server's event loop never waits for the model, nor for Python's lock that the model's thread holds; a
worker that dies (out of memory, say) takes no connection with it. Lines in are requests, already validated by
`serving.py` (their fields: `Request`), and `{"cancel": id}`. Lines out:

    {"ready": {...}}                                        once: what model this is
    {"id": 1, "error": {"message": ..., "code": ...}}       refused, or failed
    {"id": 1, "started": {"prompt_tokens": 9, "dropped_turns": 0}}
    {"pieces": [[1, 0, "text", "Hel", null, null], ...], "tokens": 3, "active": 3, "waiting": 0}     a line a step:
              request, choice, kind, text, logprobs or null, null or {"finish": "stop", "completion_tokens": 4}

The worker ends when its input does.
"""

from __future__ import annotations

import codecs
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat import configurator
from nanochat.common import UserError, is_out_of_memory, say
from nanochat.conversation import BadConversation
from nanochat.engine import Engine, Event, Generation, RowState, TextStream, fit_conversation
from nanochat.model_card import shown_source
from nanochat.model_choice import ModelChoice
from nanochat.sampling import Sampling, TokenLogprobs
from nanochat.stop_strings import StopStrings

Send = Callable[[dict[str, Any]], None]
MAX_FAILURES = 3  # of the model, one after the other, until the worker gives up
Piece = list[Any]  # [request, choice, kind, text, logprobs or None, None or how it ended]


@dataclass
class Request:
    """What is asked, as `serving.py` hands it over."""

    id: int
    n: int
    max_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    messages: list[dict[str, Any]] | None = None  # a chat; else
    prompts: list[str | list[int]] | None = None  # texts to go on with
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None  # of each token, and of so many likeliest ones
    echo: bool = False  # the prompt is part of the answer
    truncation: str = "disabled"  # "auto": leave the oldest turns out until it fits


class Refused(UserError):
    """A request that cannot be met; `code` and `param` as OpenAI's clients know them."""

    def __init__(self, message: str, code: str | None, param: str):
        super().__init__(message)
        self.code, self.param = code, param


# --------------------------------------------------------------------------- requests to ids


def prompts_of(request: Request, engine: Engine) -> tuple[list[list[int]], int]:
    """The ids of each prompt, and how many turns of the conversation were left out. Refused where there is no way.

    Whatever people write is ordinary text: only roles and `<|bos|>` become special tokens.
    """
    tokenizer, context = engine.tokenizer, engine.model.config.sequence_len
    if request.messages is not None:
        try:
            if request.truncation == "auto":
                # the answer needs room as well
                budget = min(max(context - (request.max_tokens or 0), context // 2), context - 1)
                fitted = fit_conversation(request.messages, tokenizer, budget)
                return [fitted.ids], fitted.dropped
            prompts = [tokenizer.render_for_completion({"messages": request.messages})]
        except BadConversation as e:
            raise Refused(str(e), "invalid_messages", "messages") from e
        except UserError as e:
            raise Refused(str(e), "context_length_exceeded", "messages") from e
    else:
        bos, vocab_size = tokenizer.get_bos_token_id(), tokenizer.get_vocab_size()
        prompts = [tokenizer.encode(p) if isinstance(p, str) else p for p in request.prompts]
        if any(prompt and max(prompt) >= vocab_size for prompt in prompts):
            raise Refused(f"the prompt has a token id that the model does not know (0 to {vocab_size - 1})",
                          "invalid_token", "prompt")
        prompts = [prompt if prompt[:1] == [bos] else [bos, *prompt] for prompt in prompts]  # no text is without it
    longest = max(len(prompt) for prompt in prompts)
    if longest >= context:
        raise Refused(f"the prompt has {longest} tokens and the model's context holds {context}, the answer included: "
                      "shorten it", "context_length_exceeded", "messages" if request.messages is not None else "prompt")
    return prompts, 0


# --------------------------------------------------------------------------- tokens to pieces of an answer


def shown(token: int, tokenizer: Any) -> tuple[str, list[int]]:
    """A token's text and bytes; bytes that are no text are shown as OpenAI does: `bytes:\\xf0\\x9f`."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode("utf-8"), list(raw)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw), list(raw)


def logprob_entry(likely: TokenLogprobs, offset: int, tokenizer: Any) -> dict[str, Any]:
    """As in OpenAI's chat form, with the place in the text where the token begins."""
    text, raw = shown(likely.token, tokenizer)
    top = []
    for token, logprob in likely.top:
        other, other_raw = shown(token, tokenizer)
        top.append({"token": other, "bytes": other_raw, "logprob": logprob})
    return {"token": text, "bytes": raw, "logprob": likely.logprob, "top_logprobs": top, "offset": offset}


class Answer:
    """One choice on its way out: whole characters, nothing of a stop string, each token's logprob with its text.

    Logprobs are told of the tokens of the text; with `all_tokens` of every one, those that end an answer or call the
    calculator too: who goes on with a text counts them (lm-evaluation-harness cuts the last one off).
    """

    def __init__(self, tokenizer: Any, stops: list[str], offset: int, all_tokens: bool):
        self.tokenizer, self.stream, self.stops = tokenizer, TextStream(tokenizer), StopStrings(stops)
        self.specials = {tokenizer.encode_special(name) for name in tokenizer.get_special_tokens()}
        self.all_tokens = all_tokens
        self.fed = self.sent = offset  # characters: decoded, let out
        self.entries: list[dict[str, Any]] = []  # of text that is not out yet

    def take(self, event: Event) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
        """(kind, text, logprobs) of what became sure with this token."""
        before = self.stream.kind
        in_text = event.mask and before == "text" and event.token not in self.specials
        if event.logprobs and (in_text or self.all_tokens):
            self.entries.append(logprob_entry(event.logprobs, self.fed, self.tokenizer))
        kind, text = self.stream.feed(event.token)
        yield from self._say(kind, text)
        if self.stream.kind != before and before == "text":  # no stop string reaches across a tool call
            yield from self._let_out(self.stops.flush())
        if event.row.finish and not self.stops.hit:
            yield from self._say(*self.stream.flush())
            yield from self._let_out(self.stops.flush(), all_entries=not self.stops.hit)

    def _say(self, kind: str, text: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
        if kind == "text":
            self.fed += len(text)
            yield from self._let_out(self.stops.feed(text))
        elif text:
            yield kind, text, []

    def _let_out(self, text: str, all_entries: bool = False) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
        self.sent += len(text)
        n = sum(all_entries or entry["offset"] < self.sent for entry in self.entries)
        entries, self.entries = self.entries[:n], self.entries[n:]
        if text or entries:
            yield "text", text, entries


# --------------------------------------------------------------------------- the worker


class Job:
    """A request in work."""

    def __init__(self, request: Request, engine: Engine):
        self.request = request
        self.prompts, self.dropped = prompts_of(request, engine)
        sampling = Sampling(request.temperature, request.top_k, request.top_p)
        self.rows = engine.make_rows(self.prompts, request.n, request.max_tokens, sampling, request.seed)
        for row in self.rows:
            row.logprobs = request.logprobs
        self.answers: list[Answer] = []
        self.echoes = self._echo(engine) if request.echo else iter(())
        self.offsets = [0] * len(self.prompts)
        self.open = len(self.rows)  # choices that have not ended

    def _echo(self, engine: Engine) -> Iterator[list[Piece]]:
        """The prompts as pieces of their answers; their logprobs take a while, a block at a time."""
        request, tokenizer = self.request, engine.tokenizer
        for i, ids in enumerate(self.prompts):
            own = request.prompts[i]
            hidden = isinstance(own, str) or own[:1] != ids[:1]  # <|bos|> is ours, not the person's
            choices = range(i * request.n, (i + 1) * request.n)
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

            def pieces(listed: Iterable[TokenLogprobs], last: bool, i: int = i, choices: range = choices,
                       decoder: codecs.IncrementalDecoder = decoder) -> list[Piece]:
                text, entries = "", []
                for likely in listed:
                    entries.append(logprob_entry(likely, self.offsets[i] + len(text), tokenizer))
                    text += decoder.decode(tokenizer.decode_bytes([likely.token]))
                text += decoder.decode(b"", final=last)
                self.offsets[i] += len(text)
                kept = entries if request.logprobs is not None else None
                return [[request.id, choice, "text", text, kept, None] for choice in choices]

            first = [] if hidden else [TokenLogprobs(ids[0], 0.0, [])]  # every text begins with it
            if request.logprobs is None:
                yield pieces([*first, *(TokenLogprobs(token, 0.0, []) for token in ids[1:])], last=True)
                continue
            blocks = engine.score(ids, request.logprobs)
            yield pieces(first, last=False)
            for block in blocks:
                yield pieces(block, last=False)
            yield pieces([], last=True)

    def begin(self, engine: Engine) -> list[RowState]:
        """The prompts are out: these rows can be written."""
        self.answers = [Answer(engine.tokenizer, self.request.stop, self.offsets[i // self.request.n],
                               all_tokens=self.request.messages is None)
                        for i in range(len(self.rows))]
        return self.rows


class Worker:
    """One engine and the requests that it answers, in one thread; `inbox` is filled by another."""

    def __init__(self, engine: Engine, send: Send, max_rows: int):
        self.engine, self.send, self.max_rows = engine, send, max_rows
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.generation: Generation | None = None
        self.jobs: dict[int, Job] = {}
        self.starting: list[Job] = []
        self.owner: dict[int, tuple[Job, int]] = {}  # by id(row): whose it is, and which choice

    def run(self) -> None:
        """Answer until the input ends."""
        failures = 0  # one after the other
        while True:
            lines: list[dict[str, Any]] = []
            while not self.inbox.empty() or not (lines or self.jobs or self.generation):
                if (line := self.inbox.get()) is None:
                    return
                lines.append(line)
            gone = {line["cancel"] for line in lines if "cancel" in line}
            for line in lines:
                if line.get("id") not in gone:  # who left before it was even looked at costs those in work nothing
                    self._receive(line)
            try:
                self._step()
                failures = 0
            except Exception as e:  # out of memory, say: those in work have lost, the next may try
                self._fail(e, self.jobs)
                self.jobs, self.starting, self.owner = {}, [], {}
                self.generation = None  # its cache may be half written
                failures += not is_out_of_memory(e)
                if failures == MAX_FAILURES:
                    raise SystemExit(1) from None  # a GPU that has met an error fails for ever: a new process may not

    def _receive(self, line: dict[str, Any]) -> None:
        if "cancel" in line:
            if (job := self.jobs.pop(line["cancel"], None)) is not None:
                self._drop(job)
            return
        request = Request(**line)
        try:
            job = Job(request, self.engine)
        except UserError as e:
            error = {"message": str(e), "code": getattr(e, "code", None), "param": getattr(e, "param", None)}
            return self.send({"id": request.id, "error": error})
        except Exception as e:
            return self._fail(e, [request.id])
        self.jobs[request.id] = job
        self.send({"id": request.id, "started": {"prompt_tokens": sum(map(len, job.prompts)),
                                                 "dropped_turns": job.dropped}})
        self.starting.append(job)

    def _drop(self, job: Job) -> None:
        """Nobody waits for this one any more: its rows are free at the next step."""
        if job in self.starting:
            self.starting.remove(job)
        for row in job.rows:
            row.finish = row.finish or "cancelled"
            self.owner.pop(id(row), None)

    def _step(self) -> None:
        """A token of every row that is being written, and what is told of prompts."""
        pieces, events = self._start_jobs(), []
        if self.generation is not None:
            events = self.generation.step()
            for event in events:
                pieces += self._pieces(event)
            if not events:
                self.generation = None  # and with it the memory of its cache
        generation = self.generation
        self.send({"pieces": pieces, "tokens": len(events), "active": len(generation.active) if generation else 0,
                   "waiting": len(generation.waiting) if generation else 0})

    def _start_jobs(self) -> list[Piece]:
        """Let the rows of new requests in, once their prompts have been shown where that was asked for. At most one
        block of one prompt a step: so rows go on however many prompts are to be shown, and only one holds a cache."""
        pieces: list[Piece] = []
        for job in list(self.starting):
            if job.request.echo and pieces:
                continue
            if (block := next(job.echoes, None)) is not None:
                pieces += block
                continue
            self.starting.remove(job)
            self.generation = self.generation or self.engine.start([], max_rows=self.max_rows)
            rows = job.begin(self.engine)
            self.owner |= {id(row): (job, i) for i, row in enumerate(rows)}
            self.generation.add(rows)
            for i, row in enumerate(rows):
                if row.finish:  # no token was asked for
                    pieces.append([job.request.id, i, "text", "", None, self._end(job, row, row.finish)])
        return pieces

    def _pieces(self, event: Event) -> Iterator[Piece]:
        if id(event.row) not in self.owner:
            return
        job, choice = self.owner[id(event.row)]
        answer, ids = job.answers[choice], job.request.id
        for kind, text, entries in answer.take(event):
            yield [ids, choice, kind, text, entries or None, None]
        finish = "stop_string" if answer.stops.hit else event.row.finish
        if finish:
            if event.row.finish is None:
                self.generation.cancel(event.row)
            yield [ids, choice, "text", "", None, self._end(job, event.row, finish)]

    def _end(self, job: Job, row: RowState, finish: str) -> dict[str, Any]:
        self.owner.pop(id(row), None)
        job.open -= 1
        if job.open == 0:
            self.jobs.pop(job.request.id, None)
        return {"finish": finish, "completion_tokens": len(row.ids)}

    def _fail(self, error: Exception, ids: Iterable[int]) -> None:
        """These requests have lost."""
        # its own words may hold what people wrote, so only its kind and place are logged
        place = "".join(traceback.format_tb(error.__traceback__)[-3:])
        say(f"worker: {type(error).__name__} at\n{place}", file=sys.stderr)
        full = is_out_of_memory(error)
        for id in ids:
            self.send({"id": id, "error": {
                "message": "the model ran out of memory: ask for less at once" if full else "the model failed",
                "code": "out_of_memory" if full else "model_failed", "param": None, "status": 503}})


# --------------------------------------------------------------------------- the process


@dataclass
class Config(ModelChoice):
    max_rows: int = 16
    """Answers written at the same time; more wait."""
    threads: int = 0
    """Threads of the arithmetic on a CPU (0: as torch has it)."""


def describe(meta: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """What a person may want to know of the model."""
    parent = meta["parent"]
    return {"source": parent["source"], "tag": parent["model_tag"], "step": parent["step"],
            "data": shown_source((meta.get("config") or {}).get("data")) or None,  # no path of this machine
            "context": engine.model.config.sequence_len, "device": str(engine.model.get_device())}


def serve(load: Callable[[], tuple[Engine, dict[str, Any]]], max_rows: int) -> None:
    """Load, say so, and answer the requests that stand on stdin until it ends. stdout belongs to the protocol."""
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what any library prints goes to stderr

    def send(line: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(line) + "\n")
            out.flush()
        except OSError:  # the server is gone
            os._exit(0)

    engine, info = load()
    worker = Worker(engine, send, max_rows)
    worker.send({"ready": info})

    def listen() -> None:
        for line in sys.stdin:
            worker.inbox.put(json.loads(line))
        worker.inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    worker.run()


def main(config: Config) -> None:
    def load() -> tuple[Engine, dict[str, Any]]:
        engine, meta = config.load(prefix_contexts=4)
        if config.threads:
            torch.set_num_threads(config.threads)
        return engine, describe(meta, engine)

    serve(load, config.max_rows)


if __name__ == "__main__":
    configurator.main(main, Config)
