"""The report card: every stage leaves one JSON file, the card is rendered once from all of them.

A stage ends with `get_report().log("base_train", {...})`, which writes `report/base_train.json` under the base folder.
`python -m nanochat.report` reads those files and renders `report.md` for people and `report.json` for programs: one
source, two renderings, and nobody parses Markdown. What is not known stays blank; nothing is guessed.

Keys of a stage's data that the card understands (all optional; other scalars are listed as they are):
    config   dict       the resolved configuration
    seconds  float      wall time as the stage measured it (the speedrun's own measure wins)
    data     str        "pocket", "hub" or a folder (or config["data"]): "pocket" is shown beside every figure
    metrics  dict       {task: {"accuracy": 0.91, "n": 200, "ci95": [0.86, 0.94]}}
    *curve   dict       {"step": [0, 10], "loss": [6.9, 5.1], ...}: one line a series over "step"; None is a gap
    val_bpb  float      validation bits per byte (base_train, base_loss): shown on top
    samples  list       strings, or conversations {"messages": [{"role": "user", "content": "..."}]}

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

from nanochat.common import UserError, atomic_write, get_base_dir, get_dist_info, print0

# In the order in which they run. A stage that makes something outdates every stage after it; the others only look.
STAGES = ("tok_train", "tok_eval", "base_train", "base_loss", "base_eval", "mid_train", "chat_eval_mid", "chat_sft",
          "chat_eval_sft", "chat_rl", "chat_eval_rl")
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
        """Render `report.md`, `report.json` and the curves into the report folder, and into `out` as well if given.

        In `out` the pictures go into a folder `report/` beside the card. Returns what `report.json` holds.
        """
        stages = self.read()
        if not any(name != "speedrun" for name in stages):
            raise UserError(f"no stage has left a report in {self.folder}: run one first, e.g. bash speedrun.sh")
        card = summarize(stages, hourly_cost)
        pictures = draw_curves(stages, self.folder)
        self._write(self.folder, card, stages, {stage: picture.name for stage, picture in pictures.items()})
        if out is not None and Path(out).resolve() != self.folder.resolve():
            (Path(out) / "report").mkdir(parents=True, exist_ok=True)
            for picture in pictures.values():
                shutil.copyfile(picture, Path(out) / "report" / picture.name)
            links = {stage: f"report/{picture.name}" for stage, picture in pictures.items()}
            self._write(Path(out), card, stages, links)
        return card

    def _write(self, folder: Path, card: dict, stages: dict, pictures: dict[str, str]) -> None:
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
    card |= {"cost": None, "stages": {}, "metrics": {}}
    if hourly_cost is not None and card["wall_seconds"] is not None:
        card["cost"] = round(card["wall_seconds"] / 3600 * hourly_cost, 2)
    for name, record in stages.items():
        if name == "speedrun":
            continue
        measured = (run.get("stages") or {}).get(name, {})
        bulk = ("stage", "samples", "metrics", *(k for k in record if k.endswith("curve")))
        entry = {k: v for k, v in record.items() if k not in bulk}
        entry |= {"data": data_label(record), "seconds": measured.get("seconds", record.get("seconds")),
                  "peak_memory_bytes": measured.get("peak_memory_bytes", record.get("peak_memory_bytes")),
                  "stale": name in stale}
        card["stages"][name] = entry
        if name in METRICS_OF and isinstance(record.get("metrics"), dict):
            card["metrics"].setdefault(METRICS_OF[name], {}).update(
                {task: {"data": data_label(record), **m} for task, m in record["metrics"].items()})
    bpb = [stages.get(name, {}).get("val_bpb") for name in ("base_loss", "base_train")]
    card["val_bpb"] = next((b for b in bpb if b is not None), None)
    card["pocket"] = any(data_label(record) == "pocket" for record in stages.values())
    return card | {"system": get_system_info(), "git": get_git_info(), "bloat": get_bloat_info()}


# --------------------------------------------------------------------------- the card as pictures and Markdown


def _series(record: dict) -> dict[str, list[tuple[float, float]]]:
    """The lines to draw: `{"curve": {"step": [0, 9], "loss": [6, None]}}` -> `{"loss": [(0, 6)]}`"""
    series = {}
    for curve in (v for k, v in record.items() if k.endswith("curve") and isinstance(v, dict)):
        for label, values in curve.items():
            points = [(x, y) for x, y in zip(curve.get("step") or [], values) if isinstance(y, (int, float))]
            if label != "step" and points:
                series[label] = points
    return series


def draw_curves(stages: dict[str, dict], folder: Path) -> dict[str, Path]:
    """One PNG a stage that logged a curve: one panel a series, over the step. `{stage: path}`"""
    pictures = {}
    for name, record in stages.items():
        series = _series(record)
        if not series:
            continue
        import matplotlib

        matplotlib.use("Agg")  # no display is needed, and none is opened
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(1, len(series), figsize=(4.5 * len(series), 3), squeeze=False, layout="constrained")
        for axis, (label, points) in zip(axes[0], series.items()):
            axis.plot(*zip(*points), linewidth=1, marker="." if len(points) < 40 else None)
            axis.set(title=f"{name}: {label}", xlabel="step")
            axis.grid(alpha=0.3)
        pictures[name] = folder / f"{name}.png"
        figure.savefig(pictures[name], dpi=110)
        plt.close(figure)
    return pictures


def _time(seconds: float | None) -> str:
    """`75.2 -> "1m 15s"`, `3.14 -> "3.1s"`, `7322 -> "2h 02m"`, None -> blank."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def _bytes(count: float | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f} GiB"


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(text: object) -> str:
    """Text that cannot break out of a table cell or become HTML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _fenced(text: str) -> str:
    """A code block around any text: the fence is longer than every run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _transcript(sample: object) -> str:
    """One sample as text: a string as it is, a conversation turn by turn, anything else as JSON."""
    if isinstance(sample, str):
        return sample
    if isinstance(sample, dict) and isinstance(sample.get("messages"), list):
        turns = []
        for message in sample["messages"]:
            content = message.get("content")
            if isinstance(content, list):  # parts: text, python, python_output
                content = "".join(str(part.get("text", "")) for part in content)
            turns.append(f"{message.get('role')}: {content}")
        rest = {k: v for k, v in sample.items() if k != "messages"}
        return "\n".join(turns + [f"{k}: {v}" for k, v in rest.items()])
    if isinstance(sample, dict):
        return "\n".join(f"{k}: {v}" for k, v in sample.items())
    return json.dumps(sample, ensure_ascii=False)


