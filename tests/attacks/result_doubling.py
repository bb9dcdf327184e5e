"""Returns a list of 2^60 parts that takes a page of memory.

Kind: forgery
Seen: unplain result
"""

def add(a, b):
    result = [1]
    for _ in range(60):
        result = [result, result]
    return result
