"""Checkpoints with something wrong in one file, by random: each must be refused by name before a weight is used.

    python -m tests.chaos --mutate=10_000

A mutation changes one file of a run (weights, optimizer of two ranks, meta, tokenizer, log up to the mark) or swaps
two: flipped bits, a lost or zeroed end, bytes added or left out, a block of zeros or of another place, the file of
another step, kind or run. Then the run is resumed. What loads all the same, or fails with anything but a UserError that
names the file, is a failure.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from nanochat import checkpoint_manager as cm
from nanochat import resume, run
from nanochat.common import UserError
from nanochat.tensor_file import write_tensors
from tests.chaos import spread
from tests.helpers import byte_tokenizer, small_tokenizer
from tests.power_loss import BLOCK, CPU, Saved, plain, replaced

BATCH = 250  # mutations of one copy of the run
STEP = 10
LOADED = "it loads"

# ------------------------------------------------------------------------------------------------------------- the run


def write_run(directory: Path, seed: int) -> dict[str, bytes]:
    """A run with two steps saved by two ranks, its log a little ahead of the last; its files."""
    log = run.MetricsLog(cm.make_dirs(directory) / cm.LOG)
    for step in (STEP - 1, STEP):
        for i in range(20):
            log.log(step, loss=seed + i / 7)
        saved = Saved.number(100 * seed + step)
        keys = [key for key in saved.optimizer if key != "steps"]
        parts = [{key: saved.optimizer[key] for key in [*keys[rank::2], "steps"]} for rank in range(2)]
        # one process is one rank: the other's file is written by hand, and put into meta
        meta = {**asdict(plain()[2]), "state": asdict(run.TrainState(step)), "log": log.mark()}
        cm.save_checkpoint(directory, step, saved.model, parts[0], meta, tokenizer=byte_tokenizer())
        meta, name = cm.load_meta(directory, step), f"optim_{step:06d}_rank1.safetensors"
        meta["files"][name] = write_tensors(directory / name, parts[1])
        (directory / f"meta_{step:06d}.json").write_text(cm.render_meta(meta), encoding="utf-8")
    log.log(STEP + 1, loss=0.0)
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def resumed(directory: Path) -> None:
    """As `run_training` does it, but that all is verified before the weights go anywhere."""
    step, _ = resume.resume_step(directory, plain()[2], resume=True, overwrite=False)
    _, _, meta = cm.load_checkpoint(directory, step, CPU, load_optimizer=True)
    run.MetricsLog(directory / cm.LOG, meta["log"])
    cm.build_model(directory, step, CPU, "train")


# ----------------------------------------------------------------------------------------------------------- mutations


def flipped(rng: random.Random, content: bytes, bits: int) -> bytes:
    changed = bytearray(content)
    for bit in rng.sample(range(8 * len(content)), bits):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> int:
    """Where it is cut: anywhere, near the end, or at the end of a block."""
    return rng.choice([rng.randrange(len(content)), max(0, len(content) - rng.randint(1, 8)),
                       rng.randrange(len(content)) // BLOCK * BLOCK])


def zeroed_end(rng: random.Random, content: bytes) -> bytes:
    return content[: cut(rng, content)].ljust(len(content), b"\0")


def block_of_another_place(rng: random.Random, content: bytes) -> bytes:
    size = rng.choice([1, 16, BLOCK])
    there, here = (rng.randrange(max(1, len(content) - size)) for _ in range(2))
    return content[:here] + content[there : there + size] + content[here + size :]


def block_of_zeros(rng: random.Random, content: bytes) -> bytes:
    begin = cut(rng, content)
    return (content[:begin] + bytes(BLOCK) + content[begin + BLOCK :])[: len(content)]


def left_out(rng: random.Random, content: bytes) -> bytes:
    begin = rng.randrange(len(content))
    return content[:begin] + content[begin + rng.choice([1, 2, BLOCK]) :]


MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "one bit flipped": lambda rng, content: flipped(rng, content, 1),
    "several bits flipped": lambda rng, content: flipped(rng, content, rng.randint(2, 30)),
    "truncated": lambda rng, content: content[: cut(rng, content)],
    "zeros at the end": zeroed_end,
    "bytes added": lambda rng, content: content + rng.choice([b"\0", b"\n", b" ", rng.randbytes(rng.randint(1, 600))]),
    "a block of zeros": block_of_zeros,
    "a block of another place": block_of_another_place,
    "bytes left out": left_out,
    "emptied": lambda rng, content: b"",
}


@dataclass(frozen=True)
class Mutation:
    """Files of a run's directory with other contents."""

    what: str
    changed: dict[str, bytes]


