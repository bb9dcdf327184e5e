"""The report card: what the stages logged is all there, what they did not is blank, and nothing breaks out.

Run: python -m pytest tests/test_report.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nanochat.common import UserError
from nanochat.report import (
    DummyReport,
    Report,
    get_git_info,
    get_report,
    render_markdown,
    stale_stages,
    summarize,
)
from nanochat.report_render import _bars_figure

METRICS = {"gsm8k": {"accuracy": 0.5, "n": 200, "ci95": [0.431, 0.569]}}


@pytest.fixture
def report(tmp_path) -> Report:
    """A run of four stages; the times of logging rise."""
    r = Report(tmp_path / "report")
    r.log("tok_train", {"data": "pocket", "seconds": 3.25, "vocab_size": 1024})
    r.log("base_train", {
        "config": {"data": "pocket", "depth": 4}, "val_bpb": 1.25, "tokens_per_second": float("nan"),
        "curve": {"step": [0, 10, 20], "loss": [6.9, 5.1, None]}, "val_curve": {"step": [10], "bpb": [2.0]},
        "samples": [{"prompt": "Once", "completion": "```<b>bold</b>"}]})
    r.log("chat_eval_mid", {"data": "pocket", "metrics": METRICS})
    r.log("chat_eval_sft", {"data": "hub", "metrics": {"mmlu": {"accuracy": 0.25, "n": 8, "ci95": [0.07, 0.59]}}})
    return r


def test_report_json_holds_what_was_logged(report):
    card = report.generate()
    assert card == json.loads((report.folder / "report.json").read_text(encoding="utf-8"))
    assert card["metrics"]["mid"]["gsm8k"] == {**METRICS["gsm8k"], "data": "pocket"}
    assert list(card["stages"]) == ["tok_train", "base_train", "chat_eval_mid", "chat_eval_sft"]  # in running order
    assert card["stages"]["tok_train"]["seconds"] == 3.25
    assert card["val_bpb"] == 1.25
    assert card["system"]["cpu_count"] == os.cpu_count()
    assert card["bloat"]["files"] > 10 and card["bloat"]["lines"] > 1000


def test_what_is_not_known_is_null_and_never_guessed(report):
    card = report.generate()
    assert card["preset"] is card["wall_seconds"] is card["peak_memory_bytes"] is card["cost"] is None
    assert card["stages"]["base_train"]["seconds"] is None
    assert card["stages"]["base_train"]["tokens_per_second"] is None  # a NaN is no number, and no JSON either
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "| wall time |  |" in markdown and "| cost |  |" in markdown
    assert "nan" not in markdown.lower().replace("nanochat", "") and "None" not in markdown


def test_the_speedruns_own_measures_win(report):
    report.log("speedrun", {"preset": "pocket", "wall_seconds": 450.0, "peak_memory_bytes": 2**30,
                            "stages": {"tok_train": {"seconds": 9.0, "peak_memory_bytes": 2**29}}})
    card = report.generate(hourly_cost=24)
    assert (card["preset"], card["wall_seconds"], card["peak_memory_bytes"]) == ("pocket", 450.0, 2**30)
    assert card["stages"]["tok_train"]["seconds"] == 9.0
    assert "speedrun" not in card["stages"]
    assert card["cost"] == 3.0  # 450 s are an eighth of an hour
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "| wall time | 7m 30s |" in markdown and "| 1.00 GiB |" in markdown and "$3.00" in markdown


def test_pocket_is_said_on_top_and_beside_each_figure(report):
    report.generate()
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "**pocket**" in markdown.split("##")[0]
    assert "| gsm8k (pocket) | 50.0% [43.1, 56.9] n=200 |  |" in markdown
    assert "| mmlu |  | 25.0% [7.0, 59.0] n=8 |" in markdown  # real data: no label
    assert "## base_train (pocket)" in markdown  # known from its configuration


def test_core_and_chatcore_stand_on_top_with_their_own_labels(report):
    """The label belongs to the figure, not to the card: one stage may have been measured on other data."""
    report.log("base_eval", {"data": "hub", "core": 0.1234})
    tasks = ["gsm8k", "spelling_bee"]
    metrics = {"gsm8k": {"accuracy": 0.5, "n": 4}, "spelling_bee": {"accuracy": 0.25, "n": 4, "data": "pocket"}}
    report.log("chat_eval_mid", {"data": "pocket", "chatcore": 0.375, "chatcore_tasks": tasks, "metrics": metrics})
    report.log("chat_eval_sft", {"data": "hub", "chatcore": 0.4, "chatcore_tasks": tasks, "metrics": metrics})
    report.log("chat_eval_rl", {"data": "hub", "chatcore": None, "chatcore_tasks": tasks, "metrics": {}})
    card = report.generate()
    assert (card["core"], card["chatcore"]) == (0.1234, {"mid": 0.375, "sft": 0.4, "rl": None})
    top = (report.folder / "report.md").read_text(encoding="utf-8").split("##")[0]
    assert "| validation bits per byte, base (pocket) | 1.25 |" in top
    assert "| CORE, base | 0.1234 |" in top and "| ChatCORE, mid (pocket) | 0.375 |" in top
    assert "| ChatCORE, sft (pocket in part) | 0.4 |" in top and "| ChatCORE, rl |  |" in top  # blank, not 0
    report.log("base_eval", {"data": "pocket", "core": None, "config": {"max_per_task": -1}})
    report.generate()
    assert "| CORE, base (pocket) |  |" in (report.folder / "report.md").read_text(encoding="utf-8")


def test_an_evaluation_says_of_which_model_it_is(report):
    """--model_tag may have named any: the stage's name does not tell."""
    report.log("base_eval", {"core": 0.5, "model": {"source": "base", "model_tag": "d4", "step": 9, "sha256": "ab"}})
    report.log("base_eval_gpt2", {"core": 0.5, "model": {"hf_path": "org/gpt2"}})
    report.log("base_train", {"val_bpb": 1.25, "model": {"n_layer": 4}})
    report.generate()
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "| model | base d4, step 9 |" in markdown and "| model | org/gpt2 |" in markdown
    assert markdown.count("| model |") == 2


