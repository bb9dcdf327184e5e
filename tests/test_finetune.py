"""Midtraining and fine-tuning: what `nanochat/finetune.py` adds to the loop, which test_train.py tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanochat.checkpoint_manager import model_config_dict, save_checkpoint
from nanochat.common import UserError
from nanochat.finetune import FinetuneConfig, finetune
from tests.helpers import byte_tokenizer, small_model

T = 32


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A base folder with a model to start from."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    tokenizer = byte_tokenizer()
    model = small_model(tokenizer, sequence_len=T, n_layer=1)
    save_checkpoint(tmp_path / "base/base_checkpoints/d1", 1, model.state_dict(), None,
                    {"model_config": model_config_dict(model), "config": {}}, tokenizer=tokenizer)
    return tmp_path / "base"


def write_chats(data: Path, name: str, answers: list[str]) -> None:
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": answer}]}
            for i, answer in enumerate(answers)]
    (data / "sft").mkdir(parents=True, exist_ok=True)
    (data / "sft" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tuned(base: Path, data: Path, tag: str = "", **settings) -> dict:
    """What a short run leaves in the report."""
    config = FinetuneConfig(**{
        "data": str(data), "mixture": ("smoltalk",), "model_tag": tag, "num_iterations": 2, "device_batch_size": 2,
        "total_batch_size": 4 * T, "eval_every": 1, "compile": False, "device_type": "cpu", "dtype": "float32",
        **settings})
    finetune(config, stage="mid_train", source_from="base", source_to="mid")
    return json.loads((base / "report/mid_train.json").read_text(encoding="utf-8"))


def test_nothing_to_validate_on_is_said_before_the_first_step_and_no_reason_to_stop(base, tmp_path, capsys):
    write_chats(tmp_path / "data", "one.jsonl", ["a"])  # a single one: nothing is held out
    assert tuned(base, tmp_path / "data", "one")["val_bpb"] is None
    said = capsys.readouterr().out
    assert said.index("note: no validation in this run: of the test rows not one") < said.index("2 steps")
    assert "nothing to train on" not in said
    write_chats(tmp_path / "data", "one_test.jsonl", ["long " * T] * 3)  # none of the test rows fits
    assert tuned(base, tmp_path / "data", "long")["val_bpb"] is None
    assert "no validation in this run" in (said := capsys.readouterr().out) and "; 3 skipped" in said
    write_chats(tmp_path / "data", "one_test.jsonl", ["long " * T, "short"])
    assert tuned(base, tmp_path / "data", "short")["val_bpb"] > 0
    assert "no validation" not in capsys.readouterr().out


def test_a_file_does_not_validate_on_the_rows_that_it_trains_on(base, tmp_path, capsys):
    write_chats(tmp_path / "data", "mine.jsonl", ["a"] * 9)
    (path,) = tmp_path.rglob("mine.jsonl")
    assert tuned(base, tmp_path / "data", "alone", mixture=(str(path),))["val_bpb"] is None
    said = capsys.readouterr().out
    assert "there is no mine_test.jsonl beside it" in said and "note: no validation in this run" in said
    path.with_name("mine_test.jsonl").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert tuned(base, tmp_path / "data", "beside", mixture=(str(path),))["val_bpb"] > 0


def test_nothing_to_train_on_is_refused(base, tmp_path):
    write_chats(tmp_path / "data", "long.jsonl", ["long " * T] * 3)
    write_chats(tmp_path / "data", "long_test.jsonl", ["short"])
    with pytest.raises(UserError, match="nothing to train on: .*3 skipped"):
        tuned(base, tmp_path / "data")


def test_validation_reads_the_same_rows_for_any_seed(base, tmp_path):
    write_chats(tmp_path / "data", "chat.jsonl", ["a"] * 9)
    write_chats(tmp_path / "data", "chat_test.jsonl", [f"{'xyz'[i % 3]}{i * i}" * (1 + i % 4) for i in range(200)])
    first, second = (tuned(base, tmp_path / "data", f"seed{seed}", seed=seed, init_lr_frac=0.0, eval_tokens=4 * T)
                     for seed in (1, 2))
    assert first["val_curve"] == second["val_curve"] and first["val_bpb"] > 0
