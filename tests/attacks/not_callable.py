"""Binds the name to what cannot be called.

Kind: forgery
Seen: no function
"""

add = 5
