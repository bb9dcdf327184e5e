"""Returns a list that holds itself.

Kind: forgery
Seen: unplain result
"""

def add(a, b):
    result = []
    result.append(result)
    return result
