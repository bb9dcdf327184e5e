"""What the pocket world has for evaluation: a bundle like CORE's and problems like HumanEval's, both held out.

Every check reads the files of one generated world. That words and operands of tests stand in no training text is proved
in test_pocket.py; here it is proved that these rows are made of such words and operands.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nanochat.dataset import data_dir
from nanochat.pocket import core_tasks, draw, program_families, programs, words, world
from nanochat.tokenizer import pick_tokenizer_class
from tasks.catalog import make_task

REAL = os.environ.get("NANOCHAT_TEST_DATA")
FAMILIES = {f.key: f for f in program_families.TRAIN_FAMILIES + program_families.NEW_FAMILIES}


@pytest.fixture(scope="module")
def folder(pocket_base) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
        return data_dir("pocket")


@pytest.fixture(scope="module")
def bundle(folder) -> dict[str, dict]:
    return {task["label"]: task for task in read_bundle(folder / "core")["tasks"]}


@pytest.fixture(scope="module")
def rows(folder, bundle) -> dict[str, list[dict]]:
    return {label: jsonl(folder / "core/eval_data" / task["dataset_uri"]) for label, task in bundle.items()}


@pytest.fixture(scope="module")
def facts() -> list[world.Fact]:
    return world.build_world(0)


@pytest.fixture(scope="module")
def problems(folder) -> list[dict]:
    with gzip.open(folder / "humaneval/HumanEval.jsonl.gz", "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_bundle(core: Path) -> dict:
    return json.loads((core / "tasks.json").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------- the bundle


def test_the_three_lists_of_the_bundle_agree(folder, bundle, rows):
    core = folder / "core"
    listed = yaml.safe_load((core / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
    with open(core / "eval_meta_data.csv", encoding="utf-8", newline="") as f:
        meta = {row["Eval Task"]: row for row in csv.DictReader(f)}
    assert [task["label"] for task in listed] == list(bundle) == list(meta)
    for entry in listed:
        task, told = bundle[entry["label"]], meta[entry["label"]]
        assert entry["dataset_uri"] == task["dataset_uri"] and entry["icl_task_type"] == task["icl_task_type"]
        assert entry["num_fewshot"] == [task["num_fewshot"]] == [int(told["#shots"])]
        assert entry.get("continuation_delimiter", " ") == task["continuation_delimiter"]
        assert task["delimiter_is_default"] == (task["continuation_delimiter"] == " ")
        assert len(rows[entry["label"]]) == task["rows_here"] == int(told["#datapoints"]) >= 200
        assert float(told["Random baseline"]) == task["random_baseline_pct"]
    assert {task["icl_task_type"] for task in listed} == {"language_modeling", "multiple_choice", "schema"}


@pytest.mark.skipif(not REAL, reason="NANOCHAT_TEST_DATA names no folder of real data")
def test_the_layout_is_that_of_a_real_bundle(folder, bundle, rows):
    real = read_bundle(Path(REAL) / "core")
    assert {k for task in bundle.values() for k in task} == {k for task in real["tasks"] for k in task}
    header = [(base / "core/eval_meta_data.csv").read_text(encoding="utf-8").splitlines()[0]
              for base in (folder, Path(REAL))]
    assert header[0] == header[1]
    shapes: dict[str, set] = defaultdict(set)
    for task in real["tasks"]:
        with open(Path(REAL) / "core/eval_data" / task["dataset_uri"], encoding="utf-8") as f:
            shapes[task["icl_task_type"]].add(frozenset(json.loads(next(f))))
    for label, task in bundle.items():
        assert {frozenset(row) for row in rows[label]} <= shapes[task["icl_task_type"]], label


def test_baselines_are_those_of_a_blind_guess(bundle, rows):
    for label, task in bundle.items():
        options = [row.get("choices") or row.get("context_options") for row in rows[label]]
        if task["icl_task_type"] == "language_modeling":
            assert not any(options) and task["random_baseline_pct"] == 0
            continue
        guessed = sum(1 / len(o) for o in options) / len(options)
        assert task["random_baseline_pct"] == pytest.approx(100 * guessed, abs=0.01)
        assert all(len(set(o)) == len(o) and 0 <= row["gold"] < len(o) for o, row in zip(options, rows[label]))
        # nor does it pay to say the same place always
        places = Counter(row["gold"] for row in rows[label])
        assert max(places.values()) / places.total() < guessed + 0.12, (label, places)
    assert {len(row["choices"]) for row in rows["pocket_choice"]} == {3, 4, 5}


def sentences(facts: list[world.Fact]) -> dict[str, world.Fact]:
    """Each statement of each fact: `"Mira lives in Luntz." -> that fact`."""
    return {fact.say(t): fact for fact in facts for t in (fact.relation.answer, *fact.relation.statements)}


def test_facts_of_the_bundle_are_held_out_and_one_choice_is_true(rows, facts):
    true = sentences(facts)
    for row in rows["pocket_facts"]:
        assert not true[f"{row['context']} {row['continuation']}."].asked
    for row in rows["pocket_choice"]:
        right = [f"{row['query']} {choice}." in true for choice in row["choices"]]
        assert [i for i, r in enumerate(right) if r] == [row["gold"]]
        assert not true[f"{row['query']} {row['choices'][row['gold']]}."].asked
    for row in rows["pocket_who"]:
        right = [f"{option} {row['continuation']}" in true for option in row["context_options"]]
        assert [i for i, r in enumerate(right) if r] == [row["gold"]]
        assert not true[f"{row['context_options'][row['gold']]} {row['continuation']}"].asked
    wordings = {f"Question: {f.say(q)}": f for f in facts for q in f.relation.test_questions}
    for row in rows["pocket_questions"]:
        fact = wordings[row["query"]]
        assert not fact.asked and row["choices"][row["gold"]] == fact.answer
        assert not {fact.answer} & {c for i, c in enumerate(row["choices"]) if i != row["gold"]}
    asked = [wordings[row["query"]] for row in rows["pocket_questions"]]  # each fact once
    assert sorted(f.answer for f in asked) == sorted(f.answer for f in facts if not f.asked)


def test_words_and_operands_of_the_bundle_are_held_out(folder, rows):
    listed = set((folder / "words/words_alpha.txt").read_text(encoding="utf-8").split())
    held_out = {w for w in listed if words.is_test_word(w)}
    for row in rows["pocket_spelling"]:
        word = row["context"].removesuffix(":")
        assert word in held_out and row["continuation"] == " ".join(word)
    for row in rows["pocket_sums"]:
        a, sign, b = re.fullmatch(r"What is \d+ . \d+\?\n(\d+)([-+])(\d+)", row["context"]).groups()
        assert row["context"].startswith(f"What is {a} {sign} {b}?") and draw.is_test_numbers((a, b))
        assert int(row["continuation"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
    for row in rows["pocket_lookup"]:
        *lines, wanted = row["query"].split("\n")
        texts = [re.fullmatch(r"- (.+) =([A-D])", line).group(1, 2) for line in lines]
        assert texts[row["gold"]] == (wanted, row["choices"][row["gold"]])
        assert [letter for _, letter in texts] == row["choices"] and {text for text, _ in texts} & held_out
    for label in ("pocket_spelling", "pocket_sums", "pocket_lookup", "pocket_questions"):
        assert len({json.dumps(row) for row in rows[label]}) == len(rows[label]), label


def test_a_sentence_is_cut_before_its_value():
    fact = next(f for f in world.build_world(0) if (f.entity, f.relation.key) == ("Mira", "town"))
    assert core_tasks.before_value(fact, "{e} lives in {v}.") == "Mira lives in"
    assert core_tasks.before_value(fact, "{v} is home to {e}.") is None  # it starts with the value
    assert core_tasks.before_value(fact, "{e} comes home to {v} every evening.") is None


# --------------------------------------------------------------------------- programs


def passing(folder: Path, programs_: list[tuple[dict, str]]) -> set[int]:
    """Which of these (problem, solution) pass the problem's test, all in one isolated process.

    Ours, not a model's: no sandbox is needed.
    """
    parts = [f"{problem['prompt']}{solution}{problem['test']}\n\n"
             f"try:\n    check({problem['entry_point']})\n    print({i})\nexcept Exception:\n    pass\n\n\n"
             for i, (problem, solution) in enumerate(programs_)]
    (folder / "all.py").write_text("".join(parts), encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", str(folder / "all.py")], capture_output=True, check=True, text=True,
                          encoding="utf-8")
    return {int(number) for number in done.stdout.split()}


def test_problems_have_humanevals_schema_and_their_solutions_pass(problems, tmp_path):
    assert len(problems) == 3 * len(FAMILIES) >= 150
    assert [p["task_id"] for p in problems] == [f"Pocket/{i}" for i in range(len(problems))]
    assert len({p["prompt"] for p in problems}) == len(problems)
    for problem in problems:
        assert set(problem) == {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
        assert problem["prompt"].startswith(f"def {problem['entry_point']}(") and len(problem["prompt"]) <= 350
        assert problem["prompt"].endswith('"""\n') and problem["canonical_solution"].startswith("    ")
        assert problem["test"].count("assert candidate(") == programs.ASSERTS
    assert len(passing(tmp_path, [(p, p["canonical_solution"]) for p in problems])) == len(problems)


