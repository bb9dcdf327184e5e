"""The figures of bench/train_step.py: medians, ratios, tables. Nothing here measures; there is nothing to run."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

HEADLINE = ("vs_transformers_compiled_fp32", "vs_transformers_compiled_bf16", "matmul_share", "head_memory_ratio")
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
WINDOW = 20  # steps of the loss curve's moving average


class Row(NamedTuple):
    """Who (ours, theirs, or the plain head), with torch.compile or not, in which dtype, and what is special."""

    side: str
    mode: str
    dtype: str
    extra: str = ""  # ours: "packed" (documents that do not see each other), "muon"; theirs: see bench/train_step.py

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.side, self.mode, SHORT[self.dtype], self.extra)))


class Key(NamedTuple):
    """What was measured: a size, "step" or "head", and the row."""

    size: str
    kind: str
    row: Row


Results = dict[Key, list[dict]]
Starts = dict[Key, dict]  # what a worker said when it was ready


def median(results: Results, key: Key, figure: Callable[[dict], float]) -> float | None:
    """Of the rounds; None where the row was not measured."""
    return statistics.median(map(figure, results[key])) if results.get(key) else None


def speed(results: Results, key: Key, clock: str = "wall") -> float | None:
    """Tokens a second, or a CPU second."""
    return median(results, key, lambda a: a["tokens"] / a[clock])


def ratio(a: float | None, b: float | None) -> float | None:
    return round(a / b, 3) if a is not None and b else None


def worst(ratios: Iterable[float | None]) -> float | None:
    return min((r for r in ratios if r is not None), default=None)


def matmul_share(results: Results, starts: Starts, key: Key, matmul: dict[str, list[float]]) -> float | None:
    """What part of the rate of a large matrix product in the row's dtype the whole step is."""
    rate = speed(results, key)
    return ratio(rate and rate * starts[key]["flops_per_token"], statistics.median(matmul[key.row.dtype]))


def update_ms(results: Results, key: Key) -> float | None:
    """What the optimizer takes of a step."""
    seconds = median(results, key, lambda a: a["update"] / a["steps"])
    return None if seconds is None else round(1e3 * seconds, 2)


def size_figures(results: Results, starts: Starts, size: str, default: str, matmul: dict[str, list[float]]) -> dict:
    """The ratios at one size, None where a side was not measured; `default` is the dtype that we train in."""
    def of(side: str, mode: str, dtype: str, extra: str = "", clock: str = "wall") -> float | None:
        return speed(results, Key(size, "step", Row(side, mode, dtype, extra)), clock)

    figures: dict[str, float | None] = {}
    for mode, (dtype, short), (clock, suffix) in itertools.product(
            ("compiled", "eager"), SHORT.items(), (("wall", ""), ("cpu", "_cpu"))):
        ours, name = of("ours", mode, default, clock=clock), f"{mode}_{short}"
        figures[f"vs_transformers_{name}{suffix}"] = ratio(ours, of("theirs", mode, dtype, clock=clock))
        for extra in ("memory kept", "plain attention"):
            figures[f"vs_transformers_{name}_{extra.replace(' ', '_')}{suffix}"] = ratio(
                ours, of("theirs", mode, dtype, extra, clock))
        figures[f"like_for_like_{name}{suffix}"] = ratio(
            of("ours", mode, dtype, clock=clock), of("theirs", mode, dtype, clock=clock))
    for key in results:  # how much of the plain step's speed is left
        if key.size == size and key.row.extra in ("packed", "muon"):
            plain = key._replace(row=key.row._replace(extra=""))
            figures[f"{key.row.extra}_vs_plain"] = ratio(speed(results, key), speed(results, plain))
            if key.row.extra == "muon":
                figures |= {"muon_update_ms": update_ms(results, key), "adamw_update_ms": update_ms(results, plain)}
    key = Key(size, "step", Row("ours", "compiled", "bfloat16"))
    figures["matmul_share"] = matmul_share(results, starts, key, matmul) if key in results else None
    return figures


def loss_gaps(starts: Starts) -> dict[str, float]:
    """How far the two sides' losses lie apart after the same first update, as a part of what these changed.

    `theirs went from 7.6 to 7.4, ours to 7.402 -> 0.01`: a proof that both sides do the same work. For the head, which
    is not updated, as a part of the loss.
    """
    gaps = {}
    for key, ready in starts.items():
        other = starts.get(key._replace(row=key.row._replace(side="theirs" if key.kind == "step" else "plain")))
        if key.row.side == "ours" and not key.row.extra and other:
            ours, (first, *_, last) = ready["losses"][-1], other["losses"]
            name = " ".join((key.kind, key.size, key.row.mode, SHORT[key.row.dtype]))
            gaps[name] = abs(ours - last) / (abs(first - last) if key.kind == "step" else last)
    return gaps


def head_ratio(results: Results, figure: Callable[[dict], float]) -> float | None:
    """The plain head's figure over ours, in the worse mode."""
    ours = [key for key in results if key.kind == "head" and key.row.side == "ours"]
    plain = {key: key._replace(row=key.row._replace(side="plain")) for key in ours}
    return worst(ratio(median(results, plain[key], figure), median(results, key, figure)) for key in ours)


