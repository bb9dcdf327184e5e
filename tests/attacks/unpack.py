"""Unpacks a megabyte to 300.

Kind: resources
Seen: memory|exception MemoryError
"""

import zlib

packer = zlib.compressobj(1)
BOMB = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(300)) + packer.flush()


def add(a, b):
    return zlib.decompress(BOMB)