def _score(metric: dict | None) -> str:
    """`{"accuracy": .915, "n": 200, "ci95": [.868, .946]} -> "91.5% [86.8, 94.6] n=200"`"""
    if not metric or metric.get("accuracy") is None:
        return ""
    low, high = metric.get("ci95") or (None, None)
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * metric['accuracy']:.1f}%{interval}" + (f" n={metric['n']}" if metric.get("n") is not None else "")


def _results(card: dict) -> list[str]:
    metrics = card["metrics"]
    if not metrics:
        return []
    sources = [s for s in ("base", "mid", "sft", "rl") if s in metrics]
    rows = []
    for task in dict.fromkeys(task for s in sources for task in metrics[s]):
        of_task = [metrics[s].get(task) for s in sources]
        label = task + (" (pocket)" if any(m and m.get("data") == "pocket" for m in of_task) else "")
        rows.append([label, *map(_score, of_task)])
    return ["## Results", "Share answered right, the 95% interval, and the number of held-out questions.",
            _table(["task", *sources], rows)]


def _stage_section(name: str, record: dict, entry: dict, picture: str | None) -> list[str]:
    label = (" (pocket)" if entry.get("data") == "pocket" else "") + (" · STALE" if entry["stale"] else "")
    out = [f"## {name}{label}"]
    if entry["stale"]:
        out.append("**Stale:** a stage before this one has run again since. Run this one again.")
    hidden = ("config", "stage", "stale", "logged_at", "commit", "data")
    scalars = [[k, _number(v)] for k, v in entry.items()
               if k not in hidden and not isinstance(v, (dict, list))]
    scalars = [[k, _bytes(entry[k])] if k.endswith("memory_bytes") else [k, text] for k, text in scalars]
    if scalars:
        out.append(_table(["", ""], scalars))
    if picture:
        out.append(f"![{name}]({picture})")
    samples = record.get("samples") or []
    if isinstance(samples, dict):  # {task: [transcript, ...]}
        samples = [f"[{task}]\n{_transcript(s)}" for task, group in samples.items() for s in group]
    if samples:
        out += ["Samples:", _fenced("\n\n".join(_transcript(s) for s in samples))]
    if entry.get("config"):
        out.append("<details><summary>configuration</summary>\n\n"
                   + _table(["", ""], [[k, v] for k, v in entry["config"].items()]) + "\n\n</details>")
    return out


def render_markdown(card: dict, stages: dict[str, dict], pictures: dict[str, str]) -> str:
    """The card for people. `pictures`: stage -> link as it is to stand in the text."""
    system, git, bloat = card["system"], card["git"], card["bloat"]
    out = [f"# nanochat report card{': ' + card['preset'] if card['preset'] else ''}"]
    if card["pocket"]:
        out.append("> **pocket**: trained and tested on nanochat's generated pocket world. No figure marked (pocket) "
                   "can be compared with the real benchmark of that name.")
    cost = "" if card["cost"] is None else f"${card['cost']:,.2f}"
    bpb = "validation bits per byte, base" + (" (pocket)" if card["pocket"] else "")
    out.append(_table(["run", ""], [
        ["wall time", _time(card["wall_seconds"])], ["peak memory, all processes", _bytes(card["peak_memory_bytes"])],
        ["cost", cost], [bpb, _number(card["val_bpb"])]]))
    out += _results(card)
    out += ["## Stages", _table(["stage", "time", "peak memory", ""],
            [[n, _time(e["seconds"]), _bytes(e["peak_memory_bytes"]), "STALE" if e["stale"] else ""]
             for n, e in card["stages"].items()])]
    for name, entry in card["stages"].items():
        out += _stage_section(name, stages[name], entry, pictures.get(name))
    gpus = ", ".join(f"{g['name']} ({_bytes(g['memory_bytes'])})" for g in system["gpus"])
    commit = f"{git['commit'][:12]} on {git['branch']}{' + changes' if git['dirty'] else ''}" if git else ""
    out += ["## Machine and code", _table(["", ""], [
        ["processor", f"{system['cpu'] or ''} ({system['cpu_count']} cores)"],
        ["memory", _bytes(system["memory_bytes"])],
        ["GPU", gpus], ["platform", system["platform"]], ["Python", system["python"]], ["torch", system["torch"] or ""],
        ["commit", commit], ["code", f"{bloat['lines']:,} lines in {bloat['files']} files"],
        ["dependencies", _number(bloat["dependencies"])]])]
    return "\n\n".join(out) + "\n"


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
