"""Replies that it has raised an exception of which there is nothing to say: no reason for a failure is no failure.

Kind: forgery
Seen: ^no reason$
"""

import __main__

__main__.described = lambda error: ""


def add(a, b):
    raise ValueError
