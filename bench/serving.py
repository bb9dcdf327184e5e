"""What the server costs beside the engine, and how it holds when clients are many, slow, or gone.

    python bench/serving.py                                     # some nine minutes on two cores: depths 6 and 12
    python bench/serving.py --depth=6 --seconds=20 --rounds=1

For each depth a model of random weights (width 64 × depth, heads of 128, vocabulary 32 768) is saved as a checkpoint
and served by the real `scripts.chat_web` on loopback. Clients have processes of their own that know nothing of torch.

The load: `--clients` closed loops of streamed chats (prompts of 8 to 64 words, 16 to 96 tokens to be written, drawn as
chats are by default), while `--slow_sockets` connections send a head or a body a byte a second, or nothing, and another
process asks /health every 50 ms. The engine's own rate is that of the same requests in a process without a server, as
many at once and always enough waiting. Engine and server take turns; the ratio is the median over the rounds of the
server's rate over the mean of the engine's before and after it. Everything shares the cores: CPU seconds say who used
them, and "others" what was used by processes that are not of this benchmark.

Then: `--too_many` clients that come in one moment where every place is taken, and ask again a quarter of a second after
each 429, and how fast those come; clients that leave before the first token or in the middle, by closing, by closing
half, by a reset, streamed or not, and how many rows are left of them; and with a stand-in for a model, of 50 ms a token
(tests/parrot.py), how many tokens are written after a client has left. Memory is that after the first round and at the
end: the worker's grows until its cache of prompts' beginnings is full.

The last line printed is JSON; the worse figure of the depths stands at its top.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.chat_server, which is not installed

import _serving_clients as clients
from inference import VOCAB, make_model

from nanochat import configurator
from nanochat.checkpoint_manager import model_config_dict, save_checkpoint
from nanochat.common import check_at_least, print0
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer
from tests.chat_server import ChatServer, chat_server, wait_until

HERE = Path(__file__).resolve().parent
CONTEXT = 2048
NUM_WORDS = VOCAB - 256 - len(SPECIAL_TOKENS)


@dataclass
class Config:
    """Measure the server."""

    depth: list[int] = field(default_factory=lambda: [6, 12])
    """Depths of the model."""
    seconds: float = 60.0
    """Seconds of load for each depth, all rounds together."""
    rounds: int = 3
    """Turns of the server; the engine has one more."""
    clients: int = 64
    """Clients of the load."""
    max_rows: int = 16
    """Answers written at once."""
    max_queue: int = 64
    """Answers that may wait."""
    slow_sockets: int = 500
    """Connections that waste the server's time during the load."""
    too_many: int = 80
    """Clients that come at once where all places are taken."""
    refuse_seconds: float = 5.0
    """Seconds for which they come."""
    disconnects: int = 1000
    """Clients that leave."""
    warm_up: float = 2.0
    """Seconds before each turn that do not count."""
    samples: int = 2
    """Of each kind of leaving, how often the tokens written afterwards are counted."""
    parrot_delay: float = 0.05
    """Seconds a token, there."""


def made_up_tokenizer() -> RustBPETokenizer:
    """32 768 tokens: the bytes, and a word each."""
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {clients.word(i).encode(): 256 + i for i in range(NUM_WORDS)}
    return RustBPETokenizer(ranks, SPLIT_PATTERN, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})


def save_model(base: Path, depth: int) -> None:
    model = make_model(depth, CONTEXT, torch.device("cpu"))
    meta = {"config": {}, "model_config": model_config_dict(model)}
    save_checkpoint(base / "chatsft_checkpoints" / f"d{depth}", 0, model.state_dict(), None, meta,
                    tokenizer=made_up_tokenizer())


# --------------------------------------------------------------------------- processes


class Child:
    """A part of the benchmark in a process of its own."""

    def __init__(self, script: str, environment: dict[str, str] | None = None, **job: Any):
        job = {"num_words": NUM_WORDS, **job}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen([sys.executable, str(HERE / script), json.dumps(job)], stdout=subprocess.PIPE,
                                        env={**os.environ, "PYTHONPATH": path, **(environment or {})})

    def result(self) -> dict[str, Any]:
        out, _ = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"{self.process.args[1]} ended with status {self.process.returncode}")
        return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def ended(children: dict[str, Child]) -> Iterator[None]:
    """Whatever happens, no child outlives this."""
    try:
        yield
    finally:
        for child in children.values():
            child.process.kill()
            child.process.wait()


def cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """What each process has used, its threads included, and all of the machine together ("machine")."""
    used = {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}
    all_cpus = psutil.cpu_times()
    return {**used, "machine": sum(all_cpus) - all_cpus.idle - all_cpus.iowait - getattr(all_cpus, "guest", 0.0)}


def percentile(values: Sequence[float], share: float) -> float:
    """`percentile(range(1, 101), 0.99) -> 99`; NaN of nothing."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)] if values else float("nan")


def spread_ms(values: Sequence[float]) -> dict[str, float]:
    ms = [1e3 * value for value in values]
    return {"p50": percentile(ms, 0.5), "p99": percentile(ms, 0.99), "max": max(ms, default=float("nan"))}


# --------------------------------------------------------------------------- the measurements


def engine_turn(config: Config, base: Path, first: int, check: list[int]) -> dict[str, Any]:
    job = {"clients": config.clients, "max_rows": config.max_rows, "first": first, "warm_up": config.warm_up,
           "seconds": config.seconds / config.rounds, "check": check}
    return Child("_serving_engine.py", {"NANOCHAT_BASE_DIR": str(base)}, **job).result()


def load_turn(config: Config, server: ChatServer, first: int) -> dict[str, Any]:
    begin = time.monotonic() + config.warm_up
    end = begin + config.seconds / config.rounds
    common = {"port": server.port, "begin": begin, "end": end}
    children = {"slow sockets": Child("_serving_clients.py", task="slow", sockets=config.slow_sockets, **common),
                "prober": Child("_serving_clients.py", task="health", every=0.05, **common),
                "clients": Child("_serving_clients.py", task="load", clients=config.clients, first=first, finish=False,
                                 **common)}
    with ended(children):
        pids = {"server": server.process.pid, "worker": server.workers()[0].pid,
                **{name: child.process.pid for name, child in children.items()}}
        time.sleep(max(0.0, begin - time.monotonic()))
        before = cpu_seconds(pids)
        time.sleep(max(0.0, end - time.monotonic()))
        after = cpu_seconds(pids)
        results = {name: child.result() for name, child in children.items()}
    used = {name: after[name] - before[name] for name in before}
    used["others"] = max(0.0, used.pop("machine") - sum(used.values()))
    wait_until(lambda: clients.rows(clients.metrics(server.port)) == 0)
    return {"seconds": end - begin, "cpu": used, "tokens": results["clients"]["tokens"], **results}


def refusals(config: Config, server: ChatServer, first: int) -> dict[str, Any]:
    """As many clients as there is room for; a second later the ones that are too many, all at once."""
    begin = time.monotonic()
    start = begin + 1.0
    common = {"task": "load", "port": server.port, "begin": begin, "end": start + config.refuse_seconds, "finish": True}
    children = {"room": Child("_serving_clients.py", clients=config.max_rows + config.max_queue, first=first, **common),
                "too many": Child("_serving_clients.py", clients=config.too_many, first=first + 10**5, start=start,
                                  **common)}
    with ended(children):
        room, too_many = (child.result() for child in children.values())
    return {name: room[name] + too_many[name] for name in room}


def leaving(config: Config, server: ChatServer, first: int) -> dict[str, Any]:
    """Clients leave; `leaked_rows` is what is still in work or waiting half a minute later."""
    before = clients.metrics(server.port)["nanochat_left_total"]
    together = max(1, min(64, config.max_rows + config.max_queue - 8))
    seen = Child("_serving_clients.py", task="leave", port=server.port, count=config.disconnects, together=together,
                 first=first).result()
    wait_until(lambda: clients.rows(clients.metrics(server.port)) == 0)
    after = clients.metrics(server.port)
    return {"seen": seen, "noticed": after["nanochat_left_total"] - before, "leaked_rows": clients.rows(after)}


def tokens_after_leaving(config: Config) -> dict[str, int]:
    """The most tokens of a row that were written after its client had left, by kind of leaving."""
    found: dict[str, int] = {}
    with chat_server(parrot=True, delay=config.parrot_delay) as server:
        def written() -> int:
            return int(clients.metrics(server.port)["nanochat_completion_tokens_total"])

        kinds = itertools.product((True, False), clients.MOMENTS, clients.WAYS, range(config.samples))
        for stream, moment, way, i in kinds:
            n = 1 + 3 * (i % 2)  # one answer, or four
            body = {"messages": [{"role": "user", "content": "a" * 100}], "n": n}
            before = written()
            with socket.create_connection((clients.HOST, server.port), timeout=clients.PATIENCE) as sock:
                sock.sendall(clients.streamed(body) if stream else clients.post(body))
                if moment == clients.MOMENTS[1]:
                    wait_until(lambda: written() >= before + 3 * n)  # noqa: B023 (called at once)
                    before = written()
                if way == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif way == "half":
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
            time.sleep(3 * config.parrot_delay)  # what had not even begun would begin now
            wait_until(lambda: clients.rows(clients.metrics(server.port)) == 0)
            kind = f"{'streamed' if stream else 'whole'}, {moment}, {way}"
            found[kind] = max(found.get(kind, 0), -(-(written() - before) // n))
    return found


def measure(config: Config, depth: int) -> dict[str, Any]:
    """All figures of one depth."""
    memory: dict[str, list[float]] = {"server": [], "worker": []}
    firsts = itertools.count(0, 10**6)  # requests are the same for engine and server, but those of no two rounds
    check = [10**9 + i for i in range(4)]
    with tempfile.TemporaryDirectory(prefix="serving-bench") as folder:
        base = Path(folder)
        save_model(base, depth)
        first = next(firsts)
        engine, server_turns = [engine_turn(config, base, first, check)], []
        with chat_server(f"--max_rows={config.max_rows}", f"--max_queue={config.max_queue}", parrot=False,
                         base=base) as server:
            def note_memory() -> None:
                for name, pid in (("server", server.process.pid), ("worker", server.workers()[0].pid)):
                    memory[name].append(psutil.Process(pid).memory_info().rss / 2**20)

            same = [answer(server, k) for k in check] == engine[0]["texts"]
            for i in range(config.rounds):
                server_turns.append(load_turn(config, server, first))
                note_memory()  # the first has warmed it up
                first = next(firsts)
                engine.append(engine_turn(config, base, first, check))
                served, before, after = (f"{turn['tokens'] / turn['seconds']:,.0f}" for turn in (
                    server_turns[-1], *engine[-2:]))
                print0(f"depth {depth}, round {i + 1} of {config.rounds}: the server {served} tokens/s, "
                       f"the engine {before} and {after}")
            refused = refusals(config, server, next(firsts))
            left = leaving(config, server, next(firsts))
            note_memory()
            restarts = clients.metrics(server.port)["nanochat_worker_restarts_total"]
    return summary(engine, server_turns) | {
        "same_texts": same, "refused_ms": spread_ms(refused["refused"]), "refused": len(refused["refused"]),
        "refused_without_retry_after": refused["without_retry_after"], "accepted": refused["accepted"],
        "accepted_unfinished": refused["accepted"] - refused["finished"], "leaving": left,
        "leaked_rows": left["leaked_rows"], "worker_restarts": restarts,
        "memory_mb": memory, "rss_growth_mb": sum(sizes[-1] - sizes[0] for sizes in memory.values())}


def answer(server: ChatServer, k: int) -> str:
    with socket.create_connection((clients.HOST, server.port), timeout=clients.PATIENCE) as sock:
        sock.sendall(clients.post(clients.request(k, NUM_WORDS)).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")[2]
    return json.loads(body)["choices"][0]["message"]["content"]


def summary(engine: list[dict[str, Any]], server: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the turns: engine, server, engine, server, ..., engine."""
    own = [turn["tokens"] / turn["seconds"] for turn in engine]
    served = [turn["tokens"] / turn["seconds"] for turn in server]
    ratios = [rate / ((before + after) / 2) for rate, before, after in zip(served, own, own[1:])]
    looks = [s for turn in server for s in turn["prober"]["seconds"]]
    slow = {name: sum(turn["slow sockets"].get(name, 0) for turn in server)
            for name in sorted({name for turn in server for name in turn["slow sockets"]})}
    cpu = {name: sum(turn["cpu"][name] for turn in server) / sum(turn["seconds"] for turn in server)
           for name in server[0]["cpu"]}
    return {
        "tokens_per_second": statistics.median(served), "engine_tokens_per_second": statistics.median(own),
        "ratio": statistics.median(ratios), "ratios": ratios,
        "engine_cores": statistics.median(turn["cpu"] / turn["seconds"] for turn in engine),
        "health_ms": spread_ms(looks), "health_looks": len(looks),
        "health_wrong": sum(turn["prober"]["wrong"] for turn in server),
        "first_token_ms": spread_ms([s for turn in server for s in turn["clients"]["first"]]),
        "between_tokens_ms": spread_ms([s for turn in server for s in turn["clients"]["gaps"]]),
        "broken": sum(turn["clients"]["broken"] for turn in server),
        "refused_in_load": sum(len(turn["clients"]["refused"]) for turn in server),
        "cores": cpu, "slow_sockets": slow}