def mutants(problem: dict) -> set[str]:
    """Wrong solutions near the right one: other numbers and letters, other operators, nothing, no answer."""
    solution = problem["canonical_solution"]
    made = {"    return None\n", "    pass\n", re.sub(r"return (.+)", r"return [\1]", solution),
            re.sub(r"return (.+)", r"return str(\1) + '?'", solution), solution.replace("return ", "")}
    for found in re.finditer(r"\d+", solution):
        for number in (int(found[0]) + 1, int(found[0]) - 1):
            made.add(f"{solution[: found.start()]}{number}{solution[found.end():]}")
    made.add(re.sub(r"'(\w)'", lambda m: repr(chr(ord(m[1]) + 1)), solution))
    swaps = ((" + ", " - "), (" - ", " + "), (" * ", " + "), (" > ", " >= "), (" < ", " <= "), (" == ", " != "),
             ("max", "min"), ("min", "max"), (" // ", " % "), (" % ", " // "), ("[::-1]", "[:]"), ("upper", "lower"),
             ("lower", "upper"), ("endswith", "startswith"), ("startswith", "endswith"), (" in ", " not in "),
             ("sorted", "list"), ("abs", ""), ("** ", "* "),
             ("return -", "return "), ("[-", "["))
    made |= {solution.replace(one, other, 1) for one, other in swaps if "for" not in solution or one != " in "}
    return made - {solution}


