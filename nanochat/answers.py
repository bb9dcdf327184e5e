"""The pieces of an answer, put into OpenAI's forms: all at once or as they come.

    form, choice = ChatForm("nanochat-d4-sft", logprobs=False), Choice()
    for piece in pieces:                     # [request, choice, kind, text, logprobs, how it ended], as a worker says
        choice.take(piece)
    form.whole([choice], {"prompt_tokens": 9, "dropped_turns": 0})      # -> {"object": "chat.completion", ...}

Pure (floor 1); there is nothing to run here.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Choice:
    """One answer as it comes together."""

    parts: list[dict[str, str]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    finish: str = ""
    tokens: int = 0

    def take(self, piece: list[Any]) -> None:
        _, _, kind, text, entries, end = piece
        if text and self.parts and self.parts[-1]["type"] == kind:
            self.parts[-1]["text"] += text
        elif text:
            self.parts.append({"type": kind, "text": text})
        self.entries += entries or []
        if end:
            self.finish, self.tokens = end["finish"], end["completion_tokens"]

    @property
    def text(self) -> str:
        """What was said, without what went to the calculator and back."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")


def finish_fields(finish: str) -> dict[str, str | None]:
    """OpenAI's reason and our finer one. `"context" -> {"finish_reason": "length", "finish_detail": "context"}`"""
    if not finish:
        return {"finish_reason": None}
    return {"finish_reason": "length" if finish in ("length", "context") else "stop", "finish_detail": finish}


def chat_logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    return {"content": [{name: value for name, value in entry.items() if name != "offset"} for entry in entries]}


def completion_logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """The older form: a list for each thing to know."""
    if entries is None:
        return None
    return {"tokens": [e["token"] for e in entries], "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [{top["token"]: top["logprob"] for top in e["top_logprobs"]} for e in entries],
            "text_offset": [e["offset"] for e in entries]}


class Form:
    """How one kind of answer is written: all at once (`whole`) or in pieces (`opening`, `chunk`)."""

    kind, chunk_kind, prefix = "", "", ""

    def __init__(self, model: str, logprobs: bool):
        self.logprobs = logprobs
        self.head = {"id": self.prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}

    def whole(self, choices: list[Choice], started: dict[str, Any]) -> dict[str, Any]:
        return {**self.head, "object": self.kind, "choices": [self.choice(i, c) for i, c in enumerate(choices)],
                "usage": usage_of(sum(choice.tokens for choice in choices), started)}

    def piece(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self.head, "object": self.chunk_kind, "choices": choices, **more}

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self, index: int) -> dict[str, Any] | None:
        raise NotImplementedError

    def chunk(self, index: int, kind: str, text: str, entries: list[dict[str, Any]] | None, finish: str
              ) -> dict[str, Any] | None:
        raise NotImplementedError


class ChatForm(Form):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        if any(part["type"] != "text" for part in choice.parts):
            message["parts"] = choice.parts
        return {"index": index, "message": message, **finish_fields(choice.finish),
                "logprobs": chat_logprobs(choice.entries if self.logprobs else None)}

    def opening(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}

    def chunk(self, index: int, kind: str, text: str, entries: list[dict[str, Any]] | None, finish: str
              ) -> dict[str, Any]:
        delta = {"content": text} if kind == "text" else {"parts": [{"type": kind, "text": text}]}
        return {"index": index, "delta": {} if finish else delta, **finish_fields(finish),
                "logprobs": chat_logprobs(entries if self.logprobs else None)}


class CompletionForm(Form):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl-"

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {"index": index, "text": choice.text, **finish_fields(choice.finish),
                "logprobs": completion_logprobs(choice.entries if self.logprobs else None)}

    def opening(self, index: int) -> None:
        return None

    def chunk(self, index: int, kind: str, text: str, entries: list[dict[str, Any]] | None, finish: str
              ) -> dict[str, Any] | None:
        if kind != "text":  # a text is gone on with; what a calculator did in it has no place here
            return None
        return {"index": index, "text": text, **finish_fields(finish),
                "logprobs": completion_logprobs(entries if self.logprobs else None)}


def usage_of(tokens: int, started: dict[str, Any]) -> dict[str, int]:
    """`tokens`: those of all choices."""
    prompt = started["prompt_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
