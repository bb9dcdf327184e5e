"""Closes all descriptors.

Kind: forgery
Seen: gone before|timeout
Seconds: 2
"""

import os


def add(a, b):
    os.closerange(0, 256)
    return a - b