def summary(
    results: Results, starts: Starts, sizes: Sequence[str], default: str, matmul: dict[str, list[float]]
) -> dict:
    """The ratios by name, and every measurement."""
    by_size = {size: size_figures(results, starts, size, default, matmul) for size in sizes}
    figures: dict[str, object] = {name: worst(row.get(name) for row in by_size.values())
                                  for name in by_size[sizes[-1]] if not name.endswith("_ms")}
    figures["matmul_share"] = by_size[sizes[-1]]["matmul_share"]
    figures["head_memory_ratio"] = head_ratio(results, lambda a: a["growth"])
    figures["head_time_ratio"] = head_ratio(results, lambda a: a["wall"] / a["tokens"])
    rates = {SHORT[dtype]: round(statistics.median(r) / 1e9, 1) for dtype, r in matmul.items()}
    figures = {name: value for name, value in figures.items() if value is not None or name in HEADLINE}
    by_size = {size: {name: v for name, v in row.items() if v is not None} for size, row in by_size.items()}
    return {**figures, "by_size": by_size, "loss_gaps": loss_gaps(starts), "matmul_gflops": rates,
            "measurements": [measurement(results, starts, key, matmul) for key in results]}


def measurement(results: Results, starts: Starts, key: Key, matmul: dict[str, list[float]]) -> dict:
    """The medians of one row's rounds, for the tables and for the JSON."""
    answers, ready = results[key], starts[key]
    figures = {
        "size": key.size, "kind": key.kind, **key.row._asdict(), "rounds": len(answers),
        "tokens_per_s": round(speed(results, key) or 0, 1),
        "tokens_per_cpu_s": round(speed(results, key, "cpu") or 0, 1),
        "slowest_tokens_per_s": round(min(a["tokens"] / a["wall"] for a in answers), 1),
        "fastest_tokens_per_s": round(max(a["tokens"] / a["wall"] for a in answers), 1),
        "peak_mb": round(max(a["peak"] for a in answers) / 1e6, 1),
        "growth_mb": round(max(a["growth"] for a in answers) / 1e6, 1),
    }
    if key.kind == "step":
        figures |= {
            "update_ms": update_ms(results, key),
            "matmul_share": matmul_share(results, starts, key, matmul),
            "compile_s": round(ready["compile_s"], 1) if key.row.mode == "compiled" else None,
            "attention": ready["attention"], "parameters": ready["parameters"],
        }
    return figures


def moving_average(losses: Sequence[float], window: int = WINDOW) -> list[float]:
    """`moving_average([1, 2, 3, 4], 2) -> [1.5, 2.5, 3.5]`; fewer losses than the window give their mean."""
    window = min(window, len(losses))
    return [statistics.fmean(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def curve_gap(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference of the moving averages of two curves, in nats."""
    return max(abs(x - y) for x, y in zip(moving_average(a), moving_average(b), strict=True))


def curve_figures(curves: dict[str, list[float]]) -> dict:
    """Ours against theirs in each dtype, and, as the yardstick of noise, theirs in one dtype against the other."""
    figures: dict[str, object] = {}
    for dtype, short in SHORT.items():
        if f"ours {dtype}" in curves:
            figures[f"curve_gap_{short}"] = round(curve_gap(curves[f"ours {dtype}"], curves[f"theirs {dtype}"]), 5)
    if len(curves) == 4:
        figures["curve_gap_of_their_dtypes"] = round(curve_gap(curves["theirs float32"], curves["theirs bfloat16"]), 5)
    ends = {name: [round(losses[0], 4), round(moving_average(losses)[-1], 4)] for name, losses in curves.items()}
    return {**figures, "curve_ends": ends} if curves else {}


# ------------------------------------------------------------------------------------------------------------ tables


def shown(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def new_table(title: str, caption: str, *columns: str) -> Table:
    table = Table(title=title, caption=caption)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def step_table(results: Results, starts: Starts, size: str, matmul: dict[str, list[float]]) -> Table:
    """A row a measurement of the step at one size."""
    rates = ", ".join(f"{SHORT[dtype]} {statistics.median(r) / 1e9:,.0f}" for dtype, r in matmul.items())
    caption = f"medians; share: of a matrix product's rate in that dtype ({rates} GFLOP/s); peak: beyond the imports"
    table = new_table(f"training step, {size}", caption, "tokens/s", "tokens/CPU s", "share", "update ms", "peak MB",
                      "compiling s", "loss")
    for key in results:
        if key.size == size and key.kind == "step":
            m = measurement(results, starts, key, matmul)
            table.add_row(key.row.label, f"{m['tokens_per_s']:,.0f}", f"{m['tokens_per_cpu_s']:,.0f}",
                          shown(m["matmul_share"], ".1%"), f"{m['update_ms']:,.1f}", f"{m['peak_mb']:,.0f}",
                          shown(m["compile_s"], ".1f"), f"{starts[key]['losses'][-1]:.4f}")
    return table


def head_table(results: Results, size: str) -> Table:
    """A row a form of the loss head."""
    table = new_table(f"loss head, {size}", "forward and backward; memory: held beyond the inputs, gradients included",
                      "tokens/s", "tokens/CPU s", "memory MB")
    for key, answers in results.items():
        if key.kind == "head":
            table.add_row(key.row.label, f"{speed(results, key) or 0:,.0f}", f"{speed(results, key, 'cpu') or 0:,.0f}",
                          f"{max(a['growth'] for a in answers) / 1e6:,.1f}")
    return table
