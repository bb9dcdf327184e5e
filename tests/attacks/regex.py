"""Uses a pattern that backtracks for ever.

Kind: resources
Seen: timeout
Seconds: 1.5
"""

import re


def add(a, b):
    return re.match(r"(a|aa)+$", "a" * 200 + "b")
