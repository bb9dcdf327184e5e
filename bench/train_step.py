"""Our training step against transformers' `NanoChatForCausalLM`: the same architecture, weights, rows and optimizer.

    python bench/train_step.py                                       # small and large, or with CUDA d12 and d20
    python bench/train_step.py --sizes small --modes compiled --dtypes bfloat16 --rounds=1 --curve_steps=0

A step is forward, backward and update over `--tokens` tokens, in micro-batches of `--micro_tokens`: plain causal rows
of random ids (the same on both sides), torch's fused AdamW over float32 weights, the loss summed and divided by the
tokens. Both sides start from the same weights, and their losses after the first update must agree. Ours in bfloat16
multiplies in it by itself, theirs is under torch.autocast; compiled is `torch.compile(model, dynamic=False)` for both;
their attention is their default (SDPA). Not measured: reading of data, clipping, checkpoints, several processes.

Their rows on the CPU run as their users have them, ours as our scripts do: `compute_init` has the C library keep freed
memory. Two more rows of theirs, in our default dtype, say what is left of the difference when they get that too:
`memory kept`; and with it `plain attention` (they call it eager), on this CPU faster in bfloat16 than their default.
Ours `packed` has documents that do not see each other (as training has); ours with `muon` has our optimizer (Muon for
the matrices) in the place of AdamW. The loss head (linear map, soft cap, cross entropy; forward and backward) is
measured apart, at the largest size, against the plain form. The loss curve is that of both sides along the same text,
at the smallest size: the largest difference of their moving averages over 20 steps, and as a yardstick that between
their two dtypes.

Each row is a process of its own (bench/_train_step_worker.py), all of a size and mode alive and asleep but one; round
by round each has its turn, in an order that rotates; figures are medians of the rounds, and the rate of a large matrix
product is measured anew in each round. CPU seconds count all threads. Memory: the most that is held in a round
(resident memory, on a GPU the allocator's) beyond what the imports took, the compiler's leftovers included.
`--modes compiled --curve_steps 0` takes 24 minutes on two cores.

The last line printed is JSON. `vs_transformers_compiled_fp32` and `..._bf16`: our compiled step in our default dtype
against theirs compiled in that dtype, tokens per second, at the worst size; `..._memory_kept`, `..._plain_attention`:
against their rows of that name; `..._cpu`: tokens per CPU second; `like_for_like_...`: the same dtype on both sides.
`matmul_share`: of the matrix-product rate, by our compiled step in bfloat16 at the largest size. `head_memory_ratio`,
`head_time_ratio`: the plain head's over ours, in the worse mode.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _train_step_figures import (
    HEADLINE,
    Key,
    Results,
    Row,
    Starts,
    curve_figures,
    head_table,
    loss_gaps,
    step_table,
    summary,
)
from rich.console import Console

from nanochat import configurator
from nanochat.common import (
    UserError,
    autodetect_device_type,
    check_at_least,
    compile_problem,
    compute_init,
    measure_matmul_flops,
    print0,
    resolve_dtype,
)
from nanochat.dataset import text_iterator
from nanochat.gpt import config_for_depth
from nanochat.tokenizer import pick_tokenizer_class

WORKER = Path(__file__).with_name("_train_step_worker.py")
SIZES = {  # depth (width is 64·depth), sequence length, vocabulary
    "tiny": (2, 32, 320),
    "small": (4, 256, 2048),
    "large": (6, 512, 32768),
    "d12": (12, 2048, 65536),
    "d20": (20, 2048, 65536),
}


@dataclass
class Config:
    """Measure our training step against that of transformers' NanoChatForCausalLM."""

    sizes: tuple[Literal["tiny", "small", "large", "d12", "d20"], ...] = ()
    """Smallest first (default: small and large; with CUDA d12 and d20)."""
    head_dim: int = 128
    """Width of an attention head."""
    modes: tuple[Literal["eager", "compiled"], ...] = ("eager", "compiled")
    """With torch.compile and without."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ()
    """Default: both; with CUDA bfloat16 alone."""
    rounds: int = 5
    """Measurements of each; the median is shown."""
    round_seconds: float = 2
    """How long a measurement lasts at least; it is whole steps, at least one."""
    tokens: int = 0
    """Tokens an optimizer step (default 16 384; with CUDA 131 072)."""
    micro_tokens: int = 0
    """Tokens a micro-batch (default 8 192; with CUDA 32 768)."""
    curve_steps: int = 200
    """Steps of the loss curve, a micro-batch each (0: no curve)."""
    data: str = ""
    """Text of the curve: pocket, fineweb-edu, or a folder. Default: the corpus of $NANOCHAT_TEST_DATA, else pocket."""
    device_type: str = ""
    """cpu, cuda or mps (default: the best there is)."""


def resolve(config: Config) -> None:
    """Put what the machine decides into the settings, and say what can be said before the first minute is spent."""
    config.device_type = config.device_type or autodetect_device_type()
    gpu = config.device_type == "cuda"
    config.sizes = config.sizes or (("d12", "d20") if gpu else ("small", "large"))
    config.dtypes = config.dtypes or (("bfloat16",) if gpu else ("float32", "bfloat16"))
    config.micro_tokens = config.micro_tokens or (32768 if gpu else 8192)
    config.tokens = config.tokens or (131072 if gpu else 16384)
    config.data = config.data or default_data()
    check_at_least(1, rounds=config.rounds, tokens=config.tokens, micro_tokens=config.micro_tokens)
    check_at_least(0, curve_steps=config.curve_steps, round_seconds=config.round_seconds)
    for name, values in (("sizes", config.sizes), ("modes", config.modes), ("dtypes", config.dtypes)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{name} must name something, and nothing twice")
    for size in config.sizes:
        model_config(size, config.head_dim)
        if config.micro_tokens % SIZES[size][1] or config.tokens % config.micro_tokens:
            raise UserError(f"--micro_tokens={config.micro_tokens} must be whole rows of {SIZES[size][1]} tokens "
                            f"(size {size}), and --tokens={config.tokens} whole micro-batches")
    if "compiled" in config.modes and (problem := compile_problem(config.device_type)):
        raise UserError(f"nothing can be compiled here, {problem}: mend that, or choose --modes eager")
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec("transformers.models.nanochat"):
            return
    raise UserError("transformers is missing or older than its NanoChat model: run bash dev/setup.sh")


def default_data() -> str:
    shared = os.environ.get("NANOCHAT_TEST_DATA")
    return str(Path(shared) / "corpus") if shared else "pocket"


def model_config(size: str, head_dim: int):
    depth, sequence_len, vocab_size = SIZES[size]
    return config_for_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len, aspect_ratio=64, head_dim=head_dim)


# -------------------------------------------------------------------------------------------------------- workers


class Worker:
    """A process that measures one row when it is asked to. Leaving the block ends it with all that it has started."""

    def __init__(self, name: str, job: dict, folder: Path) -> None:
        self.name = name
        self.errors = folder / f"{name.replace(' ', '-')}.log"
        path = os.pathsep.join(filter(None, (str(WORKER.parents[1]), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # compile anew
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen([sys.executable, str(WORKER), json.dumps(job)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=errors, env=environment,
                                            start_new_session=True)

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            said = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"the measurement of {self.name} failed: " + "\n".join(said[-12:] or ["no message"]))
        return json.loads(line)

    def ask(self, **request: object) -> dict:
        with contextlib.suppress(BrokenPipeError):  # then it has died, and `answer` says why
            self.process.stdin.write(json.dumps(request).encode("utf-8") + b"\n")
            self.process.stdin.flush()
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Bench:
    """What is measured, and what was."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.device = compute_init(config.device_type)[-1]
        auto = str(resolve_dtype("auto", config.device_type)).removeprefix("torch.")
        self.default_dtype = auto if auto in config.dtypes else config.dtypes[0]
        self.best_mode = "compiled" if "compiled" in config.modes else "eager"
        self.results: Results = defaultdict(list)
        self.starts: Starts = {}
        self.matmul: dict[str, list[float]] = {dtype: [] for dtype in config.dtypes}

    def step_rows(self) -> list[Row]:
        """Both sides in every mode and dtype; then what is special, in the best mode."""
        rows = [Row(side, mode, dtype) for mode in self.config.modes for dtype in self.config.dtypes
                for side in ("ours", "theirs")]
        if self.config.device_type == "cpu":
            rows += [Row("theirs", self.best_mode, self.default_dtype, e) for e in ("memory kept", "plain attention")]
        return rows + [Row("ours", self.best_mode, self.default_dtype, extra) for extra in ("packed", "muon")]

    def head_rows(self) -> list[Row]:
        return [Row(side, mode, self.default_dtype) for mode in self.config.modes for side in ("ours", "plain")]

    def job(self, size: str, kind: str, row: Row) -> dict:
        depth, sequence_len, vocab_size = SIZES[size]
        return {"kind": kind, **row._asdict(), "depth": depth, "sequence_len": sequence_len, "vocab_size": vocab_size,
                "head_dim": self.config.head_dim, "micro_tokens": self.config.micro_tokens,
                "tokens": self.config.tokens, "device_type": self.config.device_type, "seed": 0}

    @contextlib.contextmanager
    def workers(self, size: str, kind: str, rows: list[Row]) -> Iterator[dict[Row, Worker]]:
        """A process a row, started and warmed up one after the other."""
        with contextlib.ExitStack() as stack:
            started = {}
            for row in rows:
                name = f"{kind} {size} {row.label}"
                worker = stack.enter_context(Worker(name, self.job(size, kind, row), self.folder))
                self.starts[Key(size, kind, row)] = answer = worker.answer()
                compiling = f"compiled in {answer['compile_s']:.0f} s, " if row.mode == "compiled" else ""
                print0(f"{name}: {compiling}loss {answer['losses'][0]:.4f} -> {answer['losses'][-1]:.4f}")
                started[row] = worker
            check_same_work(self.starts)
            yield started

    def rounds(self, size: str, kind: str, workers: dict[Row, Worker]) -> None:
        """Every worker's turn in every round, a printed line each."""
        rows = list(workers)
        for round in range(self.config.rounds):
            for dtype, rates in self.matmul.items():
                rates.append(measure_matmul_flops(self.device, getattr(torch, dtype)))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            first = round % len(rows)
            for row in rows[first:] + rows[:first]:
                answer = workers[row].ask(do="round", seconds=self.config.round_seconds)
                self.results[Key(size, kind, row)].append(answer)
                print0(f"[{round + 1}/{self.config.rounds}] {kind} {size} {row.label}: "
                       f"{answer['tokens'] / answer['wall']:,.0f} tokens/s, "
                       f"{answer['tokens'] / answer['cpu']:,.0f} a CPU second")

    def measure(self) -> dict[str, list[float]]:
        """Everything; the loss curves by row."""
        curves: dict[str, list[float]] = {}
        for size, mode in itertools.product(self.config.sizes, self.config.modes):
            with self.workers(size, "step", [row for row in self.step_rows() if row.mode == mode]) as workers:
                self.rounds(size, "step", workers)
                if self.config.curve_steps and (size, mode) == (self.config.sizes[0], self.best_mode):
                    curves = self.curves(size, workers)
        size = self.config.sizes[-1]
        with self.workers(size, "head", self.head_rows()) as workers:
            self.rounds(size, "head", workers)
        return curves

    def curves(self, size: str, workers: dict[Row, Worker]) -> dict[str, list[float]]:
        """Both sides along the same text, in every dtype."""
        ids = self.folder / "ids.npy"
        needed = self.config.curve_steps * self.config.micro_tokens + 1
        np.save(ids, text_ids(self.config.data, SIZES[size][2], needed))
        curves = {}
        for row, worker in workers.items():
            if not row.extra:
                curves[f"{row.side} {row.dtype}"] = losses = worker.ask(
                    do="curve", ids=str(ids), steps=self.config.curve_steps)["losses"]
                print0(f"curve {size} {row.label}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
        return curves


def check_same_work(starts: Starts) -> None:
    """Before anything is timed: what is compared must compute the same."""
    for name, gap in loss_gaps(starts).items():
        if gap > 0.02:
            raise RuntimeError(f"{name}: the two sides' losses differ by {gap:.1%} of what the update changed")


def text_ids(data: str, vocab_size: int, needed: int) -> np.ndarray:
    """So many ids of real text, int32, by a tokenizer trained on it; short text is repeated."""
    tokenizer = pick_tokenizer_class().train_from_iterator(text_iterator(data, max_chars=20_000_000), vocab_size)
    bos, pieces, have = tokenizer.get_bos_token_id(), [], 0
    while have < needed:
        before = have
        for text in text_iterator(data):
            piece = np.array([bos, *tokenizer.encode(text)], dtype=np.int32)
            pieces.append(piece)
            have += len(piece)
            if have >= needed:
                break
        if have == before:
            raise UserError(f"--data={data} holds no text")
    return np.concatenate(pieces)[:needed]


# ----------------------------------------------------------------------------------------------------------- main


def main(config: Config) -> None:
    resolve(config)
    with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
        bench = Bench(config, Path(folder))
        print0(f"{config.device_type}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
               f"{config.tokens:,} tokens a step in micro-batches of {config.micro_tokens:,}")
        curves = bench.measure()
    console = Console(width=140)
    for size in config.sizes:
        console.print(step_table(bench.results, bench.starts, size, bench.matmul))
    console.print(head_table(bench.results, config.sizes[-1]))
    figures = summary(bench.results, bench.starts, config.sizes, bench.default_dtype, bench.matmul)
    figures |= curve_figures(curves)
    print0(json.dumps({
        **{name: figures.pop(name) for name in HEADLINE}, **figures, "default_dtype": bench.default_dtype,
        "head_dim": config.head_dim, "tokens": config.tokens, "micro_tokens": config.micro_tokens,
        "rounds": config.rounds, "curve_steps": config.curve_steps, "device": config.device_type,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"), "python": platform.python_version(),
        "machine": platform.machine(),
    }))


if __name__ == "__main__":
    configurator.main(main, Config)
