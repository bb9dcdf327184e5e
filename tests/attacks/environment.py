"""Looks for a secret in the environment, its own and that of others.

Kind: host
Seen: wrong answer
"""

import glob
import os

DONE = any("@SECRET@" in value for value in os.environ.values()) or len(os.environ) > 3
for path in glob.glob("/proc/*/environ"):
    try:
        with open(path, "rb") as f:
            DONE = DONE or b"@SECRET@" in f.read()
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
