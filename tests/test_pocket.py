"""The pocket world: what tests ask is really held out, what is computed is right, the same seed gives the same bytes.

One world is generated for the whole file (a few seconds); every check reads the files, not the generator's intentions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet
import pytest

from nanochat import pocket
from nanochat.calculator import use_calculator
from nanochat.files import sha256_file
from nanochat.pocket import binding, draw, families, identity, intents, problems, questions, rl_families, words, world
from tasks import spellingbee
from tasks.common import render_mc

MARK = re.compile(r"<<([\d.]+)([-+*/])([\d.]+)=([\d.]+)>>")
EXPRESSION = re.compile(r"(\d+) ?([-+*/]) ?(\d+)")
TEST_FILES = (
    "world_qa/test", "arc/arc_easy_test", "arc/arc_challenge_test", "mmlu/test", "identity/test", "gsm8k/test",
    "gsm8k/test_new_templates", "gsm8k/rl_test", "calculator/test", "sft/pocket_talk_test", "code/test",
)
TRAIN_FILES = (
    "world_qa/train", "arc/arc_easy_train", "arc/arc_challenge_train", "mmlu/auxiliary_train", "mmlu/dev",
    "identity/train", "gsm8k/train", "gsm8k/rl_train", "calculator/train", "sft/pocket_talk_train", "code/train",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pocket")
    pocket.generate(path)
    return path


@pytest.fixture(scope="module")
def corpus(folder) -> list[str]:
    shards = sorted((folder / "corpus").glob("*.parquet"))
    return [text for shard in shards for text in pyarrow.parquet.read_table(shard)["text"].to_pylist()]


def load(folder: Path, name: str) -> list[dict]:
    with open(folder / f"{name}.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def strings(value: object) -> Iterable[str]:
    """All strings inside a row, except its id (`pocket_easy_test_1` is no text)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "id":
                yield from strings(item)


@pytest.fixture(scope="module")
def train_rows(folder) -> list[str]:
    """Every string of every training file."""
    return [text for name in TRAIN_FILES for row in load(folder, name) for text in strings(row)]


@pytest.fixture(scope="module")
def training(corpus, train_rows) -> list[str]:
    """All that a model may be trained on."""
    return corpus + train_rows


@pytest.fixture(scope="module")
def plain(training) -> list[str]:
    """The same in plain form, made once: several searches want it."""
    return [draw.normalise(text) for text in training]


@pytest.fixture(scope="module")
def vocabulary(training) -> set[str]:
    return pocket.vocabulary(training)


@pytest.fixture(scope="module")
def facts() -> list[world.Fact]:
    return world.build_world(0)


class Finder:
    """Finds many phrases in texts of plain form, as whole words anywhere.

    `Finder({"Hi, you!": 1}).find("oh hi you there") -> [1]`
    """

    def __init__(self, phrases: dict[str, object]):
        self.keys = {draw.normalise(phrase): key for phrase, key in phrases.items()}
        self.lengths: dict[str, set[int]] = defaultdict(set)
        for phrase in self.keys:
            self.lengths[phrase.split()[0]].add(phrase.count(" ") + 1)

    def find(self, plain_text: str) -> list[object]:
        tokens = plain_text.split()
        candidates = (
            " ".join(tokens[i : i + n])
            for i, token in enumerate(tokens)
            for n in self.lengths.get(token, ())
            if i + n <= len(tokens)
        )
        return [self.keys[c] for c in candidates if c in self.keys]


def questions_of(facts: Iterable[world.Fact], *fields: str) -> Finder:
    return Finder({fact.say(q): (fact.entity, fact.relation.key) for fact in facts
                   for field in fields for q in getattr(fact.relation, field)})


# --------------------------------------------------------------------------- the same again


def digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(folder, tmp_path):
    """In another process, with another hash seed: no set's order may reach a file."""
    code = "import sys; from pathlib import Path; from nanochat import pocket; pocket.generate(Path(sys.argv[1]))"
    env = {**os.environ, "PYTHONHASHSEED": "123"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=env)
    assert digests(tmp_path / "again") == digests(folder)


def test_seeds_are_different_worlds():  # trap: seed-sign
    worlds = {tuple((f.entity, f.value, f.asked) for f in world.build_world(seed)) for seed in (0, 1, -1, 2)}
    assert len(worlds) == 4
    assert len({pocket.content_hash(seed) for seed in (0, 1, -1)}) == 3
    assert draw.stream(1, "x").random() != draw.stream(-1, "x").random()


