"""The model card of an export: what the model is, what it has learned from, how well it did, how to load it.

What the card says of the training comes from the checkpoints themselves, followed from child to parent by the hash of
the weights; what it says of tests comes from those records of the report that name these very weights. A figure of
which nothing is known is left out: none is guessed, and none is taken over from another model of the same name. Data
of the embedded pocket world carry the label "pocket". Paths of this machine stay out of the card.

`python -m nanochat.export` writes it; there is nothing to run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanochat.checkpoint_manager import checkpoint_root, load_meta
from nanochat.common import UserError
from nanochat.report import data_label
from nanochat.report_render import markdown_table
from nanochat.sources import on_hub

WHAT = {"base": "pretrained on text", "mid": "midtrained on conversations and tasks",
        "sft": "fine-tuned on conversations", "rl": "trained by reinforcement learning"}
# What the hub has no set for comes from the pocket world wherever the rest comes from (`tasks.rows.task_dir`).
POCKET_TASKS = {"identity", "world_qa", "calculator", "code", "spellingbee", "spelling_bee", "simplespelling",
                "simple_spelling"}
POCKET_NOTE = ("> **pocket**: what carries this label was generated: nanochat's embedded pocket world, a small "
               "invented world in the formats of real data sets. No figure marked (pocket) can be compared with the "
               "real benchmark of that name.")


@dataclass(frozen=True)
class Stage:
    """A stage that a model went through. `meta` is None where its checkpoint is gone or another took its place."""

    source: str
    model_tag: str
    step: int
    sha256: str  # of its weights
    meta: dict[str, Any] | None

    @property
    def commit(self) -> str | None:
        """The commit of the code that trained it."""
        return ((self.meta or {}).get("git") or {}).get("commit")

    @property
    def config(self) -> dict[str, Any]:
        return (self.meta or {}).get("config") or {}


def lineage(source: str, model_tag: str, meta: dict[str, Any]) -> list[Stage]:
    """The stages of a checkpoint, the first one first, as far as their checkpoints are at hand."""
    stages = [Stage(source, model_tag, meta["step"], _weights_hash(meta), meta)]
    while (parent := (stages[0].meta or {}).get("parent")) and len(stages) < 20:
        try:
            tag, step, digest = parent["model_tag"], parent["step"], parent["sha256"]
            there = load_meta(checkpoint_root(parent["source"]) / tag, step)
        except UserError:
            there = None
        except (KeyError, TypeError, ValueError):  # not written by us
            break
        same = there is not None and _weights_hash(there) == digest
        stages.insert(0, Stage(parent["source"], tag, step, digest, there if same else None))
    return stages


def _weights_hash(meta: dict[str, Any]) -> str:
    return meta["files"].get(f"model_{meta['step']:06d}.safetensors", "")


# ----------------------------------------------------------------------------------------------------- the text of it


def shown_source(data: str | None) -> str:
    """The data of a stage, without the way to it: `"/home/me/letters" -> "own files"`, None -> blank."""
    if data is None:
        return ""
    return data if data == "pocket" or on_hub(data) else "own files"


def shown_mixture(config: dict[str, Any]) -> str:
    """What a stage learned from: `{"data": "hub", "mixture": ["gsm8k:9", "identity", "/a/my.jsonl*2"]} -> "gsm8k:9,
    identity (pocket), my.jsonl*2"`."""
    items = [str(item).rpartition("/")[2] for item in config.get("mixture") or []]
    mixed = on_hub(config.get("data") or "")
    return ", ".join(f"{item} (pocket)" if mixed and _name(item) in POCKET_TASKS else item for item in items)


def _name(item: str) -> str:
    """`"spellingbee@test:600*2" -> "spellingbee"`"""
    return item.partition("*")[0].partition(":")[0].partition("@")[0]


def _training_row(stage: Stage) -> list[str]:
    state = (stage.meta or {}).get("state") or {}
    tokens = state.get("tokens")
    return [stage.source, f"{stage.step:,}", f"{tokens:,}" if isinstance(tokens, int) else "",
            shown_source(data_label({"config": stage.config})), shown_mixture(stage.config)]


def _belongs(record: dict[str, Any], stage: Stage) -> bool:
    """Whether a record of the report is about the weights of a stage."""
    model = record.get("model")
    return bool(stage.sha256) and isinstance(model, dict) and model.get("sha256") == stage.sha256


def _result_rows(stages: list[Stage], report: dict[str, dict]) -> Iterator[list[str]]:
    """`[what, figure, 95% interval, number of questions]`; only tests of the model itself, and the loss of its base."""
    for record in report.values():
        metrics = record.get("metrics") if _belongs(record, stages[-1]) else None
        for task, m in metrics.items() if isinstance(metrics, dict) else ():
            if not isinstance(m, dict) or m.get("accuracy") is None:
                continue
            count = f"{m['n']:,}" if m.get("n") is not None else ""
            several = {k: found for k, found in (m.get("pass_at") or {}).items() if k != "1"}
            figures = {task: m, **{f"{task}, right in one of {k} answers": found for k, found in several.items()}}
            for label, found in figures.items():
                low, high = found.get("ci95") or (None, None)
                interval = "" if low is None or high is None else f"{low:.1%} to {high:.1%}"
                yield [label + _pocket(m.get("data", data_label(record))), f"{found['accuracy']:.1%}", interval, count]
        loss_of = [stage for stage in stages if _belongs(record, stage)]
        if loss_of and isinstance(bpb := record.get("val_bpb"), float):
            size = record.get("val_bytes")
            yield [f"validation bits per byte, {loss_of[0].source} model" + _pocket(data_label(record)), f"{bpb:.4f}",
                   "", f"{size:,} bytes" if size is not None else ""]


def _pocket(data: str | None) -> str:
    return " (pocket)" if data == "pocket" else ""


USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")  # this directory or its address; transformers 5 or later
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
chat = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""

TOOL = ("It may call a calculator: an expression between `<|python_start|>` and `<|python_end|>`. nanochat's engine "
        "evaluates it and puts the result between `<|output_start|>` and `<|output_end|>`; `generate` of transformers "
        "does not.")


def model_card(stages: list[Stage], facts: dict[str, Any], report: dict[str, dict]) -> str:
    """The README.md of an export. `stages`: its `lineage`; `facts`: GPTConfig's fields, parameters and dtype; `report`:
    the records of all stages."""
    last, rows = stages[-1], list(_result_rows(stages, report))
    stage_rows = [_training_row(stage) for stage in stages]
    unknown = [stage.source for stage in stages if stage.meta is None]
    pocket = any(row[3] == "pocket" or "(pocket)" in row[4] for row in stage_rows)
    pocket = pocket or any("(pocket)" in row[0] for row in rows)
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- nanochat",
             *(["- pocket"] if pocket else []), "---"]
    path = ", then ".join(WHAT.get(stage.source, stage.source) for stage in stages)
    out = ["\n".join(front), f"# nanochat {last.source}, {facts['parameters']:,} parameters",
           f"A small GPT, made from scratch with nanochat: {path}."]
    out += [POCKET_NOTE] if pocket else []
    out += ["## Architecture", markdown_table(["", ""], [
        ["parameters", f"{facts['parameters']:,}"], ["stored in", facts["dtype"]], ["layers", facts["n_layer"]],
        ["width", facts["n_embd"]], ["heads (of keys and values)", f"{facts['n_head']} ({facts['n_kv_head']})"],
        ["vocabulary", f"{facts['vocab_size']:,}"], ["context", f"{facts['sequence_len']:,} tokens"]]),
        "Rotary positions, RMSNorm without weights (of queries and keys too), ReLU² in the feed-forward layers, "
        "separate embedding and output matrices, logits soft-capped at 15."]
    out += ["## Training", markdown_table(["stage", "steps", "tokens", "data", "mixture"], stage_rows, (1, 2))]
    if unknown:
        out.append(f"Blank: the checkpoint of {', '.join(unknown)} was not at hand when this card was written.")
    if rows:
        out += ["## Results", "Shares answered right, the 95% interval where it is known, and of how many questions.",
                markdown_table(["", "figure", "95% interval", "n"], rows, (1, 2, 3))]
    out += ["## Use", USE, "It continues text: it has not learned conversations." if last.source == "base" else TOOL]
    git = (last.meta or {}).get("git") or {}
    changed = " with changes that were not committed" if git.get("dirty") else ""
    origin = [["stage, model, step", f"{last.source}, {last.model_tag}, {last.step:,}"],
              ["commit of nanochat", git["commit"] + changed if git.get("commit") else ""],
              ["SHA-256 of the checkpoint's weights", last.sha256],
              ["SHA-256 of the tokenizer", (last.meta or {}).get("tokenizer", "")]]
    origin += [[f"SHA-256 of the weights of the {stage.source} model before it", stage.sha256]
               for stage in reversed(stages[:-1])]
    out += ["## Origin", markdown_table(["", ""], [row for row in origin if row[1]]),
            "`nanochat_export.json` has the SHA-256 of each file here."]
    return "\n\n".join(out) + "\n"
