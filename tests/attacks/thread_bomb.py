"""Starts 10,000 threads.

Kind: resources
Seen: wrong answer|memory|timeout
Seconds: 4
"""

import threading
import time

threading.stack_size(1 << 16)  # so that memory is no bound
STARTED = 0
for _ in range(10_000):
    try:
        threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
        STARTED += 1
    except RuntimeError:
        break


def add(a, b):
    return a + b if STARTED > 20 else None
