"""Where a run starts: anew, on from its last checkpoint, or not at all, with what differs named field by field.

    start = resume_step(directory, identity, resume=True, overwrite=False, changed=("num_iterations",))
    if start: state = restore(directory, start.step, model, optimizer)

A run that is there is never mixed with another. There is nothing to run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.checkpoint_manager import (
    delete_checkpoints,
    load_checkpoint,
    load_meta,
    load_weights,
    saved_steps,
    sweep,
)
from nanochat.common import UserError, is_out_of_memory
from nanochat.configurator import nearest
from nanochat.gpt import GPT
from nanochat.optim import Optimizer
from nanochat.ranks import rank_and_world
from nanochat.rng import set_rng_state
from nanochat.run import TrainState, free_fields


@dataclass(frozen=True)
class Identity:
    """What makes a run that run. All of it is in its checkpoints, and must be the same to go on."""

    config: dict[str, Any]  # the stage's settings, resolved
    model_config: dict[str, int]
    tokenizer: str  # fingerprint
    parent: dict[str, Any] | None  # the model that it starts from

    def fields(self) -> dict[str, Any]:
        """One flat table: `{"matrix_lr": 0.02, ..., "model.n_head": 4, "tokenizer": "ab12...", "parent": None}`"""
        return {**self.config, **{f"model.{k}": v for k, v in self.model_config.items()},
                "tokenizer": self.tokenizer, "parent": self.parent}


def differences(saved: Identity, now: Identity) -> dict[str, list[Any]]:
    """`{"matrix_lr": [0.02, 0.5]}`: then and now, of each field that differs and may not."""
    then, today = saved.fields(), now.fields()
    names = sorted((then.keys() | today.keys()) - free_fields(now.config))
    pairs = {name: [then.get(name, "absent"), today.get(name, "absent")] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def resume_step(
    directory: str | Path, now: Identity, *, resume: bool, overwrite: bool, changed: tuple[str, ...] = ()
) -> tuple[int, dict[str, list[Any]]] | None:
    """Where a run in `directory` starts: the step to resume from and the fields that changed, or None for a new run.

    What is there is gone on with (`--resume`, nothing different but the fields named in `changed`), replaced
    (`--overwrite`; with both flags, only if it is another run), or a `UserError` says so. For the holder of the run's
    lock: what killed saves have left is swept up.
    """
    directory = Path(directory)
    for name in changed:
        if name not in now.config:
            raise UserError(f"--changed {name}: there is no such setting{nearest(name, list(now.config))}")
    steps = saved_steps(directory)
    if not steps or (overwrite and not resume):
        return _begin_anew(directory)
    if not resume:
        raise UserError(f"{directory} holds a run at step {steps[-1]}: --resume goes on with it, --overwrite replaces "
                        "it, --model_tag=NAME starts another beside it")
    meta = load_meta(directory, steps[-1], "config", "model_config", "parent", "state", "rng", "log")
    saved = Identity(meta["config"], meta["model_config"], meta["tokenizer"], meta["parent"])
    found = differences(saved, now)
    refused = {k: pair for k, pair in found.items() if k not in changed}
    if refused and overwrite:
        return _begin_anew(directory)
    if refused:
        table = "; ".join(f"{k}: {then!r} then, {today!r} now" for k, (then, today) in refused.items())
        settings = [k for k in refused if k in now.config]
        name = f"--changed {' '.join(settings)} allows it, " if settings == list(refused) else ""
        raise UserError(f"cannot resume {directory}, the configuration differs ({table}): {name}"
                        "--overwrite starts anew, --model_tag=NAME starts another run beside it")
    sweep(directory)
    return steps[-1], found


def _begin_anew(directory: Path) -> None:
    delete_checkpoints(directory)
    sweep(directory)


def restore(directory: Path, step: int, model: GPT, optimizer: Optimizer) -> tuple[TrainState, dict[str, Any]]:
    """Weights, optimizer and this rank's random state as they were after `step`; the rest of its state, and the meta.

    Any number of ranks may go on: each takes its part of the optimizer. A rank that there was not takes the random
    state of one that there was (all start from one seed).
    """
    try:
        model_data, optimizer_data, meta = load_checkpoint(directory, step, model.get_device(), load_optimizer=True)
        load_weights(model, model_data, directory)
        optimizer.load_state_dict(optimizer_data or {})
        state = TrainState(**meta["state"])
        states = [s for s in meta["rng"] if s]
        if states:
            set_rng_state(states[rank_and_world()[0] % len(states)])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as e:  # whole, but not as we write it
        if is_out_of_memory(e):
            raise
        raise UserError(f"{directory}, step {step}, was not saved by this version of nanochat ({type(e).__name__}: "
                        f"{e})") from e
    return state, meta
