"""Questions about Nano that are put together from parts: many, of one meaning, and never near those of tests."""

from __future__ import annotations

from collections import Counter

from nanochat import pocket
from nanochat.pocket import composing, draw, identity, intents, relation


def test_composed_frames_are_many_and_ask_for_one_thing():
    """The shells are the same for all intents, so only the parts can tell them apart."""
    owner = {draw.normalise(f): i.key for i in intents.INTENTS for f in i.train_frames}
    for intent in intents.INTENTS:
        frames = list(composing.composed(intent.key))
        assert len(frames) >= 1000, intent.key
        assert {owner.setdefault(draw.normalise(f), intent.key) for f in frames} == {intent.key}
    assert all(shell.count("{}") == 1 and shell[-1] in ".?" for shells in composing.SHELLS for shell in shells)


def test_composed_frames_are_no_near_copies_of_those_of_tests():
    """By the slow comparison of two wordings, which the quick look-up must agree with."""
    kept = sorted(identity.normalised_frames(test=True))
    for intent in intents.INTENTS:
        for frame in list(composing.composed(intent.key))[::29]:
            assert not any(relation.near(frame, k) for k in kept), frame
    look_up = composing.Kept(kept)
    for frame in kept[::7]:
        first, *rest = frame.split()
        for copy in (frame, f"so {frame} now then", f"{frame} now", " ".join(rest), " ".join(("oh", *rest))):
            assert look_up.near(copy) and any(relation.near(copy, k) for k in kept), copy


def test_identity_training_is_balanced_and_varied():
    rows = identity.identity_train(draw.stream(0, "identity/train"), pocket.IDENTITY_ROUNDS, pocket.IDENTITY_PER_INTENT)
    asked = [row["messages"][0]["content"] for row in rows]
    counts = Counter(row["answer"][0] for row in rows)
    assert len(rows) >= 6900 and len(counts) == len(intents.INTENTS) and max(counts.values()) == min(counts.values())
    assert len(set(asked)) == len(rows) and len(set(map(draw.normalise, asked))) >= 5000


def test_a_composed_frame_keeps_its_own_mark():
    rng = draw.stream(0, "marks")
    assert identity.as_typed("i wonder who made you.", rng, ("",), 1.0) == "I wonder who made you."
    assert identity.as_typed("tell me: who made you?", rng, ("",), 1.0) == "Tell me: who made you?"


def test_patterns_are_expanded_and_statements_turned():
    assert composing.expand("who (made/built) (you/)") == ["who made you", "who made", "who built you", "who built"]
    assert composing.straight("you can spell") == "can you spell"
    assert composing.straight("you have read books") == "have you read books"
    assert composing.straight("you have wifi") == "do you have wifi"
    assert composing.straight("it took days") is None
