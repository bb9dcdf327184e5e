"""The figures of bench/tokenizer.py: medians, ratios, the table. Nothing here measures; there is nothing to run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from rich.table import Table

TRAINERS = ("ours", "rustbpe", "tokenizers")
ENCODERS = ("ours", "tiktoken", "tiktoken-numpy", "tokenizers")
TIKTOKENS, RUSTBPE, HF = ("tiktoken", "tiktoken-numpy"), ("rustbpe",), ("tokenizers",)
NO_MERGES = 256  # a vocabulary of the bytes alone: training is then splitting and counting


class Key(NamedTuple):
    """What was measured: training to a vocabulary (256: counting alone) or encoding with one, by whom."""

    task: str
    vocab_size: int
    rival: str


Results = dict[Key, list[dict]]


def cost(results: Results, key: Key, what: str) -> float | None:
    """Median of `wall`, `cpu` or `peak` over the rounds, for each MB of text; None where it was not measured."""
    answers = results.get(key)
    return statistics.median(a[what] / a["bytes"] * 1e6 for a in answers) if answers else None


def versus(results: Results, task: str, size: int, rivals: tuple[str, ...], what: str = "cpu") -> float | None:
    """How many times ours the seconds (or the peak memory) of the best of `rivals` are."""
    ours = cost(results, Key(task, size, "ours"), what)
    theirs = [c for rival in rivals if (c := cost(results, Key(task, size, rival), what)) is not None]
    return round(min(theirs) / ours, 3) if ours and theirs else None


def merging(results: Results, size: int, rival: str, what: str = "cpu") -> float | None:
    """Seconds per MB that training takes beyond splitting and counting."""
    whole, counting = (cost(results, Key("train", n, rival), what) for n in (size, NO_MERGES))
    return None if whole is None or counting is None else whole - counting


def merging_versus(results: Results, size: int, rival: str, what: str = "cpu") -> float | None:
    ours, theirs = merging(results, size, "ours", what), merging(results, size, rival, what)
    return None if theirs is None or not ours or ours <= 0 else round(theirs / ours, 3)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def worst(ratios: Iterable[float | None]) -> float | None:
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def summary(results: Results, sizes: tuple[int, ...]) -> dict:
    """The ratios by name, and every measurement."""
    figures: dict[str, object] = {}
    by_size: dict[str, dict] = {str(size): {} for size in sizes}
    for what, suffix in (("cpu", ""), ("wall", "_wall")):
        for size in sizes:
            row = by_size[str(size)]
            row["train_vs_rustbpe" + suffix] = versus(results, "train", size, RUSTBPE, what)
            row["train_vs_hf" + suffix] = versus(results, "train", size, HF, what)
            row["merging_vs_rustbpe" + suffix] = merging_versus(results, size, "rustbpe", what)
            row["encode_vs_tiktoken" + suffix] = versus(results, "encode", size, TIKTOKENS, what)
            row["encode_vs_hf" + suffix] = versus(results, "encode", size, HF, what)
            if what == "cpu":
                row["peak_memory_vs_rustbpe"] = versus(results, "train", size, RUSTBPE, "peak")
        figures |= {name: worst(row[name] for row in by_size.values()) for name in by_size[str(sizes[0])]
                    if name.endswith("_wall") == (what == "wall")}
        figures["counting_vs_rustbpe" + suffix] = versus(results, "train", NO_MERGES, RUSTBPE, what)
    figures["encode_vs_tiktoken_in_all"] = worst(versus(results, "encode", n, TIKTOKENS, "cpu_in_all") for n in sizes)
    figures["encode_vs_hf_in_all"] = worst(versus(results, "encode", n, HF, "cpu_in_all") for n in sizes)
    counting = cost(results, Key("train", NO_MERGES, "ours"), "cpu")
    figures["counting_mb_per_cpu_s"] = round(1 / counting, 2) if counting else None
    return {**figures, "vocab_sizes": by_size, "measurements": [measurement(k, v) for k, v in results.items()]}


def measurement(key: Key, answers: list[dict]) -> dict:
    """The medians of one key's rounds, for the table and for the JSON."""
    median = {what: statistics.median(a[what] for a in answers) for what in ("wall", "cpu", "peak")}
    growth = [a["growth"] for a in answers if a["growth"] is not None]
    megabytes = answers[0]["bytes"] / 1e6
    return {
        **key._asdict(), "rounds": len(answers), "mb": round(megabytes, 2),
        "wall_s": round(median["wall"], 3), "cpu_s": round(median["cpu"], 3),
        "mb_per_cpu_s": round(megabytes / median["cpu"], 2) if median["cpu"] else None,
        "peak_mb": round(median["peak"] / 1e6, 1),
        "growth_mb": round(statistics.median(growth) / 1e6, 1) if growth else None,
    }


def table_of(results: Results, title: str) -> Table:
    """A row a measurement, ours first in each group; `x CPU` and `x wall`: how many times ours."""
    table = Table(title=title, caption="medians of the rounds; peak: resident memory, the loaded texts included; "
                  "growth: beyond them. Merging is training less counting.")
    for column in ("", "rival"):
        table.add_column(column, no_wrap=True)
    for column in ("rounds", "MB", "wall s", "CPU s", "MB/CPU s", "peak MB", "growth MB", "x CPU", "x wall"):
        table.add_column(column, justify="right", no_wrap=True)

    for task, size in dict.fromkeys((key.task, key.vocab_size) for key in results):
        label = "split and count" if size == NO_MERGES else f"{task} {size:,}"
        for rival in TRAINERS if task == "train" else ENCODERS:
            if (key := Key(task, size, rival)) not in results:
                continue
            row = measurement(key, results[key])
            growth = "" if row["growth_mb"] is None else f"{row['growth_mb']:,.0f}"
            table.add_row(label, rival, str(row["rounds"]), f"{row['mb']:.0f}", f"{row['wall_s']:.2f}",
                          f"{row['cpu_s']:.2f}", f"{row['mb_per_cpu_s'] or 0:.1f}", f"{row['peak_mb']:,.0f}", growth,
                          *(times(versus(results, task, size, (rival,), what)) for what in ("cpu", "wall")))
            label = ""
        if task == "train" and size != NO_MERGES:
            add_merging_rows(table, results, size)
        table.add_section()
    return table


def add_merging_rows(table: Table, results: Results, size: int) -> None:
    """What is left of training when splitting and counting are taken away."""
    label = f"merging {size:,}"
    for rival in TRAINERS:
        if (key := Key("train", size, rival)) not in results or merging(results, size, rival) is None:
            continue
        megabytes = results[key][0]["bytes"] / 1e6
        seconds = [f"{(merging(results, size, rival, what) or 0) * megabytes:.2f}" for what in ("wall", "cpu")]
        ratios = [times(merging_versus(results, size, rival, what)) for what in ("cpu", "wall")]
        table.add_row(label, rival, "", "", *seconds, "", "", "", *ratios)
        label = ""


def construction_lines(results: Results) -> list[str]:
    """Encoders are constructed before the clock starts; here is how long that took."""
    encoders = {key.rival: answers for key, answers in results.items() if key.task == "encode"}
    medians = {rival: statistics.median(a["construction"] for a in answers) for rival, answers in encoders.items()}
    seconds = ", ".join(f"{rival} {median:.2f} s" for rival, median in medians.items())
    return [f"constructing the encoder, not in the table: {seconds}"]
