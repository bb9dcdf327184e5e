"""Recurses without end.

Kind: forgery
Seen: exception RecursionError
"""

def add(a, b):
    return add(b, a)
