"""Takes 8 GB.

Kind: resources
Seen: memory
"""

def add(a, b):
    return [0] * 10**9