def test_wrong_solutions_fail(problems, tmp_path):
    """Also the solutions of other families: a model that always gives the same answer has nothing of it."""
    body_of: dict[str, set[str]] = defaultdict(set)
    for problem in problems:
        body_of[re.search(r"\((.*)\)", problem["prompt"])[1]].add(problem["canonical_solution"])
    wrong = []
    for problem in problems:
        others = body_of[re.search(r"\((.*)\)", problem["prompt"])[1]] - {problem["canonical_solution"]}
        wrong += [(problem, solution) for solution in sorted(mutants(problem) | others)]
    survived = [wrong[i] for i in passing(tmp_path, wrong)]
    assert len(wrong) > 1500 and [(p["canonical_solution"], s) for p, s in survived] == []


def test_problems_of_the_test_are_held_out(folder, problems):
    train = [row["messages"] for row in jsonl(folder / "code/train.jsonl")]
    tests = [row["messages"] for row in jsonl(folder / "code/test.jsonl")]
    name_of = re.compile(r"def (\w+)\(")
    trained = {name_of.search(m[1]["content"])[1] for m in train}
    assert len(trained) > 500 and not trained & {p["entry_point"] for p in problems}
    assert not trained & {name_of.search(m[1]["content"])[1] for m in tests}
    # a solution that training has too is one of a family without constants: only its name and words can be new
    plain = {line.format(**dict(zip("pqr", names.split())))
             for f in program_families.TRAIN_FAMILIES if not f.constants
             for names in programs.PARAMETERS[f.takes] for line in f.body.splitlines()[-1:]}
    last = [{m[1]["content"].splitlines()[-2].strip() for m in chats} for chats in (train, tests)]
    assert (last[1] | {p["canonical_solution"].splitlines()[-1].strip() for p in problems}) & last[0] <= plain
    new = {f.key for f in program_families.NEW_FAMILIES}
    assert len(new) >= 6 and not new & {f.key for f in program_families.TRAIN_FAMILIES}
    for family in program_families.NEW_FAMILIES:  # their shape stands nowhere in training
        constant = r"\d+" if not isinstance((*family.constants, "")[0], str) else "[a-z]"
        shape = re.escape(family.body).replace(r"\{c\}", constant)
        shape = re.sub(r"\\\{[pqr]\\\}", r"\\w+", shape)
        assert not [m for m in train if re.search(rf"^ +{shape}$", m[1]["content"], re.MULTILINE)], family.key


@given(seed=st.integers(0, 10**6), key=st.sampled_from(sorted(FAMILIES)), test=st.booleans())
def test_programs_are_on_their_side_of_the_split(seed, key, test):
    family = FAMILIES[key]
    test = test or not family.names  # what only tests have
    program = programs.make_program(family, random.Random(seed), test)
    if family.constants:
        assert programs.is_test_constants(key, program.constants) == test
    filled = [n.format(**dict(zip("cd", program.constants)))
              for n in (family.kept_names if test else family.names).split()]
    assert program.name in filled
    calls = programs.calls_of(family.takes, program.constants, random.Random(seed))
    assert len(calls) == programs.ASSERTS == len({programs.shown(call) for call in calls})
    results = {repr(family.does(*call, *program.constants)) for call in calls}
    assert len(results) > 1  # no constant answer passes


def test_conversations_ask_as_humaneval_does_and_fit_the_context(folder, problems):
    train = jsonl(folder / "code/train.jsonl")
    assert len(train) == 3000 == len({row["messages"][0]["content"] for row in train})
    for row in train:
        asked, answer = (m["content"] for m in row["messages"])
        prompt = re.fullmatch(r'Complete this Python function:\n```python\n(def .*"""\n)```', asked, re.DOTALL)[1]
        assert re.fullmatch(rf"```python\n{re.escape(prompt)}(?: {{4,}}.+\n)+```", answer)
    first = pyarrow.parquet.ParquetFile(folder / "corpus/shard_00000.parquet").read_row_group(0)
    tokenizer = pick_tokenizer_class().train_from_iterator(first["text"].to_pylist() * 4, 1024)
    lengths = sorted(len(tokenizer.render_conversation(row)[0]) for row in train[::4])
    assert lengths[-1] <= 256 and lengths[len(lengths) // 2] < 160
    assert len(make_task("code", data=str(folder), split="test")) == 250


def test_the_problems_are_the_same_bytes_at_any_time(folder):
    packed = (folder / "humaneval/HumanEval.jsonl.gz").read_bytes()
    assert packed[:4] == b"\x1f\x8b\x08\x00" and packed[4:8] == bytes(4)  # no name and no time in the header
