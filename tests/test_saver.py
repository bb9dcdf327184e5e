"""Saving beside the training: what is saved is what there was, nothing is taken for saved that is not."""

from __future__ import annotations

import threading

import pytest
import torch

from nanochat import saver as module
from nanochat.checkpoint_manager import load_checkpoint, load_meta, saved_steps
from nanochat.ranks import OtherRankFailed
from nanochat.rng import rng_state
from nanochat.saver import Saver
from tests.helpers import small_tokenizer

META = {"model_config": {}, "config": {}, "parent": None, "state": {}}
CPU = torch.device("cpu")


@pytest.fixture
def slow(monkeypatch):
    """Saves wait for `go`, and `begun` says that one has begun."""
    go, begun, real = threading.Event(), threading.Event(), module.save_checkpoint

    def wait(*args, **kwargs):
        begun.set()
        assert go.wait(timeout=60)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "save_checkpoint", wait)
    return go, begun


def tensors(value: float) -> tuple[dict, dict]:
    return {"w": torch.full((4, 3), value)}, {"w/m": torch.full((4, 3), -value), "steps": torch.tensor(int(value))}


def test_what_training_does_meanwhile_is_not_in_what_is_saved(tmp_path, slow):
    go, begun = slow
    model, optimizer = tensors(1)
    with Saver(tmp_path / "run", small_tokenizer(), keep=0) as saver:
        saver.save(1, model, optimizer, META)
        assert begun.wait(timeout=60) and saved_steps(tmp_path / "run") == []  # it came back before anything is there
        model["w"].fill_(9)
        optimizer["w/m"].fill_(9)
        optimizer["steps"].fill_(9)
        go.set()
    loaded, its_optimizer, _ = load_checkpoint(tmp_path / "run", 1, CPU, load_optimizer=True)
    for part, expected in zip((loaded, its_optimizer), tensors(1), strict=True):
        assert part.keys() == expected.keys() and all(torch.equal(part[k], t) for k, t in expected.items())


def test_saves_wait_for_each_other_and_a_step_is_saved_once(tmp_path, slow):
    slow[0].set()
    with Saver(tmp_path / "run", small_tokenizer(), keep=2) as saver:
        for step in (1, 2, 2, 3, 4):
            saver.save(step, *tensors(step), META)
        assert saver.step == 4
    assert saved_steps(tmp_path / "run") == [3, 4]
    assert sorted(p.name for p in (tmp_path / "run").glob("*_0000*")) == [
        f"{name}_00000{step}{rest}" for name, rest in
        (("meta", ".json"), ("model", ".safetensors"), ("optim", "_rank0.safetensors")) for step in (3, 4)]


def test_a_save_that_fails_is_known_at_once_and_raised_at_the_next_chance(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("a file where the directory should be", encoding="utf-8")
    saver = Saver(tmp_path / "run", small_tokenizer(), keep=2)
    assert not saver.failed
    saver.save(1, *tensors(1), META)
    saver._thread.join()
    assert saver.failed
    with pytest.raises(OSError):
        saver.save(2, *tensors(2), META)
    with pytest.raises(OSError), saver:
        saver.save(3, *tensors(3), META)


def test_leaving_by_an_error_waits_for_the_save_and_keeps_the_error(tmp_path, slow, capsys):
    go, begun = slow
    with pytest.raises(ZeroDivisionError):
        with Saver(tmp_path / "run", small_tokenizer(), keep=2) as saver:
            saver.save(1, *tensors(1), META)
            threading.Timer(0.2, go.set).start()
            raise ZeroDivisionError
    assert saved_steps(tmp_path / "run") == [1]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        with Saver(tmp_path / "file" / "run", small_tokenizer(), keep=2) as saver:
            saver.save(1, *tensors(1), META)
            raise ZeroDivisionError
    assert "note: besides, the save of step 1 failed" in capsys.readouterr().out


def test_a_failure_is_raised_once_and_goes_before_that_of_another_rank(tmp_path):
    (tmp_path / "run").write_text("a file where the directory should be", encoding="utf-8")
    saver = Saver(tmp_path / "run", small_tokenizer(), keep=2)
    saver.save(1, *tensors(1), META)
    with pytest.raises(OSError):
        saver.finish()
    saver.finish()
    with pytest.raises(OSError), saver:  # the others have failed because of this one
        saver.save(2, *tensors(2), META)
        raise OtherRankFailed("rank 0 failed while saving")


def test_random_numbers_are_those_of_the_step_not_of_the_time_of_writing(tmp_path, slow):
    go, begun = slow
    with Saver(tmp_path / "run", small_tokenizer(), keep=0) as saver:
        before = rng_state()
        saver.save(1, *tensors(1), META)
        assert begun.wait(timeout=60)
        torch.rand(3)
        go.set()
    assert load_meta(tmp_path / "run", 1)["rng"] == [before]
