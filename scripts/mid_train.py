"""Midtraining: teach the base model conversations, tool use, multiple choice and spelling.

    python -m scripts.mid_train runs/pocket.toml
    python -m scripts.mid_train --data=FOLDER --mixture smoltalk gsm8k --num_iterations=100

Reads `base_checkpoints/`, writes `mid_checkpoints/`. Learning rates are lower than the base run's.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat import configurator
from nanochat.finetune import FinetuneConfig, finetune


@dataclass
class Config(FinetuneConfig):
    """Midtrain the base model on a mixture of conversations."""

    mixture: tuple[str, ...] = ("smoltalk", "mmlu", "gsm8k", "simplespelling:200000", "spellingbee:80000")
    """Tasks to train on: name, name*2 (seen twice), name:5000 (so many rows), or a .jsonl file of conversations."""
    init_lr_frac: float = 0.5
    """Multiplies all learning rates of this stage."""
    warmdown_ratio: float = 0.5
    """Share of the steps in which the rate falls."""


def main(config: Config) -> None:
    finetune(config, stage="mid_train", source_from="base", source_to="mid")


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
