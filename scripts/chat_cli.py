"""Talk to a model in the terminal.

    python -m scripts.chat_cli                          # a conversation: /help lists what else can be typed
    python -m scripts.chat_cli -p "Who are you?"        # one answer on stdout, then exit

The answer appears as it is written. Calculator calls are folded into ⟨12/60 = 0.2⟩. Ctrl-C stops an answer.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, compute_init, resolve_dtype
from nanochat.engine import Engine, Fitted, TextStream, fit_conversation

HELP = """/clear  forget the conversation     /quit  leave (or Ctrl-D)     /help  this text
Ctrl-C stops an answer; the arrow keys bring back what you typed."""
ENDS = {"length": "cut off at --max_tokens", "context": "cut off: context is full", "bos": "it began another document"}
FOLDS = {("text", "python"): "⟨", ("text", "python_output"): "⟨= ", ("python", "python_output"): " = ",
         ("python_output", "python"): "⟩⟨", ("python", "text"): "⟩", ("python_output", "text"): "⟩"}
# Control characters in a model's text could move the cursor or retitle the window; line breaks and tabs may stay.
CONTROLS = {c: "\ufffd" for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


@dataclass
class Config:
    source: str = "sft"
    """Which stage's model: base, mid, sft or rl."""
    model_tag: str = ""
    """Which model of that stage, e.g. d4 (empty: the largest)."""
    step: int = -1
    """Which saved step (-1: the last)."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """Answer this one question and exit (empty: a conversation)."""
    temperature: float = 0.6
    """0 always takes the likeliest token; higher is more varied."""
    top_k: int = 50
    """Choose among this many likeliest tokens (0: all)."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
    seed: int = 42
    """Seed of the sampling."""
    device_type: str = ""
    """cpu, cuda or mps (empty: the best there is)."""
    dtype: str = "auto"
    """auto, bfloat16 or float32."""


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
            self.console.print(mark + text.translate(CONTROLS), end="", style=None if kind == "text" else "dim",
                               markup=False, emoji=False, soft_wrap=True)
            self.console.file.flush()


def note(text: str) -> None:
    """Words of ours, dim and on stderr: stdout holds the model's."""
    Console(stderr=True).print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def fit(engine: Engine, messages: list[dict[str, Any]], config: Config) -> Fitted:
    """The last turns that leave room for the answer (half the context at most is kept free for it)."""
    context = engine.model.config.sequence_len
    return fit_conversation(messages, engine.tokenizer, budget=max(context - config.max_tokens, context // 2))


def answer(engine: Engine, ids: list[int], config: Config, console: Console) -> dict[str, Any]:
    """Stream the reply to a rendered conversation; returns it as a message. Ctrl-C ends it early."""
    generation = engine.start([ids], max_tokens=config.max_tokens, temperature=config.temperature, top_k=config.top_k,
                              seed=config.seed + len(ids))  # the same question asked again is another sample
    stream, printer = TextStream(engine.tokenizer), Printer(console)
    why = "stopped"
    with contextlib.suppress(KeyboardInterrupt):
        while events := generation.step():
            printer.show(*stream.feed(events[0].token))
        why = ENDS.get(generation.rows[0].finish or "", "")
    printer.show(*stream.flush())
    printer.show("text", "\n")
    if why:
        note(f"({why})")
    return {"role": "assistant", "content": stream.parts or ""}


def converse(engine: Engine, config: Config, console: Console) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() its editing and history
    note("Type a message; /help for more, Ctrl-D to leave.")
    messages: list[dict[str, Any]] = []
    forgetting = False
    while True:
        try:
            text = input("\nyou> ").strip()
        except KeyboardInterrupt:
            note("\n(Ctrl-D or /quit leaves)")
            continue
        except EOFError:
            return console.print()
        if text == "/quit":
            return
        if text == "/clear":
            messages, forgetting = [], False
            note("(forgotten)")
        elif text.startswith("/"):
            note(HELP if text == "/help" else f"{text} is not a command.\n{HELP}")
        elif text:
            try:
                fitted = fit(engine, [*messages, {"role": "user", "content": text}], config)
            except UserError as e:  # a message too long: say so and go on
                note(str(e))
                continue
            if fitted.dropped and not forgetting:
                note("(the conversation is longer than the model's context: from here on it forgets the oldest turns)")
                forgetting = True
            console.print("nanochat> ", end="", style="bold")
            messages = [*fitted.messages, answer(engine, fitted.ids, config, console)]


def main(config: Config) -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # odd bytes or a terminal that is not UTF-8 are no reason to die
    with contextlib.redirect_stdout(sys.stderr):  # with -p, stdout is the answer and nothing else
        _, _, _, _, device = compute_init(config.device_type, config.seed)
        model, tokenizer, _ = load_model(config.source, device, "eval", config.model_tag, config.step,
                                         resolve_dtype(config.dtype, device.type))
    engine, console = Engine(model, tokenizer), Console(highlight=False)
    if not config.prompt:
        return converse(engine, config, console)
    answer(engine, fit(engine, [{"role": "user", "content": config.prompt}], config).ids, config, console)


if __name__ == "__main__":
    configurator.main(main, Config)