class Subject:
    """A run that is mutated, and what it can be mixed up with: the run's files, another run's, another tokenizer's."""

    def __init__(self, scratch: Path):
        self.directory = scratch / "run"
        self.files = write_run(self.directory, 1)
        self.others = {f"another run's {name}": content for name, content in write_run(scratch / "another", 2).items()}
        small_tokenizer(300).save(scratch / "tokenizer")
        self.others |= {f"another {p.name}": p.read_bytes() for p in sorted((scratch / "tokenizer").iterdir())}
        self.mark = cm.load_meta(self.directory, STEP)["log"]["bytes"]
        self.names = [name for name in self.files if f"{STEP - 1:06d}" not in name]  # what the last step needs

    def draw(self, rng: random.Random) -> Mutation:
        """A mutation of what a resume needs; what changes nothing is drawn again."""
        while True:
            name = rng.choice(self.names)
            what = rng.choice([*MUTATIONS, "swapped", "swapped"])
            if what != "swapped":
                changed = {name: MUTATIONS[what](rng, self.files[name])}
                what = f"{name}: {what}"
            elif rng.random() < 0.5:
                other = rng.choice([n for n in self.files if n != name])
                changed = {name: self.files[other], other: self.files[name]}
                what = f"{name} and {other} swapped"
            else:
                alike = [n for n in self.others if n.endswith(name.split("/")[-1])]
                other = rng.choice(alike if rng.random() < 0.7 else list(self.others))
                changed, what = {name: self.others[other]}, f"{name} replaced by {other}"
            if any(self.needed(n, content) != self.needed(n, self.files[n]) for n, content in changed.items()):
                return Mutation(what, changed)

    def needed(self, name: str, content: bytes) -> bytes:
        """The part of a file that the last step needs."""
        return content[: self.mark] if name == cm.LOG else content

    def write(self, names: Iterator[str] | list[str], contents: dict[str, bytes]) -> None:
        for name in names:
            (self.directory / name).write_bytes(contents[name])

    def outcome(self, mutation: Mutation) -> str:
        """What is wrong with how a mutation is met; "" is wanted. The run is afterwards as it was."""
        self.write(list(mutation.changed), mutation.changed)
        with mock.patch.object(cm, "load_weights", side_effect=AssertionError("weights are used")):
            try:
                resumed(self.directory)
                return LOADED
            except UserError as e:
                return "" if any(name in str(e) for name in mutation.changed) else f"no file is named: {e}"
            except KeyboardInterrupt:
                raise
            except BaseException as e:  # a panic of Rust is no Exception
                return f"{type(e).__name__}: {e}"
            finally:
                self.write([*mutation.changed, cm.LOG], self.files)


def check_mutations(case: tuple[int, range]) -> list[str]:
    """`(seed, numbers)` of mutations; a line for each that is not met as it should be."""
    seed, numbers = case
    wrong = []
    with tempfile.TemporaryDirectory(prefix="mutations") as scratch, contextlib.redirect_stdout(io.StringIO()):
        with replaced(fsync=lambda fd: None):
            subject = Subject(Path(scratch))
            resumed(subject.directory)  # as it is, it does load
            subject.write([cm.LOG], subject.files)
            for number in numbers:
                mutation = subject.draw(random.Random(f"{seed}-{number}"))
                if what := subject.outcome(mutation):
                    wrong.append(f"mutation {number} of seed {seed} ({mutation.what}): {what}")
            left = {name: (subject.directory / name).read_bytes() for name in subject.files}
            if left != subject.files:
                wrong.append(f"seed {seed}, {numbers}: the trials have left something changed")
    return wrong


def mutation_trials(n: int, seed: int = 0, processes: int = 1) -> list[str]:
    """What went wrong with `n` mutations, a line each; [] is wanted."""
    cases = [(seed, range(begin, min(n, begin + BATCH))) for begin in range(0, n, BATCH)]
    return sorted(itertools.chain.from_iterable(spread(check_mutations, cases, processes)))
