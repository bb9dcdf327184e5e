"""A CORE bundle of three tasks, one of each kind, for tests that want one in a folder."""

from __future__ import annotations

import json
from pathlib import Path

ROWS = {
    "choose": [{"query": f"{i} + {i} is", "choices": [str(2 * i), "not known to anybody", str(2 * i + 1)],
                "gold": i % 3} for i in range(12)],
    "which": [{"context_options": [f"The fox ate {i} hens, so the fox", f"The fox ate {i} hens, so the dog"],
               "continuation": "was full.", "gold": i % 2} for i in range(9)],
    "go_on": [{"context": f"Count: {i} {i + 1} {i + 2}", "continuation": str(i + 3)} for i in range(7)],
}
KINDS = {"choose": "multiple_choice", "which": "schema", "go_on": "language_modeling"}


def write_bundle(folder: Path, shots: int = 2) -> Path:
    """Write it as tasks.json and eval_data/; returns the folder."""
    (folder / "eval_data").mkdir(parents=True, exist_ok=True)
    tasks = []
    for label, rows in ROWS.items():
        (folder / "eval_data" / f"{label}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tasks.append({"label": label, "dataset_uri": f"{label}.jsonl", "icl_task_type": KINDS[label],
                      "num_fewshot": shots, "continuation_delimiter": "\nAnswer: " if label == "choose" else " ",
                      "random_baseline_pct": {"choose": 33.3, "which": 50.0, "go_on": 0.0}[label]})
    (folder / "tasks.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    return folder