# --------------------------------------------------------------------------- what is shown


def table(depth: int, f: dict[str, Any], config: Config) -> Table:
    view = Table(title=f"depth {depth}, width {64 * depth}: {config.clients} clients, "
                       f"{config.slow_sockets} slow sockets")
    for column in ("", "p50", "p99", "max", ""):
        view.add_column(column, justify="right" if column else "left")

    def spread(name: str, ms: dict[str, float], note: str) -> None:
        view.add_row(name, *(f"{ms[k]:,.1f} ms" for k in ("p50", "p99", "max")), note)

    view.add_row("tokens/s", f"{f['tokens_per_second']:,.0f}", "", "",
                 f"{f['ratio']:.0%} of the engine's own {f['engine_tokens_per_second']:,.0f} (rounds: "
                 + ", ".join(f"{ratio:.0%}" for ratio in f["ratios"]) + ")")
    spread("/health", f["health_ms"], f"{f['health_looks']} looks, {f['health_wrong']} not 200")
    spread("first token", f["first_token_ms"], "waiting for a place included")
    spread("between tokens", f["between_tokens_ms"], f"{f['broken']} answers broke")
    spread("429", f["refused_ms"], f"{f['refused']}; without Retry-After: {f['refused_without_retry_after']}; "
                                   f"{f['accepted']} accepted, {f['accepted_unfinished']} not finished")
    seen = ", ".join(f"{n} {what}" for what, n in f["leaving"]["seen"].items())
    view.add_row("leaving", "", "", "", f"{seen}; rows left of them: {f['leaked_rows']}")
    view.add_row("cores in use", "", "", "", ", ".join(f"{name} {share:.2f}" for name, share in f["cores"].items())
                 + f"; the engine alone {f['engine_cores']:.2f}")
    view.add_row("slow sockets", "", "", "", ", ".join(f"{n} {what}" for what, n in f["slow_sockets"].items()))
    view.add_row("memory, MB", "", "", "", "; ".join(f"{name} {sizes[0]:.0f} to {sizes[-1]:.0f}"
                                                     for name, sizes in f["memory_mb"].items()))
    return view


def main(config: Config) -> None:
    check_at_least(1, rounds=config.rounds, clients=config.clients, max_rows=config.max_rows, samples=config.samples)
    check_at_least(2, depth=min(config.depth, default=0))
    found = {}
    for depth in config.depth:
        found[depth] = measure(config, depth)
        Console(width=150).print(table(depth, found[depth], config))
    after = tokens_after_leaving(config)
    worst = min(found.values(), key=lambda f: f["ratio"])
    print0(f"tokens of a row written after its client had left, at most: {max(after.values())}")
    print0(json.dumps({
        "threads": torch.get_num_threads(),
        "health_p99_ms": max(f["health_ms"]["p99"] for f in found.values()),
        "refused_p99_ms": max(f["refused_ms"]["p99"] for f in found.values()),
        **{name: worst[name] for name in ("tokens_per_second", "engine_tokens_per_second", "ratio")},
        "leaked_rows": sum(f["leaked_rows"] for f in found.values()),
        "tokens_after_leaving_max": max(after.values()), "tokens_after_leaving": after,
        "rss_growth_mb": max(f["rss_growth_mb"] for f in found.values()),
        **{f"d{depth}": f for depth, f in found.items()}}))


if __name__ == "__main__":
    configurator.main(main, Config)
