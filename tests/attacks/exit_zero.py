"""Ends with status 0 before a test runs.

Kind: forgery
Seen: exception SystemExit
"""

import sys

sys.exit(0)
