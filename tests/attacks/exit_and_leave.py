"""Ends and leaves children that hold the channel open.

Kind: resources
Seen: gone before|timeout
Seconds: 2
"""

import os
import time


def add(a, b):
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
