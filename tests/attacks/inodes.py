"""Makes empty files without end.

Kind: resources
Seen: timeout|memory|wrong answer|gone
Seconds: 1.5
"""

import os


def add(a, b):
    number = 0
    while True:
        os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY))
        number += 1
