"""The report card: every stage leaves one JSON file, the card is rendered once from all of them.

A stage ends with `get_report().log("base_train", {...})`, which writes `report/base_train.json` under the base folder.
`python -m nanochat.report` reads those files and renders `report.md` for people and `report.json` for programs: one
source, two renderings, and nobody parses Markdown. What is not known stays blank; nothing is guessed.

Keys of a stage's data that the card understands (all optional; other scalars are listed as they are):
    config   dict       the resolved configuration
    seconds  float      wall time as the stage measured it (the speedrun's own measure wins)
    data     str        the source's name, or a folder (or config["data"]): "pocket" is shown beside every figure
    metrics  dict       {task: {"accuracy": 0.91, "n": 200, "ci95": [0.86, 0.94]}}; also "ungraded" (answers that no
                        grader could judge) and "pass_at" ({"8": {"accuracy": 0.95}}: one of 8 answers was right)
    not_run  dict       {task: "why it could not run here"}: shown where its figure would be, never as 0%
    incomplete  list    tasks that were still to be measured when this was written: the stage did not end
    *curve   dict       {"step": [0, 10], "loss": [6.9, 5.1], ...}: one line a series over "step"; None is a gap
    *bars    dict       {"groups": ["English", "code"], "series": {"ours": [4.1, 3.2], "GPT-2": [4.3, None]}}: a picture
                        of lying bars side by side; also "title" and "unit" (of the axis); None is a gap
    *table   dict       {"columns": {"text": "", "bytes": ","}, "rows": [["English", 845]]}: each column with the format
                        of its numbers ("" for text); also "title" above and "note" below; None is blank
    val_bpb  float      validation bits per byte (base_train, base_loss): shown on top
    core     float      CORE (base_eval): shown on top
    chatcore  float     ChatCORE (chat_eval_*): shown on top; "chatcore_tasks" lists the tasks whose mean it is
    samples  list       strings, or conversations {"messages": [{"role": "user", "content": "..."}]}
Curves, bars, tables and samples are for the eye and stay out of `report.json`: what programs are to read has a key of
its own. How the card looks is in `report_render.py`.

Run: `python -m nanochat.report [--out=FOLDER] [--hourly_cost=24]`
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import UserError, get_base_dir, get_dist_info, print0
from nanochat.files import atomic_write
from nanochat.report_render import SHOWN_KEYS, draw_pictures, render_markdown, shown

# In the order in which they run. A stage that makes something outdates every stage after it; the others only look.
STAGES = ("tok_train", "tok_eval", "base_train", "base_loss", "base_eval", "chat_eval_base", "mid_train",
          "chat_eval_mid", "chat_sft", "chat_eval_sft", "chat_rl", "chat_eval_rl")
MAKERS = ("tok_train", "base_train", "mid_train", "chat_sft", "chat_rl")
METRICS_OF = {"base_eval": "base", "chat_eval_base": "base", "chat_eval_mid": "mid", "chat_eval_sft": "sft",
              "chat_eval_rl": "rl"}
ROOT = Path(__file__).resolve().parents[1]


# --------------------------------------------------------------------------- what the stages call


class Report:
    """The folder of stage files, and the card made from it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def log(self, stage: str, data: dict) -> None:
        """Write `folder/stage.json` whole (never half): `data` and the time it was written.

        `log("tok_eval", {"ratio": float("nan")})` -> `{"stage": "tok_eval", "logged_at": 1.7e9, "ratio": null}`
        """
        record = {"stage": stage, "logged_at": time.time(), "commit": get_git_info().get("commit"), **data}
        text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(self.folder / f"{stage}.json", text + "\n")

    def read(self) -> dict[str, dict]:
        """All stage files in running order. One that is not valid JSON is named, not skipped in silence."""
        stages = {}
        for path in sorted(self.folder.glob("*.json")):
            if path.name == "report.json":
                continue
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as e:
                raise UserError(f"{path} is not valid JSON ({e}): delete it and run its stage again") from e
            if isinstance(record, dict):
                stages[path.stem] = record
        return dict(sorted(stages.items(), key=lambda item: (_position(item[0]), item[0])))

    def generate(self, out: str | Path | None = None, hourly_cost: float | None = None) -> dict:
        """Render `report.md`, `report.json` and the pictures into the report folder, and into `out` as well if given.

        In `out` the pictures go into a folder `report/` beside the card. Returns what `report.json` holds.
        """
        stages = self.read()
        if not any(name != "speedrun" for name in stages):
            raise UserError(f"no stage has left a report in {self.folder}: run one first, e.g. bash speedrun.sh")
        card = summarize(stages, hourly_cost)
        pictures = draw_pictures(card, stages, self.folder)
        self._write(self.folder, card, stages, {stage: [p.name for p in paths] for stage, paths in pictures.items()})
        if out is not None and Path(out).resolve() != self.folder.resolve():
            (Path(out) / "report").mkdir(parents=True, exist_ok=True)
            for path in (path for paths in pictures.values() for path in paths):
                shutil.copyfile(path, Path(out) / "report" / path.name)
            links = {stage: [f"report/{path.name}" for path in paths] for stage, paths in pictures.items()}
            self._write(Path(out), card, stages, links)
        return card

    def _write(self, folder: Path, card: dict, stages: dict, pictures: dict[str, list[str]]) -> None:
        atomic_write(folder / "report.md", render_markdown(card, stages, pictures))
        atomic_write(folder / "report.json", json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


class DummyReport:
    """Stands in for `Report` on every rank but 0: same call, nothing written."""

    def log(self, stage: str, data: dict) -> None: ...


def get_report() -> Report | DummyReport:
    """The report under the base folder; on other ranks than 0 one that writes nothing."""
    return Report(get_base_dir() / "report") if get_dist_info()[1] == 0 else DummyReport()


def _position(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _plain(value: object) -> object:
    """`value` as plain JSON: NaN and infinities become null, paths and other objects their text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


# --------------------------------------------------------------------------- the machine, the code


def _output(*command: str) -> str:
    """What a command prints, "" when it is missing or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10,
                             check=False, encoding="utf-8", errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def get_git_info() -> dict:
    """`{"commit", "branch", "dirty", "message"}` of the source tree; empty outside a repository."""

    def git(*args: str) -> str:
        return _output("git", "-C", str(ROOT), *args)

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    return {"commit": commit, "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
            "message": git("log", "-1", "--format=%s")}


def _cpu_name() -> str | None:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or None


def get_system_info() -> dict:
    """Processor, memory, GPUs, platform, Python and torch. `None` where the machine does not tell."""
    info: dict = {"platform": platform.platform(), "python": platform.python_version(), "torch": None,
                  "cpu": _cpu_name(), "cpu_count": os.cpu_count(), "memory_bytes": None, "gpus": []}
    if importlib.util.find_spec("psutil"):
        import psutil

        info["memory_bytes"] = psutil.virtual_memory().total
    if importlib.util.find_spec("torch"):
        import torch

        info["torch"] = str(torch.__version__)
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            gpu = torch.cuda.get_device_properties(i)
            info["gpus"].append({"name": gpu.name, "memory_bytes": gpu.total_memory})
    return info


def get_bloat_info() -> dict:
    """How much code and how many dependencies: `{"files", "lines", "characters", "dependencies"}`, tests apart."""
    files = [p for top in ("nanochat", "scripts", "tasks", "rustbpe") for p in sorted((ROOT / top).rglob("*"))
             if p.suffix in {".py", ".rs", ".html"} and "target" not in p.parts]
    texts = [p.read_text(encoding="utf-8") for p in files]
    try:
        requires = importlib.metadata.requires("nanochat") or []
    except importlib.metadata.PackageNotFoundError:
        requires = None
    dependencies = None if requires is None else sum("extra ==" not in r for r in requires) + 1  # + torch
    return {"files": len(files), "lines": sum(t.count("\n") for t in texts), "characters": sum(map(len, texts)),
            "dependencies": dependencies}


# --------------------------------------------------------------------------- the card as data


def data_label(record: dict) -> str | None:
    """Where a stage's data came from, as it says itself or as it was configured."""
    return record.get("data", (record.get("config") or {}).get("data"))


def stale_stages(stages: dict[str, dict]) -> list[str]:
    """Stages whose file is older than that of a maker before them: they describe something that is gone.

    logged_at tok_train=5, base_train=3, base_loss=6 -> ["base_train"]
    """
    stale, newest = [], 0.0
    for name, record in stages.items():
        logged = record.get("logged_at") or 0.0
        if name in STAGES and logged < newest:
            stale.append(name)
        if name in MAKERS:
            newest = max(newest, logged)
    return stale


def summarize(stages: dict[str, dict], hourly_cost: float | None = None) -> dict:
    """What `report.json` holds, from the stage records: run, stages without their bulk, metrics by source."""
    run = stages.get("speedrun", {})
    stale = stale_stages(stages)
    card: dict = {k: run.get(k) for k in ("preset", "wall_seconds", "peak_memory_bytes")}
    card |= {"cost": None, "stages": {}, "metrics": {}, "chatcore": {}}
    if hourly_cost is not None and card["wall_seconds"] is not None:
        card["cost"] = round(card["wall_seconds"] / 3600 * hourly_cost, 2)
    for name, record in stages.items():
        if name == "speedrun":
            continue
        measured = (run.get("stages") or {}).get(name, {})
        bulk = ("stage", "samples", "metrics", *(key for ending in SHOWN_KEYS for key in shown(record, ending)))
        entry = {k: v for k, v in record.items() if k not in bulk}
        entry |= {"data": data_label(record), "seconds": measured.get("seconds", record.get("seconds")),
                  "peak_memory_bytes": measured.get("peak_memory_bytes", record.get("peak_memory_bytes")),
                  "stale": name in stale}
        card["stages"][name] = entry
        if name in METRICS_OF and isinstance(record.get("metrics"), dict):
            card["metrics"].setdefault(METRICS_OF[name], {}).update(
                {task: {"data": data_label(record), **m} for task, m in record["metrics"].items()})
        if "chatcore" in record:
            card["chatcore"][METRICS_OF.get(name, name)] = record["chatcore"]
    bpb = [stages.get(name, {}).get("val_bpb") for name in ("base_loss", "base_train")]
    card["val_bpb"] = next((b for b in bpb if b is not None), None)
    card["core"] = stages.get("base_eval", {}).get("core")
    card["pocket"] = any(data_label(record) == "pocket" for record in stages.values())
    return card | {"system": get_system_info(), "git": get_git_info(), "bloat": get_bloat_info()}


# --------------------------------------------------------------------------- command line


@dataclass
class Config:
    """Render the report card from what the stages left."""

    out: str = ""
    """Also write the card into this folder (pictures go into its report/)."""
    hourly_cost: float | None = None
    """Price of this machine in dollars an hour; without it the cost stays blank."""


def main(config: Config) -> None:
    report = Report(get_base_dir() / "report")
    report.generate(config.out or None, config.hourly_cost)
    print0(f"Report card: {report.folder / 'report.md'}")


if __name__ == "__main__":
    from nanochat import configurator

    configurator.main(main, Config)
