"""Raises an exception whose own text cannot be made.

Kind: forgery
Seen: exception Bomb
"""

class Bomb(Exception):
    def __str__(self):
        raise Bomb


def add(a, b):
    raise Bomb
