"""The report card for people: pictures of what the stages logged, and the Markdown around them.

`nanochat.report` says which keys of a stage's record are drawn or tabulated, and calls `draw_pictures` and
`render_markdown`. Nothing here knows a stage by name: what any of them logs under such a key is rendered alike.

Run: `python -m nanochat.report`
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

# The endings of keys whose dicts are shown, and what each dict must hold; anything else under such a key is listed.
SHOWN_KEYS = {
    "curve": {"step": list},
    "bars": {"groups": list, "series": dict},
    "table": {"columns": dict, "rows": list},
}


def shown(record: dict, ending: str) -> dict[str, dict]:
    """What a record shows of one kind: `{"val_curve": {"step": [0]}, "depth": 4}, "curve" -> {"val_curve": ...}`"""
    needed = SHOWN_KEYS[ending].items()
    return {
        k: v for k, v in record.items()
        if k.endswith(ending) and isinstance(v, dict) and all(v.get(n) and isinstance(v[n], kind) for n, kind in needed)
    }


# --------------------------------------------------------------------------- pictures


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _series(record: dict) -> dict[str, list[tuple[float, float]]]:
    """The lines to draw: `{"curve": {"step": [0, 9], "loss": [6, None]}}` -> `{"loss": [(0, 6)]}`"""
    series = {}
    for curve in shown(record, "curve").values():
        for label, values in curve.items():
            if not isinstance(values, list):
                continue
            points = [(x, y) for x, y in zip(curve.get("step") or [], values) if _is_number(y)]
            if label != "step" and points:
                series[label] = points
    return series


def _curves_figure(title: str, series: dict[str, list[tuple[float, float]]]):
    """One panel a series over the step, at most four side by side."""
    from matplotlib import pyplot as plt

    columns = min(4, len(series))
    rows = -(-len(series) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(series) :]:
        axis.remove()
    for axis, (label, points) in zip(axes.flat, series.items()):
        axis.plot(*zip(*points), linewidth=1, marker="." if len(points) < 40 else None)
        axis.set(title=f"{title}: {label}", xlabel="step")
        axis.grid(alpha=0.3)
    return figure


def _bars_figure(title: str, bars: dict):
    """Lying bars, so that long labels have room: a group a label, in it a bar a series, in the order they are given."""
    from matplotlib import pyplot as plt

    groups, series = bars["groups"], bars["series"]
    thick = 0.84 / len(series)
    inches = 0.12 * len(groups) * (len(series) + 1) + 1.2
    figure, axis = plt.subplots(figsize=(8, inches), layout="constrained")
    for i, (label, values) in enumerate(series.items()):
        lengths = [value if _is_number(value) else math.nan for value in values[: len(groups)]]
        places = [group + (i - (len(series) - 1) / 2) * thick for group in range(len(lengths))]
        axis.barh(places, lengths, 0.9 * thick, label=label)
    axis.set_yticks(range(len(groups)), [str(group) for group in groups])
    axis.set(ylim=(len(groups) - 0.4, -0.6), xlabel=bars.get("unit", ""), title=title)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=min(len(series), 6), frameon=False)
    return figure


def draw_pictures(card: dict, stages: dict[str, dict], folder: Path) -> dict[str, list[Path]]:
    """Draw PNGs into `folder`: one of all curves of a stage, one of each `*bars` that it logged. `{stage: paths}`"""
    pictures: dict[str, list[Path]] = {}
    for name in card["stages"]:
        record = stages[name]
        series, bars = _series(record), shown(record, "bars")
        if not series and not bars:
            continue
        import matplotlib

        matplotlib.use("Agg")  # no display is needed, and none is opened
        from matplotlib import pyplot as plt

        title = name + (" (pocket)" if card["stages"][name]["data"] == "pocket" else "")
        with plt.rc_context({"text.parse_math": False}):  # a "$" in a label is a dollar
            figures = {name: _curves_figure(title, series)} if series else {}
            for key, one in bars.items():
                figures[f"{name}_{key}"] = _bars_figure(f"{title}: {one.get('title', key)}", one)
            for stem, figure in figures.items():
                path = folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', stem)}.png"
                figure.savefig(path, dpi=110)
                plt.close(figure)
                pictures.setdefault(name, []).append(path)
    return pictures


# --------------------------------------------------------------------------- Markdown


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


def markdown_table(header: list[str], rows: list[list[object]], right: tuple[int, ...] = ()) -> str:
    """A Markdown table; the columns whose numbers are in `right` are aligned there."""
    lines = [header, ["---:" if i in right else "---" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def table_cells(table: dict) -> list[list[str]]:
    """The rows of a `*table` as text, each value by its column's format; None is blank, text stands as it is.

    `{"columns": {"text": "", "bytes": ","}, "rows": [["code", 1200]]} -> [["code", "1,200"]]`
    """

    def cell(value: object, spec: str) -> str:
        return format(value, spec) if _is_number(value) else "" if value is None else str(value)

    return [[cell(value, spec) for value, spec in zip(row, table["columns"].values())] for row in table["rows"]]


def _logged_table(table: dict) -> list[str]:
    """A `*table` that a stage logged: its title, the table, its note. Columns with a number format stand right."""
    right = tuple(i for i, spec in enumerate(table["columns"].values()) if spec)
    parts = [_cell(table.get("title", "")), markdown_table(list(table["columns"]), table_cells(table), right),
             _cell(table.get("note", ""))]
    return [part for part in parts if part]


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
    """`{"accuracy": .915, "n": 200, "ci95": [.868, .946], "ungraded": 2} -> "91.5% [86.8, 94.6] n=200, 2 not graded"`

    Several answers to a problem: `{"accuracy": .5, "pass_at": {"1": ..., "8": {"accuracy": .75}}} -> "50.0%, pass@8
    75.0%"`
    """
    if not metric or metric.get("accuracy") is None:
        return ""
    low, high = metric.get("ci95") or (None, None)
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    count = f" n={metric['n']}" if metric.get("n") is not None else ""
    several = {k: found["accuracy"] for k, found in (metric.get("pass_at") or {}).items() if k != "1"}
    more = [f", pass@{k} {100 * share:.1f}%" for k, share in several.items()]
    more += [f", {metric['ungraded']} not graded"] if metric.get("ungraded") else []
    return f"{100 * metric['accuracy']:.1f}%{interval}{count}{''.join(more)}"


def _pocket(*labels: str | None) -> str:
    """What stands behind a figure: `("pocket",) -> " (pocket)"`, `("pocket", "hub") -> " (pocket in part)"`."""
    if "pocket" not in labels:
        return ""
    return " (pocket)" if set(labels) == {"pocket"} else " (pocket in part)"


def _sampled(stage: dict, setting: str) -> str:
    """Whether not all was asked of each task: `{"config": {"max_per_task": 5}} -> ", at most 5 a task"`, else ""."""
    most = (stage.get("config") or {}).get(setting)
    return f", at most {most} a task" if isinstance(most, int) and most > 0 else ""


def _on_top(card: dict) -> list[list[str]]:
    """The figures that stand for the whole: bits per byte, CORE, ChatCORE of each model that was evaluated."""
    stages = card["stages"]
    by = next((stages[s] for s in ("base_loss", "base_train") if stages.get(s, {}).get("val_bpb") is not None), {})
    rows = [["validation bits per byte, base" + _pocket(by.get("data")), _number(card["val_bpb"])]]
    if "base_eval" in stages:
        by = stages["base_eval"]
        rows.append([f"CORE, base{_sampled(by, 'max_per_task')}{_pocket(by['data'])}", _number(card["core"])])
    for source, value in card["chatcore"].items():
        stage, metrics = stages.get(f"chat_eval_{source}", {}), card["metrics"].get(source, {})
        data = [metrics[task].get("data") for task in stage.get("chatcore_tasks") or [] if task in metrics]
        asked = _sampled(stage, "max_problems")
        rows.append([f"ChatCORE, {source}{asked}{_pocket(*data or [stage.get('data')])}", _number(value)])
    return rows


def _results(card: dict) -> list[str]:
    metrics = card["metrics"]
    if not metrics:
        return []
    sources = [s for s in ("base", "mid", "sft", "rl") if s in metrics]
    not_run = {s: card["stages"].get(f"chat_eval_{s}", {}).get("not_run") or {} for s in sources}
    rows = []
    for task in dict.fromkeys(task for s in sources for task in [*metrics[s], *not_run[s]]):
        of_task = [metrics[s].get(task) for s in sources]
        label = task + (" (pocket)" if any(m and m.get("data") == "pocket" for m in of_task) else "")
        rows.append([label, *("not run" if task in not_run[s] else _score(m) for s, m in zip(sources, of_task))])
    return ["## Results", "Share answered right, the 95% interval, and the number of held-out questions.",
            markdown_table(["task", *sources], rows)]


def _evaluated(model: object) -> str:
    """Which model an evaluation was of: `{"source": "sft", "model_tag": "d4", "step": 160} -> "sft d4, step 160"`."""
    if not isinstance(model, dict):
        return ""
    if "step" in model:
        return f"{model.get('source', '')} {model.get('model_tag', '')}, step {model['step']}".strip()
    return str(model.get("hf_path", ""))  # else it is a configuration, of a stage that made one


def _stage_section(name: str, record: dict, entry: dict, pictures: list[str]) -> list[str]:
    label = (" (pocket)" if entry.get("data") == "pocket" else "") + (" · STALE" if entry["stale"] else "")
    out = [f"## {name}{label}"]
    if entry["stale"]:
        out.append("**Stale:** a stage before this one has run again since. Run this one again.")
    if entry.get("incomplete"):
        out.append(f"**Incomplete:** stopped before {_cell(', '.join(entry['incomplete']))} had been measured.")
    out += [f"**Not run:** {_cell(task)}: {_cell(why)}" for task, why in (entry.get("not_run") or {}).items()]
    hidden = ("config", "stage", "stale", "logged_at", "commit", "data")
    scalars = [[k, _number(v)] for k, v in entry.items()
               if k not in hidden and not isinstance(v, (dict, list))]
    scalars = [[k, _bytes(entry[k])] if k.endswith("memory_bytes") else [k, text] for k, text in scalars]
    if (of := _evaluated(entry.get("model"))):
        scalars.insert(0, ["model", of])
    if scalars:
        out.append(markdown_table(["", ""], scalars))
    for table in shown(record, "table").values():
        out += _logged_table(table)
    out += [f"![{name}]({picture})" for picture in pictures]
    samples = record.get("samples") or []
    if isinstance(samples, dict):  # {task: [transcript, ...]}
        samples = [f"[{task}]\n{_transcript(s)}" for task, group in samples.items() for s in group]
    if samples:
        out += ["Samples:", _fenced("\n\n".join(_transcript(s) for s in samples))]
    if entry.get("config"):
        out.append("<details><summary>configuration</summary>\n\n"
                   + markdown_table(["", ""], [[k, v] for k, v in entry["config"].items()]) + "\n\n</details>")
    return out


def render_markdown(card: dict, stages: dict[str, dict], pictures: dict[str, list[str]]) -> str:
    """The card for people. `pictures`: stage -> links as they are to stand in the text."""
    system, git, bloat = card["system"], card["git"], card["bloat"]
    out = [f"# nanochat report card{': ' + card['preset'] if card['preset'] else ''}"]
    if card["pocket"]:
        out.append("> **pocket**: trained and tested on nanochat's generated pocket world. No figure marked (pocket) "
                   "can be compared with the real benchmark of that name.")
    cost = "" if card["cost"] is None else f"${card['cost']:,.2f}"
    out.append(markdown_table(["run", ""], [
        ["wall time", _time(card["wall_seconds"])], ["peak memory, all processes", _bytes(card["peak_memory_bytes"])],
        ["cost", cost], *_on_top(card)]))
    out += _results(card)
    out += ["## Stages", markdown_table(["stage", "time", "peak memory", ""],
            [[n, _time(e["seconds"]), _bytes(e["peak_memory_bytes"]), "STALE" if e["stale"] else ""]
             for n, e in card["stages"].items()])]
    for name, entry in card["stages"].items():
        out += _stage_section(name, stages[name], entry, pictures.get(name, []))
    gpus = ", ".join(f"{g['name']} ({_bytes(g['memory_bytes'])})" for g in system["gpus"])
    commit = f"{git['commit'][:12]} on {git['branch']}{' + changes' if git['dirty'] else ''}" if git else ""
    out += ["## Machine and code", markdown_table(["", ""], [
        ["processor", f"{system['cpu'] or ''} ({system['cpu_count']} cores)"],
        ["memory", _bytes(system["memory_bytes"])],
        ["GPU", gpus], ["platform", system["platform"]], ["Python", system["python"]], ["torch", system["torch"] or ""],
        ["commit", commit], ["code", f"{bloat['lines']:,} lines in {bloat['files']} files"],
        ["dependencies", _number(bloat["dependencies"])]])]
    return "\n\n".join(out) + "\n"