def test_content_hash_follows_the_source(tmp_path, monkeypatch):
    before = pocket.content_hash()
    assert before == pocket.content_hash() and re.fullmatch("[0-9a-f]{12}", before)
    for path in Path(pocket.__file__).parent.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes() + (b"# changed" if path.name == "talk.py" else b""))
    monkeypatch.setattr(pocket, "__file__", str(tmp_path / "__init__.py"))
    assert pocket.content_hash() != before


# --------------------------------------------------------------------------- facts


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_shape_of_the_world(seed):
    facts = world.build_world(seed)
    held_out = [f for f in facts if not f.asked]
    assert len(facts) >= 600 and len(held_out) >= 250 and 0.55 < 1 - len(held_out) / len(facts) < 0.6
    for relation in world.RELATIONS:
        assert len(relation.asking.whole) >= 30 and len(relation.test_questions) >= 3 and len(relation.statements) >= 8
        assert all(len(kind) >= 30 for kind in relation.kinds)
        assert sum(f.asked for f in facts if f.relation is relation) >= 12
        every = [*relation.asking.whole, *relation.test_questions, *relation.reverse, *relation.reverse_test]
        assert len({draw.normalise(q) for q in every}) == len(every), relation.key
        for subset in (facts, held_out):
            values = Counter(f.value for f in subset if f.relation is relation)
            assert max(values.values()) / values.total() < 0.15, f"{relation.key}: guessing pays"


def test_answers_cannot_be_right_by_accident(facts):
    """No value stands inside another of its relation, inside an entity, or in the question that asks for it."""
    for key, values in world.VALUES.items():
        for value in values:
            pattern = re.compile(rf"\b{re.escape(value.lower())}\b")
            assert [v for v in values if pattern.search(v.lower())] == [value], (key, value)
    for fact in facts:
        for template in (*fact.relation.questions, *fact.relation.test_questions):
            assert not re.search(rf"\b{re.escape(fact.value)}\b", fact.say(template)), (fact, template)


def test_held_out_facts_are_never_asked_in_training(facts, plain):
    fields = ("questions", "test_questions")
    held_out = questions_of((f for f in facts if not f.asked), *fields)
    said = {(f.entity, f.relation.key): [f" {draw.normalise(f.say(t))} "
                                         for t in (f.relation.answer, *f.relation.statements)]
            for f in facts}

    def without_statements(text: str, key: tuple[str, str]) -> str:
        """"Town of Mira?" stands in "The town of Mira is Tarn.": what states the fact does not ask it."""
        text = f" {text} "
        for statement in said[key]:
            text = text.replace(statement, " | ")
        return text

    found = {key for text in plain for key in held_out.find(text)
             if key in held_out.find(without_statements(text, key))}
    assert found == set()
    asked = questions_of((f for f in facts if f.asked), *fields)  # the same search does find what is there
    assert {key for text in plain for key in asked.find(text)} == {
        (f.entity, f.relation.key) for f in facts if f.asked
    }


def test_wordings_kept_for_tests_are_never_used_in_training(facts, plain):
    kept = questions_of(facts, "test_questions", "reverse_test")
    assert {key for text in plain for key in kept.find(text)} == set()


def words_of(wording: str) -> list[str]:
    return [word for word in draw.normalise(wording).split() if word not in ("a", "an", "the")]


def test_wordings_of_training_are_no_near_copies_of_those_of_tests():
    """Neither contains the other, and no single word put in, left out or exchanged makes one of the other."""
    for relation in world.RELATIONS:
        kept = {tuple(words_of(q)): q for q in relation.test_questions}
        one_less = {(*k[:i], *k[i + 1:]) for k in kept for i in range(len(k))}
        holes = {(*k[:i], "_", *k[i + 1:]) for k in kept for i in range(len(k))}
        for question in relation.questions:
            train = words_of(question)
            shorter = {(*train[:i], *train[i + 1:]) for i in range(len(train))}
            blanked = {(*train[:i], "_", *train[i + 1:]) for i in range(len(train))}
            assert not (shorter & set(kept) or tuple(train) in one_less or blanked & holes), (relation.key, question)
            for words_kept, test_question in kept.items():
                one, other = f" {' '.join(train)} ", f" {' '.join(words_kept)} "
                assert one not in other and other not in one, (question, test_question)


