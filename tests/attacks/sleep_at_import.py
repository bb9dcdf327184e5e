"""Sleeps for ever before there is a function.

Kind: resources
Seen: timeout
Seconds: 1.5
"""

import time

time.sleep(1e6)
