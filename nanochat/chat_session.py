"""A conversation with a model that goes on: its settings, its turns, what of it still fits the context, and saving it.

    chat = ChatSession(engine, ChatSettings(temperature=0.8), system="Be brief.")
    turn = chat.begin("Who are you?")                   # UserError: too long; nothing has changed then
    why = chat.answer(turn, show=lambda kind, text: print(text, end=""))
    turn = chat.begin()                                 # the last question once more, by other random numbers
    chat.save("me.jsonl")                               # a row for CustomJSON, to be trained on

All turns are kept, since all are saved. The model sees those that fit: `start` is the first of them, and only moves on.
There is nothing to run here; scripts/chat_cli.py is built on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from nanochat.answer_settings import AnswerSettings
from nanochat.common import UserError
from nanochat.engine import Engine, TextStream, fit_conversation
from nanochat.files import atomic_write

ENDS = {"length": "cut off at max_tokens", "context": "cut off: context is full", "bos": "it began another document"}


@dataclass
class ChatSettings(AnswerSettings):
    """How answers are drawn."""

    seed: int = 42
    """Seed of the sampling."""


# (what to convert a text by, whether a value may be, in words which may)
RULES: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "temperature": (float, lambda x: 0 <= x < float("inf"), "0 (the likeliest token) or a positive number"),
    "top_k": (int, lambda n: n >= 0, "a whole number from 1, or 0 for all tokens"),
    "top_p": (float, lambda x: 0 < x <= 1, "a number above 0 and up to 1"),
    "max_tokens": (int, lambda n: n >= 1, "a whole number from 1"),
    "seed": (int, lambda n: -(2**63) <= n < 2**63, "a whole number of at most 64 bits"),
}


def set_sampling(sampling: ChatSettings, name: str, value: Any) -> None:
    """Change one setting, given as a value or as text; UserError, and no change, where it cannot be."""
    convert, allowed, wanted = RULES[name]
    try:
        converted = convert(value)
    except ValueError:
        converted = None
    if converted is None or not allowed(converted):
        raise UserError(f"{name} must be {wanted}, not {str(value)[:40]!r}")
    setattr(sampling, name, converted)


def check_sampling(sampling: ChatSettings) -> None:
    """UserError for what cannot be: before a model is loaded for it."""
    for field in fields(ChatSettings):
        set_sampling(sampling, field.name, getattr(sampling, field.name))


class Turn(NamedTuple):
    """A question about to be answered."""

    question: str
    ids: list[int]  # what the model is given
    before: int  # messages that stay before it
    start: int  # the first message that the model is given
    forgets: bool  # it is the first that leaves turns out


class ChatSession:
    """One person, one model. `messages` are the person's and the model's in turn, the system text is apart."""

    def __init__(self, engine: Engine, sampling: ChatSettings, system: str = ""):
        self.engine, self.sampling = engine, sampling
        self.system = ""
        self.clear()
        self.set_system(system)

    def clear(self) -> None:
        """Forget the conversation; the system text and the settings stay."""
        self.messages: list[dict[str, Any]] = []
        self.start = 0
        self.drawn = 0  # answers since the seed was set: each takes the next seed

    @property
    def budget(self) -> int:
        """Tokens of the context for all that is before the answer: the answer's own are kept free, up to half of it."""
        context = self.engine.model.config.sequence_len
        return max(context - self.sampling.max_tokens, context // 2)

    def set_system(self, text: str) -> None:
        """Set or replace the system text ("": none). It must leave half of the room to the conversation."""
        needs, room = len(self.engine.tokenizer.encode(text)), self.budget // 2
        if needs > room:
            raise UserError(f"the system text needs {needs} tokens, the model has room for {room}: shorten it")
        self.system = text

    def set(self, name: str, value: Any) -> None:
        """Change a setting; a seed counts from here."""
        set_sampling(self.sampling, name, value)
        if name == "seed":
            self.drawn = 0

    def begin(self, question: str | None = None) -> Turn:
        """Make ready to answer `question`, or the last one again (None). UserError when that cannot be."""
        before = len(self.messages)
        if question is None:
            if not before:
                raise UserError("there is no question yet to answer again")
            before -= 2
            question = self.messages[before]["content"]
        head = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*head, *self.messages[self.start:before], {"role": "user", "content": question}]
        fitted = fit_conversation(asked, self.engine.tokenizer, self.budget)
        start = self.start + 2 * fitted.dropped  # at most `before`: the question itself is never dropped
        return Turn(question, fitted.ids, before, start, forgets=start > 0 and self.start == 0)

    def answer(self, turn: Turn, show: Callable[[str, str], None], stopped: Callable[[], bool] = lambda: False) -> str:
        """Draw the answer, `show(kind, text)` it as it comes, and keep it. Says why it ended early, or "".

        `stopped` is asked after every token; what was said until then is the answer.
        """
        s = self.sampling
        generation = self.engine.start([turn.ids], max_tokens=s.max_tokens, temperature=s.temperature, top_k=s.top_k,
                                       top_p=s.top_p, seed=s.seed + self.drawn)
        stream = TextStream(self.engine.tokenizer)
        while not stopped() and (events := generation.step()):
            show(*stream.feed(events[0].token))
        show(*stream.flush())
        finish = generation.rows[0].finish
        generation.cancel(generation.rows[0])
        generation.step()  # the engine takes note of what was computed, for the next turn
        self.drawn += 1
        self.start = turn.start
        self.messages[turn.before:] = [{"role": "user", "content": turn.question},
                                       {"role": "assistant", "content": content_of(stream.parts)}]
        return ENDS.get(finish, "") if finish else "stopped"

    def save(self, name: str) -> str:
        """The whole conversation as one line of JSON, in a new file for this person alone. Says where.

        A turn without an answer (stopped too soon) is left out: one cannot train on it.
        """
        path = Path(name).expanduser().absolute()
        turns = list(zip(self.messages[::2], self.messages[1::2]))
        answered = [turn for turn in turns if text_of(turn[1]["content"]).strip()]
        if not answered:
            raise UserError("there is no answer yet to save")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += [message for turn in answered for message in turn]
        try:
            if os.path.lexists(path):
                raise UserError(f"{path} exists and stays as it is: choose another name")
            if not path.parent.is_dir():
                raise UserError(f"the folder {path.parent} does not exist: make it, or choose another")
            atomic_write(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n", mode=0o600)
        except (OSError, ValueError) as e:  # ValueError: NUL in a name
            raise UserError(f"cannot write {path}: {getattr(e, 'strerror', None) or e}") from e
        left_out = f", without {n} that have no answer" if (n := len(turns) - len(answered)) else ""
        return f"saved to {path}: {len(answered)} turns{left_out}"


def content_of(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    """What an answer is in a conversation: its text, or its parts if it used a tool."""
    return text_of(parts) if all(part["type"] == "text" for part in parts) else parts


def text_of(content: str | list[dict[str, str]]) -> str:
    """All that was said, tool calls too."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
