"""The pocket world: all data of the whole pipeline, generated here from a seed, without any download.

`generate(folder)` writes a corpus and every task in the schemas of the real sets; the same seed gives the same bytes.
What tests ask is held out by construction: facts, operands, names, words, question frames and kinds of programs.
Look at it: `python -m nanochat.pocket FOLDER`. Everything measured on it is to be labelled "pocket".
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from nanochat.pocket import (
    arithmetic,
    core_tasks,
    documents,
    families,
    identity,
    problems,
    program_families,
    programs,
    questions,
    rl_families,
    talk,
    words,
)
from nanochat.pocket.draw import Deck, stream
from nanochat.pocket.world import ENTITIES, build_world

VERSION = "3"

# ---------------------------------------------------------------- the dials: sizes and mixture, all in one place
CORPUS_CHARS = 11_500_000
SHARES = {  # of the corpus' characters
    "facts": 0.29,
    "questions": 0.12,
    "binding": 0.12,
    "spelling": 0.19,
    "numbers": 0.05,
    "problems": 0.12,
    "identity": 0.08,
    "talk": 0.03,
}
SHARDS = 8
ROW_GROUP = 256

WORLD_QA_ROUNDS = 44  # rows for each asked fact, all in different words; so are the three below
ARC_EASY_ROUNDS = 12
ARC_CHALLENGE_ROUNDS = 3
MMLU_ROUNDS = 10
IDENTITY_ROUNDS, IDENTITY_PER_INTENT = 3, 500  # variants of each whole training frame; questions with composed ones
IDENTITY_TEST_ROUNDS = 3  # of each test frame
GSM8K_TRAIN, GSM8K_TEST, GSM8K_NEW = 6000, 300, 600
RL_TRAIN, RL_TEST = 6000, 300
CALCULATOR_TRAIN, CALCULATOR_TEST = 5000, 300
TALK_TRAIN, TALK_TEST = 3000, 250
CODE_TRAIN, CODE_TEST = 3000, 250
HUMANEVAL_PER_FAMILY = 3


def content_hash(seed: int = 0) -> str:
    """Short name of what `generate` would write: over the generator's own source and the seed."""
    digest = hashlib.sha256(f"{VERSION}/{seed}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def generate(folder: Path, seed: int = 0) -> dict:
    """Write the whole data layout under `folder`. Returns `{relative path: rows}`.

    The word list comes last: test words that any text happens to use are dropped from it.
    """
    folder = Path(folder)
    facts = build_world(seed)
    word_list = words.build_words(seed, without=_names())
    corpus = documents.build_corpus(facts, word_list, seed, CORPUS_CHARS, SHARES)
    counts = write_corpus(folder / "corpus", corpus)
    used = vocabulary(corpus)
    for path, rows in _task_files(facts, seed):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        _write(folder / path, text.encode("utf-8"))
        counts[path] = len(rows)
        if "test" not in path:
            used |= vocabulary([text])
    kept = [w for w in word_list if not (words.is_test_word(w) and w in used)]
    _write(folder / "words/words_alpha.txt", "".join(w + "\n" for w in kept).encode("utf-8"))
    counts["words/words_alpha.txt"] = len(kept)
    held_out_words = [w for w in kept if words.is_test_word(w)]
    for path, (text, rows) in core_tasks.core_files(facts, held_out_words, seed).items():
        _write(folder / path, text.encode("utf-8"))
        counts[path] = rows
    counts["humaneval/HumanEval.jsonl.gz"] = _write_humaneval(folder / "humaneval/HumanEval.jsonl.gz", seed)
    return counts


def vocabulary(texts: Iterable[str]) -> set[str]:
    """All words of the texts in lower case: `["Mira's cat"] -> {"mira", "s", "cat"}`."""
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"[a-z]+", text.lower()))
    return found


def _names() -> set[str]:
    """Words that no spelling word may be: names of people and places, seen or held out."""
    names = problems.HER + problems.HIM + problems.TEST_HER + problems.TEST_HIM
    names += [name for kind in ("person", "town", "animal", "dish") for name in ENTITIES[kind]]
    return {name.lower() for name in names}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)  # bytes: no newline translation, the same file everywhere


def _write_humaneval(path: Path, seed: int) -> int:
    """Functions to complete in HumanEval's schema, equally many of each family, also of those that only tests have."""
    rng = stream(seed, "humaneval")
    made = [program for family in program_families.TRAIN_FAMILIES + program_families.NEW_FAMILIES
            for program in programs.draw_programs((family,), rng, test=True, n=HUMANEVAL_PER_FAMILY)]
    rng.shuffle(made)
    text = "".join(json.dumps(program.problem(i)) + "\n" for i, program in enumerate(made))
    _write(path, gzip.compress(text.encode("utf-8"), mtime=0))  # without the time of day: the same bytes again
    return len(made)


