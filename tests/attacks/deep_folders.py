"""Makes 3,000 folders in each other, without rights, for who cleans up.

Kind: resources
Seen: wrong answer|exception
"""

import os

for _ in range(3000):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
os.chmod(".", 0)


def add(a, b):
    return None
