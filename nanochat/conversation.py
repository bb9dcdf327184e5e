"""What a conversation must look like, checked in one place: the tokenizer renders only what these functions give.

{"messages": [{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": [
    {"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}, {"type": "text", "text": "42."}]}]}

There is nothing to run here.
"""

from __future__ import annotations

from nanochat.common import UserError


def checked_messages(conversation: dict) -> list[tuple[str, str | list]]:
    """`(role, content)` pairs: user, assistant, user, ...; a first system message is merged into the first user's.

    The conversation itself is left as it is.
    """
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError('the conversation is empty: it needs {"messages": [{"role": "user", "content": "..."}, ...]}')
    if not all(isinstance(m, dict) and "role" in m and "content" in m for m in messages):
        raise UserError('a message of the conversation lacks "role" or "content"')
    turns = [(m["role"], m["content"]) for m in messages]
    for i, (role, content) in enumerate(turns):
        if role not in ("system", "user", "assistant"):
            raise UserError(f"message {i} has the unknown role {role!r}: use user or assistant (or system, first)")
        if role != "assistant" and not isinstance(content, str):
            raise UserError(f"message {i}: the content of a {role} message must be a string")
    if turns[0][0] == "system":
        if len(turns) == 1:
            raise UserError("the conversation has only a system message: a user message must follow it")
        if turns[1][0] == "user":
            turns[:2] = [("user", f"{turns[0][1]}\n\n{turns[1][1]}")]
    for i, (role, _) in enumerate(turns):
        wanted = "assistant" if i % 2 else "user"
        if role != wanted:
            raise UserError(f"turn {i} of the conversation is from {role}, not {wanted}: the two must alternate")
    return turns


def assistant_parts(content: str | list[dict]) -> list[tuple[str, str]]:
    """`(kind, text)` of each part of an assistant message, kind: text, python or python_output.

    A plain string is one part of text; neighbouring parts of text are one: they are one stretch of tokens.
    """
    if not isinstance(content, (str, list)):
        raise UserError("the content of an assistant message must be a string or a list of parts")
    parts: list[tuple[str, str]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if kind not in ("text", "python", "python_output") or not isinstance(text, str):
            raise UserError(
                f'part {str(part)[:60]!r} of an assistant message: expected {{"type": "text", "python" or '
                '"python_output", "text": string}'
            )
        if kind == "text" and parts and parts[-1][0] == "text":
            text = parts.pop()[1] + text
        parts.append((kind, text))
    return parts
