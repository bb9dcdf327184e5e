"""Chat in the browser, and serve OpenAI's API.

    python -m scripts.chat_web                                  # then open http://127.0.0.1:8000
    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
         -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'
    NANOCHAT_API_KEY=... python -m scripts.chat_web --host=0.0.0.0      # others on the network, with a key

Any client of OpenAI's API works with base_url http://127.0.0.1:8000/v1. `/health`, `/metrics` (Prometheus) and
`/openapi.json` are what their names say. Ctrl-C or SIGTERM: no new requests, those in work are finished (30 seconds at
most), then it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from nanochat import configurator
from nanochat.common import UserError, check_at_least
from nanochat.model_choice import ModelChoice
from nanochat.serving import Settings, serve
from nanochat.worker_pool import Command


@dataclass
class Config(Settings, ModelChoice):
    num_workers: int = 0
    """Processes with a copy of the model each (0: one on each GPU; one on a CPU)."""


def worker_commands(config: Config, module: str = "nanochat.worker") -> list[Command]:
    """A command line and additions to the environment for each worker."""
    gpus = visible_gpus() if config.device_type in ("", "cuda") else []
    check_at_least(0, num_workers=config.num_workers)
    count = config.num_workers or max(1, len(gpus))
    if gpus and count > len(gpus):
        raise UserError(f"--num_workers={count} is more than the {len(gpus)} GPUs here")
    names = (*(field.name for field in fields(ModelChoice)), "max_rows")
    command = [sys.executable, "-m", module, *(f"--{name}={getattr(config, name)}" for name in names)]
    if gpus:
        return [(command, {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus[:count]]
    threads = max(1, (os.cpu_count() or 1) // count) if count > 1 else 0
    return [([*command, f"--threads={threads}"], {}) for _ in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that a worker may be given, by what CUDA_VISIBLE_DEVICES calls them. Asked in a process of its own: this
    one stays without torch, and without a hold on any GPU."""
    ask = "import torch; print(torch.cuda.device_count())"
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [x.strip() for x in chosen.split(",") if x.strip()]
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return []
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, encoding="utf-8", check=False)
    return [str(i) for i in range(int(done.stdout))] if done.stdout.strip().isdigit() else []


def main(config: Config) -> None:
    serve(config, worker_commands(config))


if __name__ == "__main__":
    configurator.main(main, Config)
