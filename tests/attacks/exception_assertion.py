"""Raises AssertionError itself.

Kind: forgery
Seen: exception AssertionError
"""

def add(a, b):
    raise AssertionError
