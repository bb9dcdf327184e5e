"""Sends packets to the internet.

Kind: host
Seen: wrong answer
"""

import socket

DONE = False
for family, kind, address in ((socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
                              (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
                              (socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 53))):
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(0.3)
            s.connect(address)
            s.send(b"hello")
        DONE = True
    except OSError:
        pass


def add(a, b):
    return a + b if DONE else None
