"""Running Python that a model has written, and judging it: by what it answers, never by what it says of itself.

    execute_code("print(6 * 7)").stdout                            # "42\n"
    verdict = run_tests(source, "add", tests)                      # tests: "def check(candidate):\n    assert ..."
    verdict.passed, verdict.reason                                 # False, "exception ZeroDivisionError: ..."

A test's verdict comes from two processes, each in a sandbox of its own (nanochat/sandbox.py). The candidate's holds
the model's code and never sees the tests. The judge's runs the tests on a stand-in for the function that sends plain
data to the candidate's and gets plain data back (nanochat/guests/). Exit codes, what is printed, patched builtins,
objects that are equal to everything: none of it reaches the judge. It tells the verdict over a pipe that the candidate
does not have, with a secret that it does not know. So a pass means that the right answers came back.

What is *not* covered: a candidate that knows the tests by heart, and in `unsafe` mode one that attacks our own
processes from outside of them (it has our rights there).

There is nothing to run here: `python -m scripts.chat_eval --tasks humaneval` grades a model by it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nanochat.common import UserError
from nanochat.sandbox import Child, Limits, describe, problem, require, start

__all__ = ["ExecutionResult", "Limits", "Verdict", "describe", "execute_code", "problem", "require", "run_tests"]

KEEP = 16 << 10  # bytes of what was printed that are kept
SAID = 16 << 10  # bytes that a verdict may have


@dataclass(frozen=True)
class ExecutionResult:
    """How a program ended. A program chooses its own exit status: this is no verdict on what it computes."""

    success: bool  # it ended by itself, with status 0
    stdout: str
    stderr: str
    error: str | None = None  # the last line of a traceback, or why it was ended
    timeout: bool = False
    memory_exceeded: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether tests passed, and if not, why: "timeout", "memory", "wrong answer", "exception NameError: ..."."""

    passed: bool
    reason: str = ""
    printed: str = ""  # by the candidate


class _Pipe:
    """What a child writes: the first bytes are kept, and none read once there were too many."""

    def __init__(self, limit: int, keep: int = KEEP) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.limit, self.keep, self.size, self.kept, self.open = limit, keep, 0, b"", True

    @property
    def full(self) -> bool:
        return self.size > self.limit

    def close_writing(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        self.close_writing()
        os.close(self.reading)

    def read(self) -> None:
        """Take what is there now."""
        while self.open and not self.full:
            try:
                part = os.read(self.reading, 1 << 16)
            except BlockingIOError:
                return
            self.size += len(part)
            self.kept += part[: self.keep - len(self.kept)]
            self.open = bool(part)

    @property
    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")


def _watch(pipes: list[_Pipe], deadline: float, done: Callable[[], bool]) -> str:
    """Read until `done()`: "", or "output limit" or "timeout" before that."""
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe.reading, select.POLLIN)
    by_fd = {pipe.reading: pipe for pipe in pipes}
    while not done():
        rest = deadline - time.monotonic()
        if rest <= 0:
            return "timeout"
        for fd, _ in poll.poll(min(rest, 3600) * 1000 + 1):
            by_fd[fd].read()
            if by_fd[fd].full:
                return "output limit"
            if not by_fd[fd].open:
                poll.unregister(fd)
    return ""


# --------------------------------------------------------------------------- a whole program


def execute_code(
    code: str,
    timeout: float = 5.0,
    maximum_memory_bytes: int = 256 << 20,
    *,
    unsafe: bool = False,
) -> ExecutionResult:
    """Run a program as `__main__` in the sandbox.

    `execute_code("print(1/0)") -> ExecutionResult(False, "", "Traceback ...", "ZeroDivisionError: division by zero")`
    """
    limits = Limits(seconds=timeout, memory_bytes=maximum_memory_bytes)
    source = _encoded(code, limits)
    if source is None:
        return ExecutionResult(False, "", "", "the program is too long")
    require(unsafe)
    with _faults_of_this_machine():
        return _execute(source, limits, unsafe)


def _execute(source: bytes, limits: Limits, unsafe: bool) -> ExecutionResult:
    out, err = _Pipe(limits.output_bytes), _Pipe(limits.output_bytes)
    try:
        deadline = time.monotonic() + limits.seconds
        child = start("program.py", [], {"solution.py": source}, limits, stdout=out.writing, stderr=err.writing,
                      unsafe=unsafe)
        try:
            out.close_writing()
            err.close_writing()
            ended = _watch([out, err], deadline, lambda: child.process.poll() is not None or not (out.open or err.open))
            if not ended and child.process.poll() is None:  # it has closed both, and may go on
                ended = _wait(child, deadline)
        finally:
            status = child.end()
        for pipe in (out, err):
            pipe.read()
        memory = child.out_of_memory or "MemoryError" in err.text[-200:]
        error = ended or ("memory" if memory else _how_it_ended(status, err.text))
        return ExecutionResult(not error, out.text, err.text, error or None, ended == "timeout", memory)
    finally:
        out.close()
        err.close()


def _wait(child: Child, deadline: float) -> str:
    while child.process.poll() is None:
        if time.monotonic() > deadline:
            return "timeout"
        time.sleep(0.01)
    return ""


