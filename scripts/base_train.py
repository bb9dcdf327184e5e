"""Pretrain the base model on raw text.

    python -m scripts.base_train --depth=4 --max_seq_len=256 --device_batch_size=16 --total_batch_size=4096
    python -m scripts.base_train runs/pocket.toml --num_iterations=100
    torchrun --standalone --nproc_per_node=8 -m scripts.base_train runs/d20.toml      (runs/slurm.sh: several machines)

Reads the tokenizer that `tok_train` left and the text of `--data`; writes `base_checkpoints/d<depth>/`. One dial,
`--depth`, sets the size; the number of steps follows from it unless it is given.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from nanochat import configurator
from nanochat.checkpoint_manager import checkpoint_root
from nanochat.common import UserError, compute_init, print0, print_banner, resolve_dtype
from nanochat.core_eval import core_metric, evaluate_core
from nanochat.dataloader import Loader, tokenizing_distributed_data_loader_with_state
from nanochat.dataset import corpus, text_iterator
from nanochat.gpt import GPT, config_for_depth
from nanochat.loss_eval import continue_openings
from nanochat.report import get_report
from nanochat.stage_config import StageConfig
from nanochat.tokenizer import get_tokenizer
from nanochat.train import (
    Every,
    TrainState,
    check_sizes,
    make_optimizer,
    rows_of,
    run_training,
    validation,
)
from tasks.core_bundle import load_bundle


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
    core_metric_every: int = 0
    """Steps between measurements of CORE, and one at the end (0: none; `scripts.base_eval` measures a saved model)."""
    core_metric_max_per_task: int = 500
    """Examples of each CORE task then (-1: all)."""
    core: str = ""
    """The CORE bundle, where it is not the data's own: a folder, a .zip, or hub:OWNER/NAME."""


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
    check_sizes(config, config.max_seq_len)  # before any work
    _, rank, _, world_size, device = compute_init(config.device_type, config.seed, deterministic=config.deterministic)
    tokenizer = get_tokenizer()
    # now and once: what is missing is made or fetched here, and what is done to the source later cannot end the run
    text = corpus(config.data)
    core_tasks = load_bundle(config.data, config.core) if config.core_metric_every > 0 else []
    with torch.device("meta"):
        model = GPT(config_for_depth(config.depth, vocab_size=tokenizer.get_vocab_size(), head_dim=config.head_dim,
                                     sequence_len=config.max_seq_len, aspect_ratio=config.aspect_ratio))
    model.to_empty(device=device)
    model.init_weights(config.seed)
    model.compute_dtype = resolve_dtype(config.dtype, device.type)
    optimizer = make_optimizer(model, config)
    rows = rows_of(config, config.max_seq_len, model, tokenizer.get_bos_token_id())

    def loader(split: str, B: int, state: dict | None = None) -> Loader:
        return tokenizing_distributed_data_loader_with_state(
            tokenizer, B, config.max_seq_len, split, data=text, device=device, state=state, seed=config.seed,
            rank=rank, world_size=world_size)

    samples: list[dict[str, str]] = []

    def sample(state: TrainState) -> None:
        if rank == 0:
            samples[:] = continue_openings(model, tokenizer, text_iterator(text, "val"))
        for one in samples:
            print0(f"  {one['prompt']} ▸{one['completion']}")

    def measure_core(state: TrainState) -> None:
        results = list(evaluate_core(model, tokenizer, core_tasks, max_examples=config.core_metric_max_per_task))
        metric = core_metric(results)
        state.core = [*(e for e in state.core if e["step"] != state.step),
                      {"step": state.step, "core": metric if math.isfinite(metric) else None}]
        print0(f"step {state.step:5d} | CORE {metric:.4f} ({sum(r.n for r in results):,} examples)")

    validate = validation(model, lambda: loader("val", rows.micro), tokenizer, config.eval_tokens)
    result = run_training(
        model=model, tokenizer=tokenizer, optimizer=optimizer, config=config, rows=rows,
        make_batches=lambda state: loader("train", rows.share, state),
        num_iterations=steps_to_train(config, model.num_parameters(), model.estimate_flops()),
        directory=checkpoint_root("base") / (config.model_tag or f"d{config.depth}"),
        hooks=[Every(config.eval_every, validate), Every(config.sample_every, sample),
               *([Every(config.core_metric_every, measure_core)] if core_tasks else [])])
    read = {split: sum(unit.rows for unit in text.units(split)) for split in ("train", "val")}
    get_report().log("base_train", {"config": asdict(config), "model": asdict(model.config), **result,
                                    "corpus": {"fingerprint": text.fingerprint, "documents": read}, "samples": samples})


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
