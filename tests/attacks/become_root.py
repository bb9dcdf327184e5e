"""Becomes root, or another user.

Kind: host
Seen: wrong answer
"""

import os

DONE = os.getuid() == 0 or os.geteuid() == 0
for do in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.setgid(0),
           lambda: os.setuid(1), lambda: os.chown("/work", 0, 0)):
    try:
        do()
        DONE = True
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
