"""Looks for what a Python does not need: accounts, homes, site-packages, devices, this project.

Kind: host
Seen: wrong answer
"""

import os
import sys
import sysconfig

DONE = False
for path in ("/etc/passwd", "/etc/hostname", "/home", "/root", "/var", "/tmp", "/sys", "/proc", "/run", "/usr/bin/env",
             "/bin/sh", "/dev/urandom", "/dev/tty", "@PROJECT@", "/box/checks.py", "/box/secret"):
    DONE = DONE or (os.path.exists(path) and not sys.base_prefix.startswith(path))  # a Python may be below a home
packages = sysconfig.get_path("purelib")
DONE = DONE or (os.path.isdir(packages) and bool(os.listdir(packages)))


def add(a, b):
    return a + b if DONE else None
