"""Answers from two processes.

Kind: forgery
Seen: garbage|gone|wrong answer|unplain|timeout
Seconds: 3
"""

import os

os.fork()


def add(a, b):
    return None
