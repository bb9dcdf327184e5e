"""The main job at its smallest, by the commands that a person types: every stage, a chat, the report card."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.checkpoint_manager import SOURCES, find_last_step, load_meta, saved_steps
from tests.helpers import write_corpus

REAL = os.environ.get("NANOCHAT_TEST_DATA")

PRESET = """
preset = "tiny"
stages = ["tok_train", "tok_eval", "base_train", "base_loss", "base_eval", "mid_train", "chat_eval --source=mid",
          "chat_sft", "chat_eval --source=sft", {more}"report"]
[all]
data = "{data}"
compile = false
max_problems = 4
max_new_tokens = 16
total_batch_size = 512
device_batch_size = 4
eval_tokens = 1024
num_iterations = 6
split_tokens = 1024
[tok_train]
vocab_size = 512
max_chars = 300000
[base_train]
depth = 1
max_seq_len = 128
head_dim = 32
save_every = 3
core_metric_every = 3
core_metric_max_per_task = 2
[base_eval]
max_per_task = 4
{tables}
"""


def run(*command: str, base: Path, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess:
    """A command as a person would give it, with its own base directory; its output is shown when it fails."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=cwd, capture_output=True, text=True)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_all_stages_on_the_pocket_world(pocket_base, tmp_path):
    base, preset = pocket_base, tmp_path / "tiny.toml"
    tables = '[mid_train]\nmixture = ["gsm8k:200", "identity:100", "spellingbee:50"]\n' \
             '[chat_sft]\nmixture = ["gsm8k:200", "arc_easy:100"]\n' \
             '[chat_rl]\nmixture = ["spellingbee:50"]\nexamples_per_step = 2\nnum_samples = 2\n' \
             'eval_examples = 4\neval_samples = 2\neval_every = 4\n'
    rl = '"chat_rl", "chat_eval --source=rl", '
    preset.write_text(PRESET.format(data="pocket", tables=tables, more=rl), encoding="utf-8")
    first = run("scripts.speedrun", str(preset), base=base, cwd=tmp_path)
    assert "chat_cli" in first.stdout  # it says how to go on

    for stage in ("base", "mid", "sft", "rl"):
        directory = base / SOURCES[stage] / "d1"
        assert find_last_step(directory) == 6
        assert load_meta(directory, 6)["config"]["num_iterations"] == 6
    card = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert card["preset"] == "tiny" and card["wall_seconds"] > 0
    trained = ("tok_train", "base_train", "mid_train", "chat_sft", "chat_rl")
    assert all(card["stages"][stage]["seconds"] > 0 for stage in trained)
    base_metrics = card["metrics"]["base"]
    assert len(base_metrics) == 7 and all(m["n"] == 4 and m["data"] == "pocket" for m in base_metrics.values())
    assert -1 < card["stages"]["base_eval"]["core"] < 1 and Path(card["stages"]["base_eval"]["csv"]).is_file()
    curve = json.loads((pocket_base / "report" / "base_train.json").read_text(encoding="utf-8"))["core_curve"]
    assert curve["step"] == [3, 6] and all(-1 < value < 1 for value in curve["core"])
    exams = json.loads((pocket_base / "report" / "chat_rl.json").read_text(encoding="utf-8"))["exam_curve"]
    assert exams["step"] == [0, 4, 6] and all(0 <= share <= 1 for share in exams["spellingbee pass@2"])
    tasks = {"identity", "world_qa", "world_mc", "spelling_bee", "gsm8k", "gsm8k_new_templates", "calculator",
             "humaneval"}
    tasks -= set(card["stages"]["chat_eval_sft"]["not_run"])  # where there is no sandbox
    for stage in ("mid", "sft", "rl"):
        assert set(card["metrics"][stage]) == tasks
        for metric in card["metrics"][stage].values():
            low, high = metric["ci95"]
            assert metric["n"] == 4 and 0 <= low <= metric["accuracy"] <= high <= 1
    assert "pocket" in (tmp_path / "report.md").read_text(encoding="utf-8")

    again = run("scripts.speedrun", str(preset), base=base, cwd=tmp_path)
    assert "step " not in again.stdout  # nothing was trained twice

    answer = run("scripts.chat_cli", "-p", "Who are you?", "--max_tokens=8", base=base, cwd=tmp_path)
    assert answer.stdout.strip()

    run("nanochat.export", "--source=sft", "--out=out", base=base, cwd=tmp_path)
    model_card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"^\| (\w+) \(pocket\) \| \d+\.\d% \| \d+\.\d% to \d+\.\d% \| 4 \|$", model_card, re.MULTILINE)
    assert set(figures) == tasks and "validation bits per byte, base model (pocket)" in model_card
    assert "pretrained on text, then midtrained on conversations and tasks, then fine-tuned" in model_card


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="NANOCHAT_TEST_DATA is not set")
def test_stages_on_real_task_files(tmp_path):
    """GSM8K, MMLU, ARC and conversations as published, with the splits that are at hand."""
    preset = tmp_path / "real.toml"
    mixture = '["smoltalk:200", "mmlu@dev", "gsm8k:200", "arc_easy@validation", "simplespelling:50"]'
    tables = f"[mid_train]\nmixture = {mixture}\n[chat_sft]\nmixture = {mixture}\n"
    preset.write_text(PRESET.format(data=REAL, tables=tables, more=""), encoding="utf-8")
    run("scripts.speedrun", str(preset), base=tmp_path / "base", cwd=tmp_path)
    card = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert card["metrics"]["sft"]["gsm8k"]["n"] == 4
    assert "pocket" not in json.dumps(card["metrics"])


def test_stages_without_what_they_need_say_so_in_one_line(tmp_path):
    for command, words in (
        (("scripts.base_train",), "tok_train"),
        (("scripts.mid_train",), "scripts.base_train"),
        (("scripts.chat_cli", "-p", "hello"), "speedrun.sh"),
        (("scripts.tok_train", f"--data={tmp_path / 'absent'}"), "absent"),
        (("scripts.base_train", "--total_batch_size=1000"), "--total_batch_size=1000"),
    ):
        done = run(*command, base=tmp_path / "base", cwd=tmp_path, ok=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts an empty disk of so many KiB. Needs root and Linux."""
    mounted = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("cannot mount a small disk here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(small_disk, tmp_path):
    base = small_disk(1024)  # too small for the pocket world
    done = run("scripts.tok_train", base=base, cwd=tmp_path, ok=False)
    assert done.returncode == 2 and done.stderr.startswith("error: no space left"), done.stderr
    assert not list((base / "pocket_data").glob("*/corpus")) and not (base / "tokenizer").exists()

    corpus, base = write_corpus(tmp_path / "corpus", 300), small_disk(900)  # enough for all but the checkpoint
    run("scripts.tok_train", f"--data={corpus}", "--vocab_size=320", base=base, cwd=tmp_path)
    done = run("scripts.base_train", f"--data={corpus}", "--depth=2", "--head_dim=64", "--max_seq_len=32",
               "--device_batch_size=4", "--total_batch_size=128", "--num_iterations=2", "--no-compile",
               base=base, cwd=tmp_path, ok=False)
    assert done.returncode == 2 and "error: a checkpoint in" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "bytes and the disk has" in done.stderr  # and not after the first steps
    directory = base / "base_checkpoints" / "d2"
    assert saved_steps(directory) == [] and not list(directory.glob("*.safetensors"))
