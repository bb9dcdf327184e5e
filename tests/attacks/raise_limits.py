"""Lifts its own limits.

Kind: host
Seen: wrong answer
"""

import resource

DONE = False
for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CPU", "RLIMIT_CORE"):
    which = getattr(resource, name)
    soft, hard = resource.getrlimit(which)
    DONE = DONE or hard == resource.RLIM_INFINITY
    for value in (hard + 1, resource.RLIM_INFINITY):
        try:
            resource.setrlimit(which, (value, value))
            DONE = True
        except (ValueError, OSError):
            pass


def add(a, b):
    return a + b if DONE else None
