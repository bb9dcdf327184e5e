"""Our tokenizer trainer and encoder against rustbpe 0.1.0, Hugging Face tokenizers and tiktoken.

    python bench/tokenizer.py                                          # some ten minutes on two cores
    python bench/tokenizer.py --megabytes=5 --rounds=1 --vocab_sizes 8192 --hf_megabytes=2
    python bench/tokenizer.py --rivals rustbpe tiktoken                # without the slow one

The rivals come from the Python index into an environment of their own, made once under the base directory. Each
measurement is a process of its own (bench/_tokenizer_worker.py); round by round all rivals take their turn, in an
order that rotates; figures are medians of the rounds. CPU seconds count all threads, user and system. Cold: texts are
in memory before the clock starts, and nothing has been trained or encoded. MB are millions of bytes of UTF-8.

Last of all come the identity checks: merges against rustbpe 0.1.0, ids against tiktoken (every document, and under
`$NANOCHAT_TEST_DATA` many scripts and the cl100k_base vocabulary) and against tokenizers (its sample).

The last line printed is JSON. `train_vs_rustbpe`, `train_vs_hf`, `encode_vs_tiktoken`, `encode_vs_hf` are their CPU
seconds per byte over ours, `..._wall` the same of wall seconds; where several vocabulary sizes were trained, the worst
ratio. `..._in_all`: CPU seconds with the construction of the encoder. `mismatches` counts merges and documents that
differ: 0 is wanted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from _tokenizer_figures import ENCODERS, NO_MERGES, TRAINERS, Key, Results, construction_lines, summary, table_of
from rich.console import Console

from nanochat import configurator
from nanochat.common import UserError, check_at_least, get_base_dir, print0
from nanochat.dataset import corpus, read_unit
from nanochat.documents import build_once, read_documents
from nanochat.files import atomic_write
from nanochat.tokenizer import SPLIT_PATTERN, RustBPETokenizer, pick_tokenizer_class, ranks_of_lines
from nanochat.tokenizer_json import tokenizer_json

HEADLINE = ("train_vs_rustbpe", "train_vs_hf", "encode_vs_tiktoken", "encode_vs_hf")
WORKER = Path(__file__).with_name("_tokenizer_worker.py")
RIVALS = {"rustbpe": "0.1.0", "tokenizers": "0.23.3", "tiktoken": "0.14.0"}


@dataclass
class Config:
    """Measure tokenizer training and encoding against rustbpe 0.1.0, tokenizers and tiktoken."""

    data: str = ""
    """pocket, fineweb-edu:N, or a folder. Default: the corpus of $NANOCHAT_TEST_DATA where that is set, else pocket."""
    megabytes: float = 100
    """Text to train on and to encode."""
    vocab_sizes: tuple[int, ...] = (32768, 65536)
    """Vocabularies to train and to encode with, special tokens not counted."""
    rounds: int = 5
    """Measurements of each; the median is shown."""
    rivals: tuple[Literal["rustbpe", "tokenizers", "tiktoken"], ...] = ("rustbpe", "tokenizers", "tiktoken")
    """Whom to compare with (tokenizers is Hugging Face's)."""
    hf_rounds: int = 3
    """Rounds in which tokenizers takes part: it needs minutes where the others need seconds."""
    hf_megabytes: float = 100
    """Text that tokenizers encodes, at most (it trains on all of it)."""
    check_megabytes: float = 200
    """Text on which the ids are compared, at most."""


def run_group(command: list[str], **options: Any) -> tuple[int, bytes, bytes]:
    """Run a command: its status, its output, its errors. Ctrl-C ends it with all that it has started itself."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, start_new_session=True, **pipes, **options)
    try:
        out, err = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, out, err


# ------------------------------------------------------------------------------------- the rivals' environment


def make_environment() -> str:
    """The interpreter of an environment with the rivals, pinned exactly; made on first use, kept under the base dir."""
    ours = {name: importlib.metadata.version(name) for name in ("numpy", "regex")}  # tiktoken imports these two
    pins = [f"{name}=={version}" for name, version in (RIVALS | ours).items()]
    key = hashlib.sha256(repr((pins, sys.version, sys.base_prefix, platform.machine())).encode("utf-8")).hexdigest()
    folder = get_base_dir() / "bench" / f"tokenizer-rivals-{key[:12]}"
    python = folder / "bin" / "python"

    def fill(temporary: Path) -> None:
        print0(f"making an environment with {', '.join(pins)}")
        inside = str(temporary / "bin" / "python")
        install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        for command in ([sys.executable, "-m", "venv", str(temporary)], [*install, *pins]):
            status, out, err = run_group(command)
            if status:
                said = (out + err).decode("utf-8", "replace").strip()
                raise UserError(f"the rivals' environment could not be made, is the package index reachable?\n{said}")

    if folder.is_dir() and subprocess.run([str(python), "-c", ""], capture_output=True, check=False).returncode:
        shutil.rmtree(folder)  # the Python that it was made with is gone
    return str(build_once(folder, fill) / "bin" / "python")


def interpreters(rivals: Iterable[str]) -> dict[str, str]:
    """Which Python measures whom: ours runs in our environment, all others in theirs."""
    theirs = make_environment() if rivals else ""
    return {"ours": sys.executable} | dict.fromkeys({*TRAINERS, *ENCODERS} - {"ours"}, theirs)


# ---------------------------------------------------------------------------------------------------- the texts


class Texts(NamedTuple):
    """A file of documents for the workers: a length (4 bytes, little-endian) and UTF-8, each."""

    path: Path
    documents: int
    bytes: int


def write_texts(path: Path, documents: Iterable[str], limit: float = float("inf")) -> Texts:
    """Documents until they hold `limit` bytes."""
    count = size = 0
    with open(path, "wb") as f:
        for text in documents:
            if size >= limit:
                break
            raw = text.encode("utf-8", "replace")
            f.write(struct.pack("<I", len(raw)) + raw)
            count += 1
            size += len(raw)
    return Texts(path, count, size)


def documents_of(data: str) -> Iterator[str]:
    """All documents of a source, in a fixed order in which the first megabytes are a sample of the whole."""
    made = corpus(data)
    units = [*made.train, *made.val]
    random.Random(0).shuffle(units)
    for unit in units:
        yield from read_unit(unit)


# ------------------------------------------------------------------------------------------------- measurements


class Bench:
    """The workers' jobs: what they share, and where they leave their files."""

    def __init__(self, config: Config, pythons: dict[str, str], texts: Texts, folder: Path) -> None:
        self.config, self.pythons, self.texts, self.folder = config, pythons, texts, folder
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.results: Results = defaultdict(list)
        self.versions: dict[str, str] = {}

    def work(self, rival: str, task: str, **job: object) -> dict:
        """Run one job in a process of its own and give back what it measured."""
        job = {"task": task, "rival": rival, "pattern": SPLIT_PATTERN, "texts": str(self.texts.path),
               "megabytes": self.config.megabytes, "threads": self.threads, **job}
        command = [self.pythons[rival], "-I", str(WORKER), json.dumps(job)]
        # as many threads for all: ours does not heed the variables of rayon, which two of the rivals use
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYON_")}
        environment["TOKENIZERS_PARALLELISM"] = "true"
        status, out, err = run_group(command, cwd=self.folder, env=environment)
        if status:
            said = err.decode("utf-8", "replace").strip() or f"exit status {status}, no message"
            raise UserError(f"the measurement of {rival} ({task}) failed:\n{said}")
        answer = json.loads(out.splitlines()[-1])
        self.versions[rival] = answer["version"]
        return answer

    def ranks(self, rival: str, vocab_size: int) -> Path:
        """Where a trainer's ranks of the first round lie."""
        return self.folder / f"{rival}-{vocab_size}.tiktoken"

    def takes_part(self, rival: str, round: int) -> bool:
        library = rival.split("-")[0]
        return rival == "ours" or library in self.config.rivals and (library != "tokenizers" or round < self.hf_rounds)

    @property
    def hf_rounds(self) -> int:
        return min(self.config.hf_rounds, self.config.rounds)

    def keys(self, round: int) -> list[Key]:
        """The measurements of one round: task by task, the rivals in an order that rotates with the round."""
        tasks = [("train", size, TRAINERS) for size in (NO_MERGES, *self.config.vocab_sizes)]
        tasks += [("encode", size, ENCODERS) for size in self.config.vocab_sizes]
        keys = []
        for task, size, rivals in tasks:
            taking_part = [rival for rival in rivals if self.takes_part(rival, round)]
            first = round % len(taking_part)
            keys += [Key(task, size, rival) for rival in taking_part[first:] + taking_part[:first]]
        return keys

    def measure(self) -> Results:
        """All rounds, a printed line a measurement."""
        plan = [(round, key) for round in range(self.config.rounds) for key in self.keys(round)]
        for number, (round, key) in enumerate(plan, start=1):
            answer = self.measure_one(key, first_round=round == 0)
            self.results[key].append(answer)
            speed = answer["bytes"] / 1e6 / max(answer["cpu"], 1e-3)
            print0(f"[{number}/{len(plan)}] round {round + 1}, {key.task} {key.vocab_size:,}, {key.rival}: "
                   f"{answer['wall']:.2f} s, {answer['cpu']:.2f} CPU s, {speed:.1f} MB per CPU s, "
                   f"peak {answer['peak'] / 1e6:,.0f} MB")
        return self.results

    def measure_one(self, key: Key, first_round: bool) -> dict:
        if key.task == "train":
            out = str(self.ranks(key.rival, key.vocab_size)) if first_round and key.rival != "tokenizers" else None
            return self.work(key.rival, "train", vocab_size=key.vocab_size, out=out)
        ranks = self.ranks("ours", key.vocab_size)  # learned before: a round trains first
        job: dict[str, object] = {"ranks": str(ranks)}
        if key.rival == "tokenizers":
            job["megabytes"] = self.hf_megabytes
            if first_round:
                write_tokenizer_json(ranks)
        return self.work(key.rival, "encode", **job)

    @property
    def hf_megabytes(self) -> float:
        return min(self.config.hf_megabytes, self.config.megabytes)

    # ------------------------------------------------------------------------------------------ identity checks

    def mismatches(self) -> dict[str, int]:
        """What was compared -> how many merges or documents differ."""
        found = {}
        if "rustbpe" in self.config.rivals:
            for size in self.config.vocab_sizes:
                pair = [self.ranks(rival, size).read_bytes().splitlines() for rival in ("ours", "rustbpe")]
                found[f"merges of {size}, rustbpe"] = sum(a != b for a, b in itertools.zip_longest(*pair))
        ranks = self.ranks("ours", self.config.vocab_sizes[0])
        if "tokenizers" in self.config.rivals:
            found[f"ids of {self.hf_megabytes:g} MB, tokenizers"] = self.different_documents(
                "tokenizers", self.texts, ranks, SPLIT_PATTERN, self.hf_megabytes)
        if "tiktoken" not in self.config.rivals:
            return found
        vocabularies = [("our ranks", ranks, SPLIT_PATTERN)]
        collections = [(f"{self.texts.documents:,} documents", self.texts)]
        if shared := os.environ.get("NANOCHAT_TEST_DATA"):
            vectors = Path(shared) / "tokenizer_vectors"
            patterns = json.loads((vectors / "patterns.json").read_text(encoding="utf-8"))
            vocabularies.append(("cl100k_base", vectors / "cl100k_base.tiktoken", patterns["cl100k_base"]))
            files = sorted((Path(shared) / "tokenizer_text").glob("*.jsonl"))
            scripts = write_texts(self.folder / "scripts", (text for file in files for text in read_documents(file)))
            collections.append((f"{scripts.documents:,} of tokenizer_text", scripts))
        for name, ranks, pattern in vocabularies:
            for label, texts in collections:
                found[f"ids of {label}, {name}, tiktoken"] = self.different_documents("tiktoken", texts, ranks, pattern)
        return found

    def different_documents(self, rival: str, texts: Texts, ranks: Path, pattern: str, megabytes: float = 1e9) -> int:
        """How many documents of `texts` have other ids from `rival` than from us."""
        digests = []
        for who in ("ours", rival):
            print0(f"checking: {who} encodes {min(texts.bytes / 1e6, megabytes):.0f} MB with {ranks.name}")
            out = self.folder / f"ids-{who}"
            self.work(who, "ids", texts=str(texts.path), megabytes=megabytes, ranks=str(ranks), pattern=pattern,
                      out=str(out))
            raw = out.read_bytes()
            digests.append([raw[i : i + 8] for i in range(0, len(raw), 8)])
        if len(digests[0]) != len(digests[1]):
            raise RuntimeError(f"{rival} and ours gave ids for different numbers of documents")
        return sum(a != b for a, b in zip(*digests))


def write_tokenizer_json(path: Path) -> None:
    """The ranks in `path` as the file that tokenizers loads, `path`.json: what our own export makes of them."""
    ranks = ranks_of_lines(path.read_text(encoding="ascii"))
    atomic_write(f"{path}.json", tokenizer_json(RustBPETokenizer(ranks, SPLIT_PATTERN, {})))


# --------------------------------------------------------------------------------------------------------- main


def source(data: str) -> tuple[str, str]:
    """`(data, label)`: what to read, and what the results call it."""
    shared = os.environ.get("NANOCHAT_TEST_DATA")
    if data or not shared:
        return data or "pocket", data or "pocket"
    return str(Path(shared) / "corpus"), "corpus of NANOCHAT_TEST_DATA"


def check(config: Config) -> None:
    """What can be said before the first minute is spent."""
    check_at_least(1, rounds=config.rounds, hf_rounds=config.hf_rounds)
    if min(config.megabytes, config.hf_megabytes, config.check_megabytes) <= 0:
        raise UserError("--megabytes, --hf_megabytes and --check_megabytes must be more than 0")
    if not config.vocab_sizes or min(config.vocab_sizes) <= NO_MERGES:
        raise UserError(f"--vocab_sizes must be more than {NO_MERGES}: below that there is nothing to merge")
    if len(set(config.vocab_sizes)) < len(config.vocab_sizes):
        raise UserError("--vocab_sizes names one size twice")
    if not config.rivals:
        raise UserError("--rivals is empty: name whom to compare with")
    if pick_tokenizer_class() is not RustBPETokenizer:
        raise UserError("our rustbpe is not built: install Rust, then run bash dev/setup.sh")


def main(config: Config) -> None:
    check(config)
    data, label = source(config.data)
    pythons = interpreters(config.rivals)
    workshop = get_base_dir() / "bench"
    workshop.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tokenizer-", dir=workshop) as folder:
        most = 1e6 * max(config.megabytes, config.check_megabytes)
        texts = write_texts(Path(folder) / "texts", documents_of(data), most)
        print0(f"{label}: {texts.documents:,} documents, {texts.bytes / 1e6:.1f} MB of text")
        if texts.bytes < config.megabytes * 1e6:
            print0(f"note: that is all there is, --megabytes={config.megabytes:g} cannot be had")
        bench = Bench(config, pythons, texts, Path(folder))
        results = bench.measure()
        mismatches = bench.mismatches()
    versions = ", ".join(f"{who} {version}" for who, version in bench.versions.items() if who != "tiktoken-numpy")
    Console(width=130).print(table_of(results, f"{label} · {bench.threads} cores · {versions}"))
    print0("\n".join([*construction_lines(results), *(f"{n:>8,} differ: {what}" for what, n in mismatches.items())]))
    figures = summary(results, config.vocab_sizes)
    print0(json.dumps({
        **{name: figures.pop(name) for name in HEADLINE}, "mismatches": sum(mismatches.values()), **figures,
        "mismatches_in": mismatches, "data": label, "megabytes": round(min(config.megabytes, texts.bytes / 1e6), 2),
        "checked_megabytes": round(texts.bytes / 1e6, 2), "cores": bench.threads, "rounds": config.rounds,
        "hf_rounds": bench.hf_rounds, "hf_megabytes": bench.hf_megabytes, "versions": bench.versions,
        "python": platform.python_version(), "machine": platform.machine(),
    }))


if __name__ == "__main__":
    configurator.main(main, Config)
