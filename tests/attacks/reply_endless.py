"""Announces a message of 4 GB and begins to send it.

Kind: forgery
Seen: garbage
"""

import os
import sys


def add(a, b):
    os.write(sys._getframe(2).f_locals["writing"], b"\xff\xff\xff\xff" + b"l" * 1000)
    return None
