"""CORE of a base model: 22 few-shot tasks, their accuracies centred on what blind choice reaches, and the mean of that.

    python -m scripts.base_eval
    python -m scripts.base_eval --model_tag=d4 --data=FOLDER --max_per_task=500
    python -m scripts.base_eval --core=eval_bundle.zip --hf_path=openai-community/gpt2
    torchrun --standalone --nproc_per_node=8 -m scripts.base_eval

Reads a checkpoint of any stage, or a model of `transformers`; writes the stage "base_eval" of the report and a CSV file
under the base directory. The rules stand in nanochat/core_eval.py. Figures of the pocket bundle are labelled "pocket":
they are not CORE's.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nanochat import configurator
from nanochat.checkpoint_manager import load_model
from nanochat.common import check_at_least, compute_init, get_base_dir, print0, resolve_dtype
from nanochat.core_eval import CoreResult, core_metric, evaluate_core
from nanochat.files import atomic_write
from nanochat.hf_model import load_hf
from nanochat.ranks import on_rank0
from nanochat.report import get_report
from tasks.core_bundle import CoreTask, load_bundle


@dataclass
class Config:
    """Measure CORE."""

    source: Literal["base", "mid", "sft", "rl"] = "base"
    """Which stage's model."""
    hf_path: str = ""
    """A model of transformers instead: a folder, or OWNER/NAME on the hub."""
    data: str = "pocket"
    """Whose tasks: pocket (generated), a folder that has a folder core/, or a hub source (the published bundle)."""
    core: str = ""
    """Another bundle: a folder, a .zip, or hub:OWNER/NAME."""
    max_per_task: int = -1
    """At most so many examples a task, evenly spaced (-1: all)."""
    batch_tokens: int = 0
    """Positions computed together: lower it when memory runs out, the result stays the same (0: 2 048 on a CPU,
    32 768 on a GPU)."""
    model_tag: str = ""
    """Name of the model (default: the largest)."""
    step: int = -1
    """Step of the checkpoint (-1: the last)."""
    dtype: str = "auto"
    """Compute dtype: auto, bfloat16 or float32."""
    device_type: str = ""
    """cpu, cuda or mps (default: the best there is)."""


def main(config: Config) -> None:
    check_at_least(0, batch_tokens=config.batch_tokens)
    start = time.monotonic()
    _, _, _, _, device = compute_init(config.device_type)
    tasks = load_bundle(config.data, config.core)  # before the model: what is missing is fetched here
    dtype = resolve_dtype(config.dtype, device.type)
    if config.hf_path:
        model, tokenizer = load_hf(config.hf_path, device, dtype)
        of: dict[str, Any] = {"hf_path": config.hf_path}
    else:
        model, tokenizer, meta = load_model(config.source, device, "eval", config.model_tag, config.step, dtype)
        of = meta["parent"]
    results = []
    for result in evaluate_core(model, tokenizer, tasks, max_examples=config.max_per_task,
                                batch_tokens=config.batch_tokens):
        results.append(result)
        print0(f"{result.label}: {result.accuracy:.1%} of {result.n}, centred {result.centered:+.3f}")
    core, data = core_metric(results), source_of(tasks, config)
    print0(f"CORE ({data}) {core:.4f}")
    name = model_name(of)
    path = get_base_dir() / "base_eval" / f"{name}.csv"
    on_rank0(lambda: atomic_write(path, as_csv(results, core)))
    print0(f"written to {path}")
    stage = "base_eval" if of.get("source") == "base" else f"base_eval_{name}"
    get_report().log(stage, {
        "config": asdict(config), "data": data, "model": of, "core": core, "csv": str(path),
        "seconds": time.monotonic() - start,
        "metrics": metrics_of(results),
        "core_bars": {"title": "accuracy, centred on blind choice", "groups": [r.label for r in results],
                      "series": {"centred": [r.centered for r in results]}},
    })


def metrics_of(results: Sequence[CoreResult]) -> dict[str, dict[str, Any]]:
    """`{"CORE arc_easy": {"accuracy": 0.4, ...}}`: chat_eval has an arc_easy too, asked otherwise, of other figures."""
    return {f"CORE {r.label}": r.metrics() for r in results}


def source_of(tasks: Sequence[CoreTask], config: Config) -> str:
    """Whose tasks these are, for labels: "pocket" by their own names too, since `--core` may name that folder."""
    return "pocket" if any(task.label.startswith("pocket_") for task in tasks) else config.core or config.data


def model_name(of: dict[str, Any]) -> str:
    """A name for files: `{"source": "base", "model_tag": "d4", "step": 1300} -> "base_d4_001300"`, and of a path its
    end: `{"hf_path": "../my model"} -> "my_model"`."""
    if "hf_path" in of:
        return re.sub(r"[^\w.-]+", "_", of["hf_path"]).strip("_.")[-100:] or "model"
    return f"{of['source']}_{of['model_tag']}_{of['step']:06d}"


def as_csv(results: list[CoreResult], core: float) -> str:
    """A line a task and one for the mean."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["task", "accuracy", "centered", "n", "cropped"])
    for r in results:
        table.writerow([r.label, f"{r.accuracy:.6f}", f"{r.centered:.6f}", r.n, r.cropped])
    table.writerow(["CORE", "", f"{core:.6f}", sum(r.n for r in results), sum(r.cropped for r in results)])
    return text.getvalue()


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