def test_figures_of_a_part_of_the_questions_say_so(report):
    report.log("base_eval", {"data": "pocket", "core": 0.5, "config": {"max_per_task": 5}})
    report.log("chat_eval_sft", {"data": "hub", "chatcore": 0.4, "config": {"max_problems": 8}})
    report.generate()
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "| CORE, base, at most 5 a task (pocket) | 0.5 |" in markdown
    assert "| ChatCORE, sft, at most 8 a task | 0.4 |" in markdown


def test_what_could_not_run_or_be_graded_is_said_and_is_no_zero(report):
    several = {"1": {"accuracy": 0.5}, "8": {"accuracy": 0.75}}
    report.log("chat_eval_sft", {
        "data": "hub", "not_run": {"humaneval": "bubblewrap is <missing>"}, "incomplete": ["mmlu", "arc_easy"],
        "metrics": {"gsm8k": {**METRICS["gsm8k"], "pass_at": several, "ungraded": 3}}})
    card = report.generate()
    assert "humaneval" not in card["metrics"]["sft"] and card["stages"]["chat_eval_sft"]["not_run"]
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "| humaneval |  | not run |" in markdown  # of mid nothing is known
    assert "50.0% [43.1, 56.9] n=200, pass@8 75.0%, 3 not graded |" in markdown
    section = markdown.split("## chat_eval_sft")[1]
    assert "**Incomplete:** stopped before mmlu, arc_easy had been measured." in section
    assert "**Not run:** humaneval: bubblewrap is &lt;missing>" in section


def test_real_data_carries_no_pocket_label(tmp_path):
    r = Report(tmp_path)
    r.log("chat_eval_sft", {"data": "hub", "metrics": METRICS})
    assert r.generate()["pocket"] is False
    assert "pocket" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_model_text_cannot_break_out_of_its_block(report):
    """A sample with a fence and HTML stays inside a longer fence; a `|` stays in its cell."""
    report.log("tok_eval", {"data": "a|b<i>", "note": "x|y<script>"})
    report.generate()
    markdown = (report.folder / "report.md").read_text(encoding="utf-8")
    assert "````text\nprompt: Once\ncompletion: ```<b>bold</b>\n````" in markdown
    assert "x\\|y&lt;script>" in markdown


def test_stages_older_than_what_they_were_made_from_are_stale():
    logged = {"tok_train": 5, "base_train": 3, "base_loss": 6, "mid_train": 4, "chat_eval_mid": 7}
    assert stale_stages({k: {"logged_at": v} for k, v in logged.items()}) == ["base_train", "mid_train"]
    # An evaluation that was done again makes nothing after it old.
    logged = {"tok_train": 1, "tok_eval": 9, "base_train": 2, "base_loss": 3}
    assert stale_stages({k: {"logged_at": v} for k, v in logged.items()}) == []


def test_stale_stages_are_marked(report):
    report.log("tok_train", {"data": "pocket"})  # trained again: all that follows is old
    card = report.generate()
    assert [name for name, stage in card["stages"].items() if stage["stale"]] == list(card["stages"])[1:]
    assert "## base_train (pocket) · STALE" in (report.folder / "report.md").read_text(encoding="utf-8")