def write_corpus(folder: Path, corpus: list[str]) -> dict[str, int]:
    """The documents as parquet shards of equal length with row groups of 256."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    per_shard = -(-len(corpus) // (SHARDS * ROW_GROUP)) * ROW_GROUP  # whole row groups: no small rest in every shard
    counts = {}
    for i in range(0, len(corpus), per_shard):
        name = f"shard_{i // per_shard:05d}.parquet"
        table = pyarrow.table({"text": corpus[i : i + per_shard]})
        pyarrow.parquet.write_table(table, folder / name, row_group_size=ROW_GROUP, compression="zstd")
        counts[f"corpus/{name}"] = table.num_rows
    return counts


def _task_files(facts: list, seed: int) -> Iterable[tuple[str, list[dict]]]:
    """Every JSON Lines file and its rows."""
    q = questions
    yield "world_qa/train.jsonl", q.world_qa(facts, stream(seed, "qa/train"), WORLD_QA_ROUNDS)
    yield "world_qa/test.jsonl", q.world_qa_test(facts, stream(seed, "qa/test"))
    for split, easy, hard in (("train", ARC_EASY_ROUNDS, ARC_CHALLENGE_ROUNDS), ("validation", 1, 1), ("test", 1, 1)):
        yield f"arc/arc_easy_{split}.jsonl", q.arc_easy(facts, stream(seed, "easy/" + split), split, easy)
        yield f"arc/arc_challenge_{split}.jsonl", q.arc_challenge(facts, stream(seed, "hard/" + split), split, hard)
    yield "mmlu/dev.jsonl", q.mmlu_dev(facts, stream(seed, "mmlu/dev"))
    for split, rounds in (("auxiliary_train", MMLU_ROUNDS), ("val", 1), ("test", 1)):
        yield f"mmlu/{split}.jsonl", q.mmlu(facts, stream(seed, "mmlu/" + split), split, rounds)
    yield "identity/train.jsonl", identity.identity_train(
        stream(seed, "identity/train"), IDENTITY_ROUNDS, IDENTITY_PER_INTENT)
    yield "identity/test.jsonl", identity.identity_test(stream(seed, "identity/test"), IDENTITY_TEST_ROUNDS)
    yield "gsm8k/train.jsonl", _problems(families.TRAIN_FAMILIES, seed, "train", GSM8K_TRAIN)
    yield "gsm8k/test.jsonl", _problems(families.TRAIN_FAMILIES, seed, "test", GSM8K_TEST)
    yield "gsm8k/test_new_templates.jsonl", _problems(families.NEW_FAMILIES, seed, "test_new", GSM8K_NEW)
    yield "gsm8k/rl_train.jsonl", _problems(rl_families.RL_FAMILIES, seed, "rl_train", RL_TRAIN)
    yield "gsm8k/rl_test.jsonl", _problems(rl_families.RL_FAMILIES, seed, "rl_test", RL_TEST)
    for split, n in (("train", CALCULATOR_TRAIN), ("test", CALCULATOR_TEST)):
        rng = stream(seed, "calculator/" + split)
        yield f"calculator/{split}.jsonl", [arithmetic.calculation(rng, split == "test") for _ in range(n)]
    train, test = talk.talk_split([f for f in facts if f.asked], stream(seed, "talk"), TALK_TRAIN, TALK_TEST)
    yield "sft/pocket_talk_train.jsonl", train
    yield "sft/pocket_talk_test.jsonl", test
    kinds = program_families.TRAIN_FAMILIES
    for split, n in (("train", CODE_TRAIN), ("test", CODE_TEST)):
        made = programs.draw_programs(kinds, stream(seed, "code/" + split), split == "test", n)
        yield f"code/{split}.jsonl", [program.row() for program in made]


def _problems(kinds: tuple[problems.Family, ...], seed: int, split: str, n: int) -> list[dict]:
    """n word problems, as many of each family (or one fewer of some), no question twice."""
    rng, test = stream(seed, "gsm8k/" + split), "test" in split
    deck = Deck(kinds, rng)
    rows: dict[str, dict] = {}
    made: Counter[str] = Counter()
    while len(rows) < n:
        family = deck.draw()
        if made[family.key] * len(kinds) >= n:  # one that came upon the same question twice catches up
            continue
        problem = problems.make_problem(family, rng, test, families.VERBS)
        made[family.key] += problem.question not in rows
        rows[problem.question] = problem.row
    return list(rows.values())
