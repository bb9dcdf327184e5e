"""Stops itself and its children with SIGSTOP.

Kind: resources
Seen: timeout
Seconds: 1.5
"""

import os
import signal


def add(a, b):
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
