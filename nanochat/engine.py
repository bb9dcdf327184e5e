"""Inference: many rows decoded together, each with its own settings; the calculator tool; text streamed by characters.

    engine = Engine(model, tokenizer)
    for tokens, mask in engine.generate(ids, num_samples=2, max_tokens=64):   # one column a step, one token a row
        ...
    completions, masks = engine.generate_batch(list_of_ids, max_tokens=64, temperature=0.0)

A request's life: `start` makes a `RowState` of it, which waits; `Generation.step` drops the rows that are finished,
admits waiting rows into their places, runs the model, samples one token for every active row and lets each row's tool
overrule it. More requests may join at any time (`add`), and leave (`cancel`). What runs the model is `CpuForward` on a
CPU, `TorchForward` elsewhere. A row's tokens depend on its prompt, its settings, its seed and the model, never on its
neighbours: to the bit on a CPU, elsewhere up to the rounding of matrix products of another shape.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nanochat.calculator import use_calculator
from nanochat.common import UserError, say
from nanochat.conversation import checked_messages
from nanochat.cpu_forward import CpuForward, Weights
from nanochat.gpt import GPT
from nanochat.kv_cache import GROWTH, KVCache
from nanochat.prefix_cache import PrefixCache
from nanochat.sampling import (
    Sampling,
    TokenLogprobs,
    entropies,
    sample_next_token,
    sample_rows,
    token_logprobs,
    uniform,
)
from nanochat.torch_forward import TorchForward

__all__ = ["Engine", "Generation", "KVCache", "RowState", "Sampling", "Specials", "TextStream", "fit_conversation",
           "sample_next_token", "uniform", "use_calculator"]

MAX_ROWS = 64  # rows decoded together by default
PREFILL_TOKENS = 4096  # at most so many tokens of prompts in one step: the other rows wait for them


# --------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Specials:
    """The ids of the tokens that steer a row."""

    bos: int
    assistant_end: int
    python_start: int
    python_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, tokenizer: Any) -> Specials:
        names = ("assistant_end", "python_start", "python_end", "output_start", "output_end")
        return cls(tokenizer.get_bos_token_id(), *(tokenizer.encode_special(f"<|{name}|>") for name in names))


@dataclass
class RowState:
    """One completion on its way.

    The tool: what the row samples between <|python_start|> and <|python_end|> is an expression; its value is then
    forced upon the row as <|output_start|> value <|output_end|>, token by token, mask 0. An expression that the
    calculator refuses forces nothing: the row simply goes on (no made-up error text that training never showed).
    """

    prompt: list[int]
    sampling: Sampling
    seed: int  # `uniform(seed, index, step)` is this row's stream
    index: int
    limit: int  # completion tokens at most
    limit_reason: str  # "length" (max_tokens) or "context", whichever binds
    ids: list[int] = field(default_factory=list)  # the completion, its stop token included
    mask: list[int] = field(default_factory=list)  # 1 = sampled by the model, 0 = forced by the tool
    finish: str | None = None  # None = going on; "stop" (<|assistant_end|>), "bos" (sampled), "length", "context",
    #                            "cancelled"
    forced: deque[int] = field(default_factory=deque)  # tokens still to be forced
    expression: list[int] | None = None  # ids since <|python_start|>; None = not in a tool call
    entropy: float | None = None  # how undecided the model was, in nats, summed over what it sampled; None: do not ask
    logprobs: int | None = None  # tell of each token how likely it was, and of so many likeliest ones; None: do not

    def push(self, sampled: int, tokenizer: Any, specials: Specials) -> tuple[int, int]:
        """Take this step's sampled token, or the forced one in its place. Returns (token, mask)."""
        token, mask = (self.forced.popleft(), 0) if self.forced else (sampled, 1)
        self.ids.append(token)
        self.mask.append(mask)
        if mask:
            self._run_tool(token, tokenizer, specials)
            if token == specials.assistant_end:
                self.finish = "stop"
            elif token == specials.bos:  # a new document begins: recorded, so that nobody wonders where the text went
                self.finish = "bos"
        if self.finish is None and len(self.ids) >= self.limit:
            self.finish = self.limit_reason
        return token, mask

    def _run_tool(self, token: int, tokenizer: Any, specials: Specials) -> None:
        if token == specials.python_start:
            self.expression = []
        elif token == specials.python_end and self.expression is not None:
            result = use_calculator(tokenizer.decode(self.expression))
            self.expression = None
            if result is not None:
                self.forced.extend([specials.output_start, *tokenizer.encode(result), specials.output_end])
        elif self.expression is not None:
            self.expression.append(token)


