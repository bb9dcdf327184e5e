"""The process that runs one whole program: `solution.py` beside it, as `python solution.py` would, within limits.

    python -I -S program.py LIMITS
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from channel import confine

if __name__ == "__main__":
    confine(sys.argv[1])
    solution = os.path.join(sys.path[0], "solution.py")
    # a fresh interpreter: the program is all that is in it, and it cannot be too long for a command line
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", "-u", "-X", "utf8", solution])
