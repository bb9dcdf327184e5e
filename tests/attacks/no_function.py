"""Defines everything but the function.

Kind: forgery
Seen: no function
"""

def subtract(a, b):
    return a - b
