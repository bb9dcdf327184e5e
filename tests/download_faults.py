"""Downloads from a mirror that breaks, by processes that are killed: one random schedule after another.

    python -m tests.chaos downloads --schedules=500 --seed=0

A schedule: some files, 8 downloading threads, a mirror whose answers go wrong in the ways of `hub_mirror.KINDS`; in a
share of the schedules also a second process that fetches into the same folder, a process killed (SIGKILL) mid-download
and started again, rotten bytes left by an earlier run, or a file that the mirror never serves well. Afterwards every
file must be there with its own bytes; no other bytes may have been seen under its name while it ran; nothing but empty
lock files may be left; what had arrived before a kill must not have been asked for again; and a file that could not be
had must be named, with the others there.

The downloaders are processes forked from one that has imported everything: a schedule takes a fraction of a second.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tests.hub_mirror import Fault, Faults, Mirror, Repo

ROOT = Path(__file__).resolve().parents[1]
SIZES = (0, 1, 1000, 16384, 16385, 50_000, 100_000, 150_000, 200_000, 300_000)
READ_TIMEOUT, STALL = 0.5, 1.5  # seconds
PATIENCE = 60.0  # seconds for one process, then it counts as stuck
FOREVER = (Fault("wrong"), Fault("503"), Fault("416"), Fault("429 wait"), Fault("cut", 0.0))


# --------------------------------------------------------------------------- the downloading processes


def serve_forks(read_timeout: float) -> None:
    """For each line of JSON on stdin, a child that does what it says; its process id on stdout.

    A line: `{"repo": ..., "folder": ..., "result": ...}`. The child writes `{"error": text or null}` to `result`.
    """
    from huggingface_hub import constants

    from nanochat import hub

    for name in ("httpx2", "huggingface_hub.errors", "huggingface_hub.utils"):
        importlib.import_module(name)  # here, once, for all children

    constants.HF_HUB_DOWNLOAD_TIMEOUT = read_timeout  # the environment variable takes whole seconds only
    hub.BACKOFF, hub.BACKOFF_MAX, hub.RETRY_AFTER_MAX = 0.005, 0.05, 0.05
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: the kernel takes them away
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            download(**json.loads(line))
        print(pid, flush=True)


def download(repo: str, folder: str, result: str) -> None:
    """A child's life."""
    from nanochat import hub

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    error: str | None = None
    try:
        listing = hub.list_files(repo)
        hub.fetch(listing, listing.files, folder, workers=8)
    except BaseException as e:
        error = str(e) if isinstance(e, hub.UserError) else f"bug: {e!r}"
    Path(f"{result}.tmp").write_text(json.dumps({"error": error}), encoding="utf-8")
    os.replace(f"{result}.tmp", result)
    os._exit(0)