class Event(NamedTuple):
    """What one step did to one row."""

    row: RowState
    token: int
    mask: int
    logprobs: TokenLogprobs | None = None  # where the row asks for them


# --------------------------------------------------------------------------- the loop


class Computed(NamedTuple):
    """A prompt that was computed, for samples of it that had no place yet."""

    prompt: list[int]
    kv: Tensor  # (2, layers, H_kv, len(prompt), D)
    logits: Tensor  # (1, V), after its last token
    prefixes: PrefixCache  # the engine's at that time: it has another one when the weights have changed


class Generation:
    """Rows being decoded together; call `step` until it is []. `rows` holds those of the first request, in order."""

    def __init__(self, engine: Engine, rows: list[RowState], max_rows: int = MAX_ROWS):
        self.engine, self.rows, self.max_rows = engine, rows, max_rows
        self.waiting: deque[RowState] = deque()
        self.active: list[RowState] = []
        self.cache: KVCache | None = None
        self.computed: Computed | None = None
        self.prefixes = engine.prefixes
        self.add(rows)

    def add(self, rows: Sequence[RowState]) -> None:
        """Let rows wait for a place. Of rows that come together the longest goes first: what needs most memory fails at
        once or not at all."""
        for row in rows:
            if row.limit == 0:
                row.finish = row.limit_reason
        self.waiting.extend(sorted((r for r in rows if r.finish is None), key=lambda r: -len(r.prompt)))

    def cancel(self, row: RowState) -> None:
        """Nobody wants this row any more: its place is free at the next step."""
        row.finish = row.finish or "cancelled"

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One token for every active row; [] when all are finished."""
        self._drop_finished()
        logits = []  # (rows, V) each, together in the order of self.active
        if self.active:
            logits.append(self.engine.forward([row.ids[-1:] for row in self.active], self.cache))
        logits += self._admit()
        if not self.active:
            return []
        uniforms = [uniform(row.seed, row.index, len(row.ids)) if row.sampling.temperature else 0.0
                    for row in self.active]
        together = logits[0] if len(logits) == 1 else torch.cat(logits)
        tokens = sample_rows(together, [row.sampling for row in self.active], uniforms).tolist()
        tokenizer, specials = self.engine.tokenizer, self.engine.specials
        events = [Event(row, *row.push(token, tokenizer, specials)) for row, token in zip(self.active, tokens)]
        if any(row.entropy is not None for row in self.active):
            for (row, _, mask, _), entropy in zip(events, entropies(together).tolist()):
                if row.entropy is not None:
                    row.entropy += mask * entropy
        for i, (row, token, mask, _) in enumerate(events):
            if row.logprobs is not None:
                (likely,) = token_logprobs(together[i : i + 1], [token], row.logprobs)
                events[i] = Event(row, token, mask, likely)
        return events

    def _drop_finished(self) -> None:
        """Finished rows leave, also those that were cancelled while they waited; rows from the end move into their
        places, so that few are copied."""
        if any(row.finish is not None for row in self.waiting):
            self.waiting = deque(row for row in self.waiting if row.finish is None)
        going = [i for i, row in enumerate(self.active) if row.finish is None]
        n = len(going)
        if n == len(self.active):
            return
        for i, row in enumerate(self.active):
            if row.finish is not None and self.prefixes is self.engine.prefixes:  # else the weights were other ones
                self.engine.remember(row, self.cache, i)
        from_end = iter([i for i in going if i >= n][::-1])
        order = [i if self.active[i].finish is None else next(from_end) for i in range(n)]
        self.active = [self.active[i] for i in order]
        self.cache.keep(order)

    def _admit(self) -> list[Tensor]:
        """Take waiting rows in and compute their prompts; returns the logits at the end of each, (rows, V).

        Samples of one prompt share its list, and its computation, also when they come in one by one. What another
        prompt began with is not computed again.
        """
        last = self.computed if self.computed and self.computed.prefixes is self.engine.prefixes else None
        distinct, siblings, tokens = [], [], 0  # siblings: with the index in `distinct`, or -1 for `last`
        free = self.max_rows - len(self.active)
        while self.waiting and len(distinct) + len(siblings) < free:
            row = self.waiting[0]
            if last is not None and row.prompt is last.prompt:
                siblings.append((row, -1))
            elif distinct and row.prompt is distinct[-1].prompt:
                siblings.append((row, len(distinct) - 1))
            elif distinct and tokens + len(row.prompt) > PREFILL_TOKENS:
                break
            else:
                distinct.append(row)
                tokens += len(row.prompt)
            self.waiting.popleft()
        first = len(self.active)
        group = distinct + [row for row, _ in siblings]
        if not group:
            return []
        if self.cache is None:  # short completions never make it grow
            positions = max(len(r.prompt) + min(r.limit, GROWTH) for r in (*group, *self.waiting))
            self.cache = self.engine.new_cache(min(self.max_rows, len(group) + len(self.waiting)), positions)
            self.cache.keep([])  # the rows are allocated, none is in use
        self.cache.add_rows(len(group))
        logits = [self._prefill(distinct, first)] if distinct else []
        for i, (_, source) in enumerate(siblings, start=first + len(distinct)):
            self.cache.write_row(i, last.kv if source == -1 else self.cache.read_row(first + source))
        if siblings:
            ends = torch.cat([*logits, last.logits]) if last is not None else logits[0]  # the last one's is at -1
            logits.append(ends[[source for _, source in siblings]])
        if not self.waiting or last is None or self.waiting[0].prompt is not last.prompt:
            self.computed = None
            if self.waiting and distinct and self.waiting[0].prompt is distinct[-1].prompt:
                end = len(distinct) - 1
                self.computed = Computed(distinct[-1].prompt, self.cache.read_row(first + end),
                                         logits[0][end : end + 1].clone(), self.engine.prefixes)
        self.active += group
        return logits

    def _prefill(self, rows: list[RowState], first: int) -> Tensor:
        """Compute prompts into the cache's empty rows from `first` on; returns the logits at their ends, (rows, V)."""
        rest = []
        for i, row in enumerate(rows, start=first):
            known = self.engine.prefixes.longest(row.prompt)
            if known is not None:
                self.cache.write_row(i, known)
            rest.append(row.prompt[self.cache.host_lengths[i] :])
        return self.engine.forward(rest, self.cache, first)


