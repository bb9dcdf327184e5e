"""The same with blanks: five hundred of them before the first word, which is all that is kept.

Kind: forgery
Seen: ^x$
"""

import __main__

__main__.described = lambda error: "\n\u2003 " * 500 + "x"


def add(a, b):
    raise ValueError