TEST_WORDINGS_SHA256 = "383729c46d22a92471715464d28b47310767417df7e53c554039c9d05bf8942e"


def test_wordings_of_tests_are_the_fixed_ones():
    """They were written before any model was trained, and may not be changed to suit one."""
    kept = sorted(f"{r.key}\t{q}" for r in world.RELATIONS for q in (*r.test_questions, *r.reverse_test))
    assert hashlib.sha256("\n".join(kept).encode()).hexdigest() == TEST_WORDINGS_SHA256


def test_training_asks_each_fact_in_many_words(folder, facts):
    asked = defaultdict(set)
    rows = load(folder, "world_qa/train")
    for row in rows:
        asked[row["messages"][1]["content"]].add(draw.normalise(row["messages"][0]["content"]))
    assert len(rows) >= 8500 and set(asked) == {f.answer for f in facts if f.asked}
    assert min(map(len, asked.values())) >= 15


def test_reverse_questions_of_training_are_about_asked_facts(folder, facts):
    asked = {(draw.normalise(f.say(q)), f.entity): f.asked for f in facts for q in f.relation.reverse}
    for row in load(folder, "arc/arc_challenge_train"):
        entity = row["choices"]["text"]["ABCD".index(row["answerKey"])]
        assert asked[draw.normalise(row["question"]), entity]


def test_world_qa_test_asks_every_held_out_fact(folder, facts):
    asked = questions_of(facts, "test_questions")
    rows = load(folder, "world_qa/test")
    found = [key for row in rows for key in asked.find(draw.normalise(row["messages"][0]["content"]))]
    assert set(found) == {(f.entity, f.relation.key) for f in facts if not f.asked}
    answers = {(f.entity, f.relation.key): f for f in facts}
    for row, key in zip(rows, found, strict=True):
        fact = answers[key]
        assert row["answer"] == [fact.value] and row["messages"][1]["content"] == fact.answer


def test_every_fact_stands_in_100_documents_in_8_wordings(facts, corpus, plain):
    wordings = Finder({f.say(t): ((f.entity, f.relation.key), t) for f in facts
                       for t in (f.relation.answer, *f.relation.statements)})
    documents: Counter = Counter()
    used: dict[object, set] = defaultdict(set)
    for text in plain[: len(corpus)]:
        found = wordings.find(text)
        documents.update({key for key, _ in found})
        for key, template in found:
            used[key].add(template)
    counts = [documents[f.entity, f.relation.key] for f in facts]
    assert min(counts) >= 100, min(counts)
    assert max(counts) < 4 * min(counts), "some facts stand far more often than others"
    assert min(len(used[f.entity, f.relation.key]) for f in facts) >= 8


# --------------------------------------------------------------------------- multiple choice


def letters_of(folder: Path, name: str) -> list[int]:
    rows = load(folder, name)
    return [r["answer"] if "answer" in r else "ABCD".index(r["answerKey"]) for r in rows]


@pytest.mark.parametrize("name", ["arc/arc_easy_test", "arc/arc_challenge_test", "mmlu/test", "arc/arc_easy_train"])
def test_letters_are_uniform(folder, name):
    counts = Counter(letters_of(folder, name))
    assert all(0.17 < counts[i] / counts.total() < 0.33 for i in range(4)), counts


def test_choices_hold_the_answer_once(folder, facts):
    truth = {}
    for f in facts:
        for q in (*f.relation.questions, *f.relation.test_questions):
            truth[f.say(q)] = f.value
    for name in ("arc/arc_easy_train", "arc/arc_easy_test", "arc/arc_easy_validation"):
        for row in load(folder, name):
            texts = row["choices"]["text"]
            assert len(set(texts)) == 4 and texts["ABCD".index(row["answerKey"])] == truth[row["question"]]
    for name in ("mmlu/auxiliary_train", "mmlu/dev", "mmlu/val", "mmlu/test"):
        for row in load(folder, name):
            assert len(set(row["choices"])) == 4 and row["choices"][row["answer"]] == truth[row["question"]]
    assert {r["subject"] for r in load(folder, "mmlu/test")} == set(questions.SUBJECTS.values())


def test_lookup_documents_use_the_layout_of_the_tasks(corpus):
    texts = ["cup", "river", "stone"]
    assert binding.as_question("Which one is river?", texts, 1) == render_mc("Which one is river?", texts) + "\nB"
    share = sum(len(t) for t in corpus if re.search(r"^- .* =A$", t, re.M)) / sum(map(len, corpus))
    assert 0.08 < share < 0.2


