"""The real server in a process of its own, for tests.

    with chat_server("--max_queue=4", delay=0.02) as server:
        httpx2.get(server.url + "/health")

With `parrot=True` its worker's model is a stand-in that says what the test wants (tests/parrot.py); with False it is a
small random model in a real checkpoint, served by the real scripts/chat_web.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from nanochat.checkpoint_manager import model_config_dict, save_checkpoint
from nanochat.gpt import GPT
from nanochat.tokenizer import RustBPETokenizer
from tests.helpers import small_model, small_tokenizer

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0  # seconds that a start may take on a busy machine


class ChatServer:
    """A server that runs."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        self.process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self._log: list[str] = []
        self._reader = threading.Thread(target=lambda: self._log.extend(self.process.stderr), daemon=True)
        self._reader.start()
        ready = self.process.stdout.readline()  # the one line that it prints
        if not ready:
            self.process.wait(PATIENCE)
            self._reader.join(PATIENCE)
            raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log()}")
        self.ready = ready.strip()
        self.url = ready.split(" listens on ")[1].split(" ")[0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def log(self) -> str:
        """What it and its workers wrote to stderr until now."""
        return "".join(self._log)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(PATIENCE)
        return status


def save_small_model(base: Path, sequence_len: int = 256) -> tuple[GPT, RustBPETokenizer]:
    """A small random model as a checkpoint of SFT under `base`."""
    tokenizer = small_tokenizer()
    model = small_model(tokenizer, sequence_len=sequence_len)
    meta = {"config": {"data": "pocket"}, "model_config": model_config_dict(model)}
    save_checkpoint(base / "chatsft_checkpoints" / "d2", 7, model.state_dict(), None, meta, tokenizer=tokenizer)
    return model, tokenizer


@contextlib.contextmanager
def chat_server(*flags: str, parrot: bool = True, delay: float = 0.0, base: Path | None = None,
                **environment: str) -> Iterator[ChatServer]:
    """The server with these flags, on a free port. `base`: NANOCHAT_BASE_DIR with a model in it (else a small one)."""
    with contextlib.ExitStack() as stack:
        if parrot:
            module, environment = "tests.parrot_server", {**environment, "PARROT_DELAY": str(delay)}
        else:
            module = "scripts.chat_web"
            if base is None:
                base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                save_small_model(base)
            environment["NANOCHAT_BASE_DIR"] = str(base)
        server = ChatServer([module, "--port=0", *flags], environment)
        try:
            yield server
        finally:
            server.stop()


def wait_until(condition, seconds: float = 30.0) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
