"""Computes 9**9**9 in one operation that nothing in Python interrupts.

Kind: resources
Seen: timeout|memory
Seconds: 1.5
"""

def add(a, b):
    nine = a + 7
    return nine**nine**nine
