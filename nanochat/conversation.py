"""What a conversation must look like and how it is laid out as tokens, both said once: the tokenizer only fills it in.

{"messages": [{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": [
    {"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}, {"type": "text", "text": "42."}]}]}

    <|bos|> (<|user_start|> question <|user_end|> <|assistant_start|> answer <|assistant_end|>) ...

Learned are the assistant's text, its tool calls with <|python_start|> and <|python_end|>, and <|assistant_end|>; not
learned is everything else, tool output included, for the engine writes that itself. A row of a task may also be a
plain document, {"text": "..."}: all of it is learned.

There is nothing to run here.
"""

from __future__ import annotations

from typing import Any

from nanochat.common import UserError

TURN_END = "<|assistant_end|>"  # a conversation may be cut after any of these

# (is it text, the text or the name of a special token, 1: the model learns to say it)
Part = tuple[bool, str, int]


class BadConversation(UserError):
    """A row that cannot be rendered. `kind` is the same for all rows with this fault, whatever their own words."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def checked_messages(conversation: Any) -> list[tuple[str, str | list]]:
    """`(role, content)` pairs: user, assistant, user, ...; a first system message is merged into the first user's.

    The conversation itself is left as it is. Messages are counted from 1, as in the person's file.
    """
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadConversation(
            "empty", 'the conversation is empty: it needs {"messages": [{"role": "user", "content": "..."}, ...]}')
    for i, message in enumerate(messages, start=1):
        if not (isinstance(message, dict) and "role" in message and "content" in message):
            raise BadConversation("message", f'message {i} of the conversation lacks "role" or "content"')
        role, content = message["role"], message["content"]
        if role not in ("system", "user", "assistant"):
            raise BadConversation(
                "role", f"message {i} has the unknown role {_shown(role)}: use user or assistant (or system, first)")
        if role != "assistant" and not isinstance(content, str):
            raise BadConversation("content", f"message {i}: the content of a {role} message must be a string, "
                                             f"not {type(content).__name__}")
    turns = [(message["role"], message["content"]) for message in messages]
    if turns[0][0] == "system":
        if len(turns) == 1:
            raise BadConversation(
                "system only", "the conversation has only a system message: a user message must follow it")
        if turns[1][0] == "user":
            turns[:2] = [("user", f"{turns[0][1]}\n\n{turns[1][1]}")]
    for i, (role, _) in enumerate(turns):
        wanted = "assistant" if i % 2 else "user"
        if role != wanted:
            number = i + 1 + len(messages) - len(turns)
            raise BadConversation("order", f"turn {i} of the conversation (message {number}) is from '{role}' where "
                                           f"'{wanted}' must come: the two must alternate")
    return turns


def assistant_parts(content: Any, where: str = "an assistant message") -> list[tuple[str, str]]:
    """`(kind, text)` of each part of an assistant message, kind: text, python or python_output.

    A plain string is one part of text; neighbouring parts of text are one: they are one stretch of tokens.
    """
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, list):
        raise BadConversation(
            "content", f"the content of {where} must be a string or a list of parts, not {type(content).__name__}")
    parts: list[tuple[str, str]] = []
    for i, part in enumerate(content, start=1):
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if kind not in ("text", "python", "python_output") or not isinstance(text, str):
            found = f"type {_shown(kind)}, text {_shown(text)}" if isinstance(part, dict) else _shown(part)
            raise BadConversation("part", f'part {i} of {where} ({found}): expected {{"type": "text", "python" or '
                                          '"python_output", "text": string}')
        if kind == "text" and parts and parts[-1][0] == "text":
            text = parts.pop()[1] + text
        parts.append((kind, text))
    return parts


def rendering(row: Any) -> list[Part]:
    """The parts of a row of a task, in order: a conversation, or a document (`{"text": "..."}` without "messages").

    `{"messages": [{"role": "user", "content": "hi"}]}` ->
    `[(False, "<|bos|>", 0), (False, "<|user_start|>", 0), (True, "hi", 0), (False, "<|user_end|>", 0)]`
    """
    if isinstance(row, dict) and "text" in row and "messages" not in row:
        if not isinstance(row["text"], str):
            raise BadConversation("text", f"the text of a document must be a string, not {type(row['text']).__name__}")
        return [(False, "<|bos|>", 0), (True, row["text"], 1)]
    turns = checked_messages(row)
    merged = len(row["messages"]) - len(turns)
    parts: list[Part] = [(False, "<|bos|>", 0)]
    for i, (role, content) in enumerate(turns):
        if role == "user":
            parts += [(False, "<|user_start|>", 0), (True, content, 0), (False, "<|user_end|>", 0)]
            continue
        parts.append((False, "<|assistant_start|>", 0))
        for kind, text in assistant_parts(content, f"message {i + 1 + merged}"):
            if kind == "python":
                parts += [(False, "<|python_start|>", 1), (True, text, 1), (False, "<|python_end|>", 1)]
            elif kind == "python_output":
                parts += [(False, "<|output_start|>", 0), (True, text, 0), (False, "<|output_end|>", 0)]
            else:
                parts.append((True, text, 1))
        parts.append((False, TURN_END, 1))
    return parts


def _shown(value: Any) -> str:
    """A short name of anything: strings in quotes, cut; of all else only the type, for it may be huge or deep."""
    if not isinstance(value, str):
        return type(value).__name__
    return repr(value if len(value) <= 40 else value[:40] + "…")
