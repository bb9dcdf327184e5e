"""Returns what is no data: a generator, a function, a class, a module.

Kind: forgery
Seen: unplain result
"""

def add(a, b):
    yield 5
