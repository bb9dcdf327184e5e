"""What candidate and judge share: plain data as bytes, frames on a pipe, and the limits that a process puts on itself.

Between the two only plain data passes: None, bool, int, float, complex, str, bytes, and list, tuple, dict, set,
frozenset of these, each of exactly that type (OrderedDict, defaultdict and Counter go as the dicts that they are).
An object with an `__eq__` of its own would grade itself. Both directions are bounded and free of recursion, since each
side must stand whatever the other sends.

    encode([1, "a"]) -> b"l\\x02\\0\\0\\0" b"i\\x01\\0\\0\\0\\x01" b"s\\x01\\0\\0\\0a"      decode(...) -> [1, "a"]

There is nothing to run here: `candidate.py` and `judge.py` import it from the folder that they are in.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter, OrderedDict, defaultdict
from itertools import chain

MAX_BYTES = 4 << 20  # of one message
MAX_ITEMS = 200_000  # values in one message, containers counted
MAX_DEPTH = 100  # containers in containers
MAX_INT_BYTES = 1 << 16  # 157 826 digits: more would only burn the judge's time

SIZE = struct.Struct("<I")
FLOAT = struct.Struct("<d")
COMPLEX = struct.Struct("<dd")
CONTAINERS = {list: b"l", tuple: b"t", set: b"S", frozenset: b"z", dict: b"d"}
KINDS = {tag[0]: kind for kind, tag in CONTAINERS.items()}
AS_DICT = (OrderedDict, defaultdict, Counter)


class Unplain(Exception):
    """A value that cannot be sent: not of a plain type, or too large or deep."""


class Garbage(Exception):
    """Bytes that are no message."""


class Closed(Exception):
    """The other side is gone."""


def encode(value: object) -> bytes:
    """The bytes of a plain value; Unplain where it is not one. Walks depth first with a stack of iterators."""
    parts: list[bytes] = []
    size, items = 0, 0
    stack = [iter((value,))]
    while stack:
        for item in stack[-1]:
            items += 1
            part, inner = _head(item)
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES or items > MAX_ITEMS:
                raise Unplain(f"more than {MAX_BYTES:,} bytes or {MAX_ITEMS:,} values")
            if inner is not None:
                if len(stack) > MAX_DEPTH:
                    raise Unplain(f"nested deeper than {MAX_DEPTH}")
                stack.append(inner)
                break
        else:
            stack.pop()
    return b"".join(parts)


def _head(item):
    """`(bytes, None)` of a value without parts, `(tag and count, iterator over its parts)` of a container."""
    kind = type(item)
    if item is None:
        return b"N", None
    if kind is bool:
        return (b"T" if item else b"F"), None
    if kind is int:
        length = item.bit_length() // 8 + 1
        if length > MAX_INT_BYTES:
            raise Unplain("an int of too many digits")
        return b"i" + SIZE.pack(length) + item.to_bytes(length, "little", signed=True), None
    if kind is float:
        return b"f" + FLOAT.pack(item), None
    if kind is complex:
        return b"c" + COMPLEX.pack(item.real, item.imag), None
    if kind is str or kind is bytes:
        if len(item) > MAX_BYTES:
            raise Unplain(f"a {kind.__name__} of more than {MAX_BYTES:,}")
        data = item.encode("utf-8", "surrogatepass") if kind is str else item
        return (b"s" if kind is str else b"b") + SIZE.pack(len(data)) + data, None
    if kind in AS_DICT:
        kind = dict
    if kind not in CONTAINERS:
        raise Unplain(f"an object of type {kind.__name__[:100]}")
    if len(item) > MAX_ITEMS:
        raise Unplain(f"more than {MAX_ITEMS:,} values")
    inner = chain.from_iterable(dict.items(item)) if kind is dict else iter(item)
    return CONTAINERS[kind] + SIZE.pack(len(item)), inner


def decode(data: bytes) -> object:
    """The value of `encode`'s bytes, or Garbage. Open containers are kept on a stack: [type, parts to come, parts]."""
    position, items = 0, 0
    stack: list[list] = []
    while True:
        items += 1
        if items > MAX_ITEMS or len(stack) > MAX_DEPTH:
            raise Garbage("too many values, or nested too deeply")
        tag = data[position : position + 1]
        position += 1
        if tag and tag[0] in KINDS:
            kind = KINDS[tag[0]]
            (count,), position = _take(data, position, SIZE)
            stack.append([kind, count * 2 if kind is dict else count, []])
        else:
            value, position = _leaf(tag, data, position)
            if not stack:
                break
            stack[-1][2].append(value)
        while stack and len(stack[-1][2]) == stack[-1][1]:  # complete: into the container around it
            kind, _, parts = stack.pop()
            try:
                value = dict(zip(parts[::2], parts[1::2])) if kind is dict else kind(parts)
            except TypeError:
                raise Garbage("a key that cannot be one") from None
            if not stack:
                break
            stack[-1][2].append(value)
        if not stack:
            break
    if position != len(data):
        raise Garbage("bytes after the value")
    return value


