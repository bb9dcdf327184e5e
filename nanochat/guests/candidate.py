"""The process that holds a model's code and answers calls; it never sees the tests.

    python -I -S candidate.py LIMITS ENTRY_POINT        calls on stdin, replies on stdout, what is printed on stderr

Beside it lies `solution.py`, the model's code. A call is `(id, args, kwargs)`, a reply `(id, kind, value)`: kind is
"value", "exception", "unplain" (the result is no plain data) or "broken" (there is no such function). Nothing here is
protected from the model's code, which lives in the same process: whatever it makes of the channel, it can only fail.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from channel import Closed, Garbage, Unplain, confine, decode, encode, receive, send, take_channel


def load(entry_point: str):
    """`(function, "")`, or `(None, why there is none)`."""
    try:
        import solution

        function = getattr(solution, entry_point, None)
    except BaseException as e:
        return None, described(e)
    return (function, "") if callable(function) else (None, f"no function {entry_point}")


def described(error: BaseException) -> str:
    """`ValueError("x") -> "exception ValueError: x"`, whatever its own `__str__` does."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"exception {name}: {text}"[:500] if text else f"exception {name}"


def answer(function, args: tuple, kwargs: dict) -> tuple[str, bytes]:
    """`(kind, encoded value)` of one call."""
    try:
        value = function(*args, **kwargs)
    except BaseException as e:
        return "exception", encode(described(e))
    try:
        return "value", encode(value)
    except Unplain as e:
        return "unplain", encode(str(e))
    except BaseException as e:  # a container that changes while it is sent, no memory
        return "unplain", encode(described(e))


def main() -> None:
    reading, writing = take_channel()
    confine(sys.argv[1])
    function, broken = load(sys.argv[2])
    while True:
        call, args, kwargs = decode(receive(reading))
        kind, value = ("broken", encode(broken)) if broken else answer(function, args, kwargs)
        # a tuple of three parts whose last one is encoded already
        send(writing, encode((call, kind, None))[:-1] + value)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    try:
        main()
    except (Closed, Garbage):
        pass
    finally:
        os._exit(0)  # threads of the model's code do not keep it alive
