"""Is a module that has every name.

Kind: forgery
Seen: wrong answer|unplain|no function
"""

class Anything:
    def __getattr__(self, name):
        return self

    def __call__(self, *a, **k):
        return self

    def __eq__(self, other):
        return True


def __getattr__(name):
    return Anything()
