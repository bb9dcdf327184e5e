"""Programs that attack what grades them: none passes, none has an effect on this machine, none survives.

Each file of `tests/attacks/` is a candidate for the function `add`, and most of them return a right sum exactly when
their attack has worked: "not passed" then says that it has not. A file's header says what it tries, its kind, what the
verdict must say, and how many seconds it gets. Forgeries are also run without a sandbox: a verdict must hold there too.

Run: python -m pytest tests/test_attacks.py        (needs bubblewrap)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat import cgroup
from nanochat.execution import Limits, Verdict, run_tests
from tests.box import needs_box

pytestmark = needs_box

FOLDER = Path(__file__).parent / "attacks"
SPARE = 16 << 20  # bytes that the parent may grow by

TESTS = """
def check(candidate):  # @MARK@
    assert candidate(2, 3) == 5
    assert candidate([1], [2, 3]) == [1, 2, 3]
    assert candidate("a", "b") == "ab"
    assert candidate(10**20, 1) == 10**20 + 1
"""


@dataclass(frozen=True)
class Attack:
    name: str
    kind: str  # forgery, host or resources
    seen: re.Pattern[str]  # in the verdict's reason
    seconds: float
    source: str


def read_attack(path: Path) -> Attack:
    source = path.read_text(encoding="utf-8")
    fields = dict(re.findall(r"^(Kind|Seen|Seconds): (.+)$", source, re.MULTILINE))
    return Attack(path.stem, fields["Kind"], re.compile(fields["Seen"]), float(fields.get("Seconds", 10)), source)


ATTACKS = [read_attack(path) for path in sorted(FOLDER.glob("*.py"))]
FORGERIES = [attack for attack in ATTACKS if attack.kind == "forgery"]


# --------------------------------------------------------------------------- the host that is attacked


@dataclass
class Host:
    """What there is to find and to harm."""

    folder: Path
    secret: str
    tcp: socket.socket
    abstract: socket.socket
    segment: int  # of shared memory

    def fill_in(self, text: str, mark: str) -> str:
        found = {"CANARY": self.folder / "canary", "FOLDER": self.folder, "SECRET": self.secret, "PID": os.getpid(),
                 "PORT": self.tcp.getsockname()[1], "SOCKET": self.abstract.getsockname()[1:].decode(),
                 "MARK": mark, "SHM": self.segment, "PROJECT": Path(__file__).parents[1]}
        for name, value in found.items():
            text = text.replace(f"@{name}@", str(value))
        return re.sub(r"\badd\b", mark, text)

    def effects(self) -> list[str]:
        """What an attack has done to it; [] is wanted."""
        found = []
        if sorted(p.name for p in self.folder.iterdir()) != ["canary"]:
            found.append(f"files: {sorted(self.folder.iterdir())}")
        if (self.folder / "canary").read_text(encoding="utf-8") != self.secret:
            found.append("the canary was changed")
        for server in (self.tcp, self.abstract):
            with contextlib.suppress(BlockingIOError):
                found.append(f"a connection to {server.getsockname()} from {server.accept()[1]}")
        left = [Path(folder) / "nanochat-was-here" for folder in ("/", "/etc", "/tmp", "/var/tmp", "/dev/shm", "/dev")]
        return found + [f"a file: {path}" for path in left if path.exists()]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="host-of-attacks-"))
    folder.chmod(0o777)  # that a file is not written or read must not be for lack of rights
    secret = secrets.token_hex(16)
    (folder / "canary").write_text(secret, encoding="utf-8")
    (folder / "canary").chmod(0o666)
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(2**30) + 1
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract:
        abstract.bind(f"\0nanochat-{secret}")
        abstract.listen()
        for server in (tcp, abstract):
            server.setblocking(False)
        os.environ["NANOCHAT_CANARY"] = secret
        try:
            yield Host(folder, secret, tcp, abstract, key)
        finally:
            del os.environ["NANOCHAT_CANARY"]
            libc.shmctl(segment, 0, None)
            shutil.rmtree(folder)


def survivors(mark: str) -> list[str]:
    """Processes that have the name of the function in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in (command := path.read_bytes()):
                found.append(f"{path.parent.name}: {command!r}")
    return found


def groups_of_ours() -> list[Path]:
    place = cgroup.memory_folder()
    return list(place[0].glob(f"nanochat-{os.getpid()}-*")) if place else []


def peak() -> int:
    """The most resident memory since it was last reset, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+([0-9]+) kB", status)[1]) << 10


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def attacked(host: Host, attack: Attack, unsafe: bool = False) -> Verdict:
    """The verdict on an attack, once all that must hold for every one of them was seen to hold."""
    mark = f"add_{secrets.token_hex(8)}"
    source, tests = host.fill_in(attack.source, mark), host.fill_in(TESTS, mark)
    limits = Limits(seconds=attack.seconds, memory_bytes=256 << 20)
    reset_peak()
    before = peak()
    verdict = run_tests(source, mark, tests, limits, unsafe=unsafe)
    grown = peak() - before
    if not unsafe:
        assert survivors(mark) == [] and groups_of_ours() == []
    assert host.effects() == []
    assert grown <= SPARE, f"the parent has grown by {grown:,} bytes"
    return verdict


# --------------------------------------------------------------------------- the tests


def test_what_is_right_passes_the_same_tests(host):
    """Else nothing below would say anything."""
    right = Attack("right", "", re.compile(""), 30, "def add(a, b):\n    print('passed')\n    return a + b\n")
    assert attacked(host, right) == Verdict(True, "", "passed\n" * 4)
    assert attacked(host, right, unsafe=True).passed


def test_there_are_attacks_of_every_kind():
    assert len(ATTACKS) >= 60
    assert {attack.kind for attack in ATTACKS} == {"forgery", "host", "resources"}


# trap: Sandbox (all of that list: exit codes, __eq__, environ, reload, ctypes, forks, memory, disk, sockets, output, …)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_fails_and_leaves_no_trace(host, attack):
    verdict = attacked(host, attack)
    assert not verdict.passed
    assert attack.seen.search(verdict.reason), verdict


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.name)
def test_a_forgery_fails_without_a_sandbox_too(host, attack):
    verdict = attacked(host, attack, unsafe=True)
    assert not verdict.passed
    assert attack.seen.search(verdict.reason), verdict
