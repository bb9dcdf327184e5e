"""Talk to a model in the terminal.

    python -m scripts.chat_cli                          # a conversation: /help lists what else can be typed
    python -m scripts.chat_cli -p "Who are you?"        # one answer on stdout, then exit
    python -m scripts.chat_cli --source=mid --temperature=0

The answer appears as it is written, by whole characters. Calls of the calculator are folded into ⟨12/60 = 0.2⟩. Ctrl-C
stops the answer, not the program; Ctrl-D leaves.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, compute_init, resolve_dtype
from nanochat.engine import Engine, TextStream, fit_conversation

HELP = """/clear  forget the conversation     /quit  leave (or Ctrl-D)     /help  this text
Ctrl-C stops an answer; the arrow keys bring back what you typed."""
WHY_IT_ENDED = {"length": "cut off at --max_tokens", "context": "cut off: the model's context is full",
                "bos": "the model began another document"}
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
        if not text:
            return
        if kind != self.kind:
            opened = {"python": "⟨", "python_output": " = " if self.kind == "python" else "⟨= ", "text": ""}[kind]
            closed = "⟩" if self.kind != "text" and (self.kind, kind) != ("python", "python_output") else ""
            self._print(closed + opened, dim=True)
            self.kind = kind
        self._print(text.translate(CONTROLS), dim=kind != "text")

    def close(self) -> None:
        self._print("⟩\n" if self.kind != "text" else "\n", dim=False)

    def _print(self, text: str, dim: bool) -> None:
        # the model's words are not markup; soft_wrap leaves the line breaks to the terminal
        self.console.print(text, end="", style="dim" if dim else None, markup=False, emoji=False, soft_wrap=True)
        self.console.file.flush()


def answer(engine: Engine, messages: list[dict[str, Any]], config: Config, console: Console) -> list[dict[str, Any]]:
    """Stream the reply to the last message; returns the conversation with it (and without turns that did not fit)."""
    context = engine.model.config.sequence_len
    fitted = fit_conversation(messages, engine.tokenizer, budget=max(context - config.max_tokens, context // 2))
    notes = Console(stderr=True, style="dim", highlight=False)  # beside the answer, so never on stdout
    if fitted.dropped:
        notes.print(f"(the conversation is too long for the model: the oldest {fitted.dropped} turn(s) are forgotten)")
    generation = engine.start([fitted.ids], max_tokens=config.max_tokens, temperature=config.temperature,
                              top_k=config.top_k, seed=config.seed + len(messages))
    stream, printer = TextStream(engine.tokenizer), Printer(console)
    why = "stopped"
    try:
        while events := generation.step():
            printer.show(*stream.feed(events[0].token))
        why = WHY_IT_ENDED.get(generation.rows[0].finish or "", "")
    except KeyboardInterrupt:
        pass
    printer.show(*stream.flush())
    printer.close()
    if why:
        notes.print(f"({why})")
    return [*fitted.messages, {"role": "assistant", "content": stream.parts or ""}]


def converse(engine: Engine, config: Config, console: Console) -> None:
    with contextlib.suppress(ImportError):
        __import__("readline")  # gives input() its editing and history
    console.print("Type a message; /help for more, Ctrl-D to leave.", style="dim")
    messages: list[dict[str, Any]] = []
    while True:
        try:
            text = input("\nyou> ").strip()
        except KeyboardInterrupt:
            console.print("\n(Ctrl-D or /quit leaves)", style="dim")
            continue
        except EOFError:
            console.print()
            return
        if text == "/quit":
            return
        if text == "/clear":
            messages = []
            console.print("(forgotten)", style="dim")
        elif text.startswith("/"):
            console.print(HELP if text == "/help" else f"{text} is not a command.\n{HELP}", style="dim", markup=False)
        elif text:
            console.print("nanochat> ", end="", style="bold")
            try:
                messages = answer(engine, [*messages, {"role": "user", "content": text}], config, console)
            except UserError as e:  # a message too long: say so and go on
                console.print(str(e), style="red", markup=False)


def main(config: Config) -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # odd bytes or a terminal that is not UTF-8 are no reason to die
        stream.reconfigure(errors="replace")
    with contextlib.redirect_stdout(sys.stderr):  # with -p, stdout is the answer and nothing else
        _, _, _, _, device = compute_init(config.device_type, config.seed)
        model, tokenizer, _ = load_model(config.source, device, "eval", config.model_tag, config.step,
                                         resolve_dtype(config.dtype, device.type))
    engine, console = Engine(model, tokenizer), Console(highlight=False)
    if config.prompt:
        answer(engine, [{"role": "user", "content": config.prompt}], config, console)
    else:
        converse(engine, config, console)


if __name__ == "__main__":
    configurator.main(main, Config)
