"""Reads address 0.

Kind: forgery
Seen: gone before.*signal 11
"""

import ctypes


def add(a, b):
    return ctypes.string_at(0)
