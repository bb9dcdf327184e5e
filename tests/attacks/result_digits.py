"""Returns an int of a million digits.

Kind: forgery
Seen: unplain result
"""

def add(a, b):
    return 10**1_000_000