def test_pictures_and_links_hold_together(report, tmp_path):
    out = tmp_path / "elsewhere"
    report.generate(out)
    for folder, link in ((report.folder, "base_train.png"), (out, "report/base_train.png")):
        assert f"]({link})" in (folder / "report.md").read_text(encoding="utf-8")
        assert (folder / link).read_bytes().startswith(b"\x89PNG")
        assert (folder / "report.json").exists()
    assert not list(out.rglob("tok_train*.png"))  # no curve, no picture


TABLE = {"title": "how long", "columns": {"text": "", "bytes": ",", "ours": ".2f", "vs them": "+.1%"},
         "rows": [["a|b<i>", 12345, 4.126, -0.0333], ["gap", None, "n/a", float("nan")]], "note": "Absent: them."}
BARS = {"title": "cost in $ and $$", "unit": "$ a day", "groups": ["short", "_a_label_that_is_rather_long", "x"],
        "series": {"ours": [1.0, 2.0, None], "$theirs$": [3.0], "longer": [1, 2, 3, 4]}}


def test_a_table_is_rendered_for_any_stage(report):
    report.log("base_loss", {"data": "pocket", "speed_table": TABLE})
    card = report.generate()
    assert "speed_table" not in card["stages"]["base_loss"]
    lines = (report.folder / "report.md").read_text(encoding="utf-8").splitlines()
    i = lines.index("## base_loss (pocket)")
    j = lines.index("how long", i)
    assert [line for line in lines[j + 1 : j + 8] if line] == [
        "| text | bytes | ours | vs them |", "| --- | ---: | ---: | ---: |", "| a\\|b&lt;i> | 12,345 | 4.13 | -3.3% |",
        "| gap |  | n/a |  |", "Absent: them."]


def test_bars_are_drawn_beside_curves_and_linked(report, tmp_path):
    """Labels are text and no TeX; a missing value is a gap; a series may be shorter or longer than the groups."""
    report.log("base_loss", {"data": "hub", "cost/day bars": BARS, "curve": {"step": [0, 1], "loss": [2, 1]}})
    card = report.generate(tmp_path / "out")
    assert "cost/day bars" not in card["stages"]["base_loss"]
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for name in ("base_loss.png", "base_loss_cost_day_bars.png"):
        assert f"![base_loss](report/{name})" in markdown
        picture = (tmp_path / "out" / "report" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and picture == (report.folder / name).read_bytes()


def test_bars_keep_their_order_and_do_not_overlap():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = _bars_figure("x", {"groups": ["A", "B"], "series": {"ours": [4, 3], "GPT-2": [2, None]}})
    [axis] = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["A", "B"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first group on top
    widths = [[bar.get_width() for bar in series] for series in axis.containers]
    assert widths[0] == [4, 3] and widths[1][0] == 2 and widths[1][1] != widths[1][1]  # NaN: no bar
    places = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for series in axis.containers for bar in series)
    assert all(above[1] < below[0] for above, below in zip(places, places[1:]))  # no bar over another
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "GPT-2"]
    plt.close(figure)


@pytest.mark.parametrize("key", ["curve", "loss_bars", "loss_table"])
def test_a_key_that_only_ends_so_is_kept_as_data(report, key):
    report.log("base_loss", {key: {"anything": 1}})
    assert report.generate()["stages"]["base_loss"][key] == {"anything": 1}


def test_conversations_with_parts_are_shown_as_turns():
    parts = (("text", "It is "), ("python", "6*7"), ("python_output", "42"))
    tool = [{"type": kind, "text": text} for kind, text in parts]
    sample = {"messages": [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": tool}], "right": True}
    stages = {"chat_eval_sft": {"logged_at": 1.0, "samples": [sample]}}
    assert "user: 6*7?\nassistant: It is 6*742\nright: True" in render_markdown(summarize(stages), stages, {})


def test_a_log_is_written_whole_or_not_at_all(report):
    before = (report.folder / "tok_train.json").read_bytes()
    with pytest.raises(RecursionError):
        loop: dict = {}
        loop["loop"] = loop
        report.log("tok_train", loop)
    assert (report.folder / "tok_train.json").read_bytes() == before
    assert not list(report.folder.glob(".*"))  # nothing temporary is left


def test_bad_and_missing_stage_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no stage has left a report"):
        Report(tmp_path).generate()
    (tmp_path / "mid_train.json").write_text("{half", encoding="utf-8")
    with pytest.raises(UserError, match=r"mid_train\.json is not valid JSON"):
        Report(tmp_path).generate()


def test_only_rank_0_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert isinstance(get_report(), Report)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert isinstance(get_report(), DummyReport)
    get_report().log("tok_train", {})
    assert list(tmp_path.iterdir()) == []


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert get_git_info() == {}


def test_command_line(report, tmp_path):
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "nanochat.report", f"--out={tmp_path / 'out'}", "--hourly_cost=1"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "report.md").exists()
    assert str(report.folder / "report.md") in run.stdout