def _how_it_ended(status: int, stderr: str) -> str:
    """`(1, "...\\nValueError: x\\n") -> "ValueError: x"`, `(0, "") -> ""`, `(139, "") -> "ended by signal 11"`."""
    if status == 0:
        return ""
    if status == 128 + 24:  # SIGXCPU
        return "cpu time"
    if status > 128:
        return f"ended by signal {status - 128}"
    lines = stderr.strip().splitlines()
    return lines[-1][:500] if lines and status == 1 else f"exit status {status}"


def _encoded(code: str, limits: Limits) -> bytes | None:
    """The bytes of a program, or None if there are too many. Half a character is written as Python would escape it."""
    data = code.encode("utf-8", "backslashreplace")
    return data if len(data) <= limits.source_bytes else None


# --------------------------------------------------------------------------- a function, by tests


def run_tests(
    candidate: str,
    entry_point: str,
    tests: str,
    limits: Limits | None = None,
    *,
    unsafe: bool = False,
) -> Verdict:
    """Whether the function `entry_point` of the program `candidate` passes `check(candidate)` of `tests`.

    `run_tests("def f(x): return x + 1", "f", "def check(candidate): assert candidate(1) == 2") -> Verdict(True)`

    `tests` runs as it is: what it needs (imports, helpers) stands in it. Thread-safe; whatever the candidate does, the
    answer is a Verdict.
    """
    limits = limits or Limits()
    source = _encoded(candidate, limits)
    if source is None:
        return Verdict(False, "the program is too long")
    require(unsafe)
    with _faults_of_this_machine():
        return _Trial(limits, unsafe).run(source, entry_point, tests.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def _faults_of_this_machine() -> Iterator[None]:
    """What we run out of is no fault of the program: it ends the evaluation, and is no wrong answer."""
    try:
        yield
    except OSError as e:
        raise UserError(f"a program could not be run here ({e.strerror or e}): see whether this machine has "
                        "descriptors (ulimit -n), processes and memory left") from e


class _Trial:
    """One candidate before its judge: their pipes, their processes, one deadline."""

    def __init__(self, limits: Limits, unsafe: bool) -> None:
        self.limits, self.unsafe = limits, unsafe
        self.secret = secrets.token_hex(16)
        self.verdict = _Pipe(SAID, SAID)
        self.printed = _Pipe(limits.output_bytes)
        self.judge_printed = _Pipe(limits.output_bytes)
        self.pipes = [self.verdict, self.printed, self.judge_printed]
        self.deadline = time.monotonic() + limits.seconds

    def run(self, source: bytes, entry_point: str, tests: bytes) -> Verdict:
        calls, calling = os.pipe()
        replies, replying = os.pipe()
        channel = [calls, calling, replies, replying]
        children: list[Child] = []
        try:
            try:
                children.append(start(
                    "judge.py", [str(self.verdict.writing)],
                    {"checks.py": tests, "secret": self.secret.encode()}, self.limits, stdin=replies, stdout=calling,
                    stderr=self.judge_printed.writing, pass_fds=[self.verdict.writing], unsafe=self.unsafe))
                self.verdict.close_writing()
                self.judge_printed.close_writing()
                early = self.hide(children[0]) if self.unsafe else ""
                if not early:
                    children.append(start("candidate.py", [entry_point], {"solution.py": source}, self.limits,
                                          stdin=calls, stdout=replying, stderr=self.printed.writing,
                                          unsafe=self.unsafe))
                    self.printed.close_writing()
            finally:
                for fd in channel:
                    os.close(fd)
            ended = early or _watch(self.pipes, self.deadline, self.said_all)
            if not ended and self.outcome() == "gone":
                _wait(children[-1], min(self.deadline, time.monotonic() + 1))  # for the status that it ended with
        finally:
            running = [child.process.poll() is None for child in children]
            statuses = [child.end() for child in children]
            for pipe in self.pipes:
                pipe.read()
                pipe.close()
        memory = children[-1].out_of_memory or children[0].out_of_memory
        reason = ended or self.outcome()
        if reason == "gone":
            how = "it closed the channel" if running[-1] else _how_it_ended(statuses[-1], "") or "it ended"
            reason = f"the candidate was gone before the tests had ended: {how}"
        if reason and (memory or reason.startswith("exception MemoryError")):
            reason = "memory"
        return Verdict(not reason, reason, self.printed.text)

    def hide(self, judge: Child) -> str:
        """Without a sandbox: wait until the judge has read its tests and its secret, then remove them from the disk."""
        ended = _watch(self.pipes, self.deadline, lambda: b"\n" in self.verdict.kept or not self.verdict.open)
        if judge.folder:
            for path in (judge.folder / "box").iterdir():
                path.unlink()
        return ended

    def said_all(self) -> bool:
        return self.verdict.kept.count(b"\n") >= 2 or not self.verdict.open

    def outcome(self) -> str:
        """What the judge has said: "" for a pass, else a reason. Only a whole line with the secret counts."""
        lines = self.verdict.kept.decode("ascii", "replace").split("\n")
        secret, _, said = lines[1].partition(" ") if len(lines) == 3 and lines[0] == "ready" else ("", "", "")
        if secret != self.secret:
            return "no verdict: the judge ended without one"
        # of all that can be said one thing only is a pass: a failure without a reason is none
        return "" if said == "passed" else said.removeprefix("failed: ").strip() or "no reason"
