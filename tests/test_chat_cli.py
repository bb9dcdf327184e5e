"""The chat in the terminal: the real program, on a real checkpoint, at a real (pseudo) terminal.

The model is a true GPT whose weights are set by hand to a chain "after this token comes that one", so that what it
says is known, however it is sampled.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nanochat.checkpoint_manager import load_model, model_config_dict, save_checkpoint
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import HuggingFaceTokenizer
from scripts.chat_cli import Config, Printer, answer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tokenizer():
    return HuggingFaceTokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 3] * 3, 280)


def save_chain(base: Path, tokenizer, said: list[int], sequence_len: int = 128, tag: str = "d1") -> None:
    """A checkpoint that answers everything with the tokens `said`, each of which must have one successor only."""
    V = tokenizer.get_vocab_size()
    model = GPT(GPTConfig(sequence_len=sequence_len, vocab_size=V, n_layer=1, n_head=2, n_kv_head=1, n_embd=V + V % 4))
    model.init_weights(0)  # the block writes nothing yet: what goes in comes out
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(*model.transformer.wte.weight.shape))
        for before, after in zip([tokenizer.encode_special("<|assistant_start|>"), *said], said):
            model.lm_head.weight[after, before] = 10.0
    save_checkpoint(base / "chatsft_checkpoints" / tag, 5, model.state_dict(), None,
                    {"model_config": model_config_dict(model), "config": {}}, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """Says, with a calculator call in between: I ⟨6*7 = 42⟩ ok🦊 (the fox is four tokens, one a byte)."""
    folder = tmp_path_factory.mktemp("base")
    single = {tokenizer.decode_bytes([i]): i for i in range(256)}
    special = tokenizer.encode_special
    said = [single[b"I"], special("<|python_start|>"), *(single[c.encode()] for c in "6*7"), special("<|python_end|>"),
            special("<|output_end|>"),  # <|output_start|> 42 before it is forced, so the chain goes on behind it
            *(single[bytes([b])] for b in "ok🦊".encode()), special("<|assistant_end|>")]
    save_chain(folder, tokenizer, said)
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory, tokenizer):
    """Says "abababab…" for ever."""
    folder = tmp_path_factory.mktemp("endless")
    a, b = (next(i for i in range(256) if tokenizer.decode_bytes([i]) == c) for c in (b"a", b"b"))
    save_chain(folder, tokenizer, [a, b, a], sequence_len=100_000)
    return folder


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "scripts.chat_cli", "--device_type=cpu", *args]


def environment(base: Path) -> dict[str, str]:
    return {**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80",
            "PYTHONIOENCODING": "utf-8"}


def run(base: Path, *args: str, text: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), cwd=ROOT, env=environment(base), input=text, capture_output=True,
                          encoding="utf-8", timeout=120)


class Terminal:
    """The program at a pseudo-terminal of its own, with what it has shown so far."""

    def __init__(self, base: Path, *args: str):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(command(*args), cwd=ROOT, env=environment(base), stdin=slave, stdout=slave,
                                        stderr=slave, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.shown = b""

    def expect(self, text: str, seconds: float = 60) -> str:
        """Wait until `text` is shown; returns all up to and with it, and forgets that."""
        end = time.monotonic() + seconds
        while text.encode() not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {self.shown[-500:]!r}"
            try:
                more = os.read(self.master, 4096)
            except OSError:  # Linux's way of saying that the other side has closed
                more = b""
            assert more, f"ended without {text!r}, saw {self.shown[-500:]!r}"
            self.shown += more
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode("utf-8", "replace") + text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self) -> int:
        """The exit status (reading on, since a full terminal would block the program)."""
        while select.select([self.master], [], [], 60)[0]:
            try:
                if not os.read(self.master, 4096):
                    break
            except OSError:
                break
        return self.process.wait(timeout=60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_one_question(base):
    """stdout is the answer and nothing else, whole characters and the folded tool call in it."""
    # trap: utf8-stream
    done = run(base, "-p", "Who are you?")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "I⟨6*7 = 42⟩ok🦊\n"


def test_cut_off_answer_says_so(base, monkeypatch, capsys):
    """Within this process: an answer that ends inside a tool call closes its bracket and tells why it ended."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    model, tokenizer, _ = load_model("sft", torch.device("cpu"), "eval", dtype=torch.float32)
    shown = io.StringIO()
    ids = tokenizer.render_for_completion({"messages": [{"role": "user", "content": "hi"}]})
    message = answer(Engine(model, tokenizer), ids, Config(max_tokens=3), Console(file=shown))
    assert shown.getvalue() == "I⟨6⟩\n"
    assert "(cut off at --max_tokens)" in capsys.readouterr().err
    assert message == {"role": "assistant",
                       "content": [{"type": "text", "text": "I"}, {"type": "python", "text": "6"}]}


def test_control_characters_are_not_obeyed():
    """A model's text cannot move the cursor or retitle the window."""
    shown = io.StringIO()
    Printer(Console(file=shown)).show("text", "a\x1b[2Jb\x07\r\x9bc\n[red]:smile:[/]")
    assert shown.getvalue() == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\n[red]:smile:[/]"


@pytest.mark.parametrize(("args", "text"), [
    (["-p", "hi", "--source=mid"], "no mid model"),
    (["-p", "hi", "--top_q=3"], "top_k"),
    (["-p", "word " * 200], "shorten"),
])
def test_mistakes_are_one_line(base, args, text):
    done = run(base, *args)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("loading ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and text in lines[0]


def test_piped_conversation(base):
    """Without a terminal: each line a message, the end of input the end."""
    # trap: context-end
    question = "tell me more about it\n"
    done = run(base, text=f"one\n\n/help\n/nonsense\n/clear\n{question * 4}/clear\n{question}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("I⟨6*7 = 42⟩ok🦊") == 6
    assert "/nonsense is not a command" in done.stderr and done.stderr.count("Ctrl-C stops an answer") == 2
    assert done.stderr.count("(forgotten)") == 2
    assert done.stderr.count("forgets the oldest turns") == 1  # one notice, though each later turn drops one more


def test_terminal_conversation(base):
    with Terminal(base) as terminal:
        terminal.expect("you> ")
        terminal.type("hi\n")
        assert "⟨" in terminal.expect("ok🦊")
        terminal.expect("you> ")
        terminal.type("wor" + "d " * 200 + "\n")
        terminal.expect("shorten it")  # and the conversation goes on
        terminal.expect("you> ")
        terminal.type("\x03")  # Ctrl-C at the prompt does not leave
        terminal.expect("/quit leaves")
        terminal.expect("you> ")
        terminal.type("hi\n")
        terminal.expect("ok🦊")
        terminal.expect("you> ")
        terminal.type("\x04")  # Ctrl-D does
        assert terminal.wait() == 0


def test_interrupt_stops_the_answer_not_the_program(endless):
    with Terminal(endless, "--max_tokens=90000") as terminal:
        terminal.expect("you> ")
        terminal.type("hi\n")
        terminal.expect("abab")
        terminal.type("\x03")
        terminal.expect("(stopped)", seconds=20)
        terminal.expect("you> ")
        terminal.type("hi\n")
        terminal.expect("abab")
        terminal.type("\x03")
        terminal.expect("(stopped)", seconds=20)
        terminal.expect("you> ")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
