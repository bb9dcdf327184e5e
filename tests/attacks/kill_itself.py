"""Kills itself.

Kind: forgery
Seen: gone before.*signal 9
"""

import os


def add(a, b):
    os.kill(os.getpid(), 9)