def _take(data: bytes, position: int, form: struct.Struct) -> tuple[tuple, int]:
    if position + form.size > len(data):
        raise Garbage("cut off")
    return form.unpack_from(data, position), position + form.size


def _leaf(tag: bytes, data: bytes, position: int) -> tuple[object, int]:
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], position
    if tag == b"f":
        (value,), position = _take(data, position, FLOAT)
        return value, position
    if tag == b"c":
        parts, position = _take(data, position, COMPLEX)
        return complex(*parts), position
    if tag not in (b"i", b"s", b"b") or not tag:
        raise Garbage("an unknown kind of value")
    (length,), position = _take(data, position, SIZE)
    raw = data[position : position + length]
    if len(raw) < length or (tag == b"i" and length > MAX_INT_BYTES):
        raise Garbage("cut off, or too long")
    position += length
    if tag == b"i":
        return int.from_bytes(raw, "little", signed=True), position
    if tag == b"b":
        return raw, position
    try:
        return raw.decode("utf-8", "surrogatepass"), position
    except UnicodeDecodeError:
        raise Garbage("text that is not UTF-8") from None


def send(fd: int, data: bytes) -> None:
    """One frame: its length, then its bytes."""
    rest = memoryview(SIZE.pack(len(data)) + data)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError:
        raise Closed from None


def receive(fd: int) -> bytes:
    """The bytes of the next frame."""
    (length,) = SIZE.unpack(_read(fd, SIZE.size))
    if length > MAX_BYTES + 1024:
        raise Garbage(f"a message of {length:,} bytes")
    return _read(fd, length)


def _read(fd: int, length: int) -> bytes:
    parts = []
    while length:
        try:
            part = os.read(fd, min(length, 1 << 16))
        except OSError:
            part = b""
        if not part:
            raise Closed
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def confine(limits: str) -> None:
    """Put limits on this process and all that it starts, for good (hard limits).

    `"cpu=10,as=536870912,nproc=16,fsize=4194304,nofile=64"`: seconds of CPU, bytes of address space, processes and
    threads of this user, bytes of a file, open files. No core dumps, and nothing swapped to a file.
    """
    import resource

    for item in limits.split(","):
        name, _, value = item.partition("=")
        soft = hard = int(value)
        if name == "cpu":
            hard += 1  # the soft limit's signal says why a process ended; the hard one cannot be ignored
        which = getattr(resource, "RLIMIT_" + name.upper())
        bound = resource.getrlimit(which)[1]
        if bound != resource.RLIM_INFINITY:
            soft, hard = min(soft, bound), min(hard, bound)
        try:
            resource.setrlimit(which, (soft, hard))
        except (ValueError, OSError):
            if sys.platform == "linux":  # elsewhere there is no sandbox anyway, and macOS knows no RLIMIT_AS
                raise
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def take_channel() -> tuple[int, int]:
    """`(read, write)`: what were stdin and stdout. From then on stdin is empty and what is printed goes to stderr."""
    reading, writing = os.dup(0), os.dup(1)  # not inheritable
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return reading, writing
