"""The chat at a pseudo-terminal or at pipes, as real processes: forked from one that has imported everything once.

    with Terminal(base, "--temperature=0") as terminal:     # python -m scripts.chat_cli --temperature=0, in effect
        terminal.expect("you> ")
        terminal.type("hi\\n")

Importing torch takes seconds, forking none. A child has a terminal, a session and an environment of its own, and goes
through the real command line. `spy`: it also writes a JSON line of what each answer was drawn from.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import pty
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import traceback
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------- the process that forks


def serve() -> None:
    """For each line of stdin (JSON: terminal or files, arguments, environment) a child.

    Said are `started KEY PID` and `ended KEY STATUS`: who has given up on one child is not to take it for the next.
    """
    import torch

    torch.set_num_threads(1)
    for name in ("tyro", "tiktoken", "safetensors.torch", "rich.console", "scripts.chat_cli"):
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        asked = json.loads(line)
        if (pid := os.fork()) == 0:
            live(asked)
        print("started", asked["key"], pid, flush=True)
        print("ended", asked["key"], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def live(asked: dict[str, Any]) -> None:
    """A child's life: what `python -m scripts.chat_cli` does; it never returns."""
    status: Any = 1
    try:
        os.setsid()
        for fd, name in enumerate(asked["files"]):  # a terminal that is opened first becomes the session's own
            opened = os.open(name, os.O_RDWR | (0 if fd == 0 or name.startswith("/dev/") else os.O_CREAT))
            os.dup2(opened, fd)
            os.close(opened)
        at_terminal = os.isatty(1)
        sys.stdin = os.fdopen(0, encoding="utf-8")
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1 if at_terminal else -1)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        os.environ.update(asked["environment"])
        os.chdir(asked["cwd"])
        sys.argv = ["chat_cli.py", *asked["arguments"]]
        from nanochat import configurator
        from scripts import chat_cli

        if asked["spy"]:
            spy(Path(asked["spy"]))
        configurator.main(chat_cli.main, chat_cli.Config)
        status = 0
    except SystemExit as e:
        status = e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def spy(path: Path) -> None:
    """From now on every answer leaves a line: its prompt and settings, and what memory and caches there are."""
    from nanochat.engine import Engine
    from nanochat.kv_cache import KVCache

    start = Engine.start
    gc.freeze()  # what is there now stays: it need not be looked through every time

    def watched(self: Any, prompts: list, **settings: Any) -> Any:
        gc.collect()
        if not tracemalloc.is_tracing():
            tracemalloc.start()
        top_p = settings.pop("top_p", 1.0)  # for an engine that does not know it yet
        seen = {"prompt": self.tokenizer.decode(prompts[0]), "tokens": len(prompts[0]), "top_p": top_p, **settings,
                "bytes": tracemalloc.get_traced_memory()[0],
                "caches": sum(type(x) is KVCache for x in gc.get_objects())}
        with open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps(seen) + "\n")
        return start(self, prompts, **settings)

    Engine.start = watched  # type: ignore[method-assign]


# --------------------------------------------------------------------------------------------------- the tests' side


class Server:
    """The process that forks, and a queue of what it says."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "tests.chat_terminal"], cwd=ROOT, encoding="utf-8",
                                        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, start_new_session=True)  # it ends with its stdin
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)

    def ask(self, asked: dict[str, Any]) -> None:
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def hear(self, event: str, key: int) -> int:
        """The number that comes with this event of this child. Patience is counted in waits: a machine may sleep."""
        for _ in range(600):
            with contextlib.suppress(queue.Empty):
                said, of, number = self.lines.get(timeout=1).split()
                if (said, int(of)) == (event, key):
                    return int(number)
        raise AssertionError(f"the chat has not {event} in ten minutes")


server = cache(Server)  # one a test process
keys = itertools.count()


def environment(base: Path) -> dict[str, str]:
    return {"NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80",
            "PYTHONIOENCODING": "utf-8", "INPUTRC": str(base / "inputrc")}


class Chat:
    """A running chat. Only one at a time."""

    def __init__(self, base: Path, arguments: tuple[str, ...], files: list[str], cwd: Path, spy: Path | None):
        asked = {"files": files, "arguments": ["--device_type=cpu", *arguments], "environment": environment(base),
                 "cwd": str(cwd), "spy": str(spy) if spy else ""}
        self.key = asked["key"] = next(keys)
        server().ask(asked)
        self.pid = server().hear("started", self.key)
        self.status: int | None = None

    def wait(self) -> int:
        if self.status is None:
            self.status = server().hear("ended", self.key)
        return self.status

    def kill(self) -> None:
        """If it is not over yet."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Terminal(Chat):
    """The program at a pseudo-terminal of its own, with what it has shown so far."""

    def __init__(self, base: Path, *arguments: str, cwd: Path = ROOT, spy: Path | None = None):
        self.master, slave = pty.openpty()
        super().__init__(base, arguments, [os.ttyname(slave)] * 3, cwd, spy)
        self.shown = self.raw = b""  # not yet expected; what `expect` has taken last, with all control sequences
        self.slave = slave  # held open, so that the terminal lives until the child has opened it

    def expect(self, text: str, press: str = "") -> str:
        """Wait until `text` is shown; returns all up to and with it, without colours, and forgets that.

        `press` is typed every five seconds until then. Patience is counted in waits, for a machine may sleep.
        """
        waits = 0
        while text.encode() not in self.shown:
            if not select.select([self.master], [], [], 1)[0]:
                waits += 1
                assert waits < 60, f"waited for {text!r}, saw {self.shown[-500:]!r}"
                if waits % 5 == 0:  # not at the first: a machine that has slept has not missed anything
                    self.type(press)
                continue
            try:
                more = os.read(self.master, 4096)
            except OSError:  # Linux's way of saying that the other side has closed
                more = b""
            assert more, f"ended without {text!r}, saw {self.shown[-500:]!r}"
            self.shown += more
            if self.slave is not None:  # the child has opened it
                os.close(self.slave)
                self.slave = None
        self.raw, _, self.shown = self.shown.partition(text.encode())
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw.decode("utf-8", "replace")).replace("\r\n", "\n") + text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ask(self, text: str, prompt: str = "you> ") -> str:
        """Type a line at the prompt; what is shown until the next one."""
        self.type(text + "\n")
        return self.expect(prompt)

    def interrupt(self, text: str) -> None:
        """Ctrl-C, again until `text` is shown: readline misses one that comes in the instant after its prompt."""
        self.type("\x03")
        self.expect(text, press="\x03")

    def end(self) -> int:
        """The exit status (reading on, since a full terminal would block the program)."""
        try:
            while select.select([self.master], [], [], 60)[0] and (more := os.read(self.master, 4096)):
                self.shown += more
        except OSError:
            pass
        return self.wait()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        if self.slave is not None:
            os.close(self.slave)
        os.close(self.master)


def piped(folder: Path, base: Path, *arguments: str, text: str | bytes = "", cwd: Path = ROOT) -> tuple[int, str, str]:
    """The program with a file as stdin: (status, stdout, stderr)."""
    files = [folder / name for name in ("stdin", "stdout", "stderr")]
    for path in files:
        path.write_bytes(b"")
    files[0].write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    chat = Chat(base, arguments, [str(path) for path in files], cwd, None)
    try:
        status = chat.wait()
    finally:
        chat.kill()
    return status, files[1].read_text(encoding="utf-8"), files[2].read_text(encoding="utf-8")


if __name__ == "__main__":
    serve()
