"""Returns a string of 100 MB.

Kind: forgery
Seen: unplain result|memory
"""

def add(a, b):
    return "x" * 100_000_000
