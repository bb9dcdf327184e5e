"""Talk to a model in the terminal.

    python -m scripts.chat_cli                          # a conversation: /help lists what else can be typed
    python -m scripts.chat_cli -p "Who are you?"        # one answer on stdout, then exit
    python -m scripts.chat_cli -p - < question.txt      # the question from stdin

The answer appears as it is written. Calculator calls are folded into ⟨12/60 = 0.2⟩. Ctrl-C stops an answer. What you
type is remembered in `chat_history` under NANOCHAT_BASE_DIR, for you alone. Exit status: 0, 2 for what you can mend,
130 if Ctrl-C ended it (with -p: what was said until then is on stdout), 1 if nobody reads stdout any more.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, fields
from typing import Annotated

import tyro
from rich.console import Console

from nanochat import configurator
from nanochat.chat_session import ChatSession, ChatSettings, Turn, check_sampling
from nanochat.common import UserError, get_base_dir
from nanochat.model_choice import ModelChoice
from nanochat.terminal import Person, Printer, ctrl_c, harmless

HELP = """\
/temp X  /top_k N  /top_p X  /max_tokens N  /seed N
              change a setting; without a value: show it
/settings     show all of them
/system TEXT  set the system text (-: take it away); without a text: show it
/retry        answer the last question again
/save FILE    the whole conversation as JSONL, to be trained on with CustomJSON
/clear        forget the conversation
/help  /quit  this text; leave (or Ctrl-D)
For several lines end a line with a backslash, or write them between two lines
of \""" (what stands there may begin with a slash); what is pasted stays together.
Ctrl-C stops an answer; the arrow keys bring back what you typed."""
SETTINGS = {"temp": "temperature"} | {field.name: field.name for field in fields(ChatSettings)}
ALONE = ("settings", "retry", "clear", "help", "quit")  # take no value
COMMANDS = (*SETTINGS, *ALONE, "system", "save")


@dataclass
class Config(ChatSettings, ModelChoice):
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """Answer this one question and exit (-: read it from stdin; empty: a conversation)."""
    system: str = ""
    """A text that stands before the conversation, whatever is forgotten of it."""


def note(text: str) -> None:
    """Words of ours, dim and on stderr: stdout holds the model's."""
    Console(stderr=True).print(harmless(text), style="dim", markup=False, highlight=False, soft_wrap=True)


def say(chat: ChatSession, turn: Turn, console: Console) -> bool:
    """Show the answer as it is drawn; whether Ctrl-C has stopped it."""
    printer = Printer(console)
    with ctrl_c() as pressed:
        why = chat.answer(turn, printer.show, pressed)
        printer.show("text", "\n")
        if why:
            note(f"({why})")
        return pressed()


def obey(chat: ChatSession, name: str, value: str) -> str:
    """Do what /name says; returns what to tell the person. UserError: nothing has changed."""
    if name not in COMMANDS:
        raise UserError(f"/{name} is not a command{configurator.nearest(name, COMMANDS)} (/help lists all)")
    if name in ALONE and value:
        raise UserError(f"/{name} takes no value")
    if name in SETTINGS:
        if value:
            chat.set(SETTINGS[name], value)
        return f"{SETTINGS[name]} = {getattr(chat.sampling, SETTINGS[name])}"
    if name == "settings":
        shown = [f"{field.name} = {getattr(chat.sampling, field.name)}" for field in fields(ChatSettings)]
        return "\n".join([*shown, f"system = {chat.system or '(none)'}"])
    if name == "system":
        if value:
            chat.set_system("" if value == "-" else value)
            return f"(system text {'set' if chat.system else 'taken away'}; the conversation goes on)"
        return chat.system or "(no system text)"
    if name == "save":
        if not value:
            raise UserError("say where to: /save FILE")
        return f"({chat.save(value)})"
    if name == "clear":
        chat.clear()
        return "(forgotten; the system text and the settings stay)"
    if name == "retry":
        return "(another answer" + (": none is to be had at temperature 0)" if not chat.sampling.temperature else ")")
    return HELP


def converse(chat: ChatSession, person: Person, console: Console) -> None:
    """Questions and commands until the person leaves."""
    note("Type a message; /help for more, Ctrl-D to leave.")
    while True:
        try:
            text, command = person.message()
            name, _, value = text[1:].partition(" ") if command else ("", "", "")
            if command and text == "/quit":
                return
            if command:
                note(obey(chat, name, value.strip()))
            if not text or (command and name != "retry"):
                continue
            turn = chat.begin(None if command else text)
            if turn.forgets:
                note("(the conversation is longer than the model's context: from here on it forgets the oldest turns)")
            if person.at_terminal:
                console.print("nanochat> ", end="", style="bold")
            say(chat, turn, console)
        except UserError as e:  # say so and go on
            note(str(e))
        except KeyboardInterrupt:
            with ctrl_c():  # a second one is no reason to leave either
                note("\n(Ctrl-D or /quit leaves)")
        except EOFError:
            return console.print()


def main(config: Config) -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # odd bytes or a terminal that is not UTF-8 are no reason to die
    check_sampling(config)
    question = sys.stdin.read() if config.prompt == "-" else config.prompt
    if config.prompt and not question.strip():
        raise UserError("the question is empty: say -p QUESTION, or send one to -p -")
    with contextlib.redirect_stdout(sys.stderr):  # with -p, stdout is the answer and nothing else
        # what earlier turns computed is kept, for this conversation and some before it
        engine, _ = config.load(prefix_contexts=4, seed=config.seed)
    chat, console = ChatSession(engine, config, config.system), Console(highlight=False)
    if not config.prompt:
        return converse(chat, Person(get_base_dir() / "chat_history", note), console)
    if say(chat, chat.begin(question.strip()), console):
        sys.exit(130)


if __name__ == "__main__":
    configurator.main(main, Config)
