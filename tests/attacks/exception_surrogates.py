"""Raises an exception with half a character in its name and its text.

Kind: forgery
Seen: exception
"""

def add(a, b):
    raise type("Bad\ud800", (Exception,), {})("\udfff\x00\x1b[2J")
