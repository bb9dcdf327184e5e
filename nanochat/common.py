"""What every room needs and none owns: device, dtype, seeds, ranks, paths, printing.

Floor 0. There is nothing to run here.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from nanochat.files import fsync_dir, make_dirs, sha256_file

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # of a rank with the others; the watchdog of a run is there sooner


class UserError(Exception):
    """A mistake or a missing thing that the person at the keyboard can mend.

    The message is one line that names the thing and the remedy; `configurator.main` prints it without a traceback
    and exits with status 2. Anything else that escapes is a bug of ours and keeps its traceback.
    """


def check_at_least(least: float, **settings: float) -> None:
    """Refuse settings below `least` by name: `check_at_least(1, batch_size=0)` raises."""
    for name, value in settings.items():
        if not value >= least:  # NaN too
            raise UserError(f"--{name}={value} is impossible: it must be at least {least}")


# --------------------------------------------------------------------------- paths and files


def get_base_dir() -> Path:
    """The folder under which everything is written: `$NANOCHAT_BASE_DIR`, or `~/.cache/nanochat`. Created if absent."""
    base = Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")
    try:
        make_dirs(base)
    except OSError as e:
        raise UserError(f"cannot create {base} ({e.strerror}): set NANOCHAT_BASE_DIR to a folder you can write") from e
    return base


def check_disk(folder: str | Path, needed_bytes: int, what: str = "") -> None:
    """Refuse to start what cannot be finished: UserError if the disk of `folder` has fewer free bytes.

    `what` needs them (default: the folder). Only a look ahead: others write too, and a full disk may come all the same.
    """
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise UserError(f"{what or folder} needs {needed_bytes:,} bytes and the disk has {free:,} free: free some, or "
                        "set NANOCHAT_BASE_DIR to a folder on a larger disk")


DOWNLOAD_ATTEMPTS, DOWNLOAD_PAUSE = 5, 1.0  # the pause (seconds) doubles after each failure


def download_file_with_lock(url: str, filename: str, *, sha256: str = "") -> Path:
    """Fetch `url` (http, https) into the base directory as `filename`, once; its path. (Hub repositories: `hub.py`.)

    Of several processes one downloads and the others wait for it. The file appears whole or not at all; with `sha256`
    (hex) only with that content, and a file that is there already is checked too. `HF_HUB_OFFLINE` and
    `HF_HUB_DOWNLOAD_TIMEOUT` hold here as for the hub. Raises UserError when no attempt brought it, or where it
    cannot lie: outside the base directory, on a folder, where nobody may write.
    """
    base = Path(os.path.normpath(get_base_dir()))
    path = Path(os.path.normpath(base / filename))
    if base not in path.parents or path.is_dir():
        raise UserError(f"{filename!r} cannot be the name of a file in {base}: choose a name that is free, below it")
    try:
        problem = _download_with_lock(url, path, sha256.lower())
    except OSError as e:  # the disk's: what the network does is a problem
        raise UserError(f"cannot write {path} ({e.strerror}): free space or rights there, or set NANOCHAT_BASE_DIR to "
                        "a folder you can write") from e
    if problem:
        raise UserError(f"could not download {url!r}: {problem} (check the address and the network, or put the file "
                        f"at {path} yourself)")
    return path


def _download_with_lock(url: str, path: Path, sha256: str) -> str:
    """See to it that `path` is there and right; "", or what went wrong with the last attempt."""
    from filelock import FileLock

    def there() -> bool:
        return path.is_file() and (not sha256 or sha256_file(path) == sha256)

    if there():  # nothing to be written, nor a lock: the folder may be read-only
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if there():
            return ""
        for attempt in range(DOWNLOAD_ATTEMPTS):
            if attempt:
                time.sleep(DOWNLOAD_PAUSE * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1))
            problem, final = _download_once(url, part)
            if not problem and sha256 and sha256_file(part) != sha256:
                problem = "its SHA-256 is not the one asked for"
            if not problem:
                os.replace(part, path)
                fsync_dir(path.parent)
                return ""
            part.unlink(missing_ok=True)
            if final:
                break
    return problem


def _download_once(url: str, part: Path) -> tuple[str, bool]:
    """One request, into `part`. `("", False)`, or what went wrong and whether it will go wrong again."""
    import httpx2
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        with get_session().stream("GET", url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
            if answer.status_code != 200:
                passing = answer.status_code in (408, 425, 429) or answer.status_code >= 500
                return f"HTTP {answer.status_code}", not passing
            with open(part, "wb") as out:
                for block in answer.iter_bytes():
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set", True
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as e:
        return str(e), True
    except httpx2.HTTPError as e:  # also a body that ends before its Content-Length
        return str(e) or type(e).__name__, False
    return "", False


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
        say(*args, **kwargs)


def say(*args: object, **kwargs: Any) -> None:
    """`print`, flushed, which costs nobody a run when the reader of a pipe has died or the disk of a log is full."""
    try:
        print(*args, **kwargs, flush=True)
    except OSError:
        mute(2 if kwargs.get("file") is sys.stderr else 1)


def mute(*fds: int) -> None:
    """From now on what is written to these goes nowhere."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for fd in fds:
            os.dup2(nowhere.fileno(), fd)


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


