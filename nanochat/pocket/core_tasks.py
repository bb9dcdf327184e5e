"""A bundle like CORE's for base models of the pocket world: seven small tasks of its three types, in its very layout.

All that is asked is held out: facts that training never asks, words and operands that it never has. The forms of the
rows are those of the corpus, since a base model knows no others, and short, so that a few shots fit into 256 tokens.
    core/tasks.json, core.yaml, eval_meta_data.csv    what there is, three times, as real bundles have it
    core/eval_data/<category>/<label>.jsonl           the rows
Sample rows: {"context": "Mira lives in", "continuation": "Luntz"}                          language_modeling
             {"query": "The home of Mira is in", "choices": ["Luntz", "Tarn"], "gold": 0}   multiple_choice
             {"context_options": ["Bram", "Mira"], "continuation": "lives in Luntz.", "gold": 1}   schema
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.pocket.binding import LETTERS, block
from nanochat.pocket.draw import is_test_numbers, stream
from nanochat.pocket.questions import choices
from nanochat.pocket.world import ENTITIES, VALUES, Fact

SPELLING_ROWS, SUM_ROWS, LOOKUP_ROWS = 200, 200, 240
LARGEST_OPERAND = 40  # of sums: what a small model may learn to add in its head
CSV_COLUMNS = ("Eval Task", "Task Category", "Task Type", "#shots", "#datapoints", "Random baseline",
               "Centered Metric?", "Description")


@dataclass(frozen=True)
class CoreTask:
    """One task: how its rows are asked, and what it is about."""

    label: str
    category: str
    kind: str
    """multiple_choice, schema or language_modeling"""
    shots: int
    delimiter: str
    """What stands between the question and what the model is to say."""
    about: str
    rows: Callable[[Sequence[Fact], Sequence[str], random.Random], list[dict]]
    """Makes them of the held-out facts and the held-out words."""

    @property
    def uri(self) -> str:
        return f"{self.category}/{self.label}.jsonl"


# --------------------------------------------------------------------------- rows


def before_value(fact: Fact, template: str) -> str | None:
    """The start of a sentence whose end is the value: `"{e} lives in {v}." -> "Mira lives in"`; None for others."""
    head, found, tail = template.partition(" {v}")
    return fact.say(head) if found and tail == "." and "{e}" in head else None


def fact_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """The start of a fact in the words of its answer; the model is to say the value."""
    pairs = [(before_value(fact, fact.relation.answer), fact) for fact in facts]
    return [{"context": start, "continuation": fact.value} for start, fact in pairs if start]


def choice_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """The start of a fact in another of its wordings, and 3 to 5 values of the same kind, of any length."""
    rows = []
    for fact in facts:
        starts = [start for t in fact.relation.statements if (start := before_value(fact, t))]
        if starts:
            texts, gold = choices(fact, rng, rng.choice((3, 4, 4, 5)))
            rows.append({"query": rng.choice(starts), "choices": texts, "gold": gold})
    return rows


def question_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """A question in a wording kept for tests, and four whole answers, one of them right."""
    rows = []
    for fact in facts:
        values, gold = choices(fact, rng)
        answers = [fact.relation.answer.replace("{e}", fact.entity).replace("{v}", value) for value in values]
        question = fact.say(rng.choice(fact.relation.test_questions))
        rows.append({"query": f"Question: {question}", "choices": answers, "gold": gold})
    return rows


def who_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """Two or three entities, and how a sentence goes on that is true of one: Winograd's form."""
    having: dict[tuple[str, str], set[str]] = {}
    for fact in facts:
        having.setdefault((fact.relation.key, fact.value), set()).add(fact.entity)
    rows = []
    for fact in facts:
        head, _, tail = fact.relation.answer.partition("{e} ")
        if fact.asked or not tail or "{v}" not in tail:
            continue
        others = [e for e in ENTITIES[fact.relation.kind] if e not in having[fact.relation.key, fact.value]]
        entities = rng.sample(others, rng.choice((1, 2)))
        gold = rng.randrange(len(entities) + 1)
        entities.insert(gold, fact.entity)
        options = [head + entity for entity in entities]
        rows.append({"context_options": [o[0].upper() + o[1:] for o in options],
                     "continuation": tail.replace("{v}", fact.value), "gold": gold})
    return rows


def spelling_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """Words that no training text has, to be spelled: `lantern: l a n t e r n`."""
    chosen = rng.sample([word for word in words if len(word) <= 8], SPELLING_ROWS)
    return [{"context": f"{word}:", "continuation": " ".join(word)} for word in chosen]


def sum_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """Sums and differences of two numbers that no training text computes with, in the form of the documents."""
    numbers = range(1, LARGEST_OPERAND + 1)
    asked = [(a, sign, b) for a in numbers for b in numbers for sign in "+-"
             if is_test_numbers((a, b)) and (sign == "+" or a >= b)]
    rows = []
    for a, sign, b in rng.sample(asked, min(SUM_ROWS, len(asked))):
        result = a + b if sign == "+" else a - b
        rows.append({"context": f"What is {a} {sign} {b}?\n{a}{sign}{b}", "continuation": str(result)})
    return rows


