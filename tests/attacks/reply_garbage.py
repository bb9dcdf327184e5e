"""Writes random bytes into the channel.

Kind: forgery
Seen: garbage
"""

import os
import sys


def add(a, b):
    os.write(sys._getframe(2).f_locals["writing"], b"\x10\0\0\0" + os.urandom(16))
    return None
