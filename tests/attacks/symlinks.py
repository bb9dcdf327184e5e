"""Reaches a file through links that it makes.

Kind: host
Seen: wrong answer
"""

import os

DONE = False
for target in ("@CANARY@", "../../../../../@CANARY@", "/proc/1/root@CANARY@", "/proc/self/root/@CANARY@"):
    try:
        os.symlink(target, "link")
        with open("link", encoding="utf-8") as f:
            DONE = DONE or bool(f.read())
    except OSError:
        pass
    if os.path.islink("link"):
        os.remove("link")
os.symlink("@FOLDER@", "left-behind")
os.symlink("loop", "loop")


def add(a, b):
    return a + b if DONE else None
