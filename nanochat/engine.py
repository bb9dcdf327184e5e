"""Inference: a KV cache, sampling, the calculator tool, many rows decoded together, text streamed by whole characters.

    engine = Engine(model, tokenizer)
    for tokens, mask in engine.generate(ids, num_samples=2, max_tokens=64):   # one column a step, one token a row
        ...
    completions, masks = engine.generate_batch(list_of_ids, max_tokens=64, temperature=0.0)

A request's life: `start` makes a `RowState` of it, which waits; `Generation.step` admits waiting rows (one right-padded
prefill for several prompts), samples one token for every active row, lets each row's tool overrule it, and drops the
rows that are finished, whose places the next ones take. A row's tokens depend on its prompt, its seed and the model
only, never on its neighbours (up to the rounding of matrix products of another shape).
"""

from __future__ import annotations

import codecs
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nanochat.calculator import use_calculator
from nanochat.common import UserError
from nanochat.kv_cache import GROWTH, KVCache

if TYPE_CHECKING:
    from nanochat.gpt import GPT

MAX_ROWS = 64  # rows decoded together by default
PREFILL_TOKENS = 4096  # at most so many positions in one prefill: its logits are (positions, vocabulary) in float32


# --------------------------------------------------------------------------- sampling


def mix64(x: int) -> int:
    """SplitMix64's scrambler (Steele et al. 2014): a bijection on 64 bits, near inputs look unrelated."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def uniform(seed: int, row: int, step: int) -> float:
    """The random number in [0, 1) of one step of one row: a function of the three, so that no neighbour, no batch size
    and no order of work can change it. 52 bits."""
    return (mix64(mix64(mix64(seed & 0xFFFFFFFFFFFFFFFF) ^ row) ^ step) >> 12) * 2.0**-52


def sample_next_token(logits: Tensor, uniforms: Sequence[float] | None = None, temperature: float = 1.0,
                      top_k: int | None = None) -> Tensor:
    """One token a row: logits (B, V), a number in [0, 1) for each row -> (B,) ids.

    Temperature 0 takes the most likely token and needs no numbers. `top_k` of None, 0 or at least V means all tokens.
    Sampling inverts the distribution function: the first token at which the cumulative probability exceeds the number.
    `logits=[[0, log 3]], uniforms=[0.2] -> [0]` (P = 1/4, 3/4), `uniforms=[0.3] -> [1]`
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if uniforms is None:
        raise ValueError("sampling at a temperature above 0 needs one random number a row")
    ids = None
    if top_k and top_k < logits.size(-1):
        logits, ids = logits.topk(top_k, dim=-1)  # (B, top_k)
    # float64: a cumulative sum over 65 536 small float32 numbers would be wrong by more than the rarest tokens' share
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # largest first to 0: no temperature overflows
    cumulative = logits.exp().cumsum(dim=-1)  # (B, V), not normalised: the number is scaled instead
    target = torch.tensor(uniforms, dtype=logits.dtype, device=logits.device)[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.size(-1) - 1)  # (B, 1)
    return (choice if ids is None else ids.gather(-1, choice))[:, 0]


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
    seed: int  # `uniform(seed, index, step)` is this row's stream
    index: int
    limit: int  # completion tokens at most
    limit_reason: str  # "length" (max_tokens) or "context", whichever binds
    ids: list[int] = field(default_factory=list)  # the completion, its stop token included
    mask: list[int] = field(default_factory=list)  # 1 = sampled by the model, 0 = forced by the tool
    finish: str | None = None  # None = going on; "stop" (<|assistant_end|>), "bos" (sampled), "length", "context"
    forced: deque[int] = field(default_factory=deque)  # tokens still to be forced
    expression: list[int] | None = None  # ids since <|python_start|>; None = not in a tool call

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


# --------------------------------------------------------------------------- the loop