class Engine:
    """A model and its tokenizer, ready to complete prompts.

    `weights`: on a CPU, how the weights are kept for reading ("float32", "bfloat16", "int8"; "auto": as the model
    computes). `prefix_positions`: keep the keys and values of finished rows, so many positions in all, for prompts that
    begin alike; 0 keeps none.
    """

    def __init__(self, model: GPT, tokenizer: Any, weights: Weights | Literal["auto"] = "auto",
                 prefix_positions: int = 0):
        self.model: GPT = getattr(model, "_orig_mod", model)  # the compiled model is compiled for one shape
        self.tokenizer = tokenizer
        self.specials = Specials.of(tokenizer)
        self.prefixes = PrefixCache(prefix_positions)
        self.forward = make_forward(self.model, weights)

    def new_cache(self, batch_size: int, seq_len: int) -> KVCache:
        return self.forward.new_cache(batch_size, seq_len)

    def remember(self, row: RowState, cache: KVCache, i: int) -> None:
        """Keep what row i of the cache holds for a later prompt that begins with it."""
        if self.prefixes.capacity:
            self.prefixes.put((row.prompt + row.ids)[: cache.host_lengths[i]], cache.read_row(i))

    def start(self, prompts: Sequence[list[int]], num_samples: int = 1, max_tokens: int | None = None,
              temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 42,
              max_rows: int = MAX_ROWS) -> Generation:
        """Check the request and lay out its rows: `num_samples` for the first prompt, then for the second, ..."""
        return self.begin(self.make_rows(prompts, num_samples, max_tokens, Sampling(temperature, top_k, top_p), seed),
                          max_rows)

    def begin(self, rows: list[RowState], max_rows: int = MAX_ROWS) -> Generation:
        """Decode rows that `make_rows` has laid out: of several requests, if each is to have a seed of its own."""
        if max_rows < 1:
            raise UserError(f"max_rows={max_rows} is impossible: it must be at least 1")
        self._refresh()
        return Generation(self, rows, max_rows)

    def _refresh(self) -> None:
        if self.forward.refresh():  # trained on since the last request
            self.prefixes = PrefixCache(self.prefixes.capacity)

    def next_logits(self, prompts: Sequence[list[int]]) -> Tensor:
        """What the model expects right after each prompt: logits (len(prompts), V). Nothing is generated."""
        self._refresh()
        return self.forward(prompts, self.new_cache(len(prompts), max(map(len, prompts))))

    def make_rows(self, prompts: Sequence[list[int]], num_samples: int, max_tokens: int | None, sampling: Sampling,
                  seed: int) -> list[RowState]:
        """The rows of a request, for `Generation.add`. UserError if it cannot be met."""
        context = self.model.config.sequence_len
        for name, value, least in (("num_samples", num_samples, 1), ("max_tokens", max_tokens, 0)):
            if value is not None and value < least:
                raise UserError(f"{name}={value} is impossible: it must be at least {least}")
        vocab_size, rows = self.model.config.vocab_size, []
        for i, prompt in enumerate(prompts):
            if prompt and not 0 <= min(prompt) <= max(prompt) < vocab_size:
                raise UserError(f"the prompt has a token that the model does not know (0 to {vocab_size - 1}): "
                                "was it made with another tokenizer?")
            if not prompt:
                raise UserError("an empty prompt has nothing to go on from: begin with <|bos|>")
            room = context - len(prompt)
            if room < 0:
                raise UserError(f"the prompt has {len(prompt)} tokens, the model's context holds {context}: shorten it")
            limit, reason = (room, "context") if max_tokens is None or room < max_tokens else (max_tokens, "length")
            prompt = list(prompt)  # one list for all samples: they are computed once
            rows += [RowState(prompt, sampling, seed, i * num_samples + j, limit, reason) for j in range(num_samples)]
        return rows

    @torch.inference_mode()
    def score(self, ids: Sequence[int], top: int = 0, block: int = 256) -> Iterator[list[TokenLogprobs]]:
        """How likely each token of a text was after those before it: a list for each block of them, as it is computed.

        The first token has nothing before it and is left out: `ids` of n tokens give n - 1 in all. The model itself is
        asked, not the faster forms of it, in blocks: the logits of a long text at once would need gigabytes.
        """
        c = self.model.config
        cache = KVCache(1, c.n_kv_head, len(ids), c.head_dim, c.n_layer, self.model.compute_dtype,
                        self.model.get_device())
        for begin in range(0, len(ids) - 1, block):
            end = min(begin + block, len(ids) - 1)
            given = torch.tensor([ids[begin:end]], device=self.model.get_device())
            logits = self.model(given, kv_cache=cache)[0]  # (end - begin, V)
            yield token_logprobs(logits, ids[begin + 1 : end + 1], top)

    def generate(self, tokens: list[int], num_samples: int = 1, max_tokens: int | None = None, temperature: float = 1.0,
                 top_k: int | None = None, top_p: float = 1.0, seed: int = 42) -> Iterator[tuple[list[int], list[int]]]:
        """Stream `num_samples` completions of one prompt: each step yields (token of each row, mask of each row).

        Mask 1 = sampled, 0 = not: forced by the tool, or the row was already finished (then <|assistant_end|>).
        """
        generation = self.start([tokens], num_samples, max_tokens, temperature, top_k, top_p, seed, num_samples)

        def columns() -> Iterator[tuple[list[int], list[int]]]:
            while events := generation.step():
                token_column, mask_column = [self.specials.assistant_end] * num_samples, [0] * num_samples
                for row, token, mask, _ in events:
                    token_column[row.index], mask_column[row.index] = token, mask
                yield token_column, mask_column

        return columns()  # so that a bad request is refused at the call, not at the first step

    def generate_batch(self, prompts: list[int] | list[list[int]], num_samples: int = 1, max_tokens: int | None = None,
                       temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 42,
                       max_rows: int = MAX_ROWS) -> tuple[list[list[int]], list[list[int]]]:
        """Complete one prompt or many of any lengths: (completions, masks), `num_samples` a prompt, in order.

        A completion ends with the token that ended it (<|assistant_end|> or <|bos|>), if one did.
        """
        many = [prompts] if prompts and isinstance(prompts[0], int) else prompts
        generation = self.start(many, num_samples, max_tokens, temperature, top_k, top_p, seed, max_rows)
        while generation.step():
            pass
        return [row.ids for row in generation.rows], [row.mask for row in generation.rows]


