"""Writes to folders of the host and to the root of its own world.

Kind: host
Seen: wrong answer
"""

import os

DONE = False
for folder in ("@FOLDER@", "/", "/etc", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/box", "/usr", "/home", "/root"):
    try:
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/nanochat-was-here", "w", encoding="utf-8") as f:
            f.write("x")
        DONE = True
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
