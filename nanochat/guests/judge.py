"""The process that runs the tests: a clean one, in which nothing of the model's code ever runs.

    python -I -S judge.py LIMITS VERDICT_FD             replies on stdin, calls on stdout, what is printed on stderr

Beside it lie `checks.py` (the reference program of the data set, then its tests with `check(candidate)`) and `secret`.
`candidate` is a proxy: it sends plain data to the candidate's process and gets plain data back. The verdict goes to a
descriptor that the candidate does not have, with the secret, which it cannot know:

    ready
    8f27... failed: wrong answer            (or: 8f27... passed)

What goes wrong on the channel is kept beside the tests: a test that catches all exceptions cannot pass by it.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from channel import Closed, Garbage, Unplain, confine, decode, encode, receive, send, take_channel

GONE = "gone"  # the candidate's process ended: the parent knows more about why


class CandidateError(Exception):
    """The candidate raised an exception; here it is a plain one with the words of the other."""


class Broken(BaseException):
    """The channel is of no more use; no `except Exception` of a test goes on after it."""


class Proxy:
    """Looks like the candidate's function to the tests; mutable arguments arrive there as copies."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.problem = ""  # the first thing that a pass is impossible after

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.problem:
            raise Broken(self.problem)
        call = os.urandom(16)  # unguessable: replies in advance or to another call are none
        try:
            send(self.writing, encode((call, args, kwargs)))
            kind, value = self.reply(call)
        except Closed:
            self.fail(GONE)
        except Garbage as e:
            self.fail(f"garbage on the channel: {e}")
        except Unplain as e:
            self.fail(f"the tests pass {e}")
        if kind == "value":
            return value
        if kind == "exception" and type(value) is str:
            raise CandidateError(value)
        if kind == "unplain":
            self.fail(f"unplain result: {value}")
        self.fail(str(value) if kind == "broken" else "garbage on the channel: an unknown reply")

    def reply(self, call: bytes) -> tuple[object, object]:
        message = decode(receive(self.reading))
        if type(message) is not tuple or len(message) != 3 or message[0] != call:
            raise Garbage("not the reply to this call")
        return message[1:]

    def fail(self, problem: str) -> None:
        self.problem = in_words(problem)
        raise Broken(self.problem)


def in_words(reason: str) -> str:
    """One line of a reason, never an empty one, which would be no failure: `" a\\n b" -> "a b"`, `"" -> "no reason"`.

    The candidate's process writes some of them, and may write nothing but blanks.
    """
    return " ".join(reason.split())[:500] or "no reason"


def load():
    """`(module of the tests, "")`, or `(None, why there is none)`."""
    try:
        import checks
    except BaseException as e:
        return None, f"the tests do not load: {type(e).__name__}: {e}"
    return checks, ""


def judge(checks, proxy: Proxy) -> str:
    """Run the tests; "" when they pass, else why not."""
    try:
        checks.check(proxy)
    except (Broken, CandidateError) as e:
        return proxy.problem or in_words(str(e))
    except AssertionError:
        return proxy.problem or "wrong answer"
    except BaseException as e:  # len(None), and the like: what came back is not what the tests expect
        return proxy.problem or f"wrong answer ({type(e).__name__}: {e})"
    return proxy.problem


def main() -> None:
    verdict = int(sys.argv[2])
    os.set_inheritable(verdict, False)
    reading, writing = take_channel()
    confine(sys.argv[1])
    with open(os.path.join(sys.path[0], "secret"), encoding="ascii") as f:
        secret = f.read()
    checks, reason = load()
    os.write(verdict, b"ready\n")  # without a sandbox our files are removed now, before the candidate is started
    reason = reason or judge(checks, Proxy(reading, writing))
    said = f"failed: {in_words(reason)}" if reason else "passed"
    os.write(verdict, f"{secret} {said}\n".encode("ascii", "backslashreplace"))


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    try:
        main()
    finally:
        os._exit(0)
