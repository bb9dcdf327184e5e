"""Supervised fine-tuning: a smaller, curated mixture, towards what the model will be asked.

    python -m scripts.chat_sft runs/pocket.toml
    python -m scripts.chat_sft --mixture my_conversations.jsonl*4 smoltalk:10000

Reads `mid_checkpoints/`, writes `chatsft_checkpoints/`. Only what the assistant says is learned.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat import configurator
from nanochat.finetune import FinetuneConfig, finetune


@dataclass
class Config(FinetuneConfig):
    """Fine-tune the midtrained model."""

    mixture: tuple[str, ...] = ("arc_easy", "arc_challenge", "gsm8k", "smoltalk:10000", "simplespelling:300",
                                "spellingbee:300")
    """Tasks to train on: name, name*2 (seen twice), name:5000 (so many rows), or a .jsonl file of conversations."""
    init_lr_frac: float = 0.2
    """Multiplies all learning rates of this stage."""
    warmdown_ratio: float = 1.0
    """Share of the steps in which the rate falls."""
    total_batch_size: int = 65536
    """Tokens a step, over all micro-batches and ranks."""


def main(config: Config) -> None:
    finetune(config, stage="chat_sft", source_from="mid", source_to="sft")


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