def make_forward(model: GPT, weights: Weights | Literal["auto"]) -> CpuForward | TorchForward:
    """What runs the model here: the kernel for CPUs where it can be compiled, else PyTorch, and one line says so."""
    if weights not in ("auto", "float32", "bfloat16", "int8"):
        raise UserError(f"weights={weights} is unknown: choose auto, float32, bfloat16 or int8")
    if isinstance(model, GPT) and model.get_device().type == "cpu":
        own = "bfloat16" if model.compute_dtype == torch.bfloat16 else "float32"
        try:
            return CpuForward(model, own if weights == "auto" else weights)
        except UserError as e:
            if weights not in ("auto", own):
                raise
            say(f"decoding goes through PyTorch, several times slower: {e}")
    elif weights != "auto":
        raise UserError(f"weights={weights} is for CPUs; on {model.get_device().type} --dtype decides")
    return TorchForward(model)


# --------------------------------------------------------------------------- chat


class TextStream:
    """Tokens in, text out, never half a character: shared by the terminal and the web.

    A token may end within a UTF-8 character; its bytes wait for the next token. Special tokens give no text, but change
    `kind`: "text", "python" (a tool call) or "python_output". `parts` is the message so far, ready to be put into a
    conversation as an assistant's content.

        for token in tokens:
            kind, text = stream.feed(token)      # text may be ""
        kind, text = stream.flush()              # a character cut off by the end: "\ufffd"
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.kind = "text"
        self.parts: list[dict[str, str]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        specials = Specials.of(tokenizer)
        self._kinds = {tokenizer.encode_special(name): "text" for name in tokenizer.get_special_tokens()}
        self._kinds |= {specials.python_start: "python", specials.output_start: "python_output"}

    def feed(self, token: int) -> tuple[str, str]:
        """Add one token; returns the kind of the text that became complete, and that text."""
        if token in self._kinds:
            kind_and_text = self.flush()
            self.kind = self._kinds[token]
            return kind_and_text
        return self._add(self._decoder.decode(self.tokenizer.decode_bytes([token])))

    def flush(self) -> tuple[str, str]:
        """Give out what still waits for its last bytes, as U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._add(text)

    def _add(self, text: str) -> tuple[str, str]:
        if text and self.parts and self.parts[-1]["type"] == self.kind:
            self.parts[-1]["text"] += text
        elif text:
            self.parts.append({"type": self.kind, "text": text})
        return self.kind, text


