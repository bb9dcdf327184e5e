"""Questions about the world: in free text (world_qa), and multiple choice in the schemas of ARC and MMLU.

Training asks only facts with `asked`, tests only the others, and in wordings that training never uses.
Sample row of world_qa/test.jsonl:
    {"messages": [{"role": "user", "content": "Which town does Mira call home?"},
                  {"role": "assistant", "content": "Mira lives in Luntz."}], "answer": ["Luntz"]}
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from nanochat.pocket.draw import casual, conversation
from nanochat.pocket.world import ENTITIES, VALUES, Fact

OPENINGS = (
    "Hi! ", "Hello! ", "Please tell me: ", "Tell me, ", "I have a question. ", "Do you know this? ", "Hey Nano, ",
    "Hi Nano! ", "Nano, ", "Hey, ", "So, ", "And ", "Okay, ", "Well, ", "Now, ", "Please, ", "Sorry, ", "Excuse me, ",
    "Good morning! ", "Good evening. ", "One question: ", "Quick question: ", "Just asking: ", "Next question: ",
    "I am curious. ", "Help me, please. ", "By the way, ", "Say, ", "Question: ", "My question: ", "Another one: ",
)
CLOSINGS = (" Thanks!", " Thank you.", " thanks", " Please answer.", " I want to know.", " I forgot.", "?")
LETTERS = "ABCD"
SUBJECTS = {
    "person": "pocket_people", "town": "pocket_towns", "animal": "pocket_animals", "dish": "pocket_dishes",
    "thing": "pocket_things",
}


def ask(fact: Fact, rng: random.Random) -> str:
    """A training question as somebody types it: `"hey nano, mira's town?"`, `"I forgot where Mira lives. Thanks!"`."""
    text = casual(fact.say(fact.relation.question(rng)), rng, OPENINGS, rate=0.55)
    text += rng.choice(CLOSINGS) if rng.random() < 0.08 else ""
    return text.lower() if rng.random() < 0.1 else text


def world_qa(facts: Sequence[Fact], rng: random.Random, rounds: int) -> list[dict]:
    """Training conversations: each asked fact `rounds` times, each time in other words, as people type."""
    rows = []
    for fact in facts:
        if fact.asked:
            asked: dict[str, None] = {}
            while len(asked) < rounds:
                asked[ask(fact, rng)] = None
            rows += [_qa_row(fact, question) for question in asked]
    rng.shuffle(rows)
    return rows


def world_qa_test(facts: Sequence[Fact], rng: random.Random) -> list[dict]:
    """One question for each held-out fact, in a wording kept for tests."""
    rows = []
    for i, fact in enumerate(facts):
        if not fact.asked:
            wordings = fact.relation.test_questions
            rows.append(_qa_row(fact, casual(fact.say(wordings[i % len(wordings)]), rng, rate=0.2)))
    rng.shuffle(rows)
    return rows


def _qa_row(fact: Fact, question: str) -> dict:
    return {**conversation(question, fact.answer), "answer": [fact.value]}


# --------------------------------------------------------------------------- multiple choice


def choices(fact: Fact, rng: random.Random, n: int = 4) -> tuple[list[str], int]:
    """n values of the fact's relation, the right one at a uniform place: `(["Orsk", "Tarn", ...], 1)`."""
    wrong = rng.sample([v for v in VALUES[fact.relation.key] if v != fact.value], n - 1)
    place = rng.randrange(n)
    return wrong[:place] + [fact.value] + wrong[place:], place


def reverse_choices(fact: Fact, facts: Sequence[Fact], rng: random.Random) -> tuple[list[str], int]:
    """Four entities, only one of which has the fact's value."""
    having = {f.entity for f in facts if f.relation is fact.relation and f.value == fact.value}
    wrong = rng.sample([e for e in ENTITIES[fact.relation.kind] if e not in having], 3)
    place = rng.randrange(4)
    return wrong[:place] + [fact.entity] + wrong[place:], place


def arc_row(name: str, index: int, question: str, texts: list[str], place: int) -> dict:
    """A row in ARC's schema."""
    return {
        "id": f"pocket_{name}_{index}",
        "question": question,
        "choices": {"text": texts, "label": list(LETTERS)},
        "answerKey": LETTERS[place],
    }


def arc_easy(facts: Sequence[Fact], rng: random.Random, split: str, rounds: int) -> list[dict]:
    """From the entity to the value: "Where does Mira live?" `validation` asks training facts in unseen wordings."""
    rows = []
    for fact in facts:
        if fact.asked == (split == "test"):
            continue
        for _ in range(rounds):
            question = fact.relation.question(rng) if split == "train" else rng.choice(fact.relation.test_questions)
            rows.append((fact.say(question), *choices(fact, rng)))
    rng.shuffle(rows)
    return [arc_row(f"easy_{split}", i, *row) for i, row in enumerate(rows)]


def arc_challenge(facts: Sequence[Fact], rng: random.Random, split: str, rounds: int) -> list[dict]:
    """From the value to the entity: "Who lives in Tarn?" with four people to choose from."""
    rows = []
    for fact in facts:
        if fact.asked == (split == "test"):
            continue
        wordings = fact.relation.reverse if split == "train" else fact.relation.reverse_test
        for _ in range(rounds):
            rows.append((fact.say(rng.choice(wordings)), *reverse_choices(fact, facts, rng)))
    rng.shuffle(rows)
    return [arc_row(f"challenge_{split}", i, *row) for i, row in enumerate(rows)]


def mmlu(facts: Sequence[Fact], rng: random.Random, split: str, rounds: int) -> list[dict]:
    """MMLU's schema, a subject for each kind of entity, sorted by subject as the real files are."""
    rows = []
    for fact in facts:
        if fact.asked == (split == "test"):
            continue
        train, relation = split == "auxiliary_train", fact.relation
        for _ in range(rounds):
            texts, place = choices(fact, rng)
            question = fact.say(relation.question(rng) if train else rng.choice(relation.test_questions))
            subject = SUBJECTS[relation.kind]
            rows.append({"subject": subject, "question": question, "choices": texts, "answer": place})
    rng.shuffle(rows)
    rows.sort(key=lambda row: row["subject"])
    return rows


def mmlu_dev(facts: Sequence[Fact], rng: random.Random) -> list[dict]:
    """Five examples a subject, for few-shot prompts: training facts in training wordings."""
    rows = mmlu(facts, rng, "auxiliary_train", 1)
    return [row for s in sorted(SUBJECTS.values()) for row in [r for r in rows if r["subject"] == s][:5]]