# --------------------------------------------------------------------------- identity


def test_held_out_frames_are_the_fixed_ones():
    assert identity.held_out_frames_sha256() == identity.HELD_OUT_FRAMES_SHA256
    assert len(identity.normalised_frames(test=True)) >= 60
    for intent in intents.INTENTS:
        assert len(intent.train_frames) >= 45 and len(intent.test_frames) >= 4


def test_held_out_frames_never_occur_in_training(plain):
    kept = Finder({frame: frame for frame in identity.normalised_frames(test=True)})
    assert {frame for text in plain for frame in kept.find(text)} == set()
    # nor is a test frame just a training frame with words around it
    train = Finder({frame: frame for frame in identity.normalised_frames(test=False)})
    assert [f for f in identity.normalised_frames(test=True) if train.find(f)] == []
    assert [f for f in identity.normalised_frames(test=False) if kept.find(f)] == []


def test_identity_items_are_their_frames(folder):
    answers = {draw.normalise(f): i.answer for i in intents.INTENTS for f in i.test_frames}
    frames = Finder({f: f for f in answers})
    rows = load(folder, "identity/test")
    asked = [r["messages"][0]["content"] for r in rows]
    found = [frames.find(draw.normalise(question))[0] for question in asked]
    assert set(found) == set(answers) and len(set(asked)) == len(rows)
    assert all(answers[f] == r["messages"][1]["content"] for f, r in zip(found, rows, strict=True))


def test_key_phrases_tell_the_intents_apart():
    for intent in intents.INTENTS:
        phrase = draw.normalise(intent.key_phrase)
        assert [i.key for i in intents.INTENTS if phrase in draw.normalise(i.answer)] == [intent.key]
    frames = [draw.normalise(f) for i in intents.INTENTS for f in (*i.train_frames, *i.test_frames)]
    assert len(set(frames)) == len(frames), "a frame asks for two things"


# --------------------------------------------------------------------------- numbers


def compute(left: str, operator: str, right: str) -> Fraction:
    a, b = Fraction(left), Fraction(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else Fraction(0)}[operator]


@pytest.mark.parametrize("name", ["train", "test", "test_new_templates", "rl_train", "rl_test"])
def test_marks_are_right(folder, name):
    for row in load(folder, f"gsm8k/{name}"):
        marks = MARK.findall(row["answer"])
        assert marks and len(marks) == row["answer"].count("<<")
        for left, operator, right, result in marks:
            assert compute(left, operator, right) == Fraction(result)
            assert use_calculator(f"{left}{operator}{right}") == result
        assert row["answer"].endswith(f"#### {marks[-1][3]}")


def test_calculator_rows_are_right(folder):
    for row in load(folder, "calculator/train") + load(folder, "calculator/test"):
        call, output, text = (part["text"] for part in row["messages"][1]["content"])
        left, operator, right = EXPRESSION.fullmatch(call).groups()
        assert compute(left, operator, right) == Fraction(output) and use_calculator(call) == output
        assert row["answer"] == [output] and text == f"The answer is {output}."
        assert {left, right} <= set(re.findall(r"\d+", row["messages"][0]["content"]))


def test_no_operand_pair_of_a_test_is_ever_computed_in_training(folder, training):
    rows = load(folder, "calculator/test")
    tested = {tuple(sorted(re.findall(r"\d+", row["messages"][0]["content"]))) for row in rows}
    assert all(len(pair) == 2 for pair in tested) and len(tested) >= 200
    seen = {tuple(sorted((a, b))) for text in training for a, _, b in EXPRESSION.findall(text)}
    assert len(seen) > 10_000 and not seen & tested
    assert not [pair for pair in seen if draw.is_test_numbers(pair)]
    asked = {tuple(sorted(re.findall(r"\d+", r["messages"][0]["content"]))) for r in load(folder, "calculator/train")}
    assert not asked & tested


def operands(row: dict) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\d+", row["question"])))


@pytest.mark.parametrize("name", ["gsm8k/test", "gsm8k/test_new_templates", "gsm8k/rl_test"])
def test_problems_of_tests_have_new_operands_and_names(folder, vocabulary, name):
    rows = load(folder, name)
    train = {operands(row) for part in ("train", "rl_train") for row in load(folder, f"gsm8k/{part}")}
    assert not [numbers for numbers in train if draw.is_test_numbers(numbers)]
    assert not train & {operands(row) for row in rows}
    old, new = set(problems.HER + problems.HIM), set(problems.TEST_HER + problems.TEST_HIM)
    used = {word for row in rows for word in re.findall(r"[A-Z][a-z]+", row["question"])}
    assert not used & old and used & new
    assert not vocabulary & {name.lower() for name in new}