class Fitted(NamedTuple):
    """What `fit_conversation` found."""

    messages: list[dict[str, Any]]
    ids: list[int]  # rendered, ending with <|assistant_start|>
    dropped: int  # turns left out


def fit_conversation(messages: list[dict[str, Any]], tokenizer: Any, budget: int) -> Fitted:
    """Drop the oldest whole turns (a user's message with its answer) until the conversation fits `budget` tokens.

    `messages` ends with the user's message to be answered. A system message at the front stays. When even the last
    message alone is too long, that is the person's to mend: UserError.
    `[system, u1, a1, u2, a2, u3]` -> `[system, u2, a2, u3]`, dropped=1
    """
    if not messages or messages[-1]["role"] != "user":
        raise UserError("a conversation to be answered must end with a user's message")
    checked_messages({"messages": messages})
    head = [m for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(head):]
    # from the newest turn back, each counted once, until there are too many tokens: to begin with 17 000 turns, as many
    # as a request may hold, and lay out all of them after each that is dropped would take half an hour
    kept, tokens = 1, len(tokenizer.render_for_completion({"messages": [*head, turns[-1]]}))
    while kept < len(turns) and tokens <= budget:
        turn, _ = tokenizer.render_conversation({"messages": turns[-kept - 2 : -kept]}, max_tokens=None)
        tokens += len(turn) - 1  # without <|bos|>
        kept += 2
    dropped = (len(turns) - kept) // 2
    turns = turns[2 * dropped :]
    while True:
        ids = tokenizer.render_for_completion({"messages": [*head, *turns]})
        if len(ids) <= budget:
            return Fitted([*head, *turns], ids, dropped)
        if len(turns) <= 2:
            raise UserError(f"the message needs {len(ids)} tokens, the model has room for {budget}: shorten it")
        turns = turns[2:]
        dropped += 1
