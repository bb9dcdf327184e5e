"""The forward pass for inference on a CPU: `cpu_forward.cpp`, compiled here, fed with a model's weights.

    forward = CpuForward(model, weights="bfloat16")     # float32, bfloat16 or int8
    cache = forward.new_cache(rows=2, positions=256)
    logits = forward([[1, 5, 7], [1, 9]], cache)        # prompts, no padding: logits (2, V) of their last tokens
    logits = forward([[3], [4]], cache)                 # one token more for each

`gpt.py` stays the reference; this is the same mathematics near the speed of memory (the C++ file says how, dev/LOG.md
how much). Activations are float32 always; `weights` says how the matrices are kept: as they are, in half the memory, or
as int8 with a scale for each output (weights only). A token's logits do not depend, to the bit, on what else is in a
call, on the number of threads, or on where a prompt was split.

The library is compiled once and kept under ~/.cache/nanochat/kernels ($XDG_CACHE_HOME), named by a hash of the source,
the compiler and what this CPU can do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError
from nanochat.gpt import GPT, LOGIT_CAP
from nanochat.kv_cache import KVCache
from nanochat.torch_forward import fingerprint

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread",
         "-fopenmp")
PANEL = 16  # as in the C++ file
CHUNK = 256  # tokens a call: what a prompt needs beside the cache stays small
Weights = Literal["float32", "bfloat16", "int8"]
CACHE_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}


# --------------------------------------------------------------------------- the library


class Request(ctypes.Structure):
    """One call; the C++ file says what each field is."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "heads", "kv_heads", "head_dim", "width", "vocab")),
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "cos", "sin", "cache")),
        *((name, ctypes.c_int64) for name in ("kv_stride", "layer_stride", "row_stride", "head_stride", "tokens")),
        *((name, ctypes.c_void_p) for name in ("rows", "positions", "x")),
        ("wanted", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("which", "logits", "scratch")),
        ("longest", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("cap", ctypes.c_float),
    ]


def compiler() -> str | None:
    """The C++ compiler to use: $CXX, g++ or clang++, whichever is there."""
    return next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)


