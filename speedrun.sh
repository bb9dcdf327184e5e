#!/usr/bin/env bash
# The whole job: set-up, then every stage from text to a model that talks, then the report card.
#
#   bash speedrun.sh                 runs/d20.toml where there is a CUDA device, else runs/pocket.toml
#   bash speedrun.sh runs/x.toml     any other preset
#   bash speedrun.sh --nproc=2       training on so many ranks; without it, one on each CUDA device
#
# Given again, it skips the stages that are finished and goes on with the one that was interrupted.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
preset="" nproc=()
for argument in "$@"; do
    case "$argument" in
        --nproc=*) nproc=("$argument") ;;
        "") ;;
        -*) echo "usage: bash speedrun.sh [PRESET.toml] [--nproc=N]" >&2; exit 2 ;;
        /* | runs/*) preset=$argument ;;
        *) preset="$here/$argument" ;; # as it was named where the command was given
    esac
done
if [ -n "$preset" ] && [ ! -f "$preset" ]; then
    echo "error: there is no preset $preset; these come with nanochat: $(echo runs/*.toml)" >&2
    exit 2
fi

source dev/setup.sh

if [ -z "$preset" ]; then
    preset=runs/pocket.toml
    # nvidia-smi first: importing torch takes seconds that a machine without a GPU need not spend
    if command -v nvidia-smi >/dev/null 2>&1 &&
        .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        preset=runs/d20.toml
    fi
fi
exec .venv/bin/python -m scripts.speedrun "$preset" ${nproc[@]+"${nproc[@]}"}
