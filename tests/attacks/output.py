"""Prints without end.

Kind: resources
Seen: output limit
"""

def add(a, b):
    while True:
        print("x" * 100_000)
