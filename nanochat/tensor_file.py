"""Tensors on the disk, in the safetensors format: written piece by piece and hashed on the way, read by the library.

    digest = write_tensors("model_000500.safetensors", {"wte.weight": tensor, ...})
    tensors = read_tensors("model_000500.safetensors", device)

The library's own `save_file` writes to the final name, wants the file read once more for its hash, and is one call that
neither says what it wrote when the disk is full nor lets other Python threads run. The format is plain (its README):
eight bytes with the header's length, the header as JSON, the tensors' bytes. Ours are the library's files to the byte
(tests/test_checkpoint.py). There is nothing to run here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanochat.common import UserError
from nanochat.files import write_file

# Names of the dtypes that can be saved, in the order in which the library lays tensors out: the widest first.
DTYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
          torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    """What they take, without the header."""
    return sum(t.nbytes for t in tensors.values())


def tensor_pieces(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The file as pieces, without a second copy of tensors that are contiguous and on the CPU."""
    order = sorted(tensors, key=lambda name: ([*DTYPES].index(tensors[name].dtype), name))
    header: dict[str, dict] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name in order:
        t, begin = tensors[name], end
        end += t.nbytes
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield memoryview(flat.view(torch.uint8).numpy())


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Whole or not at all (`write_file`); the file's SHA-256. `metadata`: what the header is to say beside."""
    return write_file(path, tensor_pieces(tensors, metadata))


def read_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a file that was verified; what is no such file is a UserError."""
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, ValueError) as e:
        raise UserError(f"{path} is not a safetensors file ({e})") from None
