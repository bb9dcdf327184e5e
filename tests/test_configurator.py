"""Command lines from dataclasses: both spellings, presets, and one clear line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from nanochat.common import UserError
from nanochat.configurator import parse


@dataclass
class Config:
    """An example."""

    depth: int = 4
    """How deep."""
    learning_rate: float = 0.1
    """How fast."""
    tasks: tuple[str, ...] = ("a",)
    """Which."""
    resume: bool = False
    """Go on."""


def test_both_spellings():
    for flag in ("--learning_rate=0.5", "--learning-rate=0.5"):
        assert parse(Config, [flag], "x").learning_rate == 0.5
    assert parse(Config, ["--learning_rate", "0.5", "--resume"], "x").resume


def test_preset_then_flags(tmp_path):
    preset = tmp_path / "p.toml"
    tables = '[all]\nlearning_rate = 2\nother = 1\n[x]\ndepth = 7\ntasks = ["b", "c"]\n[y]\nz = 1\n'
    preset.write_text('preset = "p"\n' + tables)
    assert parse(Config, [str(preset)], "x") == Config(7, 2, ("b", "c"))
    assert parse(Config, [str(preset), "--depth=9"], "x") == Config(9, 2, ("b", "c"))
    assert parse(Config, [str(preset)], "elsewhere") == Config(4, 2)
    flat = tmp_path / "flat.toml"
    flat.write_text("depth = 3\n")
    assert parse(Config, [str(flat)], "x").depth == 3


@pytest.mark.parametrize("text, words", [("[x]\ndept = 1", "'dept'; did you mean 'depth'"),
                                         ("[x]\ndepth = 'a'", "x.depth"), ("[x]\ndepth = true", "x.depth"),
                                         ("depth = 6\n[all]\nlearning_rate = 1", "'depth' stands outside any table"),
                                         ("[x", "not valid TOML")])
def test_bad_presets_are_named(tmp_path, text, words):
    preset = tmp_path / "p.toml"
    preset.write_text(text)
    with pytest.raises(UserError, match=words) as e:
        parse(Config, [str(preset)], "x")
    assert str(preset) in str(e.value)
    with pytest.raises(UserError, match="does not exist"):
        parse(Config, ["absent.toml"], "x")


def test_a_misspelt_table_is_not_passed_over(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text("[base_trian]\ndepth = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"\[base_trian\]; did you mean \[base_train\]"):
        parse(Config, [str(preset)], "base_train")
    assert parse(Config, [str(preset)], "elsewhere") == Config()
    preset.write_text('stages = ["base_loss", "base_eval --depth=2"]\n[base_eval]\ndepth = 1\n', encoding="utf-8")
    assert parse(Config, [str(preset)], "base_loss") == Config()  # much alike, and both are stages


def test_unknown_flag_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="--dept.*did you mean 'depth'"):
        parse(Config, ["--dept=3"], "x")
    assert parse(Config, ["--no-resume"], "x") == Config()


def test_one_line_and_exit_status_from_a_real_script():
    done = subprocess.run([sys.executable, "-m", "scripts.tok_train", "--vocab_sise=3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "vocab_size" in done.stderr


def test_help_shows_every_field(capsys):
    with pytest.raises(SystemExit) as e:
        parse(Config, ["--help"], "x")
    assert e.value.code == 0
    shown = capsys.readouterr().out
    assert "How deep." in shown and "--learning-rate" in shown.replace("_", "-")
