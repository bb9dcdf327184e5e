"""Connects to a server on the host's loopback.

Kind: host
Seen: wrong answer
"""

import socket

DONE = False
for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
    try:
        socket.create_connection((host, int("@PORT@")), timeout=0.5).sendall(b"hello")
        DONE = True
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
