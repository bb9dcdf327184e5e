"""scripts/chat_web.py with the parrot as its model (tests/parrot.py); tests/chat_server.py starts it.

    PARROT_DELAY=0.02 python -m tests.parrot_server --port=8000       # the same flags; by hand, to look at the page
"""

from __future__ import annotations

import os

from nanochat import configurator
from nanochat.serving import serve
from scripts.chat_web import Config, worker_commands


def main(config: Config) -> None:
    delay = f"--delay={os.environ.get('PARROT_DELAY', '0.02')}"
    commands = worker_commands(config, "tests.parrot")
    serve(config, [([*command, delay], environment) for command, environment in commands])


if __name__ == "__main__":
    configurator.main(main, Config)
