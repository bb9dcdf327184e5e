"""Training that is killed for real, SIGKILL and SIGTERM, and what is left of it: of every stage with a gradient.

    python -m tests.chaos --kills=1000 --terms=200

A trial is a run of 12 steps, saved every second one, that is ended by a signal again and again and goes on with
`--resume` until it finishes. A kill comes at a random instant, or right before, in the middle of or right after one of
the I/O calls of a save or a removal. After each, what was said to be saved is there and is, to the byte, what the run
that was never interrupted had at that step; the next attempt goes on from it; at the end nothing but times differs.

The processes come from fork_server.py: an attempt takes tenths of a second. rank_kills.py does the same to runs of
several ranks.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import spread
from tests.fork_server import HANGS, SLOW, Attempt, Child, Forks

LATEST = 5.0  # seconds from a signal to the end
STEPS, KEPT = 12, 2


@dataclass(frozen=True)
class Stage:
    """A script, where it puts its model, and the flags that it has beside `COMMON`."""

    script: str
    root: str
    flags: tuple[str, ...]


COMMON = (f"--num_iterations={STEPS}", "--save_every=2", f"--keep_last={KEPT}", "--log_every=3", "--eval_every=5",
          "--device_batch_size=2", "--deterministic", "--no-compile", "--dtype=float32", "--device_type=cpu",
          "--data={base}/corpus", "--resume")
READING = ("--total_batch_size=256", "--eval_tokens=300")  # of the stages whose batches come from data
STAGES = (
    Stage("base_train", "base_checkpoints", (*READING, "--depth=1", "--head_dim=32", "--max_seq_len=32",
                                             "--sample_every=7")),
    Stage("mid_train", "mid_checkpoints", (*READING, "--mixture={base}/talk.jsonl")),
    Stage("chat_sft", "chatsft_checkpoints", (*READING, "--mixture={base}/talk.jsonl*2")),
    Stage("chat_rl", "chatrl_checkpoints", ("--mixture={base}/sums.jsonl", "--examples_per_step=3", "--num_samples=4",
                                            "--max_new_tokens=4", "--init_lr_frac=1", "--eval_examples=3",
                                            "--eval_samples=2")),
)


@dataclass
class Outcome:
    """What trials have found."""

    found: list[str] = field(default_factory=list)  # what went wrong, a line each
    counts: Counter[str] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)  # before, in and after the I/O calls of first and later saves
    hit: set[str] = field(default_factory=set)  # those of them at which a process died
    longest: float = 0.0  # seconds from a signal, or another's death, to the end

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.found + other.found, self.counts + other.counts, self.places | other.places,
                       self.hit | other.hit, max(self.longest, other.longest))

    def __str__(self) -> str:
        parts = [f"{n:,} {what}" for what, n in sorted(self.counts.items())]
        if self.hit:
            hit = self.hit & self.places
            parts.append(f"{len(hit)} of {len(self.places)} places around the I/O calls of a save hit")
        if self.longest:
            parts.append(f"at most {self.longest:.1f} s to the end")
        return ", ".join(parts)


@dataclass
class World:
    """A folder with a corpus, conversations and the uninterrupted run of each stage, in which trials are made."""

    folder: Path
    forks: Forks
    outcome: Outcome = field(default_factory=Outcome)
    seconds: dict[str, float] = field(default_factory=dict)  # of the uninterrupted run, by stage
    calls: int = 0  # I/O calls of a process that saves three times
    places: set[str] = field(default_factory=set)  # around those of saves
    attempts: int = 0

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    def prepare(self) -> None:
        """Make all that; every step of the reference is kept, to be compared with."""
        from tests.helpers import small_tokenizer, write_corpus

        small_tokenizer().save(self.reference / "tokenizer")
        write_corpus(self.folder / "corpus", 80)
        tens = [str(n) for n in range(0, 1000, 10)]  # of numbers that end so a model of twelve steps writes some
        for name, numbers in (("{}.jsonl", range(90)), ("{}_test.jsonl", range(90, 110))):
            rows = [[{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": f"{2 * i}"}]
                    for i in numbers]
            for kind, more in (("talk", {}), ("sums", {"answer": tens})):
                lines = [json.dumps({"messages": row, **more}) + "\n" for row in rows]
                (self.folder / name.format(kind)).write_text("".join(lines), encoding="utf-8")
        for stage in STAGES:
            begun = time.monotonic()
            (child,) = self.forks.start(self.attempt(stage, self.reference, "--save_every=1", "--keep_last=0"))
            if not self.forks.wait() or child.status != 0:
                raise RuntimeError(f"the uninterrupted {stage.script}: {child.status}\n{child.complained()}")
            self.seconds[stage.script] = child.ended - begun
        self.check_rewards()
        record = self.folder / "calls.json"
        base = self.begin(STAGES[0])
        die = {"call": 0, "when": "", "below": str(base), "record": str(record)}
        self.forks.start(self.attempt(STAGES[0], base, die=die))
        self.forks.wait()
        reached = json.loads(record.read_text(encoding="utf-8"))
        self.calls = sum(place.startswith("before") for place in reached) // (STEPS // 2 // 3)
        self.places = {place for place in reached if "at the start" not in place}

    def check_rewards(self) -> None:
        """Reinforcement learning must have had something to learn from, or its trials prove nothing: answers that were
        worth more than others to the same problem, weights that moved by them, and groups that were left out."""
        from nanochat.checkpoint_manager import load_meta

        directory = run_directory(self.reference, STAGES[-1])
        metas = [load_meta(directory, step) for step in range(1, STEPS + 1)]
        weights = {meta["files"][f"model_{meta['state']['step']:06d}.safetensors"] for meta in metas}
        flat = [step["flat"] for step in metas[-1]["state"]["loader"]["history"]]
        if len(weights) < STEPS // 2 or not any(0 < share < 1 for share in flat):
            raise RuntimeError(f"{len(weights)} different models after {STEPS} steps, shares of flat groups {flat}")

    def last_step(self, directory: Path) -> int:
        """The last step on the disk; 0: none."""
        from nanochat.checkpoint_manager import saved_steps

        return max([0, *saved_steps(directory)])

    def attempt(self, stage: Stage, base: Path, *more: str, environment: dict[str, str] | None = None,
                **changes: Any) -> Attempt:
        """A process of `stage` in the base directory `base`."""
        self.attempts += 1
        arguments = [flag.format(base=self.folder) for flag in (*COMMON, *stage.flags, *more)]
        return Attempt(stage.script, arguments, {"NANOCHAT_BASE_DIR": str(base), **(environment or {})},
                       str(self.folder / f"{self.attempts}.out"), **changes)

    def begin(self, stage: Stage) -> Path:
        """A base directory in which that stage is next."""
        base = self.folder / "trial"
        shutil.rmtree(base, ignore_errors=True)
        gone = [later.root for later in STAGES[STAGES.index(stage) :]]
        older = [f"*_{step:06d}{end}" for step in range(STEPS) for end in (".*", "_rank*")]
        shutil.copytree(self.reference, base, ignore=shutil.ignore_patterns(*gone, *older))
        return base


@contextmanager
def world() -> Iterator[World]:
    """A prepared `World`; its folder goes with it, unless something went wrong in it."""
    folder, forks = Path(tempfile.mkdtemp(prefix="kills_")), Forks()
    try:
        it = World(folder, forks)
        it.prepare()
        yield it
    finally:
        forks.close()
    if not it.outcome.found:
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------- what must be there


def run_directory(base: Path, stage: Stage) -> Path:
    return base / stage.root / "d1"


def announced(said: str) -> list[int]:
    """The steps that a process says it has saved."""
    return [int(step) for step in re.findall(r"^saved step (\d+) to", said, re.MULTILINE)]


def resumed_at(said: str) -> int | None:
    """The step from which a process says that it goes on."""
    found = re.search(r"^resuming .* at step (\d+) of", said, re.MULTILINE)
    return int(found[1]) if found else None


def comparable(state: dict[str, Any], one_rank: bool) -> dict[str, Any]:
    """Without times, and without the step's own evaluation: a save comes before it, one by a signal after it (when it
    has made the exam before it brief, too).

    What several ranks evaluate together they add up in another order; how many answers are right they count. Where a
    step's rows depend on what was sampled, empty ones fill up the shares of several ranks, and count as tokens.
    """
    digits = 15 if one_rank else 9
    earlier = [{**e, "bpb": round(e["bpb"], digits)} for e in state["evaluations"] if e["step"] != state["step"]]
    exams = [e for e in state["exams"] if e["step"] != state["step"]]
    exams = exams[:1] + [{"step": e["step"], "metrics": e["metrics"]} for e in exams[1:]]
    tokens = [state["tokens"], state["logged"][0]] if one_rank or not state["exams"] else None
    return {**state, "train_seconds": None, "tokens": tokens, "logged": None, "evaluations": earlier, "exams": exams}


def check_steps(directory: Path, reference: Path, one_rank: bool = True) -> Iterator[str]:
    """What is wrong with the steps that are there: each must load, and be what the reference had at that step."""
    import torch

    from nanochat.checkpoint_manager import load_checkpoint, load_meta, saved_steps
    from nanochat.common import UserError

    cpu = torch.device("cpu")
    for step in saved_steps(directory):
        try:
            *tensors, meta = load_checkpoint(directory, step, cpu, load_optimizer=True)
        except UserError as e:
            yield f"step {step} is there and does not load: {e}"
            continue
        wanted = load_meta(reference, step)
        if one_rank:
            same = meta["files"] == wanted["files"] and meta["rng"] == wanted["rng"]  # by their hashes
        else:
            same = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in
                       zip(tensors, load_checkpoint(reference, step, cpu, load_optimizer=True)[:2], strict=True))
        if not same:
            yield f"step {step} has other tensors than the uninterrupted run"
        mine, its = comparable(meta["state"], one_rank), comparable(wanted["state"], one_rank)
        yield from (f"step {step}: {key} is {mine[key]}, not {its[key]}" for key in its if mine[key] != its[key])


def check_end(directory: Path, reference: Path, steps: list[int], one_rank: bool = True) -> Iterator[str]:
    """What differs between a finished run, which kept `steps`, and the reference: files, log, steps."""
    from nanochat.checkpoint_manager import LOG, saved_steps
    from nanochat.run import read_metrics

    if saved_steps(directory) != steps:
        yield f"the steps {saved_steps(directory)} were kept, not {steps}"
    there, wanted = (sorted(p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file())
                     for d in (directory, reference))
    wanted = [name for name in wanted if not (m := re.search(r"_(\d{6})", name)) or int(m[1]) in steps]
    if not one_rank:  # a file for each that there was
        there = sorted({re.sub(r"_rank\d+", "_rank0", name) for name in there} - {".lock_rank0"})
    if there != wanted:
        yield f"left behind: {sorted(set(there) - set(wanted))}, missing: {sorted(set(wanted) - set(there))}"
    logs = [[{**record, "tokens_per_second": None} for record in read_metrics(d / LOG)] for d in (directory, reference)]
    if logs[0] != logs[1]:
        yield f"another log: {logs[0]}, not {logs[1]}"
    yield from check_steps(directory, reference, one_rank)


# ------------------------------------------------------------------------------------------------------------ kills


class Wrong(Exception):
    """A trial cannot go on."""


@dataclass
class Trial:
    """One run of a stage, in as many processes as it takes."""

    world: World
    name: str
    stage: Stage
    harm: str = ""
    one_rank: bool = True  # never more than one
    last: int = 0  # the last step on the disk
    many: int = 0  # steps there, KEPT at most
    seen: set[int] = field(default_factory=lambda: set(range(2, STEPS + 1, 2)))  # steps that are saved some time
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = self.world.begin(self.stage)
        self.directory = run_directory(self.base, self.stage)
        self.reference = run_directory(self.world.reference, self.stage)

    def wrong(self, *whats: str) -> None:
        for what in whats:
            story = "; ".join([self.name, self.stage.script, *self.log])
            self.world.outcome.found.append(f"{story}: {what}")

    def start(self, *flags: str, **changes: Any) -> Child:
        """The next process."""
        attempt = self.world.attempt(self.stage, self.base, *flags, harm=self.harm, **changes)
        return self.world.forks.start(attempt)[0]

    def ended(self, child: Child, *statuses: int) -> None:
        """Wait for the end of all processes; if `child` ended with another status, or never, the trial is over."""
        if not self.world.forks.wait():
            self.world.forks.kill()
            raise Wrong(f"stuck after {child.said()[-300:]!r}")
        if child.status not in statuses:
            raise Wrong(f"it ended with {child.status}: {child.complained()[-500:]}")

    def check(self, child: Child) -> None:
        """After the end of a process: it went on from the last step, and what it said to be saved is there."""
        from nanochat.checkpoint_manager import saved_steps

        said = child.said()
        begun, trained = resumed_at(said), re.search(r"^step ", said, re.MULTILINE)
        if begun != (self.last or None) and (begun or trained):
            self.wrong(f"it began at step {begun}, the last one saved was {self.last}")
        steps = saved_steps(self.directory)
        promised = max([self.last, *announced(said)])
        if max([0, *steps]) < promised or len(steps) < self.many:
            self.wrong(f"step {promised} was saved, there are {steps}")
        self.seen |= {*steps}
        self.last, self.many = max([0, *steps]), min(KEPT, len(steps))
        self.wrong(*check_steps(self.directory, self.reference, self.one_rank))

    def finish(self, child: Child | None = None) -> None:
        """On to the end without an interruption (by a process that was started already, or a new one), and compare."""
        child = child or self.start()
        self.ended(child, 0)
        self.check(child)
        self.wrong(*check_end(self.directory, self.reference, sorted(self.seen)[-KEPT:], self.one_rank))


def kill_trial(trial: Trial, rng: random.Random) -> None:
    """A run that is killed up to eight times."""
    outcome = trial.world.outcome
    record = trial.world.folder / "calls.json"
    for _ in range(rng.randint(1, 8)):
        record.unlink(missing_ok=True)
        if rng.random() < 0.3:
            child = trial.start()
            trial.world.forks.wait(rng.uniform(0, trial.world.seconds[trial.stage.script]))
            child.send(signal.SIGKILL)
        else:
            child = trial.start(die={"call": rng.randint(1, trial.world.calls), "below": str(trial.base),
                                     "when": rng.choice(("before", "in", "after")), "record": str(record)})
        trial.ended(child, 0, -signal.SIGKILL)
        if child.status == 0:  # the call or the instant would have come later
            trial.check(child)
            break
        at_call = record.exists()
        place = json.loads(record.read_text(encoding="utf-8"))[-1] if at_call else "at an instant"
        trial.log.append(f"killed {place}")
        outcome.hit |= {place}
        outcome.counts["kills"] += 1
        outcome.counts["kills at an I/O call"] += at_call
        trial.check(child)
    trial.finish()


# ---------------------------------------------------------------------------------------------------------- signals


def term_trial(trial: Trial, rng: random.Random) -> None:
    """A run that is asked to stop up to three times, by SIGINT or SIGTERM."""
    for _ in range(rng.randint(1, 3)):
        number = rng.choice((signal.SIGINT, signal.SIGTERM))
        how = rng.choices((stopped_early, stopped_training, stopped_twice), (2, 7, 1))[0]
        child = how(trial, rng, number)
        trial.check(child)
        if child.status == 0:  # the signal came too late
            break
        trial.log.append(f"{how.__name__} by {number.name}")
        trial.world.outcome.counts["signals"] += 1
        trial.world.outcome.counts[how.__name__.replace("_", " ")] += 1
    trial.finish()


def stop(trial: Trial, child: Child, number: int, *statuses: int) -> None:
    """Send a signal; the end must come soon, with one of these statuses (or the run had just finished)."""
    sent = time.monotonic()
    child.send(number)
    trial.ended(child, 0, *statuses)
    trial.world.outcome.longest = max(trial.world.outcome.longest, took := child.ended - sent)
    if took > LATEST:
        trial.wrong(f"it took {took:.1f} s to end")


def stopped_early(trial: Trial, rng: random.Random, number: int) -> Child:
    """At an instant before the first step, or near it: it just ends, if it did not yet know of signals."""
    child = trial.start(slow=SLOW)
    trial.world.forks.wait(rng.uniform(0.0, 0.3))
    stop(trial, child, number, 128 + number, -number)
    return child


def stopped_training(trial: Trial, rng: random.Random, number: int) -> Child:
    """While it trains: it finishes the step, saves it, and says so."""
    child = trial.start(slow=SLOW)
    trial.world.forks.until(lambda: trains(child))
    trial.world.forks.wait(rng.uniform(0.0, SLOW * 4 * (STEPS - trial.last)))
    before = child.said()
    stop(trial, child, number, 128 + number, -number)
    step = trial.world.last_step(trial.directory)
    if step < STEPS:  # else all was done, and it was only writing its report
        said, complained = child.said(), child.complained()
        at_least = max(map(int, re.findall(r"^step +(\d+)[/ ]", before, re.MULTILINE)), default=0)
        if child.status != 128 + number or announced(said)[-1:] != [step] or step < at_least:
            trial.wrong(f"at step {at_least} it was to stop, step {step} is there, it ended with {child.status} and "
                        f"says {said[-300:]!r}")
        if complained.splitlines()[-1:] != [f"stopped by {signal.Signals(number).name} after step {step}, saved: "
                                            "--resume goes on"]:
            trial.wrong(f"it complains {complained!r}")
    return child


def stopped_twice(trial: Trial, rng: random.Random, number: int) -> Child:
    """While a step hangs: the first signal is heard, the second ends it at once."""
    child = trial.start(hang=("loss", rng.randint(1, 4 * (STEPS - trial.last))))
    if trial.world.forks.until(lambda: HANGS in child.said()):
        child.send(number)
        if trial.world.forks.wait(rng.uniform(1.2, 2.0)):
            trial.wrong(f"the first signal ended it while it hung, with {child.status}")
        if "(again to leave at once)" not in child.complained():
            trial.wrong(f"it does not say that it has heard: {child.complained()!r}")
        stop(trial, child, number, 128 + number)
    trial.ended(child, 0, 128 + number)
    return child


def trains(child: Child) -> bool:
    return bool(re.search(r"^step ", child.said(), re.MULTILINE)) or child.status is not None


# ---------------------------------------------------------------------------------------------------------- running


TrialOf = Callable[[Trial, random.Random], None]


def make_trials(world: World, trial_of: TrialOf, what: str, wanted: int, name: str, harm: str = "",
                enough: int = 20, stages: tuple[Stage, ...] = STAGES) -> Outcome:
    """Trials in a world until `wanted` of `what` were counted, or `enough` went wrong; `name` decides what is drawn."""
    world.outcome = Outcome(places=world.places)
    for i in itertools.count():
        if world.outcome.counts[what] >= wanted or len(world.outcome.found) >= enough:
            return world.outcome
        rng = random.Random(f"run {i} of {name}")
        trial = Trial(world, f"run {i} of {name}", rng.choice(stages), harm)
        try:
            trial_of(trial, rng)
        except Wrong as e:
            trial.wrong(str(e))
        world.outcome.counts["runs"] += 1
        world.outcome.counts[f"runs of {trial.stage.script}"] += 1
    raise AssertionError("never reached")


def check_share(trial_of: TrialOf, what: str, harm: str, share: tuple[int, int, int]) -> list[Outcome]:
    """A share `(seed, number, wanted)` of many trials, in a world of its own."""
    seed, number, wanted = share
    with world() as it:
        return [make_trials(it, trial_of, what, wanted, f"share {number} of seed {seed}", harm)]


def many_trials(trial_of: TrialOf, what: str, n: int, seed: int, processes: int, harm: str = "") -> Outcome:
    """At least `n` of `what`, shared by processes."""
    shares = [(seed, i, (n + processes - 1 - i) // processes) for i in range(processes)]
    outcomes = spread(partial(check_share, trial_of, what, harm), shares, processes)
    return sum(itertools.chain.from_iterable(outcomes), Outcome())


def kill_trials(kills: int, seed: int = 0, processes: int = 1, harm: str = "") -> Outcome:
    """At least so many kills of runs of one process; with a bug of `HARMS`, if one is named."""
    return many_trials(kill_trial, "kills", kills, seed, processes, harm)


def term_trials(signals: int, seed: int = 0, processes: int = 1) -> Outcome:
    """At least so many requests to stop."""
    return many_trials(term_trial, "signals", signals, seed, processes)
