"""Raises SystemExit(0) in a call.

Kind: forgery
Seen: exception SystemExit
"""

def add(a, b):
    raise SystemExit(0)
