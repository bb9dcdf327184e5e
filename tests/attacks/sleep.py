"""Sleeps for ever.

Kind: resources
Seen: timeout
Seconds: 1.5
"""

import time


def add(a, b):
    time.sleep(1e6)
