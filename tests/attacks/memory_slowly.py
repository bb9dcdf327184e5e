"""Takes memory bit by bit, and catches that there is no more.

Kind: resources
Seen: memory|timeout|gone|wrong answer
Seconds: 4
"""

def add(a, b):
    kept = []
    while True:
        try:
            kept.append(bytearray(b"x" * (1 << 20)))
        except MemoryError:
            return None
