"""How well the base model predicts text: bits per byte on training and validation text, and a few samples.

So that the figure means something, gzip, xz and an n-gram model stand beside it, measured on the very same bytes.

    python -m scripts.base_loss
    python -m scripts.base_loss --model_tag=d4 --data=my_texts --split_tokens=200000

Reads a base checkpoint, writes the stage "base_loss" of the report. A training figure far below the validation figure
means that the model has learnt its text by heart.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nanochat import bpb_baselines, configurator
from nanochat.batch_size import memory_named
from nanochat.bpb_baselines import NGRAM_BYTES, NGramModel
from nanochat.checkpoint_manager import load_model
from nanochat.common import check_at_least, compute_init, print0, resolve_dtype
from nanochat.dataloader import Loader, tokenizing_distributed_data_loader_with_state
from nanochat.dataset import Corpus, corpus, text_iterator
from nanochat.loss_eval import LossResult, continue_openings, evaluate_loss, first_rows, measured_documents
from nanochat.report import get_report

SPLITS = ("train", "val")


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


def split_loader(tokenizer: Any, text: Corpus, split: str, config: Config, T: int, device: Any = "cpu", rank: int = 0,
                 world_size: int = 1) -> Loader:
    """The rows of a split, whose first ones are measured (`first_rows`): the same for any batch size and ranks."""
    return tokenizing_distributed_data_loader_with_state(
        tokenizer, rows_at_once(config), T, split, data=text, device=device, seed=config.seed, rank=rank,
        world_size=world_size)


def rows_at_once(config: Config) -> int:
    return 32 if config.device_batch_size == "auto" else config.device_batch_size


def rows_measured(config: Config, T: int) -> int:
    return max(1, config.split_tokens // T)


def measure(model: Any, tokenizer: Any, text: Corpus, split: str, config: Config, rank: int,
            world_size: int) -> LossResult:
    """The loss over the first `split_tokens` tokens of a split, shared among the ranks."""
    T, rows = model.config.sequence_len, rows_at_once(config)
    remedy = f"--device_batch_size={rows // 2}" if rows > 1 else "--device_type=cpu"
    loader = split_loader(tokenizer, text, split, config, T, model.get_device(), rank, world_size)
    with loader, memory_named("the forward pass", rows, T, remedy):
        batches = first_rows(loader, rows_measured(config, T))
        return evaluate_loss(model, batches, tokenizer.token_bytes(), tokenizer.get_bos_token_id())


def baselines(tokenizer: Any, text: Corpus, config: Config, T: int) -> tuple[dict[str, dict[str, float]], dict]:
    """`{"train": {"gzip": 2.7, ...}, "val": ...}` on the bytes that all ranks measured together; what each knows."""
    model, found = NGramModel(), {}
    model.learn((document.encode("utf-8", "replace") for document in text_iterator(text, "train")), NGRAM_BYTES)
    for split in SPLITS:
        with split_loader(tokenizer, text, split, config, T) as loader:
            documents = list(measured_documents(first_rows(loader, rows_measured(config, T)), tokenizer))
        found[split] = bpb_baselines.measure(documents, model)
    return found, bpb_baselines.known_to(model)


def comparison(result: dict[str, Any], found: dict[str, dict[str, float]], known: dict[str, str]) -> dict[str, Any]:
    """What the report gets of the baselines: plain figures such as `val_gzip_bpb`, and a table beside the model's."""
    rows = [["this model", result["train_bpb"], result["val_bpb"], "its training"]]
    rows += [[name, *(found[split][name] for split in SPLITS), what] for name, what in known.items()]
    table = {
        "title": "Bits per byte beside what needs no language model, on the same bytes",
        "columns": {"": "", "train": ".4f", "val": ".4f", "which, and what it knows": ""}, "rows": rows,
        "note": "Of the training text measured here the n-gram model may have learnt the very bytes, as the model may.",
    }
    figures = {f"{split}_{name}_bpb": bpb for split in SPLITS for name, bpb in found[split].items()}
    return {**figures, "baselines_table": table}


def main(config: Config) -> None:
    check_at_least(1, split_tokens=config.split_tokens, device_batch_size=rows_at_once(config))
    start = time.monotonic()
    _, rank, _, world_size, device = compute_init(config.device_type, config.seed)
    dtype = resolve_dtype(config.dtype, device.type)
    model, tokenizer, meta = load_model("base", device, "eval", config.model_tag, config.step, dtype)
    text = corpus(config.data)
    result: dict[str, Any] = {"config": asdict(config), "data": config.data, "model": meta["parent"]}
    for split in SPLITS:
        loss = measure(model, tokenizer, text, split, config, rank, world_size)
        result |= {f"{split}_bpb": loss.bpb, f"{split}_loss": loss.nats_per_token, f"{split}_tokens": loss.tokens,
                   f"{split}_bytes": loss.bytes}
        print0(f"{split:5} {loss.bpb:.4f} bits per byte, {loss.nats_per_token:.4f} nats per token "
               f"({loss.tokens:,} tokens, {loss.bytes:,} bytes of {config.data})")
    if rank == 0:
        found, known = baselines(tokenizer, text, config, model.config.sequence_len)
        result |= comparison(result, found, known)
        for name, what in known.items():
            print0(f"  beside it, {name:5} {found['train'][name]:.4f} and {found['val'][name]:.4f} ({what})")
    texts = text_iterator(text, "val")
    result["samples"] = continue_openings(model, tokenizer, texts) if rank == 0 else []
    for one in result["samples"]:
        print0(f"  {one['prompt']} ▸{one['completion']}")
    get_report().log("base_loss", {**result, "seconds": time.monotonic() - start})


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
