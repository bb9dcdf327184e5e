"""Pretrain the base model on raw text.

    python -m scripts.base_train --depth=4 --max_seq_len=256 --device_batch_size=16 --total_batch_size=4096
    python -m scripts.base_train runs/pocket.toml --num_iterations=100

Reads the tokenizer that `tok_train` left and the text of `--data`; writes `base_checkpoints/d<depth>/`. One dial,
`--depth`, sets the size; the number of steps follows from it unless it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from nanochat import configurator
from nanochat.checkpoint_manager import checkpoint_root
from nanochat.common import UserError, compute_init, print0, print_banner, resolve_dtype
from nanochat.dataloader import Batch, tokenizing_distributed_data_loader_with_state
from nanochat.dataset import text_iterator
from nanochat.gpt import GPT, config_for_depth
from nanochat.loss_eval import continue_openings
from nanochat.report import get_report
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Every, StageConfig, TrainState, grad_accum_steps, run_training, validation


@dataclass
class Config(StageConfig):
    """Pretrain the base model."""

    depth: int = 20
    """Number of layers: the one dial. Width is depth × aspect_ratio."""
    aspect_ratio: int = 64
    """Width per layer of depth."""
    head_dim: int = 128
    """Size of an attention head."""
    max_seq_len: int = 2048
    """Context length in tokens."""
    target_flops: float = -1.0
    """Train for this many FLOPs (-1: off). `num_iterations` goes before it."""
    target_param_data_ratio: float = 20.0
    """Train on this many tokens per parameter (Chinchilla: 20), if nothing else says how long."""
    sample_every: int = 2000
    """Steps between printed samples (0: only at the end)."""


def steps_to_train(config: Config, parameters: int, flops_per_token: int) -> int:
    """`num_iterations` if given, else what `target_flops` or the data ratio asks for; at least one step."""
    if config.num_iterations > 0:
        return config.num_iterations
    if config.target_flops > 0:
        return max(1, round(config.target_flops / (flops_per_token * config.total_batch_size)))
    if config.target_param_data_ratio > 0:
        return max(1, round(config.target_param_data_ratio * parameters / config.total_batch_size))
    raise UserError("nothing says how long to train: set one of --num_iterations, --target_flops, "
                    "--target_param_data_ratio above zero")


def main(config: Config) -> None:
    print_banner()
    grad_accum_steps(config.total_batch_size, config.device_batch_size, config.max_seq_len)  # refuse before any work
    *_, device = compute_init(config.device_type, config.seed)
    tokenizer = get_tokenizer()
    with torch.device("meta"):
        model = GPT(config_for_depth(config.depth, vocab_size=tokenizer.get_vocab_size(), head_dim=config.head_dim,
                                     sequence_len=config.max_seq_len, aspect_ratio=config.aspect_ratio))
    model.to_empty(device=device)
    model.init_weights(config.seed)
    model.compute_dtype = resolve_dtype(config.dtype, device.type)
    B, T = config.device_batch_size, config.max_seq_len

    def batches(split: str, state: dict | None = None) -> Iterator[Batch]:
        return tokenizing_distributed_data_loader_with_state(tokenizer, B, T, split, data=config.data, device=device,
                                                             state=state, seed=config.seed)

    samples: list[dict[str, str]] = []

    def sample(state: TrainState) -> None:
        samples[:] = continue_openings(model, tokenizer, text_iterator(config.data, "val"))
        for one in samples:
            print0(f"  {one['prompt']} ▸{one['completion']}")

    validate = validation(model, lambda: batches("val"), tokenizer, max(1, config.eval_tokens // (B * T)))
    result = run_training(
        model=model, tokenizer=tokenizer, config=config, max_seq_len=T,
        optimizer=model.setup_optimizers(embedding_lr=config.embedding_lr, unembedding_lr=config.unembedding_lr,
                                         matrix_lr=config.matrix_lr, weight_decay=config.weight_decay),
        make_batches=lambda state: batches("train", state),
        num_iterations=steps_to_train(config, model.num_parameters(), model.estimate_flops()),
        directory=checkpoint_root("base") / (config.model_tag or f"d{config.depth}"),
        hooks=[Every(config.eval_every, validate), Every(config.sample_every, sample)])
    get_report().log("base_train", {"config": asdict(config), "model": asdict(model.config), **result,
                                    "samples": samples})


if __name__ == "__main__":
    configurator.main(main, Config)
