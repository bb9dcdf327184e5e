"""Pretrain the base model on raw text.

    python -m scripts.base_train --depth=4 --max_seq_len=256 --device_batch_size=16 --total_batch_size=4096
    python -m scripts.base_train runs/pocket.toml --num_iterations=100

Reads the tokenizer that `tok_train` left and the text of `--data`; writes `base_checkpoints/d<depth>/`. One dial,
`--depth`, sets the size; the number of steps follows from it unless it is given.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from nanochat import configurator
from nanochat.checkpoint_manager import checkpoint_root
from nanochat.common import UserError, compute_init, print0, print_banner, resolve_dtype
from nanochat.dataloader import tokenizing_distributed_data_loader_with_state
from nanochat.dataset import text_iterator
from nanochat.engine import Engine
from nanochat.gpt import GPT, config_for_depth
from nanochat.loss_eval import evaluate_bpb
from nanochat.report import get_report
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Every, TrainConfig, TrainState, grad_accum_steps, run_training


@dataclass
class Config:
    """Pretrain the base model."""

    data: str = "pocket"
    """Where text comes from: pocket, hub, or a folder (txt, md, jsonl, parquet)."""
    depth: int = 20
    """Number of layers: the one dial. Width is depth × aspect_ratio."""
    aspect_ratio: int = 64
    """Width per layer of depth."""
    head_dim: int = 128
    """Size of an attention head."""
    max_seq_len: int = 2048
    """Context length in tokens."""
    num_iterations: int = -1
    """Optimizer steps (-1: from target_flops or target_param_data_ratio)."""
    target_flops: float = -1.0
    """Train for this many FLOPs (-1: off)."""
    target_param_data_ratio: float = 20.0
    """Train on this many tokens per parameter (Chinchilla: 20)."""
    device_batch_size: int = 32
    """Rows a micro-batch: lower it when memory runs out, the result stays the same."""
    total_batch_size: int = 524288
    """Tokens a step, over all micro-batches."""
    embedding_lr: float = 0.2
    """AdamW rate of the token embedding (at width 768)."""
    unembedding_lr: float = 0.004
    """AdamW rate of the output head (at width 768)."""
    matrix_lr: float = 0.02
    """Muon rate of the matrices."""
    weight_decay: float = 0.0
    """Decoupled weight decay of embedding and head."""
    warmup_ratio: float = 0.0
    """Share of the steps in which the rate rises."""
    warmdown_ratio: float = 0.2
    """Share of the steps in which the rate falls."""
    final_lr_frac: float = 0.0
    """The rate at the end, as a share of the full rate."""
    grad_clip: float = 1.0
    """Clip the gradient's norm (0: never)."""
    eval_every: int = 250
    """Steps between validations in bits per byte (0: only at the end)."""
    eval_tokens: int = 500_000
    """Tokens a validation reads at most."""
    sample_every: int = 2000
    """Steps between printed samples (0: only at the end)."""
    save_every: int = 500
    """Steps between checkpoints (0: only at the end)."""
    log_every: int = 10
    """Steps between lines of the log."""
    resume: bool = False
    """Go on from the last checkpoint of this run, if there is one."""
    overwrite: bool = False
    """Replace a run of the same name."""
    compile: bool = True
    """Compile the model where that is possible."""
    model_tag: str = ""
    """Name of the run's directory (default: d<depth>)."""
    dtype: str = "auto"
    """Compute dtype: auto, bfloat16 or float32."""
    device_type: str = ""
    """cpu, cuda or mps (default: the best there is)."""
    seed: int = 42
    """Seed of the weights and of the order of the data."""


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
    accumulation = grad_accum_steps(config.total_batch_size, config.device_batch_size, config.max_seq_len)
    *_, device = compute_init(config.device_type, config.seed)
    tokenizer = get_tokenizer()
    with torch.device("meta"):
        model = GPT(config_for_depth(config.depth, vocab_size=tokenizer.get_vocab_size(), head_dim=config.head_dim,
                                     sequence_len=config.max_seq_len, aspect_ratio=config.aspect_ratio))
    model.to_empty(device=device)
    model.init_weights(config.seed)
    model.compute_dtype = resolve_dtype(config.dtype, device.type)
    optimizer = model.setup_optimizers(embedding_lr=config.embedding_lr, unembedding_lr=config.unembedding_lr,
                                       matrix_lr=config.matrix_lr, weight_decay=config.weight_decay)
    iterations = steps_to_train(config, model.num_parameters(), model.estimate_flops())
    B, T, bos = config.device_batch_size, config.max_seq_len, tokenizer.get_bos_token_id()
    token_bytes = torch.tensor(tokenizer.token_bytes(), device=device)
    val_curve: dict[str, list[float]] = {"step": [], "bpb": []}
    samples: list[dict[str, str]] = []
    openings = [" ".join(text.split()[:6]) for _, text in zip(range(4), text_iterator(config.data, "val"), strict=False)]

    def batches(split: str, state: dict | None = None):
        return tokenizing_distributed_data_loader_with_state(tokenizer, B, T, split, data=config.data, device=device,
                                                             state=state, seed=config.seed)

    def validate(state: TrainState) -> None:
        limit = max(1, config.eval_tokens // (B * T))
        val = (batch for _, batch in zip(range(limit), batches("val"), strict=False))
        bpb = evaluate_bpb(model, val, token_bytes, bos=bos)
        val_curve["step"].append(state.step)
        val_curve["bpb"].append(bpb)
        print0(f"step {state.step:5d} | validation {bpb:.4f} bits per byte")

    def sample(state: TrainState) -> None:
        samples.clear()
        prompts = [tokenizer(opening, prepend=bos) for opening in openings]
        completions, _ = Engine(model, tokenizer).generate_batch(prompts, max_tokens=48, temperature=0.0)
        for opening, ids in zip(openings, completions, strict=True):
            samples.append({"prompt": opening, "completion": tokenizer.decode(ids)})
            print0(f"  {opening} ▸{tokenizer.decode(ids)}")

    result = run_training(
        model=model, tokenizer=tokenizer, optimizer=optimizer, make_batches=lambda state: batches("train", state),
        config=config, directory=checkpoint_root("base") / (config.model_tag or f"d{config.depth}"),
        train_config=TrainConfig(iterations, accumulation, config.warmup_ratio, config.warmdown_ratio,
                                 config.final_lr_frac, config.grad_clip, config.log_every),
        hooks=[Every(config.eval_every, validate), Every(config.sample_every, sample)])
    if not val_curve["bpb"]:  # resumed at its very end: nothing was left to train
        validate(TrainState(step=iterations))
    get_report().log("base_train", {"config": asdict(config), "data": config.data, **result, "val_curve": val_curve,
                                    "val_bpb": val_curve["bpb"][-1], "samples": samples,
                                    "model": vars(model.config)})


if __name__ == "__main__":
    configurator.main(main, Config)
