"""Burns processor time in processes and threads.

Kind: resources
Seen: timeout|cpu time
Seconds: 2
"""

import os
import threading


def burn():
    while True:
        pass


for _ in range(3):
    if os.fork() == 0:
        burn()
for _ in range(3):
    threading.Thread(target=burn, daemon=True).start()


def add(a, b):
    burn()
