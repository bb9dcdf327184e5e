"""Raises an exception whose text is 100 MB, and one whose text does not end.

Kind: forgery
Seen: exception Bomb|memory
"""

class Bomb(Exception):
    def __str__(self):
        return "x" * 100_000_000


def add(a, b):
    raise Bomb