def kernel_dir() -> Path:
    """Where compiled libraries are kept: the user's cache, whatever the base directory is."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanochat" / "kernels"


@functools.cache
def load_library() -> ctypes.CDLL:
    """Compile the C++ file unless this was done before, and load it. UserError where that cannot be."""
    try:
        return _load()
    except OSError as e:  # no folder at all to run things from, a compiler that is no program, ...
        raise UserError(f"the kernel for CPUs cannot be compiled and loaded: {e}") from e


def _load() -> ctypes.CDLL:
    cxx = compiler()
    if cxx is None:
        raise UserError("no C++ compiler (on Debian: apt-get install g++)")
    # what the compiler is and takes "native" for: a home directory may be shared by machines that differ
    macros = subprocess.run([cxx, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=False)
    if macros.returncode:
        raise UserError(f"{cxx} does not take {' '.join(FLAGS)}: {_last_line(macros.stderr)}")
    name = hashlib.sha256(SOURCE.read_bytes() + repr((cxx, FLAGS)).encode() + macros.stdout).hexdigest()[:16] + ".so"
    directory = kernel_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / name).exists():
            _compile(cxx, directory / name)
        return ctypes.CDLL(str(directory / name))
    except OSError:  # a home that cannot be written: compiled for this process only
        with tempfile.TemporaryDirectory(prefix="nanochat_") as private:
            _compile(cxx, Path(private) / name)
            return ctypes.CDLL(str(Path(private) / name))


def _compile(cxx: str, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)  # two processes may compile at once
    os.close(handle)
    try:
        done = subprocess.run([cxx, *FLAGS, str(SOURCE), "-o", temporary], capture_output=True, check=False)
        if done.returncode:
            raise UserError(f"{cxx} could not compile {SOURCE}: {_last_line(done.stderr)}")
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]


# --------------------------------------------------------------------------- the weights


def pack(weight: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """A matrix (N, K) as the kernel reads it: (N / PANEL, K, PANEL), N padded with zeros; and scales (N,) for int8.

    16 outputs stand side by side for each input, so the kernel reads memory in order and needs no sum across a vector.
    int8 is symmetric, one scale an output: `[0.5, -1.27] -> [50, -127], scale 0.01`
    """
    weight = F.pad(weight.detach().float(), (0, 0, 0, -weight.size(0) % PANEL))
    scale = None
    if weights == "int8":
        scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
        weight = (weight / scale[:, None]).round()
    panels = weight.view(-1, PANEL, weight.size(1)).transpose(1, 2)  # (N / PANEL, K, PANEL)
    return panels.to(getattr(torch, weights)).contiguous(), scale


def in_large_pages(x: Tensor) -> Tensor:
    """A copy of x in memory that the system may map by pages of 2 MiB instead of 4 KiB: reading it all then waits less
    for address translation."""
    size = 2 * 1024 * 1024
    memory = mmap.mmap(-1, -(-x.nbytes // size) * size + size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel that has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    start = -flat.data_ptr() % size
    return flat[start : start + x.nbytes].view(x.dtype).view(x.shape).copy_(x)


class CpuForward:
    """A model on a CPU, ready to be run token by token. Weights are copied when it is made, and again by `refresh`."""

    def __init__(self, model: GPT, weights: Weights = "float32"):
        self.model, self.weights = model, weights
        self.function = getattr(load_library(), f"forward_{weights}")
        self.function.argtypes, self.function.restype = [ctypes.POINTER(Request)], None
        self._fingerprint: tuple[list[float], list[int]] | None = None
        self._grow_rotary(model.config.sequence_len)
        self.refresh()

    def _grow_rotary(self, positions: int) -> None:
        """A table of our own: the model's may be cast with it, or moved."""
        self.cos, self.sin = self.model._precompute_rotary_embeddings(positions, self.model.config.head_dim)

    def refresh(self) -> bool:
        """Take over the weights anew if they have changed; returns whether they have."""
        if (now := fingerprint(self.model)) == self._fingerprint:
            return False
        matrices = []
        for block in self.model.transformer.h:
            a = block.attn
            matrices += [torch.cat([a.c_q.weight, a.c_k.weight, a.c_v.weight]), a.c_proj.weight,
                         block.mlp.c_fc.weight, block.mlp.c_proj.weight]
        packed = [pack(m, self.weights) for m in [*matrices, self.model.lm_head.weight]]
        packed = [(in_large_pages(w), s) for w, s in packed]
        self._tensors = packed  # the pointers below point into these
        self._matrices = (ctypes.c_void_p * len(packed))(*(w.data_ptr() for w, _ in packed))
        self._scales = (ctypes.c_void_p * len(packed))(*(None if s is None else s.data_ptr() for _, s in packed))
        self._fingerprint = now
        return True

    @property
    def weight_bytes(self) -> int:
        """What one token reads at least."""
        return sum(w.nbytes + (0 if s is None else s.nbytes) for w, s in self._tensors)

    def new_cache(self, rows: int, positions: int) -> KVCache:
        """A cache of empty rows, with room for at least so many positions."""
        c = self.model.config
        return KVCache(rows, c.n_kv_head, positions, c.head_dim, c.n_layer, CACHE_DTYPE[self.weights], "cpu")

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, first_row: int = 0) -> Tensor:
        """Add `ids[i]` (at least one token each) to row `first_row + i`; returns the logits at the ends (len(ids), V).

        The cache's lengths grow by as much.
        """
        starts = cache.host_lengths[first_row : first_row + len(ids)]
        ends = [start + len(row) for start, row in zip(starts, ids, strict=True)]
        cache.reserve(cache.batch_size, max(ends))
        if max(ends) > self.cos.size(1):
            self._grow_rotary(max(max(ends), 2 * self.cos.size(1)))
        rows, positions, last = array("i"), array("i"), []  # of each token; the end of each row in the flat list
        for i, (start, row) in enumerate(zip(starts, ids), start=first_row):
            rows.extend([i] * len(row))
            positions.extend(range(start, start + len(row)))
            last.append(len(rows) - 1)
        flat = torch.tensor([token for row in ids for token in row])
        logits = [self._run(flat[a : a + CHUNK], rows[a : a + CHUNK], positions[a : a + CHUNK],
                            array("i", [i - a for i in last if a <= i < a + CHUNK]), cache, max(ends))
                  for a in range(0, len(rows), CHUNK)]
        lengths = list(cache.host_lengths)
        lengths[first_row : first_row + len(ids)] = ends
        cache.set_lengths(lengths)
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _run(self, ids: Tensor, rows: array, positions: array, which: array, cache: KVCache, longest: int) -> Tensor:
        """One call: logits (len(which), vocab_size)."""
        c, n, model = self.model.config, len(rows), self.model
        padded = [size + -size % PANEL for size in (c.n_embd, (c.n_head + 2 * c.n_kv_head) * c.head_dim, 4 * c.n_embd)]
        x = F.pad(model.transformer.wte(ids).float(), (0, padded[0] - c.n_embd))  # (n, padded width)
        logits = torch.empty(len(which), model.padded_vocab_size)
        scratch = torch.empty(n * (padded[0] + max(padded[1:]) + padded[2]))
        store = cache.store
        kv_stride, layer_stride, row_stride, head_stride = store.stride()[:4]
        self.function(Request(
            c.n_layer, c.n_head, c.n_kv_head, c.head_dim, c.n_embd, model.padded_vocab_size,
            ctypes.addressof(self._matrices), ctypes.addressof(self._scales),
            self.cos.data_ptr(), self.sin.data_ptr(),
            store.data_ptr(), kv_stride, layer_stride, row_stride, head_stride,
            n, _address(rows), _address(positions), x.data_ptr(), len(which), _address(which), logits.data_ptr(),
            scratch.data_ptr(), longest, torch.get_num_threads(), LOGIT_CAP,
        ))
        return logits[:, : c.vocab_size]


def _address(x: array) -> int:
    return x.buffer_info()[0]
