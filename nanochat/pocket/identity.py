"""Who the assistant is: "Nano", a small model that nanochat trained on this computer from nothing.

Fourteen intents, one answer each, whose key phrase occurs in no other answer. Questions are written as *frames* (lower
case); `intents.py` holds those for training and those kept whole for tests, and `composing.py` puts further ones for
training together from parts. Sample row:
    {"messages": [{"role": "user", "content": "Hi! What is your name?"},
                  {"role": "assistant", "content": "My name is Nano. Nice to meet you!"}],
     "answer": ["my name is Nano"]}
"""

from __future__ import annotations

import hashlib
import random

from nanochat.pocket.composing import Composer
from nanochat.pocket.draw import conversation, normalise
from nanochat.pocket.intents import INTENTS, Intent

# Fixed before any tuning: the test frames may not be changed to suit a model. A test recomputes it.
HELD_OUT_FRAMES_SHA256 = "a81630b639905b86a53af907a84f78ff248510d9b2fe5a6396f30b56e2523ef0"

OPENINGS = (
    "Hi! ", "Hello! ", "Hey, ", "Hey Nano, ", "Nano, ", "Hi there! ", "Good morning! ", "Please tell me: ", "Tell me, ",
    "One question: ", "Quick question: ", "I have a question. ", "Sorry, ", "Excuse me, ", "So, ", "And ",
    "Okay, ", "Well, ",
)
TEST_OPENINGS = ("", "", "Hello! ", "Hi Nano! ", "Tell me, ", "One question: ")
ORDERS = ("tell", "give", "introduce", "please", "say", "state", "describe", "explain", "show", "list", "look",
          "search", "count", "help", "i", "let", "remind", "name", "find", "open", "save", "speak")


def held_out_frames_sha256() -> str:
    """SHA-256 over all test frames, sorted, one a line."""
    frames = sorted(f"{intent.key}\t{frame}" for intent in INTENTS for frame in intent.test_frames)
    return hashlib.sha256("\n".join(frames).encode("utf-8")).hexdigest()


def as_typed(frame: str, rng: random.Random, openings: tuple[str, ...], plain_rate: float) -> str:
    """A frame as people type it: with or without capital, final mark and opening.

    `"what is your name" -> "What is your name?"`, `"what is your name"`, `"Hi! What is your name?"`.
    """
    mark = "." if frame.split()[0] in ORDERS else "?"
    if frame[-1] in ".?":  # a composed one brings its own
        frame, mark = frame[:-1], frame[-1]
    style = rng.random()
    capital = frame[0].upper() + frame[1:]
    if style < plain_rate:
        return capital + mark
    opening = rng.choice(openings)
    if style < plain_rate + (1 - plain_rate) / 4:
        return frame
    if style < plain_rate + (1 - plain_rate) / 2:
        return opening.lower() + frame + rng.choice(("", mark))
    body = capital if not opening or opening.endswith(("! ", ". ", ": ")) else frame
    return opening + body + rng.choice((mark, mark, "", mark * 2))


def row(intent: Intent, question: str) -> dict:
    """One graded conversation."""
    return {**conversation(question, intent.answer), "answer": [intent.key_phrase]}


def identity_train(rng: random.Random, rounds: int, per_intent: int) -> list[dict]:
    """`per_intent` different questions for each intent: each whole frame up to `rounds` times, the rest composed."""
    rows = []
    for intent in INTENTS:
        typed = dict.fromkeys(as_typed(f, rng, OPENINGS, 0.3) for f in intent.train_frames for _ in range(rounds))
        composer = Composer(intent.key, rng)
        while len(typed) < per_intent:
            typed[as_typed(composer.draw(), rng, OPENINGS, 0.5)] = None
        rows += [row(intent, text) for text in typed]
    rng.shuffle(rows)
    return rows


def identity_test(rng: random.Random, rounds: int) -> list[dict]:
    """Each held-out frame plain and in a few light variants."""
    rows = []
    for intent in INTENTS:
        for frame in intent.test_frames:
            typed: dict[str, None] = {as_typed(frame, rng, TEST_OPENINGS, 1.0): None}
            while len(typed) < rounds:
                typed[as_typed(frame, rng, TEST_OPENINGS, 0.1)] = None
            rows += [row(intent, text) for text in typed]
    rng.shuffle(rows)
    return rows


LAYOUTS = (
    "Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "{q}\n{a}", "{q}\n{a}", "{q} {a}", "{q} - {a}", "- {q}\n- {a}",
    "User: {q}\nNano: {a}", '"{q}"\n"{a}"', 'Somebody asks: "{q}"\nNano says: "{a}"', '"{q}" Nano answers: "{a}"',
)


def identity_document(rng: random.Random) -> str:
    """Who Nano is, told in sentences or as questions (never those of tests) and answers."""
    if rng.random() < 0.2:
        intents = rng.sample(INTENTS, rng.randint(3, 5))
        text = " ".join(rng.choice((i.answer, i.told)) for i in intents)
        return rng.choice(("", "Nano says: ", "This is Nano. ", "About Nano: ")) + text
    layout = rng.choice(LAYOUTS)
    parts = []
    for intent in rng.sample(INTENTS, rng.randint(3, 4)):
        composed = rng.random() < 0.7
        frame = Composer(intent.key, rng).draw() if composed else rng.choice(intent.train_frames)
        parts.append(layout.format(q=as_typed(frame, rng, OPENINGS, 0.5), a=intent.answer))
    return "\n".join(parts)


def normalised_frames(test: bool) -> set[str]:
    """All frames of one side in plain form."""
    return {normalise(f) for i in INTENTS for f in (i.test_frames if test else i.train_frames)}
