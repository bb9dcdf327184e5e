"""How well the base model predicts text: bits per byte on training and validation text, and a few samples.

    python -m scripts.base_loss
    python -m scripts.base_loss --model_tag=d4 --data=my_texts --split_tokens=200000

Reads a base checkpoint, writes the stage "base_loss" of the report. A training figure far below the validation figure
means that the model has learnt its text by heart.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nanochat import configurator
from nanochat.batch_size import memory_named
from nanochat.checkpoint_manager import load_model
from nanochat.common import check_at_least, compute_init, print0, resolve_dtype
from nanochat.dataloader import tokenizing_distributed_data_loader_with_state
from nanochat.dataset import Corpus, corpus, text_iterator
from nanochat.loss_eval import LossResult, continue_openings, evaluate_loss, first_rows
from nanochat.report import get_report


@dataclass
class Config:
    """Measure a base model."""

    data: str = "pocket"
    """Where text comes from: pocket, fineweb-edu:N, hub:OWNER/NAME:N, or a folder of your own."""
    split_tokens: int = 1_000_000
    """Tokens of each split to measure on at most."""
    device_batch_size: int | Literal["auto"] = 32
    """Rows a forward pass: lower it when memory runs out, the result stays the same; auto: 32."""
    model_tag: str = ""
    """Name of the model (default: the largest)."""
    step: int = -1
    """Step of the checkpoint (-1: the last)."""
    dtype: str = "auto"
    """Compute dtype: auto, bfloat16 or float32."""
    device_type: str = ""
    """cpu, cuda or mps (default: the best there is)."""
    seed: int = 42
    """Which training text is measured: the order of the loader."""


def measure(model: Any, tokenizer: Any, text: Corpus, split: str, config: Config, rank: int,
            world_size: int) -> LossResult:
    """The loss over the first `split_tokens` tokens of a split, shared among the ranks."""
    rows = 32 if config.device_batch_size == "auto" else config.device_batch_size
    loader = tokenizing_distributed_data_loader_with_state(
        tokenizer, rows, model.config.sequence_len, split, data=text,
        device=model.get_device(), seed=config.seed, rank=rank, world_size=world_size)
    remedy = f"--device_batch_size={rows // 2}" if rows > 1 else "--device_type=cpu"
    with loader, memory_named("the forward pass", rows, loader.T, remedy):
        batches = first_rows(loader, max(1, config.split_tokens // loader.T))
        return evaluate_loss(model, batches, tokenizer.token_bytes(), tokenizer.get_bos_token_id())


def main(config: Config) -> None:
    rows = 1 if config.device_batch_size == "auto" else config.device_batch_size
    check_at_least(1, split_tokens=config.split_tokens, device_batch_size=rows)
    start = time.monotonic()
    _, rank, _, world_size, device = compute_init(config.device_type, config.seed)
    dtype = resolve_dtype(config.dtype, device.type)
    model, tokenizer, meta = load_model("base", device, "eval", config.model_tag, config.step, dtype)
    text = corpus(config.data)
    result: dict[str, Any] = {"config": asdict(config), "data": config.data, "model": meta["parent"]}
    for split in ("train", "val"):
        loss = measure(model, tokenizer, text, split, config, rank, world_size)
        result |= {f"{split}_bpb": loss.bpb, f"{split}_loss": loss.nats_per_token, f"{split}_tokens": loss.tokens,
                   f"{split}_bytes": loss.bytes}
        print0(f"{split:5} {loss.bpb:.4f} bits per byte, {loss.nats_per_token:.4f} nats per token "
               f"({loss.tokens:,} tokens, {loss.bytes:,} bytes of {config.data})")
    texts = text_iterator(text, "val")
    result["samples"] = continue_openings(model, tokenizer, texts) if rank == 0 else []
    for one in result["samples"]:
        print0(f"  {one['prompt']} ▸{one['completion']}")
    get_report().log("base_loss", {**result, "seconds": time.monotonic() - start})


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
