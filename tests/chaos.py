"""Random trials in large numbers; the suite runs a share of them.

    python -m tests.chaos splitter --strings=10_000_000 --seed=0    # minutes on two cores
    python -m tests.chaos trainer --corpora=2000 --seed=0
    python -m tests.chaos downloads --schedules=500      # a faulty hub, killed and competing downloaders
    python -m tests.chaos resumes --runs=200             # loaders, each resumed 10 times, by other ranks and workers
    python -m tests.chaos conversations --conversations=10_000
    python -m tests.chaos --engine=1000                  # prompts to random models, against the plain model
    python -m tests.chaos --calculator=100_000           # expressions, valid to hostile, against exact fractions
    python -m tests.chaos --malformed=10_000 --user-strings=100_000      # what the server must stand
    python -m tests.chaos --kills=1000 --power-loss=2000 --mutate=10_000 --terms=200 --rank-kills=100 --full-disk
    NANOCHAT_TEST_DATA=FOLDER python -m tests.chaos --mutants=1640       # wrong answers to HumanEval; minutes
    python -m tests.chaos --export-strings=20000 --export-conversations=1000    # a minute: `transformers` against ours

Each prints how many trials there were and how many failed, with the smallest failing ones, and exits with 1 if any did.
What runs of every gradient stage, from pretraining to reinforcement learning, and their checkpoints must survive
(`--kills` and what stands beside it: any of these, also `--rank-changes` and `--hangs`) is told in kills.py,
rank_kills.py, power_loss.py and mutations.py, what the calculator must in calculator_fuzz.py, the engine in
engine_trials.py, exports in export_trials.py, the server in serving_fuzz.py, wrong answers in code_mutants.py. What has
such a flag goes in batches whose counts add up in a file (`--counts`) for this state of the code: what was interrupted
goes on with other random numbers, and the table is of all that was tried.

The other three are told in download_faults.py, resume_trials.py and conversation_fuzz.py. The splitter's oracle is the
regex engine of the crate (the one that tiktoken uses): a pattern inside `(?:...)` is none of those that the
hand-written splitter knows. Every 50th string also goes through Python's `regex`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from nanochat.common import progress
from nanochat.files import atomic_write
from tests.reference import bpe, splitter

ROOT = Path(__file__).resolve().parents[1]

BATCH = 20_000  # strings a task of the pool
REFERENCE_EVERY = 50  # Python's regex is slow
SHOWN = 5

Difference = tuple[str, str]  # pattern, text


# ----------------------------------------------------------------------------------------------------- the splitter


@cache
def splits(pattern: str) -> Callable[[str], list[str]]:
    """What the crate makes of a pattern."""
    from rustbpe import Tokenizer

    return Tokenizer.from_ranks([(bytes([b]), b) for b in range(256)], pattern).split


def by_hand(name: str, text: str) -> list[str]:
    return splits(splitter.PATTERNS[name])(text)


def by_engine(name: str, text: str) -> list[str]:
    return splits(f"(?:{splitter.PATTERNS[name]})")(text)


def by_reference(name: str, text: str) -> list[str]:
    return splitter.split(text, splitter.PATTERNS[name])


def differs(name: str, text: str) -> bool:
    """Whether the hand-written splitter and the engine split `text` in two ways."""
    return by_hand(name, text) != by_engine(name, text)


def differs_from_reference(name: str, text: str) -> bool:
    return by_hand(name, text) != by_reference(name, text)


def check_strings(batch: tuple[int, int, int]) -> list[Difference]:
    """All patterns over one batch `(strings, seed, number)`; what differed."""
    strings, seed, number = batch
    texts = list(splitter.hard_strings(strings, f"{seed}-{number}"))
    found: list[Difference] = []
    for name in splitter.PATTERNS:
        found += [(name, text) for text in texts if differs(name, text)]
        found += [(name, text) for text in texts[::REFERENCE_EVERY] if differs_from_reference(name, text)]
    return found


def shrunk(text: str, fails: Callable[[str], bool]) -> str:
    """A shorter text that fails too: pieces are left out, large ones first, until none can be.

    `shrunk("abcXdefX", lambda t: "X" in t) -> "X"`
    """
    size = len(text)
    while size > 0:
        for begin in range(0, len(text), size):
            shorter = text[:begin] + text[begin + size :]
            if shorter and fails(shorter):
                text = shorter
                break
        else:
            size //= 2
    return text


def explained(difference: Difference) -> str:
    """One line: the pattern, the smallest text that fails in the same way, and what it was split to."""
    name, text = difference
    fails = partial(differs if differs(name, text) else differs_from_reference, name)
    text = shrunk(text, fails)
    return (f"{name}: {ascii(text)} -> {ascii(by_hand(name, text))}, engine {ascii(by_engine(name, text))}, "
            f"regex {ascii(by_reference(name, text))}")


def splitter_differences(strings: int, seed: int = 0, processes: int = 1) -> list[str]:
    """The differences over so many random strings and all patterns, a line each, the shortest first; [] is wanted."""
    batches = [(min(BATCH, strings - begin), seed, number) for number, begin in enumerate(range(0, strings, BATCH))]
    found = sorted(itertools.chain.from_iterable(spread(check_strings, batches, processes)), key=lambda d: len(d[1]))
    return sorted(map(explained, found[:SHOWN]), key=len) + [f"{name}: {ascii(text)}" for name, text in found[SHOWN:]]


# ------------------------------------------------------------------------------------------------------ the trainer


def random_corpus(rng: random.Random) -> tuple[list[str], int, str]:
    """`(texts, vocab_size, pattern)`: few letters, so that pairs tie and overlap; large counts; hard strings."""
    kind = rng.random()
    if kind < 0.2:
        texts = list(splitter.hard_strings(rng.randint(1, 12), rng.random()))
    elif kind < 0.5:  # large counts beside small ones: the trainer leaves rare pairs out until there are no others
        words = ["".join(rng.choices("abcd", k=rng.randint(2, 6))) for _ in range(rng.randint(2, 12))]
        texts = [(word + ",") * rng.choice([1, 2, 3, 4, 1023, 1024, 1025, 2050, 4100]) for word in words]
        return texts, 256 + rng.choice([10, 25, 60]), r"[^,]+|,"
    else:
        alphabets = ["ab", "aab ", "abc  ", "aaab'sS", "ab1 23\n", "é中🙂 ", "ab\u0301 \r\n", "the cat sat on a mat. "]
        alphabet = rng.choice(alphabets)
        texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(rng.randint(0, 8))]
        texts += rng.choices(texts, k=rng.randint(0, 6)) if texts else []
    patterns = [*splitter.PATTERNS.values(), r"\S+|\s+", r"[^,]+|,"]
    return texts, 256 + rng.choice([0, 1, 3, 10, 25, 60]), rng.choice(patterns)


def check_corpus(case: tuple[int, int]) -> list[str]:
    """Train on one random corpus `(seed, number)` and encode its texts; a line if that differs from the oracle."""
    from rustbpe import Tokenizer

    texts, vocab_size, pattern = random_corpus(random.Random("{}-{}".format(*case)))
    tokenizer = Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small corpora run out of pairs
        tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=pattern)
    merges = bpe.train(texts, vocab_size, pattern)
    where = f"corpus {case[1]} of seed {case[0]}: {ascii(texts)}, vocab_size={vocab_size}, pattern {pattern!r}"
    if tokenizer.get_mergeable_ranks() != bpe.ranks(merges):
        return [f"other merges, {where}"]
    if any(tokenizer.encode(text) != bpe.encode(text, merges, pattern) for text in texts[:2]):
        return [f"other ids, {where}"]
    return []


def trainer_differences(corpora: int, seed: int = 0, processes: int = 1) -> list[str]:
    """The differences over so many random corpora, a line each, the shortest first; [] is wanted."""
    cases = [(seed, number) for number in range(corpora)]
    return sorted(itertools.chain.from_iterable(spread(check_corpus, cases, processes)), key=len)


# ---------------------------------------------------------------------------------------------------------- running


def spread(check: Callable, cases: list, processes: int) -> Iterator[list]:
    """`check(case)` of each case in any order, on so many processes, with a progress bar."""
    if processes == 1:
        yield from map(check, cases)
        return
    # not forked: a child forked while the crate's threads run may wait for ever for a lock that one of them held
    with multiprocessing.get_context("spawn").Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        answers = pool.imap_unordered(check, cases, chunksize=max(1, min(20, len(cases) // (4 * processes))))
        yield from progress(answers, total=len(cases), description="comparing")


def report(what: str, found: Iterable[str], seconds: float) -> int:
    """Print the verdict; the exit status."""
    found = list(found)
    print(f"{what} in {seconds:.0f} s: {len(found):,} failures")
    for line in found[:SHOWN]:
        print(f"  {line}")
    return 1 if found else 0


# -------------------------------------------------------------------- what runs, checkpoints and exports must stand


@dataclass(frozen=True)
class Fault:
    """A kind of trials: its flag, and `function(n, seed, processes)` of a module, which takes torch with it."""

    flag: str
    what: str
    module: str
    function: str
    batch: int  # trials after which the counts are written

    @property
    def name(self) -> str:
        return self.flag.replace("-", "_")


FAULTS = (
    Fault("kills", "SIGKILLs at random instants and around each I/O call of a save", "kills", "kill_trials", 100),
    Fault("power-loss", "power losses: what was not fsynced is dropped, zeroed, reordered", "power_loss",
          "power_loss_trials", 500),
    Fault("mutate", "mutations of files of every kind", "mutations", "mutation_trials", 2000),
    Fault("terms", "SIGTERMs and SIGINTs", "kills", "term_trials", 50),
    Fault("rank-kills", "kills of one rank of four", "rank_kills", "rank_kill_trials", 25),
    Fault("rank-changes", "runs that go on with 1, 4 and 2 ranks", "rank_kills", "change_trials", 5),
    Fault("hangs", "ranks and loaders that hang", "rank_kills", "hang_trials", 5),
    Fault("engine", "prompts to random models, greedy, against the plain model", "engine_trials", "engine_trials", 100),
    Fault("export-strings", "texts through an exported tokenizer", "export_trials", "string_trials", 20_000),
    Fault("export-conversations", "conversations through an exported chat template", "export_trials",
          "conversation_trials", 1000),
    Fault("calculator", "expressions through the calculator, against exact fractions", "calculator_fuzz",
          "calculator_trials", 20_000),
    Fault("malformed", "malformed requests to the server", "serving_fuzz", "malformed_trials", 10_000),
    Fault("user-strings", "texts that look like special tokens, in requests", "serving_fuzz", "user_string_trials",
          10_000),
    Fault("mutants", "wrong answers to HumanEval, graded in the sandbox", "code_mutants", "mutant_trials", 200),
    Fault("full-disk", "full disks at every write of a save", "power_loss", "full_disk_trials", 1),
)


class Counts:
    """What was tried so far of this very code, in a file: `{"ab12...": {"kills": {"trials": 1000, ...}}}`."""

    def __init__(self, path: Path):
        self.path, self.code = path, code_hash()
        self.all: dict[str, dict] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def of(self, fault: Fault) -> dict[str, Any]:
        fresh = {"trials": 0, "failures": 0, "seconds": 0.0, "found": [], "told": []}
        return self.all.setdefault(self.code, {}).setdefault(fault.flag, fresh)

    def add(self, fault: Fault, trials: int, found: list[str], told: str, seconds: float) -> None:
        counts = self.of(fault)
        counts["trials"] += trials
        counts["failures"] += len(found)
        counts["seconds"] += seconds
        counts["found"] = (counts["found"] + found)[:SHOWN]
        counts["told"] += [told] if told else []
        atomic_write(self.path, json.dumps(self.all, indent=1) + "\n")


def code_hash() -> str:
    """A hash of all that the trials are about, and of the trials: counts of other code do not count."""
    digest = hashlib.sha256()
    for path in sorted(p for top in ("nanochat", "scripts", "tasks", "tests") for p in (ROOT / top).rglob("*.[cp][py]*")
                       if p.suffix in (".py", ".cpp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def try_fault(fault: Fault, wanted: int, counts: Counts, seed: int, processes: int) -> None:
    """So many more trials of a kind, batch by batch; a failure ends it, so that it can be looked at."""
    run = getattr(importlib.import_module(f"tests.{fault.module}"), fault.function)
    done = 0
    while done < wanted and not counts.of(fault)["failures"]:
        n, begin = min(fault.batch, wanted - done), time.perf_counter()
        outcome = run(n, seed + counts.of(fault)["trials"], processes)
        found = getattr(outcome, "found", outcome)
        told = "" if found is outcome else str(outcome)
        counts.add(fault, n, found, told, time.perf_counter() - begin)
        done += n
        print(f"{fault.flag}: {counts.of(fault)['trials']:,} tried, {len(found)} failures{told and f' ({told})'}",
              flush=True)


def fault_table(counts: Counts) -> int:
    """Print what was tried of this code, and the first failures; the exit status."""
    rows = [(fault, counts.of(fault)) for fault in FAULTS if counts.of(fault)["trials"]]
    print(f"\n{'trials':>8}  {'failures':>8}  {'seconds':>8}  what")
    for fault, c in rows:
        print(f"{c['trials']:8,}  {c['failures']:8,}  {c['seconds']:8,.0f}  {fault.what}")
    for line in [line for _, c in rows for line in c["found"]]:
        print(f"  {line}")
    return 1 if any(c["failures"] for _, c in rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Random trials in large numbers.")
    parser.add_argument("what", nargs="?", choices=("splitter", "trainer", "downloads", "resumes", "conversations"))
    for fault in FAULTS[:-1]:
        parser.add_argument(f"--{fault.flag}", type=int, default=0, metavar="N", help=fault.what)
    parser.add_argument("--full-disk", action="store_const", const=1, default=0, help=FAULTS[-1].what)
    parser.add_argument("--counts", type=Path, default=Path("chaos.json"), help="where the counts of those add up")
    parser.add_argument("--strings", type=int, default=10_000_000, help="random strings for the splitter")
    parser.add_argument("--corpora", type=int, default=2000, help="random corpora for the trainer")
    parser.add_argument("--schedules", type=int, default=500, help="schedules of faults for the downloads")
    parser.add_argument("--runs", type=int, default=200, help="random runs of the loaders")
    parser.add_argument("--resumes", type=int, default=10, help="resumes of each run")
    parser.add_argument("--conversations", type=int, default=10_000, help="random conversations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    faults = {fault: wanted for fault in FAULTS if (wanted := getattr(asked, fault.name))}
    if bool(asked.what) == bool(faults):
        parser.error("say what to try: one of the names, or flags like --kills=100")
    if faults:
        counts = Counts(asked.counts)
        for fault, wanted in faults.items():
            try_fault(fault, wanted, counts, asked.seed, asked.processes)
        return fault_table(counts)
    begin = time.perf_counter()
    what, found = trial(asked)
    return report(f"{what} (seed {asked.seed})", found, time.perf_counter() - begin)


def trial(asked: argparse.Namespace) -> tuple[str, list[str]]:
    """What was tried, and what failed, a line each. The loaders' parts are imported here: they take torch with them."""
    if asked.what == "splitter":
        found = splitter_differences(asked.strings, asked.seed, asked.processes)
        return f"{asked.strings:,} strings, {len(splitter.PATTERNS)} patterns each", found
    if asked.what == "trainer":
        return f"{asked.corpora:,} corpora", trainer_differences(asked.corpora, asked.seed, asked.processes)
    if asked.what == "downloads":
        from tests.download_faults import run_schedules

        return f"{asked.schedules:,} schedules of faults", run_schedules(asked.schedules, asked.seed, asked.processes)
    if asked.what == "resumes":
        from tests.resume_trials import run_trials

        found = run_trials(asked.runs, asked.resumes, asked.seed, asked.processes)
        return f"{asked.runs:,} runs, {asked.resumes} resumes each", found
    from tests.conversation_fuzz import run_fuzz

    return f"{asked.conversations:,} conversations", run_fuzz(asked.conversations, asked.seed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