def keep_freed_memory() -> bool:
    """Tell the C library to keep the memory that torch frees on the CPU, for the next step. True if it could.

    A training step frees and allocates the same gigabytes each time. glibc returns large blocks to the kernel at once
    and gets them back as zeroed pages, one fault each: a third of a step (dev/LOG.md). Elsewhere (macOS, musl) this
    does nothing.
    """
    import ctypes

    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def compute_init(device_type: str = "", seed: int = 42, *, deterministic: bool = False):
    """Seeds, precision settings, threads, device and (under torchrun) the process group.

    Returns `(ddp, rank, local_rank, world_size, device)`. Pair it with `compute_cleanup()`.
    """
    import torch
    import torch.distributed as dist

    device_type = device_type or autodetect_device_type()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device_type, False):
        raise UserError(f"--device_type={device_type} is not available here: choose one of "
                        f"{', '.join(k for k, v in available.items() if v)}")
    ddp, rank, local_rank, world_size = get_dist_info()
    if deterministic and device_type != "cpu":
        raise UserError(f"--deterministic works on the CPU only, not on {device_type}: add --device_type=cpu")
    if device_type == "mps" and world_size > 1:
        raise UserError("several ranks cannot share MPS: start it without torchrun, or with --device_type=cpu")
    if device_type == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(f"rank {rank} has no GPU: --nproc_per_node is more than the {torch.cuda.device_count()} here")
    seed_everything(seed)
    device = torch.device(device_type)
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    elif device_type == "cpu":
        keep_freed_memory()
        if threads := threads_per_rank(deterministic):
            torch.set_num_threads(threads)
    if ddp and not dist.is_initialized():
        # The timeout ends what hangs; a rank that dies ends the others at once, by torchrun or a closed connection.
        bound = {"device_id": device} if device_type == "cuda" else {}
        dist.init_process_group("nccl" if bound else "gloo", timeout=PATIENCE, **bound)
    return ddp, rank, local_rank, world_size, device


def compute_cleanup() -> None:
    """Leave the process group if there is one (asked of torch, not of the environment)."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def threads_per_rank(deterministic: bool = False) -> int | None:
    """How many threads a rank's arithmetic on the CPU should have; None: as torch has it.

    `OMP_NUM_THREADS` is obeyed where a person has set it. Else the ranks of a machine share its cores, and in
    deterministic mode each has one: a sum cut in two threads may round otherwise, and 1, 2 and 4 ranks must agree.
    """
    if _person_set_threads():
        return None
    if deterministic:
        return 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, cpu_cores() // ranks_here) if ranks_here > 1 else None


def _person_set_threads() -> bool:
    """Whether OMP_NUM_THREADS is a person's choice: torchrun sets it to 1 for its ranks where it finds none."""
    import psutil

    if "OMP_NUM_THREADS" not in os.environ:
        return False
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    try:
        return "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ()  # as torchrun itself was started
    except psutil.Error:
        return True


def cpu_cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(physical, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else physical


# --------------------------------------------------------------------------- what the machine can do


def compile_problem(device_type: str) -> str | None:
    """Why `torch.compile` cannot work here, or None. It needs a compiler and Python's headers."""
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


# Dense peaks in TFLOP/s by the name that CUDA (or ROCm) gives a device: (bfloat16, float32 by way of TF32), None where
# there is no such unit. From the makers' datasheets and architecture white papers (A100, A10, A40, H100, H200,
# B200, L4, L40S, V100, T4; GA102, Ada and Blackwell RTX white papers, with float32 accumulation; CDNA 3); figures
# given "with sparsity" are halved. V100 and T4 have neither unit: their float32 is that of the plain cores.
_PEAK_TFLOPS: dict[str, tuple[float | None, float | None]] = {
    r"NVIDIA B200": (2250, 1125),
    r"NVIDIA H200": (989.4, 494.7),
    r"NVIDIA H200 NVL": (835.5, 417.5),
    r"NVIDIA H100 80GB HBM3": (989.4, 494.7),
    r"NVIDIA H100 PCIe": (756, 378),
    r"NVIDIA H100 NVL": (835.5, 417.5),
    r"(NVIDIA )?A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": (312, 156),
    r"NVIDIA A40": (149.7, 74.8),
    r"NVIDIA A10": (125, 62.5),
    r"NVIDIA L4": (121, 60),
    r"NVIDIA L40": (181, 90.5),
    r"NVIDIA L40S": (362, 183),
    r"NVIDIA RTX A6000": (154.8, 77.4),
    r"NVIDIA GeForce RTX 3090": (71, 35.6),
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6),
    r"NVIDIA GeForce RTX 5090": (209.5, 104.8),
    r"Tesla V100-SXM2-(16|32)GB": (None, 15.7),
    r"Tesla V100-PCIE-(16|32)GB": (None, 14.0),
    r"Tesla T4": (None, 8.1),
    r"AMD Instinct MI300X": (1307.4, 653.7),
}


def peak_flops(device, dtype) -> float | None:
    """The published dense peak of a device in FLOP/s, which MFU is quoted against; None: not known, never guessed."""
    import torch

    return peak_flops_by_name(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None


def peak_flops_by_name(name: str, dtype) -> float | None:
    """`"NVIDIA H100 80GB HBM3", torch.bfloat16 -> 989.4e12`. The whole name must fit: a slice of a device (MIG), a
    laptop's chip or an unknown sister is another device.
    """
    import torch

    for pattern, (bf16, tf32) in _PEAK_TFLOPS.items():
        if re.fullmatch(pattern, name):
            tera = {torch.bfloat16: bf16, torch.float32: tf32}.get(dtype)
            return None if tera is None else tera * 1e12
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, CUDA's, and what torch's allocators for CPU and MPS say in a RuntimeError."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
