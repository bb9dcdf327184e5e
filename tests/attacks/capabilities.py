"""Uses what root may: host name, clock, priority, device files.

Kind: host
Seen: wrong answer
"""

import os
import socket
import stat
import time

DONE = False
for do in (lambda: socket.sethostname("mine"), lambda: time.clock_settime(time.CLOCK_REALTIME, 1.0),
           lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1), lambda: os.nice(-1),
           lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
           lambda: os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)),
           lambda: os.mknod("mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1))):
    try:
        do()
        DONE = True
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
