"""Returns a number that is no number.

Kind: forgery
Seen: wrong answer
"""

def add(a, b):
    return float("nan")
