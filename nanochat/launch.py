"""Start a script on several ranks of this machine: torchrun, but with the exit status of the rank that failed first.

    python -m nanochat.launch 8 scripts.base_train runs/d20.toml

torchrun itself works as well and its exit status is always 1; the runner of presets wants to know whether a stage
refused to start or broke.
"""

from __future__ import annotations

import os
import signal
import sys

SAVING_TIME = "300"  # seconds that ranks have to save after a signal, before torchrun kills them


def main(argv: list[str]) -> int:
    """`["8", "scripts.base_train", "runs/d20.toml"]` -> exit status: 128 + its number if a signal ended it."""
    if len(argv) < 2 or not argv[0].isdecimal():
        print("usage: python -m nanochat.launch RANKS MODULE [ARGUMENTS]", file=sys.stderr)
        return 2
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, but it warns; compute_init knows better
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SAVING_TIME)
    ranks, module, *arguments = argv
    try:
        run(parse_args(["--standalone", f"--nproc_per_node={ranks}", "-m", module, *arguments]))
    except SignalException as e:
        return 128 + int(e.sigval)
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        status = failure.exitcode
        how = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        print(f"rank {rank} of {ranks} was the first to end: {how}", file=sys.stderr, flush=True)
        return status if status >= 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
