"""What a chat at a terminal needs of the terminal: messages of several lines in, a history, answers piece by piece out.

    person = Person(history=base / "chat_history", note=print)
    message = person.message()          # EOFError: there will be no more; KeyboardInterrupt: Ctrl-C
    with ctrl_c() as pressed:           # here Ctrl-C only says that it was pressed
        while not pressed(): ...
    Printer(console).show("text", "Hi")

Ways to write several lines: a backslash at the end of a line, a block between two lines of three quotes, or pasting
them (readline's bracketed paste: what is pasted arrives as one piece and its line breaks send nothing). There is
nothing to run here; scripts/chat_cli.py is built on it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from nanochat.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Console

FENCE = '"""'
ENTRIES = 1000  # of the history, kept from one chat to the next
ENTRY_CHARS = 20_000  # what is longer is not remembered
HISTORY_BYTES = 4 << 20  # that are read at most; from there on the file is cut to its last entries
FOLDS = {("text", "python"): "⟨", ("text", "python_output"): "⟨= ", ("python", "python_output"): " = ",
         ("python_output", "python"): "⟩⟨", ("python", "text"): "⟩", ("python_output", "text"): "⟩"}
# Control characters in a text could move the cursor or retitle the window; line breaks and tabs may stay.
CONTROLS = {c: "\ufffd" for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


# --------------------------------------------------------------------------- in


class Message(NamedTuple):
    """What a person has typed; whether it is for the program (it begins with a slash) and not for the model."""

    text: str
    command: bool


def complete(pieces: list[str], ended: bool = False) -> Message | None:
    r"""The message that `pieces` make, each one typed line or one paste of several; None: it goes on.

    `ended`: nothing more will come. What is fenced or pasted is never a command.
    `["a\\", "b"] -> "a\nb"`, `['\"""', "/x", '\"""'] -> "/x"` (no command), `["/help"] -> "/help"` (a command)
    """
    first, *rest = "\n".join(pieces).split("\n")
    if first.strip() == FENCE:
        inner, _, last = "\n".join(["", *rest]).rstrip().rpartition("\n")
        if last.strip() == FENCE:
            return Message(inner.removeprefix("\n"), command=False)
        return Message("\n".join(rest).rstrip(), command=False) if ended else None
    if _goes_on(pieces[-1]) and not ended:
        return None
    lines = [piece[:-1] if _goes_on(piece) else piece for piece in pieces]
    if any("\n" in line for line in lines):
        return Message("\n".join(lines).strip("\n").rstrip(), command=False)
    text = "\n".join(lines).strip()
    return Message(text, command=text.startswith("/"))


def _goes_on(line: str) -> bool:
    """Whether it ends with a backslash that is not itself written by two."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


class Person:
    """The other side of stdin. At a terminal with prompts, editing and a history; from a pipe, line by line."""

    def __init__(self, history: Path | None, note: Callable[[str], None]):
        self.at_terminal = sys.stdin.isatty()
        self.note = note
        self.history = history
        self.readline: Any = None
        if self.at_terminal and sys.stdout.isatty():  # else input() does without it
            with contextlib.suppress(ImportError):
                self.readline = importlib.import_module("readline")
        if self.readline is not None:
            self.readline.set_auto_history(False)  # a message is one entry, however many lines it has
            self.readline.parse_and_bind("set enable-bracketed-paste on")
            self._with_history(self._load)

    def message(self) -> Message:
        """The next one. EOFError when there is none; what the end of input cuts off is a message all the same."""
        pieces = [input("\nyou> " if self.at_terminal else "")]
        while (message := complete(pieces)) is None:
            try:
                pieces.append(input("...> " if self.at_terminal else ""))
            except EOFError:
                message = complete(pieces, ended=True)
                break
        assert message is not None
        if self.readline is not None and message.text and complete([message.text]) == message:
            self._remember(message.text)  # what means the same when it is called back and sent as one piece
        return message

    def _remember(self, text: str) -> None:
        n = self.readline.get_current_history_length()
        if len(text) > ENTRY_CHARS or "\0" in text or (n and self.readline.get_history_item(n) == text):
            return
        self.readline.add_history(text)
        self._with_history(lambda path: append_entry(path, text))

    def _load(self, path: Path) -> None:
        for entry in load_entries(path):
            with contextlib.suppress(ValueError):  # NUL, half a character: not from here
                self.readline.add_history(entry)

    def _with_history(self, use: Callable[[Path], None]) -> None:
        """A history that cannot be read or written is given up, with a word, and the chat goes on."""
        try:
            if self.history is not None:
                use(self.history)
        except OSError as e:
            self.note(f"(no history is kept: {self.history}: {e.strerror})")
            self.history = None


# The file holds a JSON string a line, so that an entry may have several lines.


def load_entries(path: Path) -> list[str]:
    """The last entries of a history file; lines that are none are passed over. A file that has grown long is cut."""
    if not path.exists():
        return []
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - HISTORY_BYTES))
        lines = f.read(HISTORY_BYTES).split(b"\n")
    entries = [entry for line in lines if (entry := _entry(line))]
    if size > HISTORY_BYTES or len(entries) > 2 * ENTRIES:
        atomic_write(path, "".join(f"{json.dumps(entry)}\n" for entry in entries[-ENTRIES:]), mode=0o600)
    return entries[-ENTRIES:]


def _entry(line: bytes) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return entry if isinstance(entry, str) else ""


def append_entry(path: Path, text: str) -> None:
    """One write at the end, so that two chats do not mix; nobody else may read it, whoever made the file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, f"{json.dumps(text)}\n".encode("ascii"))
    finally:
        os.close(fd)


@contextlib.contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """While this lasts Ctrl-C raises nothing: what is given tells whether it was pressed, however often."""
    presses: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        presses.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)


# --------------------------------------------------------------------------- out


def harmless(text: str) -> str:
    r"""`"a\x1b[2Jb" -> "a\ufffd[2Jb"`: nothing in it that a terminal obeys."""
    return text.translate(CONTROLS)


class Printer:
    """Shows an answer piece by piece: text as it is, tool calls dim and folded into ⟨expression = value⟩."""

    def __init__(self, console: Console):
        self.console = console
        self.kind = "text"

    def show(self, kind: str, text: str) -> None:
        if text:
            mark = FOLDS.get((self.kind, kind), "")
            self.kind = kind
            # the model's words are not markup; soft_wrap leaves the line breaks to the terminal
            self.console.print(mark + harmless(text), end="", style=None if kind == "text" else "dim", markup=False,
                               emoji=False, soft_wrap=True)
            self.console.file.flush()