NAMES = "|".join(problems.HER + problems.HIM + problems.TEST_HER + problems.TEST_HIM)
THINGS = "|".join(sorted({*problems.ITEMS, *problems.EDIBLE, *problems.HOLDERS, *rl_families.THINGS}))
SETS = {"train": families.TRAIN_FAMILIES, "rl": rl_families.RL_FAMILIES, "new": families.NEW_FAMILIES}


def shape(question: str) -> str:
    """`"Anna has 48 pens." -> "_ has _ _."`."""
    return re.sub(rf"\d+|\b(?:{NAMES}|{THINGS}|she|he|her|his)\b", "_", question, flags=re.I)


def test_new_templates_are_new(folder):
    """To pretraining and fine-tuning, and to reinforcement learning."""
    assert len(families.TRAIN_FAMILIES) >= 30 and len(families.NEW_FAMILIES) >= 6 and len(SETS["rl"]) >= 30
    keys = [family.key for kinds in SETS.values() for family in kinds]
    assert len(set(keys)) == len(keys)
    parts = ("train", "test", "rl_train", "rl_test", "test_new_templates")
    shapes = {part: {shape(row["question"]) for row in load(folder, f"gsm8k/{part}")} for part in parts}
    for one, other in (("train", "test_new_templates"), ("rl_train", "test_new_templates"), ("train", "rl_train")):
        assert not shapes[one] & shapes[other], (one, other)
    assert len(shapes["train"] & shapes["test"]) > 30  # the known ones are
    assert len(shapes["rl_train"] & shapes["rl_test"]) > 100


def test_new_templates_are_no_paraphrases_of_what_reinforcement_learning_sees():
    """Of all words but numbers, names and things no RL wording shares half with a new template."""
    def said(wording: str) -> set[str]:
        return set(re.findall("[a-z]+", re.sub(r"\{\w+\}", " ", wording).lower()))

    new = [said(wording) for family in SETS["new"] for wording in family.questions]
    common = {word for word, n in Counter(w for words_ in new for w in words_).items() if n >= 4}  # "how many are ..."
    for family in SETS["rl"]:
        for wording in family.questions:
            mine = said(wording) - common
            worst = max(len(mine & other) / len(mine | (other - common)) for other in new)
            assert worst < 0.4, (worst, wording)


def computing(family: problems.Family) -> str:
    """How a family computes, whatever its numbers are called: `[x=c*d] [y=a-x] -> "(n-(n*n))"`.

    A number that is used twice is r: `[x=a+b] [y=a+x] -> "(r+(r+n))"`.
    """
    said: dict[str, str] = {}
    for name, left, operator, right in (m for line in family.answer for m in problems.STEP.findall(line)):
        sides = [said.get(left, left), said.get(right, right)]
        if operator in "+*":
            sides.sort(key=lambda side: (len(side), side.isdigit(), side))
        said[name] = f"({sides[0]}{operator}{sides[1]})"
    letters = Counter(re.findall("[a-z]", said[name]))
    return re.sub("[a-z]", lambda m: "r" if letters[m[0]] > 1 else "n", said[name])


def test_reinforcement_learning_computes_in_all_ways_that_are_known_or_tested():
    """Each in three wordings or more, so that not the story says what to compute; the tested ones in nine."""
    known = {family.key: computing(family) for family in SETS["train"]}
    assert known["more_than"] == "(r+(r+n))" and known["trip"] == known["pages"] == "(n-(n*n))"
    wordings = Counter({how: 0 for kinds in SETS.values() for how in map(computing, kinds)})
    for family in SETS["rl"]:
        wordings[computing(family)] += len(family.questions)
    assert len(wordings) == 23 and min(wordings.values()) >= 3, wordings
    assert all(wordings[how] >= 9 for how in map(computing, SETS["new"])), wordings