class Generation:
    """Rows being decoded together. `rows` holds all of them in the order of the request; call `step` until it is []."""

    def __init__(self, engine: Engine, rows: list[RowState], max_rows: int, temperature: float, top_k: int | None):
        self.engine, self.rows = engine, rows
        self.temperature, self.top_k = temperature, top_k
        for row in rows:
            if row.limit == 0:
                row.finish = row.limit_reason
        # longest first: neighbours of like length waste little padding, and memory runs out at once or not at all
        self.waiting = deque(sorted((r for r in rows if r.finish is None), key=lambda r: -len(r.prompt)))
        self.max_rows = min(max_rows, len(self.waiting))
        self.active: list[RowState] = []
        ends = [len(r.prompt) + min(r.limit, GROWTH) for r in self.waiting]  # short completions never make it grow
        self.cache = engine.new_cache(self.max_rows, max(ends, default=1))
        self.cache.keep([])  # the rows are allocated, none is in use

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One token for every active row; [] when all are finished."""
        self._drop_finished()
        parts = []  # logits (rows, V) in the order of self.active
        if self.active:
            last = torch.tensor([[row.ids[-1]] for row in self.active], device=self.cache.lengths.device)
            parts.append(self.engine.model(last, kv_cache=self.cache)[:, -1])
        parts += self._admit()
        if not self.active:
            return []
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        uniforms = None
        if self.temperature:
            uniforms = [uniform(row.seed, row.index, len(row.ids)) for row in self.active]
        tokens = sample_next_token(logits, uniforms, self.temperature, self.top_k).tolist()
        tokenizer, specials = self.engine.tokenizer, self.engine.specials
        return [Event(row, *row.push(token, tokenizer, specials)) for row, token in zip(self.active, tokens)]

    def _drop_finished(self) -> None:
        """Finished rows leave; rows from the end move into their places, so that few are copied."""
        going = [i for i, row in enumerate(self.active) if row.finish is None]
        if len(going) == len(self.active):
            return
        n = len(going)
        from_end = iter([i for i in going if i >= n][::-1])
        order = [i if self.active[i].finish is None else next(from_end) for i in range(n)]
        self.active = [self.active[i] for i in order]
        self.cache.keep(order)

    def _admit(self) -> list[Tensor]:
        """Prefill waiting rows into free places; returns the logits at the last token of each prompt, (rows, V).

        A prefill for a single free place costs nearly as much as one for several, so places are gathered first.
        """
        parts = []
        enough = min(max(1, self.max_rows // 4), len(self.waiting))
        if self.max_rows - len(self.active) < enough and self.active:
            return parts
        while self.waiting and len(self.active) < self.max_rows:
            group, prompts = self._next_group()
            cache, logits = self._prefill(prompts)
            which = {id(p): i for i, p in enumerate(prompts)}
            rows = [which[id(row.prompt)] for row in group]
            self.cache.append(cache, rows)
            self.active += group
            parts.append(logits[rows])
        return parts

    def _next_group(self) -> tuple[list[RowState], list[list[int]]]:
        """The waiting rows to prefill together, and their distinct prompts (samples of one prompt share its list)."""
        group: list[RowState] = []
        prompts: list[list[int]] = []
        while self.waiting and len(self.active) + len(group) < self.max_rows:
            prompt = self.waiting[0].prompt
            if not prompts or prompt is not prompts[-1]:
                if prompts and (len(prompts) + 1) * len(prompts[0]) > PREFILL_TOKENS:  # the first is the longest
                    break
                prompts.append(prompt)
            group.append(self.waiting.popleft())
        return group, prompts

    def _prefill(self, prompts: list[list[int]]) -> tuple[KVCache, Tensor]:
        """Prompts of any lengths, padded on the right, in one pass. Causal masking keeps the padding unseen."""
        lengths = [len(p) for p in prompts]
        longest = max(lengths)
        cache = self.engine.new_cache(len(prompts), longest)
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=cache.lengths.device)
        logits = self.engine.model(ids, kv_cache=cache)  # (n, longest, V)
        cache.truncate(lengths)
        return cache, logits[torch.arange(len(prompts), device=ids.device), cache.lengths - 1]


class Engine:
    """A model and its tokenizer, ready to complete prompts. Holds no state between calls."""

    def __init__(self, model: GPT, tokenizer: Any):
        # a compiled model would be compiled anew for every length
        self.model: GPT = getattr(model, "_orig_mod", model)
        self.tokenizer = tokenizer
        self.specials = Specials.of(tokenizer)

    def new_cache(self, batch_size: int, seq_len: int) -> KVCache:
        c = self.model.config
        return KVCache(batch_size, c.n_kv_head, seq_len, c.n_embd // c.n_head, c.n_layer,
                       dtype=self.model.compute_dtype, device=self.model.get_device())

    def start(self, prompts: Sequence[list[int]], num_samples: int = 1, max_tokens: int | None = None,
              temperature: float = 1.0, top_k: int | None = None, seed: int = 42, max_rows: int = MAX_ROWS,
              ) -> Generation:
        """Check the request and lay out its rows: `num_samples` for the first prompt, then for the second, ..."""
        context = self.model.config.sequence_len
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UserError(f"temperature={temperature} is impossible: choose 0 (greedy) or a positive number")
        for name, value, least in (("num_samples", num_samples, 1), ("max_tokens", max_tokens, 0),
                                   ("top_k", top_k, 0), ("max_rows", max_rows, 1)):
            if value is not None and value < least:
                raise UserError(f"{name}={value} is impossible: it must be at least {least}")
        rows = []
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise UserError("an empty prompt has nothing to go on from: begin with <|bos|>")
            room = context - len(prompt)
            if room < 0:
                raise UserError(f"the prompt has {len(prompt)} tokens, the model's context holds {context}: shorten it")
            limit, reason = (room, "context") if max_tokens is None or room < max_tokens else (max_tokens, "length")
            prompt = list(prompt)  # one list for all samples: they are prefilled once
            rows += [RowState(prompt, seed, i * num_samples + j, limit, reason) for j in range(num_samples)]
        return Generation(self, rows, max_rows, temperature, top_k)

    def generate(self, tokens: list[int], num_samples: int = 1, max_tokens: int | None = None, temperature: float = 1.0,
                 top_k: int | None = None, seed: int = 42) -> Iterator[tuple[list[int], list[int]]]:
        """Stream `num_samples` completions of one prompt: each step yields (token of each row, mask of each row).

        Mask 1 = sampled, 0 = not: forced by the tool, or the row was already finished (then <|assistant_end|>).
        """
        generation = self.start([tokens], num_samples, max_tokens, temperature, top_k, seed, max_rows=num_samples)

        def columns() -> Iterator[tuple[list[int], list[int]]]:
            while events := generation.step():
                token_column, mask_column = [self.specials.assistant_end] * num_samples, [0] * num_samples
                for row, token, mask in events:
                    token_column[row.index], mask_column[row.index] = token, mask
                yield token_column, mask_column

        return columns()  # so that a bad request is refused at the call, not at the first step

    def generate_batch(self, prompts: list[int] | list[list[int]], num_samples: int = 1, max_tokens: int | None = None,
                       temperature: float = 1.0, top_k: int | None = None, seed: int = 42, max_rows: int = MAX_ROWS,
                       ) -> tuple[list[list[int]], list[list[int]]]:
        """Complete one prompt or many of any lengths: (completions, masks), `num_samples` a prompt, in order.

        A completion ends with the token that ended it (<|assistant_end|> or <|bos|>), if one did.
        """
        many = [prompts] if prompts and isinstance(prompts[0], int) else prompts
        generation = self.start(many, num_samples, max_tokens, temperature, top_k, seed, max_rows)
        while generation.step():
            pass
        return [row.ids for row in generation.rows], [row.mask for row in generation.rows]


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
    head = [m for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(head):]
    dropped = 0
    while True:
        ids = tokenizer.render_for_completion({"messages": [*head, *turns]})
        if len(ids) <= budget:
            return Fitted([*head, *turns], ids, dropped)
        if len(turns) <= 2:
            raise UserError(f"the message needs {len(ids)} tokens, the model has room for {budget}: shorten it")
        turns = turns[2:]
        dropped += 1
