"""Raises what `except Exception` does not catch.

Kind: forgery
Seen: exception KeyboardInterrupt
"""

def add(a, b):
    raise KeyboardInterrupt
