"""Leaves another program behind, which nothing ties to its parent.

Kind: resources
Seen: wrong answer
"""

import ctypes
import os
import sys

ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # no signal when the parent dies
if os.fork() == 0:
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)", "@MARK@"])


def add(a, b):
    return None
