"""Returns 50,000 lists in each other.

Kind: forgery
Seen: unplain result
"""

def add(a, b):
    result = []
    for _ in range(50_000):
        result = [result]
    return result
