"""Stop strings: whatever pieces the text comes in, what is let out is the text before the first of them.

Run: python -m pytest tests/test_stop_strings.py
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat.stop_strings import StopStrings

few_letters = st.text("ab\n", min_size=1, max_size=5)  # so that beginnings of stop strings are everywhere


def before_stops(text: str, stops: list[str]) -> str | None:
    """The slow way: read on letter by letter until a stop string ends here, of several the longest; None: none does."""
    for end in range(len(text) + 1):
        ended = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(ended)]
    return None


@settings(max_examples=500)
@given(pieces=st.lists(st.text("ab\n", max_size=6), max_size=20), stops=st.lists(few_letters, max_size=4))
@example(pieces=["b", "a", "a"], stops=["a", "baa"])
@example(pieces=["baa"], stops=["a", "baa"])
def test_against_a_reader(pieces, stops):
    text = "".join(pieces)
    found = before_stops(text, stops)
    filter, out = StopStrings(stops), []
    for piece in pieces:
        out.append(filter.feed(piece))
        assert not any(stop in "".join(out) for stop in stops)
    assert filter.hit == (found is not None)
    assert "".join(out) + ("" if filter.hit else filter.flush()) == (text if found is None else found)


@given(pieces=st.lists(st.text("ab", max_size=6), max_size=20), stops=st.lists(few_letters, max_size=4))
def test_nothing_waits_that_need_not(pieces, stops):
    filter, fed, out = StopStrings(stops), "", ""
    for piece in pieces:
        fed, out = fed + piece, out + filter.feed(piece)
        if filter.hit:
            break
        held = fed[len(out):]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_examples_of_the_header():
    stops = StopStrings(["\n\n", "END"])
    assert [stops.feed(piece) for piece in ("one E", "N", "Dtwo", "three")] == ["one ", "", "", ""]
    assert stops.hit and stops.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