class ForkServer:
    """`serve_forks` in a process of its own, with the environment of a person who uses the mirror."""

    def __init__(self, url: str, read_timeout: float = READ_TIMEOUT):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_of_nobody"}
        command = [sys.executable, "-m", "tests.download_faults", "serve-forks", str(read_timeout)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def start(self, repo: str, folder: Path, result: Path) -> Downloader:
        self.process.stdin.write(json.dumps({"repo": repo, "folder": str(folder), "result": str(result)}) + "\n")
        self.process.stdin.flush()
        return Downloader(int(self.process.stdout.readline()), result)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()  # its children are done, or were killed one by one
        self.process.wait()


@dataclass
class Downloader:
    """One process that fetches."""

    pid: int
    result: Path

    def ended(self) -> bool:
        return self.result.exists()

    def kill(self) -> None:
        """SIGKILL, and until it is gone: then all it held is free and what it wrote stays as it is."""
        try:
            os.kill(self.pid, signal.SIGKILL)
            while True:
                os.kill(self.pid, 0)
                time.sleep(0.001)
        except ProcessLookupError:
            return

    def outcome(self) -> str | None:
        """None, or the one line that it failed with."""
        deadline = time.monotonic() + PATIENCE
        while not self.ended():
            if time.monotonic() > deadline:
                self.kill()
                return f"bug: not done after {PATIENCE:.0f} s"
            time.sleep(0.002)
        return json.loads(self.result.read_text(encoding="utf-8"))["error"]


# --------------------------------------------------------------------------- one schedule


@dataclass(frozen=True)
class Schedule:
    """What happens, drawn from a seed."""

    number: int
    seed: str
    sizes: tuple[int, ...]
    rate: float  # of faults
    second: bool  # a second process, at the same time
    kills: tuple[int, ...]  # the first process is killed after this many more bytes were sent, and started again
    rotten: str  # "", "part" or "file": wrong bytes that lie there before
    never: int  # a file that is never served well; -1: none


def draw(number: int, seed: int) -> Schedule:
    r = random.Random(f"{seed} {number}")
    sizes = tuple(r.choice(SIZES) for _ in range(r.randint(4, 12)))
    kills = tuple(r.randint(0, max(1, sum(sizes) // 2)) for _ in range(r.choice((0, 0, 1, 1, 2))))
    never = r.randrange(len(sizes)) if r.random() < 0.15 else -1
    if never >= 0 and sizes[never] == 0:
        never = -1  # nothing can be wrong about no bytes
    return Schedule(number, f"{seed} {number}", sizes, r.choice((0.2, 0.5, 0.8)), r.random() < 0.4, kills,
                    r.choice(("", "", "part", "file")), never)


@dataclass
class Watcher(threading.Thread):
    """Looks at the files under their final names, all the time, and notes what is not the content of the repository."""

    folder: Path
    content: dict[str, bytes]
    known_bad: set[int] = field(default_factory=set)  # inodes of what we put there ourselves
    seen: set[tuple] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def look(self) -> None:
        for name, content in self.content.items():
            path = self.folder / name
            try:
                with open(path, "rb") as f:
                    stat = os.fstat(f.fileno())
                    key = (name, stat.st_ino, stat.st_mtime_ns, stat.st_size)
                    if key in self.seen or stat.st_ino in self.known_bad:
                        continue
                    if f.read() != content:
                        self.wrong.append(f"{name} was seen with wrong content")
                    self.seen.add(key)
            except FileNotFoundError:
                continue

    def run(self) -> None:
        while not self.over.wait(0.002):
            self.look()


class Trial:
    """A mirror and a fork server, and the schedules that run on them one after the other."""

    def __init__(self, base: Path):
        self.base = base
        self.mirror = Mirror({}, stall=STALL, retry_after="3")
        self.forks = ForkServer(self.mirror.url)
        self.totals: Counter = Counter()

    def __enter__(self) -> Trial:
        self.mirror.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.forks.close()
        self.mirror.__exit__(*error)

    def run(self, s: Schedule) -> list[str]:
        """What went wrong in one schedule."""
        where = self.base / f"s{s.number}"
        content = self.make_files(where / "repo", s)
        names, repo = sorted(content), f"trial/s{s.number}"
        never = f"data/shard_{s.never:05d}.parquet" if s.never >= 0 else ""
        r = random.Random(s.seed + " run")
        always = {never: r.choice(FOREVER)} if never else {}
        self.mirror.repos = {repo: Repo(where / "repo")}
        self.mirror.faults = faults = Faults(seed=s.number, rate=s.rate, always=always)
        self.mirror.asked, self.mirror.slow = [], 0.002 if s.kills or s.second else 0.0
        folder = where / "out"
        watcher = Watcher(folder, content, self.leave_rotten(folder, content, s, r))
        watcher.start()
        problems = self.download(s, repo, folder, where, never)
        watcher.over.set()
        watcher.join()
        watcher.look()
        problems += watcher.wrong
        for name in names:
            path = folder / name
            if name != never and not path.is_file():
                problems.append(f"{name} is missing")
            elif name != never and path.read_bytes() != content[name]:
                problems.append(f"{name} is wrong at the end")
        problems += [f"left behind: {p}" for p in self.left_behind(folder, content, never)]
        self.totals += faults.by_kind
        self.totals += Counter({"schedules": 1, "files": len(names), "kills": len(s.kills), "second": s.second,
                                "never": bool(never), "rotten": bool(s.rotten),
                                "resumed": sum(a.status == 206 for a in self.mirror.asked)})
        if not problems:
            shutil.rmtree(where)
        return [f"schedule {s.number}: {problem}" for problem in problems]

    @staticmethod
    def make_files(folder: Path, s: Schedule) -> dict[str, bytes]:
        """The repository: `data/shard_00000.parquet` and so on, random bytes (a downloader does not look inside)."""
        r = random.Random(s.seed + " files")
        content = {f"data/shard_{i:05d}.parquet": r.randbytes(size) for i, size in enumerate(s.sizes)}
        (folder / "data").mkdir(parents=True)
        for name, data in content.items():
            (folder / name).write_bytes(data)
        return content

    def leave_rotten(self, folder: Path, content: dict[str, bytes], s: Schedule, r: random.Random) -> set[int]:
        """What an earlier run, or a bad disk, has left: a partial or a finished file with wrong bytes."""
        name = r.choice([n for n, data in content.items() if len(data) > 1] or [""])
        if not s.rotten or not name:
            return set()
        size = len(content[name])
        if s.rotten == "file":
            (folder / "data").mkdir(parents=True)
            (folder / name).write_bytes(r.randbytes(size))
            return {(folder / name).stat().st_ino}
        part = self.part(folder, name)
        part.parent.mkdir(parents=True)
        part.write_bytes(r.randbytes(r.randint(1, size + 5)))
        return set()

    def part(self, folder: Path, name: str) -> Path:
        """Where the bytes of a file gather before it is whole."""
        from nanochat import hub

        entry = next(iter(self.mirror.repos.values())).files[name]
        job = hub._Job(hub.Listing("", "", ()), folder, lambda file, path: False)
        return job.part(hub.HubFile(name, entry.bytes, entry.sha256))

    def download(self, s: Schedule, repo: str, folder: Path, where: Path, never: str) -> list[str]:
        """Run the processes of a schedule; what they did wrong."""
        problems: list[str] = []
        first = self.forks.start(repo, folder, where / "first0")
        others = [self.forks.start(repo, folder, where / "second")] if s.second else []
        for i, after in enumerate(s.kills):
            goal = self.mirror.sent() + after
            while self.mirror.sent() < goal and not first.ended():
                time.sleep(0.001)
            first.kill()
            parts = {} if s.second else self.parts(folder)
            asked = len(self.mirror.asked)
            first = self.forks.start(repo, folder, where / f"first{i + 1}")
            if parts and not s.kills[i + 1 :]:
                first.outcome()
                problems += self.not_resumed(parts, asked)
        for process in (first, *others):
            error = process.outcome()
            if never and (error is None or "could not fetch 1 of" not in error or f" {never} (" not in error):
                problems.append(f"the error does not name {never}, and it alone: {error}")
            elif not never and error:
                problems.append(f"failed: {error}")
        return problems

    def parts(self, folder: Path) -> dict[str, int]:
        """Bytes that have arrived of each unfinished file."""
        paths = {name: self.part(folder, name) for name in next(iter(self.mirror.repos.values())).files}
        return {name: p.stat().st_size for name, p in paths.items() if p.exists() and p.stat().st_size}

    def not_resumed(self, parts: dict[str, int], asked: int) -> list[str]:
        """Unfinished files that were asked for again after the kill, but never for just the rest of them."""
        problems = []
        files = next(iter(self.mirror.repos.values())).files
        for name, size in parts.items():
            mine = [a for a in self.mirror.asked[asked:] if a.path.endswith(f"/{name}") and "/cdn/" in a.path]
            whole = size >= files[name].bytes  # checked on the spot: thrown away, or done
            if mine and not whole and all(a.range != f"bytes={size}-" for a in mine):
                problems.append(f"{name} has {size} bytes, and after the kill '{mine[0].range}' was asked for")
        return problems

    def left_behind(self, folder: Path, content: dict[str, bytes], never: str) -> list[str]:
        """Files that are none of the repository's: all but empty locks, and the beginning of what could not be had."""
        unfinished = self.part(folder, never) if never else None
        found = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            lock = path.suffix == ".lock" and path.parent.name == ".hub" and path.stat().st_size == 0
            if not (lock or path.relative_to(folder).as_posix() in content or path == unfinished):
                found.append(path.relative_to(folder).as_posix())
        return found


# --------------------------------------------------------------------------- many schedules


def run_some(numbers: list[int], seed: int) -> tuple[list[str], Counter]:
    """Failures and totals of the schedules with these numbers."""
    problems: list[str] = []
    base = Path(tempfile.mkdtemp(prefix="download_faults_"))
    with Trial(base) as trial:
        for number in numbers:
            problems += trial.run(draw(number, seed))
    if not problems:
        shutil.rmtree(base)
    return problems, trial.totals


def run_schedules(n: int, seed: int = 0, processes: int = 1, totals: Counter | None = None) -> list[str]:
    """Failures of `n` schedules, each one line that names its schedule; `totals` gets what happened, counted."""
    if processes == 1:
        results = [run_some(list(range(n)), seed)]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            shares = [list(range(i, n, processes)) for i in range(processes)]
            results = list(pool.map(partial(run_some, seed=seed), shares))
    for _, counted in results:
        if totals is not None:
            totals += counted
    return [problem for problems, _ in results for problem in problems]


if __name__ == "__main__":
    if sys.argv[1:2] != ["serve-forks"]:
        sys.exit("this is run by: python -m tests.chaos downloads")
    serve_forks(float(sys.argv[2]))
