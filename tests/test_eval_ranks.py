"""Evaluations on two and three real ranks (gloo): the result of one, also where there are fewer problems than ranks.

Three processes are started once; as a group of three and of two they run the cases below and leave what each rank got.
One whole evaluation goes by the command line, on two ranks and on one.

Run: python -m pytest tests/test_eval_ranks.py
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat import configurator
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.ranks import OtherRankFailed
from nanochat.task_eval import run_chat_eval
from scripts import chat_eval
from tasks.common import Task
from tests.eval_parts import Choices, Sums, letter_tokenizer, random_model

ROOT = Path(__file__).resolve().parents[1]
SIZES = (0, 1, 2, 3, 4, 11)


class Odd(Sums):
    """About half of what a random model says is right; the grader fails on problem 7, and for good on `fatal`."""

    fatal = -1

    def evaluate(self, conversation, completion):
        problem = conversation["messages"][0]["content"].split("+")[0]
        if problem == str(self.fatal):
            raise UserError("problem 5 cannot be graded")
        return bool(completion) and (ord(completion[0]) if problem != "7" else 1 // 0) % 2 == 0


class Fatal(Odd):
    fatal = 5


def ask(task: Task, batch_size: int) -> dict:
    engine = Engine(random_model(), letter_tokenizer())
    result = run_chat_eval(task, engine.model, engine.tokenizer, engine, batch_size=batch_size, max_new_tokens=6,
                           temperature=1.0, num_samples=3 if task.eval_type == "generative" else 1)
    return asdict(result)


def cases(batch_size: int) -> dict[str, dict]:
    return {f"{kind.__name__} {n}": ask(kind(n, long=400) if kind is Choices else kind(n), batch_size)
            for kind in (Odd, Choices) for n in SIZES}


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for world_size in (3, 2):
        if rank >= world_size:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/store{world_size}", rank=rank,
                                world_size=world_size, timeout=timedelta(minutes=5))
        found = cases(batch_size=1 + world_size)
        try:
            ask(Fatal(11), 4)
        except (UserError, OtherRankFailed) as e:
            found["error"] = {"kind": type(e).__name__, "text": str(e)}
        (folder / f"{world_size}_{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Callable[[int, int], dict[str, dict]]:
    """`found(world_size, rank)`: what that rank got."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once
    mp.start_processes(process, (folder,), nprocs=3, start_method="forkserver")
    return lambda world_size, rank: json.loads((folder / f"{world_size}_{rank}.json").read_text(encoding="utf-8"))


# trap: tiny-eval
@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_has_the_result_of_one(found, world_size):
    alone = json.loads(json.dumps(cases(batch_size=32)))
    assert {name: len(result["right"]) for name, result in alone.items()} == {
        f"{kind} {n}": n for kind in ("Odd", "Choices") for n in SIZES}
    assert 0 < sum(alone["Odd 11"]["right"]) < 33 and alone["Odd 11"]["ungraded"] > 0
    assert alone["Choices 11"]["cropped"] == 1 and alone["Choices 11"]["chance"] > 0.2
    shown = [int(sample["user"].partition("+")[0]) for sample in alone["Odd 11"]["samples"]]
    assert shown == sorted(shown)
    for rank in range(world_size):
        got = found(world_size, rank)
        assert got.pop("error")
        assert got == alone


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_fault_that_one_rank_finds_ends_all(found, world_size):
    errors = [found(world_size, rank)["error"] for rank in range(world_size)]
    finder = 5 % world_size
    assert errors[finder] == {"kind": "UserError", "text": "problem 5 cannot be graded"}
    for rank, error in enumerate(errors):
        if rank != finder:
            assert error["kind"] == "OtherRankFailed"
            assert f"rank {finder} failed while evaluating Fatal: UserError: problem 5" in error["text"]


def test_the_command_line_on_two_ranks_and_on_one(tmp_path, monkeypatch):
    model, tokenizer = random_model(), letter_tokenizer()
    save_checkpoint(tmp_path / "base/chatsft_checkpoints/tiny", 3, model.state_dict(), None,
                    {"model_config": asdict(model.config)}, tokenizer=tokenizer)
    (tmp_path / "arc").mkdir()
    choices = [{"text": ["a", "b", "c"][:n], "label": ["A", "B", "C"][:n]} for n in (2, 3)]
    rows = [{"question": f"which? {i}", "answerKey": "AB"[i % 2], "choices": choices[i % 2]} for i in range(7)]
    (tmp_path / "arc/arc_easy_test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/words_alpha.txt").write_text("\n".join(f"{a}{b}{b}" for a in "abcdefgh" for b in "aeiou"))
    flags = [f"--data={tmp_path}", "--tasks", "arc_easy", "spelling_bee", "--max_problems=9", "--device_type=cpu",
             "--dtype=float32", "--max_new_tokens=12", "--num_samples=2", "--temperature=1.0"]

    def record() -> dict:
        path = tmp_path / "base/report/chat_eval_sft.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return {key: found[key] for key in ("metrics", "samples", "data", "chatcore", "incomplete")}

    command = [sys.executable, "-m", "nanochat.launch", "2", "scripts.chat_eval", *flags, "--batch_size=3"]
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("spelling_bee: ") == done.stdout.count("arc_easy: ") == 1  # rank 0 speaks for all
    two = record()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    chat_eval.main(configurator.parse(chat_eval.Config, [*flags, "--batch_size=32"], "chat_eval"))
    one = record()
    assert two == one and one["metrics"]["arc_easy"]["n"] == 7 and one["metrics"]["spelling_bee"]["n"] == 9
