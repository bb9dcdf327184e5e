#!/usr/bin/env bash
# Set-up, then the linter, then the whole test suite. Arguments go to pytest: bash test.sh -k tokenizer -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NANOCHAT_REQUIREMENTS=requirements-test.txt source dev/setup.sh

.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n 2 "$@"
