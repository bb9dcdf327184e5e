"""What every room needs and none owns: device, dtype, seeds, ranks, paths, printing, safe writes.

Floor 0: imports nothing of ours. There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake or a missing thing that the person at the keyboard can mend.

    The message is one line that names the thing and the remedy; `configurator.main` prints it without a traceback
    and exits with status 2. Anything else that escapes is a bug of ours and keeps its traceback.
    """


def check_at_least(least: float, **settings: float) -> None:
    """Refuse settings below `least` by name: `check_at_least(1, batch_size=0)` raises."""
    for name, value in settings.items():
        if value < least:
            raise UserError(f"--{name}={value} is impossible: it must be at least {least}")


# --------------------------------------------------------------------------- paths and files


def get_base_dir() -> Path:
    """The folder under which everything is written: `$NANOCHAT_BASE_DIR`, or `~/.cache/nanochat`. Created if absent."""
    base = Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot create {base} ({e.strerror}): set NANOCHAT_BASE_DIR to a folder you can write") from e
    return base


def fsync_dir(path: Path) -> None:
    """Make a rename inside `path` durable (POSIX: the directory entry is data of the directory)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write `data` so that `path` is either the old file or the whole new one, whatever dies in between.

    Text is written as UTF-8. Temporary name in the same folder, fsync, rename, fsync of the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(payload)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600; our files are as readable as any other
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------- ranks and printing


def get_dist_info() -> tuple[bool, int, int, int]:
    """`(ddp, rank, local_rank, world_size)` as torchrun tells it; `(False, 0, 0, 1)` without torchrun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return True, rank, int(os.environ.get("LOCAL_RANK", rank)), world_size
    return False, 0, 0, 1


def print0(*args: object, **kwargs: object) -> None:
    """`print` on rank 0 only, flushed: a log that ends in a crash must hold what came before it."""
    if get_dist_info()[1] == 0:
        print(*args, **kwargs, flush=True)  # type: ignore[call-overload]


def print_banner() -> None:
    """The name, once, at the start of a long run."""
    print0(
        r"""
                              _           _
   _ __   __ _ _ __   ___   ___| |__   __ _| |_
  | '_ \ / _` | '_ \ / _ \ / __| '_ \ / _` | __|
  | | | | (_| | | | | (_) | (__| | | | (_| | |_
  |_| |_|\__,_|_| |_|\___/ \___|_| |_|\__,_|\__|
"""
    )


def progress(items: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Yield `items`; on rank 0 at a terminal with a progress bar, elsewhere (logs, CI) in silence."""
    if get_dist_info()[1] != 0 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=description, total=total, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """`tell(stage, done, total)` for work that counts for itself: a bar for each stage, where `progress` shows one too.

    A stage whose total is None is shown as a running number: `counting 1,234,567`.
    """
    if get_dist_info()[1] != 0 or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description} {task.completed:,.0f}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


class DummyWandb:
    """Stands where a Weights & Biases run would: same calls, nothing done."""

    def log(self, *args: object, **kwargs: object) -> None: ...

    def finish(self) -> None: ...


# --------------------------------------------------------------------------- device, dtype, seeds
# torch is imported inside the functions: a tokenizer or data command should not wait two seconds for it.


def autodetect_device_type() -> str:
    """`"cuda"`, else `"mps"`, else `"cpu"`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def cpu_has_native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX or Arm's BF16 extension)."""
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in probes if hasattr(torch.cpu, name))


def resolve_dtype(name: str, device_type: str):
    """The compute dtype of a run. `"auto"`: bfloat16 where the hardware has it, else float32.

    `resolve_dtype("float32", "cuda") -> torch.float32`
    """
    import torch

    if name == "auto":
        if device_type == "cuda":
            fast = torch.cuda.get_device_capability() >= (8, 0)
        else:
            fast = device_type == "cpu" and cpu_has_native_bf16()
        return torch.bfloat16 if fast else torch.float32
    choices = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if name not in choices:
        raise UserError(f"--dtype={name} is unknown: choose auto, bfloat16 or float32")
    return choices[name]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def compute_init(device_type: str = "", seed: int = 42):
    """Seeds, precision settings, device and (under torchrun) the process group.

    Returns `(ddp, rank, local_rank, world_size, device)`. Pair it with `compute_cleanup()`.
    """
    import torch

    device_type = device_type or autodetect_device_type()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device_type, False):
        raise UserError(f"--device_type={device_type} is not available here: choose one of "
                        f"{', '.join(k for k, v in available.items() if v)}")
    seed_everything(seed)
    ddp, rank, local_rank, world_size = get_dist_info()
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device(device_type)
    if ddp:
        torch.distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return ddp, rank, local_rank, world_size, device


def compute_cleanup() -> None:
    """Leave the process group if there is one (asked of torch, not of the environment)."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


# --------------------------------------------------------------------------- what the machine can do


def compile_problem(device_type: str) -> str | None:
    """Why `torch.compile` cannot work here, or None. It needs a compiler and Python's headers."""
    import shutil
    import sysconfig

    if device_type == "mps":
        return "torch.compile is not used on MPS"
    if device_type in ("cpu", "cuda"):  # inductor compiles kernels in C++, Triton its launchers in C
        compilers = {"cpu": (os.environ.get("CXX", "g++"), "g++", "clang++"),
                     "cuda": (os.environ.get("CC", "gcc"), "gcc", "clang")}[device_type]
        if not any(shutil.which(c) for c in compilers):
            return "no C++ compiler (on Debian: apt-get install g++)"
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            return "Python's headers are missing (on Debian: apt-get install python3-dev)"
    return None


def measure_matmul_flops(device, dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product, measured here and now: the yardstick that utilisation is quoted against."""
    import time

    import torch

    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def one() -> float:
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    one()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        times.append(one())
    return 2 * n**3 / min(times)


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