def lookup_rows(facts: Sequence[Fact], words: Sequence[str], rng: random.Random) -> list[dict]:
    """A list of 2 to 4 things, each with its letter, and one of the things: which letter?

    At least one thing is a word that no training text has, so no such list was ever seen.
    """
    values = [value for kind in sorted(VALUES) for value in VALUES[kind]]
    rows = []
    while len(rows) < LOOKUP_ROWS:
        texts = list(dict.fromkeys([rng.choice(words), *rng.sample(values, rng.choice((1, 2, 3, 3)))]))
        rng.shuffle(texts)
        gold = rng.randrange(len(texts))
        rows.append({"query": f"{block(texts)}\n{texts[gold]}", "choices": list(LETTERS[: len(texts)]), "gold": gold})
    return rows


CORE_TASKS = (
    CoreTask("pocket_facts", "world_knowledge", "language_modeling", 0, " ",
             "Facts of the pocket world that training never asks, to be completed by their value.", fact_rows),
    CoreTask("pocket_choice", "world_knowledge", "multiple_choice", 0, " ",
             "The same facts in other words, with 3 to 5 values to choose from.", choice_rows),
    CoreTask("pocket_questions", "world_knowledge", "multiple_choice", 2, "\nAnswer: ",
             "Questions about them in wordings that training never uses, with four answers.", question_rows),
    CoreTask("pocket_who", "language_understanding", "schema", 0, " ",
             "Two or three entities, and a sentence that is true of only one of them.", who_rows),
    CoreTask("pocket_spelling", "symbolic_problem_solving", "language_modeling", 2, " ",
             "Words that no training text has, to be spelled.", spelling_rows),
    CoreTask("pocket_sums", "symbolic_problem_solving", "language_modeling", 3, "=",
             f"Sums and differences of numbers up to {LARGEST_OPERAND} that no training text computes.", sum_rows),
    CoreTask("pocket_lookup", "symbolic_problem_solving", "multiple_choice", 1, " =",
             "Which letter stands beside a word in a list of two to four.", lookup_rows),
)


# --------------------------------------------------------------------------- files


def random_baseline(rows: Sequence[dict]) -> float:
    """The accuracy of a blind guess in percent, which is the mean of 1/choices: two choices and four -> 37.5."""
    options = [row.get("choices") or row.get("context_options") for row in rows]
    return round(100 * sum(1 / len(o) for o in options if o) / len(rows), 2)


def core_files(facts: Sequence[Fact], held_out_words: Sequence[str], seed: int) -> dict[str, tuple[str, int]]:
    """All files of the bundle: `{path: (text, rows)}`. `held_out_words` stand in no training text."""
    files, entries = {}, []
    for task in CORE_TASKS:
        rng = stream(seed, "core/" + task.label)
        given = facts if task.rows is who_rows else [f for f in facts if not f.asked]
        rows = task.rows(given, held_out_words, rng)
        rng.shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[f"core/eval_data/{task.uri}"] = (text, len(rows))
        entries.append(_entry(task, rows))
    bundle = {"centering": "centered = (acc - 0.01*random_baseline) / (1 - 0.01*random_baseline); "
                           f"CORE = unweighted mean of the {len(entries)} centered accuracies",
              "source": "the pocket world of nanochat: generated, not comparable with any other CORE",
              "tasks": entries}
    files["core/tasks.json"] = (json.dumps(bundle, indent=1, ensure_ascii=False) + "\n", len(entries))
    files["core/core.yaml"] = (_yaml(), len(entries))
    files["core/eval_meta_data.csv"] = (_csv(entries), len(entries))
    return files


def _entry(task: CoreTask, rows: Sequence[dict]) -> dict:
    """What `tasks.json` says of a task."""
    baseline = 0.0 if task.kind == "language_modeling" else random_baseline(rows)
    return {
        "label": task.label, "dataset_uri": task.uri, "icl_task_type": task.kind, "num_fewshot": task.shots,
        "continuation_delimiter": task.delimiter, "delimiter_is_default": task.delimiter == " ",
        "random_baseline_pct": baseline, "random_baseline_pct_dclm_v2": baseline,
        "rows_here": len(rows), "rows_official": len(rows), "has_categories": False,
    }


def _yaml() -> str:
    """`core.yaml`; json.dumps writes strings that YAML reads alike."""
    lines = ["icl_tasks:"]
    for task in CORE_TASKS:
        lines += ["-", f"  label: {task.label}", f"  dataset_uri: {task.uri}", f"  num_fewshot: [{task.shots}]",
                  f"  icl_task_type: {task.kind}"]
        lines += [f"  continuation_delimiter: {json.dumps(task.delimiter)}"] if task.delimiter != " " else []
    return "\n".join(lines) + "\n"


def _csv(entries: Sequence[dict]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for task, entry in zip(CORE_TASKS, entries, strict=True):
        writer.writerow([task.label, task.category.replace("_", " "), task.kind.replace("_", " "), task.shots,
                         entry["rows_here"], entry["random_baseline_pct"], "", task.about])
    return out.getvalue()
