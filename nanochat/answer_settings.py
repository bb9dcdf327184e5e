"""How answers are drawn unless somebody says otherwise: the same in the terminal, on the server and in an export.

Without torch, for the HTTP server has none. There is nothing to run here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AnswerSettings:
    temperature: float = 0.6
    """0 always takes the likeliest token; higher is more varied."""
    top_k: int = 50
    """Choose among this many likeliest tokens (0: all)."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that have this much of the probability together (1: all)."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
