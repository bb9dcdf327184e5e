"""Two ranks in one group: what they tell each other, and what both do when one of them has a number that is none.

Two processes are started once and go through all of it; the tests look at what each of them saw.
Run: python -m pytest tests/test_ranks.py
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from nanochat.batch_size import choose_rows
from nanochat.common import UserError
from nanochat.dataloader import Batch
from nanochat.ranks import (
    all_or_none,
    first_to_say,
    gather,
    gather_texts,
    on_rank0,
    rank_and_world,
    sum_over_ranks,
)
from nanochat.stage_config import StageConfig
from nanochat.train import Every, TrainState, document_loss, train
from tests.helpers import small_model, small_tokenizer

BAD = 7  # a row that begins with this token has no finite loss (or gradient)


def message(fn) -> str:
    """What a call complains of: `"UserError: rank 1 failed ..."`."""
    try:
        return f"returned {fn()}"
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def fail_on(which: int) -> None:
    with all_or_none("trying"):
        if rank_and_world()[0] == which:
            raise ZeroDivisionError("Ω\udcff")  # as in the name of a file that is no UTF-8


def refuse(text: str) -> None:
    raise UserError(text)


def talk(rank: int) -> dict:
    """Every way of speaking, called by both ranks in the same order."""
    return {
        "ranks": rank_and_world(),
        "sum": sum_over_ranks(torch.tensor(3 + rank)).item(),
        "gather": gather(torch.tensor([rank, 10 * rank])).tolist(),
        "texts": gather_texts("é" * 5000 + "\0" if rank else "zero"),
        "on_rank0": on_rank0(lambda: [os.environ["RANK"], None]),
        "error": message(lambda: on_rank0(lambda: 1 // 0)),
        "user_error": message(lambda: on_rank0(lambda: refuse("no such thing"))),
        "long_error": message(lambda: on_rank0(lambda: refuse("ж" * 900))),
        "no_json": message(lambda: on_rank0(lambda: {1, 2})),
        "one_fails": message(lambda: fail_on(1)),
        "none_fails": message(lambda: fail_on(2)),
        "first": first_to_say("the same on both"),
        "own": first_to_say(f"only on {rank}"),
    }


def steps(rank: int, how: str, nonfinite: str, bad_rank: int = 1) -> dict:
    """Three steps of 2 × 4 rows in micro-batches of 2; in step 1, the last row of `bad_rank` is bad."""
    tokenizer = small_tokenizer()
    model, state, seen = small_model(tokenizer), TrainState(), []
    plain = document_loss(tokenizer.get_bos_token_id())

    def batches():
        for i in range(3):
            ids = torch.randint(10, 300, (8, 16), generator=torch.Generator().manual_seed(i))
            if i == 1:
                ids[4 * bad_rank + 3, 0] = BAD
            yield Batch(ids[4 * rank : 4 * rank + 4], ids[4 * rank : 4 * rank + 4].roll(1, 1), {"i": i})

    def loss_fn(model, batch):
        loss = plain(model, batch)
        if not bool((batch.inputs[:, 0] == BAD).any()):
            return loss
        return loss * float("nan") if how == "loss" else loss + (loss - loss.detach()).abs().sqrt()  # 0, slope infinite

    def run():
        return train(model, model.setup_optimizers(), batches(), StageConfig(nonfinite=nonfinite), state,
                     num_iterations=3, rows=2, loss_fn=loss_fn, hooks=[Every(1, lambda state: seen.append(digest()))])

    def digest() -> float:
        return sum(float(w.double().square().sum()) for w in model.state_dict().values())

    said = message(run)
    return {"said": said, "steps": state.step, "skipped": state.skipped, "tokens": state.tokens, "seen": seen,
            "now": digest()}


def chosen(rank: int) -> int:
    """`auto`, where rank 1 has memory for less."""
    import nanochat.batch_size as module

    module.free_memory = lambda device: 10**9 if rank == 0 else 3 * 10**6
    tokenizer = small_tokenizer()
    return choose_rows("auto", 1024, 64, small_model(tokenizer), document_loss(tokenizer.get_bos_token_id()))


def one_rank(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                                         timeout=timedelta(minutes=5))
    saw = {"talk": talk(rank), "chosen": chosen(rank), "loss": steps(rank, "loss", "stop"),
           "gradient": steps(rank, "gradient", "stop", bad_rank=0), "skip": steps(rank, "loss", "skip")}
    Path(folder, f"{rank}.json").write_text(json.dumps(saw), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def saw(tmp_path_factory) -> list[dict]:
    """What rank 0 and rank 1 saw."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, (str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_what_they_tell_each_other(saw):
    for rank, heard in enumerate(one["talk"] for one in saw):
        assert heard["ranks"] == [rank, 2] and heard["sum"] == 7 and heard["gather"] == [[0, 0], [1, 10]]
        assert heard["texts"] == ["zero", "é" * 5000 + "\0"]
        assert heard["on_rank0"] == ["0", None] and heard["user_error"] == "UserError: no such thing"
        assert heard["long_error"] == "UserError: " + "ж" * 900 and "set is not JSON" in heard["no_json"]
        assert heard["none_fails"] == "returned None"
    assert [one["talk"]["error"].split(":")[0] for one in saw] == ["ZeroDivisionError", "OtherRankFailed"]
    assert [one["talk"]["one_fails"] for one in saw] == [
        "OtherRankFailed: rank 1 failed while trying: ZeroDivisionError: Ω\\udcff", "ZeroDivisionError: Ω\udcff"]
    assert sorted(one["talk"]["first"] for one in saw) == [False, True]
    assert [one["talk"]["own"] for one in saw] == [True, True]


def test_a_rank_alone_needs_no_group():
    assert rank_and_world() == (0, 1) and gather(torch.tensor([1, 2])).tolist() == [[1, 2]]
    assert gather_texts("x") == ["x"] and on_rank0(lambda: 3) == 3 and first_to_say("x") and first_to_say("x")
    with pytest.raises(ZeroDivisionError):
        fail_on(0)


@pytest.mark.parametrize(("how", "rank"), [("loss", 1), ("gradient", 0)])
def test_a_number_that_is_none_on_one_rank_stops_both_before_the_weights_change(saw, how, rank):
    zero, one = (seen[how] for seen in saw)
    assert zero == one  # the same line, the same weights to the bit
    assert zero["said"].startswith("UserError: step 1: ") and zero["steps"] == 1
    assert f"first on rank {rank}, in micro-batch 2 of 2 (rows 2 to 3 of the rank's 4)" in zero["said"]
    assert 'of the batch after loader state {"i": 0}' in zero["said"]
    assert zero["seen"] == [zero["now"]]


def test_both_skip_what_one_cannot_use(saw):
    zero, one = (seen["skip"] for seen in saw)
    assert zero == one and zero["said"] == "returned 0"
    assert (zero["steps"], zero["skipped"], zero["tokens"]) == (3, 1, 3 * 8 * 16)
    first, second, third = zero["seen"]
    assert first == second != third == zero["now"]


def test_auto_is_the_size_of_the_poorest_rank(saw):
    assert saw[0]["chosen"] == saw[1]["chosen"] < 1024