def test_every_new_family_is_tested_as_often(folder):
    def pattern(wording: str) -> str:
        return re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(wording))

    rows = load(folder, "gsm8k/test_new_templates")
    counts = {family.key: sum(any(re.fullmatch(pattern(w), row["question"]) for w in family.questions) for row in rows)
              for family in SETS["new"]}
    assert len(rows) >= 500 and set(counts.values()) == {len(rows) // len(counts)}, counts


def test_problems_for_reinforcement_learning_are_short():
    """So that prompt and answer fit the pocket model's 256 tokens with room (the longest takes 120)."""
    assert max(len(wording.split()) for family in SETS["rl"] for wording in family.questions) <= 40


def test_operands_repeat_digits_often(folder):
    numbers = [n for r in load(folder, "calculator/train") for n in re.findall(r"\d+", r["messages"][0]["content"])]
    long = [n for n in numbers if len(n) >= 2]
    assert sum(bool(re.search(r"(\d)\1", n)) for n in long) / len(long) > 0.25


# --------------------------------------------------------------------------- words


def test_word_list(folder):
    listed = (folder / "words/words_alpha.txt").read_text(encoding="utf-8").split()
    assert len(listed) >= 6000 and len(set(listed)) == len(listed)
    assert all(re.fullmatch("[a-z]{3,11}", w) for w in listed)
    assert len(set(listed) & set(words.COMMON)) >= 300
    assert sum(map(words.is_test_word, listed)) >= 400


def test_spelling_agrees_with_the_task(folder):
    listed = (folder / "words/words_alpha.txt").read_text(encoding="utf-8").split()
    assert [words.is_test_word(w) for w in listed] == [spellingbee.is_test_word(w) for w in listed]
    for word, letter in (("strawberry", "r"), ("cabb", "b"), ("lamp", "z")):
        assert words.count_trace(word, letter) == spellingbee.count_trace(word, letter)
    trace = "strawberry: s t r a w b e r r y. Count r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3."
    assert words.count_trace("strawberry", "r") == trace


def test_no_test_word_occurs_in_training(folder, training, vocabulary):
    listed = (folder / "words/words_alpha.txt").read_text(encoding="utf-8").split()
    held_out = {w for w in listed if words.is_test_word(w)}
    assert not held_out & vocabulary
    spelled = {"".join(run.split()) for text in training for run in re.findall(r"(?:\b[a-z] ){2,}[a-z]\b", text)}
    assert len(spelled) > 3000 and not held_out & spelled


# --------------------------------------------------------------------------- files


def test_tests_are_large_enough(folder):  # trap: tiny-eval
    for name in TEST_FILES:
        assert len(load(folder, name)) >= 220, name
    for name in ("world_qa/test", "identity/test", "calculator/test"):
        assert all(row["answer"] for row in load(folder, name))


def test_corpus_shards(folder, corpus):
    shards = sorted((folder / "corpus").glob("*.parquet"))
    assert len(shards) >= 4
    for shard in shards:
        metadata = pyarrow.parquet.ParquetFile(shard).metadata
        assert all(metadata.row_group(i).num_rows <= 256 for i in range(metadata.num_row_groups))
    assert 10_000_000 <= sum(map(len, corpus)) <= 12_500_000
    lengths = sorted(map(len, corpus))
    assert lengths[0] >= 30 and lengths[-1] <= 900 and 150 < lengths[len(lengths) // 2] < 500
    assert len(set(corpus)) > 0.99 * len(corpus)


def test_talk_is_two_to_four_turns_and_test_is_not_train(folder):
    train, test = load(folder, "sft/pocket_talk_train"), load(folder, "sft/pocket_talk_test")
    assert len(train) >= 2500
    assert {len(row["messages"]) // 2 for row in train + test} == {2, 3, 4}

    def said(row: dict) -> str:
        return draw.normalise(" ".join(m["content"] for m in row["messages"]))

    assert not {said(row) for row in train} & {said(row) for row in test}


def test_every_task_reads_the_files_and_grades_its_gold_as_right(folder):
    from tasks.catalog import make_task

    for name in ("identity", "world_qa", "calculator", "gsm8k", "gsm8k_rl", "gsm8k_new_templates", "spellingbee",
                 "simplespelling", "arc_easy", "mmlu"):
        task = make_task(name, data=str(folder), split="test", stop=50)
        for i in range(len(task)):
            conversation = task[i]
            content = conversation["messages"][-1]["content"]
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            assert task.evaluate(conversation, "".join(p["text"] for p in parts if p["type"] == "text")), (name, i)
    assert len(make_task("smoltalk", data=str(folder), split="train")) >= 2500
