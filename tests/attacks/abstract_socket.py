"""Connects to an abstract Unix socket of the host.

Kind: host
Seen: wrong answer
"""

import socket

try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        s.connect("\0@SOCKET@")
        s.sendall(b"hello")
    DONE = True
except OSError:
    DONE = False


def add(a, b):
    return a + b if DONE else None
