"""Prints bytes that are no text.

Kind: forgery
Seen: exception UnicodeEncodeError
"""

import os

os.write(1, b"\xff\xfe\x80\0" * 1000)
os.write(2, b"\xed\xa0\x80" * 1000)
print("\ud800")


def add(a, b):
    return None
