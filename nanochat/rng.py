"""The random states of this process: saved with a checkpoint, given back on resume, kept from what only looks.

    with untouched():
        evaluate()             # whatever it draws, training goes on with the numbers that it would have had

Python's, NumPy's and torch's global generators (and CUDA's, where there is one). Nothing in nanochat draws from them
while it trains; what is added to it (dropout, say) may. There is nothing to run here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import Iterator

import numpy as np
import torch


def rng_state() -> dict[str, str]:
    """The states as texts, for a JSON file: 17 kB, most of it the three Mersenne twisters."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {"python": json.dumps([version, _packed(np.array(words[:-1], np.uint32)), words[-1], gauss]),
             "numpy": json.dumps([name, _packed(keys), int(position), int(has_gauss), float(cached)]),
             "torch": _packed(torch.get_rng_state().numpy())}
    if torch.cuda.is_initialized():
        state["cuda"] = _packed(torch.cuda.get_rng_state().numpy())
    return state


def set_rng_state(state: dict[str, str]) -> None:
    """The inverse. What is not in `state` (a GPU that there was not) stays as it is."""
    version, words, position, gauss = json.loads(state["python"])
    random.setstate((version, (*map(int, _unpacked(words, np.uint32)), position), gauss))
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, _unpacked(keys, np.uint32), *rest))
    torch.set_rng_state(torch.from_numpy(_unpacked(state["torch"], np.uint8)))
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(torch.from_numpy(_unpacked(state["cuda"], np.uint8)))


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Whatever is drawn inside, the states afterwards are those of before."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)
