"""An answer ends before the first of some strings, though it comes in pieces and a string may lie across several.

    stops = StopStrings(["\\n\\n", "END"])
    stops.feed("one E")      # -> "one "    "E" may be the beginning of "END": it waits
    stops.feed("N")          # -> ""
    stops.feed("Dtwo")       # -> ""        and stops.hit is True: what was said is "one "

The one that is complete first counts (of those that end together the longest), so how the text was cut into pieces
changes nothing. Pure (floor 1); there is nothing to run here.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One answer's text on its way out. After `hit` nothing more comes.

    `stops=["a", "baa"]`: of "baa" the "b" is let out, for at "ba" the answer has ended.
    """

    def __init__(self, stops: Sequence[str]):
        if any(not stop for stop in stops):
            raise ValueError("an empty stop string would end every answer before it begins")
        self.stops = tuple(stops)
        self.hit = False
        self._held = ""  # the beginning of a stop string, perhaps

    def feed(self, text: str) -> str:
        """Add a piece; returns the text that no stop string can take back any more."""
        if not self.stops or self.hit:
            return "" if self.hit else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The answer is over: what still waits was no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many last characters of `text` are the first ones of `stop`, not all of it. `"one E", "END" -> 1`"""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
