"""How rows are cut: what fits together, what fits into memory."""

from __future__ import annotations

import pytest
import torch

from nanochat import batch_size
from nanochat.batch_size import WORKING, choose_rows, fewer_rows, saved_bytes
from nanochat.common import UserError
from nanochat.dataloader import Batch
from nanochat.run import divisors, rows_per_rank
from nanochat.stage_config import StageConfig
from nanochat.train import document_loss
from tests.helpers import small_model, small_tokenizer


@pytest.fixture(scope="module")
def parts():
    """A model and its loss."""
    tokenizer = small_tokenizer()
    return small_model(tokenizer), document_loss(tokenizer.get_bos_token_id())


def test_each_rank_has_an_equal_share_of_a_step():
    assert rows_per_rank(4096, 8, 256, 1) == 16 and rows_per_rank(4096, "auto", 256, 1) == 16
    assert rows_per_rank(8192, 16, 256, 2) == 16
    assert rows_per_rank(3 * 5 * 32, 5, 32, 3) == 5
    assert rows_per_rank(4096, 16, 256, 8) == rows_per_rank(4096, "auto", 256, 8) == 2  # one backward pass


@pytest.mark.parametrize(
    ("total", "rows", "T", "n", "words"),
    [(100, 8, 16, 1, r"--total_batch_size=100 is not a multiple of --device_batch_size=8 × --max_seq_len=16 "
                     r"\(= 128 tokens\): these would fit: --total_batch_size=128$"),
     (300, 2, 16, 4, r"× 4 ranks \(= 128 tokens\): these would fit: --total_batch_size=256 or 384$"),
     (768, 5, 16, 2, r"--total_batch_size=640 or 800, or --device_batch_size=4 or 6$"),
     (64, 8, 16, 8, r"× 8 ranks \(= 1024 tokens\): these would fit: --total_batch_size=1024$"),
     (0, 8, 16, 1, r"--total_batch_size=0 is impossible"),
     (128, 0, 16, 1, r"--device_batch_size=0 is impossible")],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(total, rows, T, n, words):
    with pytest.raises(UserError, match=words):
        rows_per_rank(total, rows, T, n)


def test_deterministic_mode_needs_a_tree_that_ranks_can_share():
    assert rows_per_rank(96 * 16, 3, 16, 1, deterministic=True) == 96
    with pytest.raises(UserError, match="needs a --device_batch_size"):
        rows_per_rank(96 * 16, "auto", 16, 1, deterministic=True)
    assert rows_per_rank(96 * 16, 3, 16, 4, deterministic=True) == 24
    with pytest.raises(UserError, match="on 1, 2, 4, 8, ... ranks, not on 3"):
        rows_per_rank(96 * 16, 3, 16, 3, deterministic=True)
    assert rows_per_rank(96 * 16, 4, 16, 3) == 32
    with pytest.raises(UserError, match="--total_batch_size=128, or --device_batch_size=4$"):  # the grain must be exact
        rows_per_rank(64, 8, 16, 1, deterministic=True)


def test_the_size_to_try_next_is_one_that_fits():
    assert fewer_rows(6, 18, False).startswith("--device_batch_size=3 or auto; the last checkpoint is intact, --resume")
    assert fewer_rows(9, 18, True) == "a new run with --device_batch_size=6"  # auto is refused there
    assert fewer_rows(1, 18, False) == "a new run with a smaller --depth or --max_seq_len of base_train"


def test_what_a_backward_pass_keeps_grows_by_a_line(parts):
    model, loss_fn = parts

    def kept(rows: int) -> int:
        ids = torch.zeros(rows, 64, dtype=torch.long)
        return saved_bytes(model, lambda: loss_fn(model, Batch(ids, ids, {})).backward())

    one, two, eight = kept(1), kept(2), kept(8)
    assert eight == pytest.approx(one + 7 * (two - one), rel=0.02)
    assert two - one > 64 * 32 * 4 * 2 * 8  # per layer at least eight activations of width 32
    assert all(p.grad is None for p in model.parameters())
    weight = model.lm_head.weight  # is there anyway
    assert saved_bytes(model, lambda: (weight * weight).sum().backward()) == 0
    assert saved_bytes(model, lambda: (weight.exp() * weight).sum().backward()) == weight.numel() * 4


def test_auto_takes_the_largest_divisor_that_fits(parts, monkeypatch, capsys):
    model, loss_fn = parts

    def chosen(free: int, share: int = 48) -> int:
        monkeypatch.setattr(batch_size, "free_memory", lambda device: free)
        return choose_rows("auto", share, 64, model, loss_fn)

    sizes = [chosen(int(free)) for free in (1e3, 2e6, 4e6, 8e6, 1e9)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] == 48 and len(set(sizes)) > 3
    assert all(size in divisors(48) for size in sizes)
    assert "--device_batch_size=auto: 48 rows a backward pass, 1 of them a step on each rank" in capsys.readouterr().out
    assert choose_rows(7, 48, 64, model, loss_fn) == 7  # what a person says is not questioned
    assert choose_rows(7, 4, 64, model, loss_fn) == 4
    assert "--device_batch_size=7 is more than the 4 rows of a step on each rank" in capsys.readouterr().out
    assert StageConfig(device_batch_size="auto").device_batch_size == "auto"


def test_auto_leaves_room_for_the_gradient_and_the_update(parts, monkeypatch):
    """Free memory between what ten rows need alone and what they need beside three times the weights."""
    model, loss_fn = parts

    def kept(rows: int) -> int:
        ids = torch.zeros(rows, 8, dtype=torch.long)
        return saved_bytes(model, lambda: loss_fn(model, Batch(ids, ids, {})).backward())

    per_row = (kept(2) - kept(1)) * WORKING
    fixed = kept(1) + 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    assert fixed > per_row
    monkeypatch.setattr(batch_size, "free_memory", lambda device: int((fixed + 8.5 * per_row) / batch_size.USABLE))
    assert choose_rows("auto", 720, 8, model, loss_fn) == 8  # with nothing beside them, 9 and more would fit


def test_auto_where_two_rows_do_not_fit_or_not_even_one(parts, capsys):
    """The allocator's own error, of a petabyte that no machine has."""
    model, loss_fn = parts
    tried = []

    def loss_of(most: int):
        def huge(model, batch):
            tried.append(len(batch.inputs))
            return loss_fn(model, batch) if len(batch.inputs) <= most else torch.empty(1 << 50).sum()

        return huge

    def bad_at_two(model, batch):
        return loss_fn(model, batch) + (torch.ones(len(batch.inputs)) + torch.ones(3)).sum()

    assert choose_rows("auto", 48, 64, model, loss_of(1)) == 1 and tried == [1, 2]
    assert "1 rows a backward pass, 48 of them" in capsys.readouterr().out
    assert choose_rows("auto", 1, 64, model, loss_of(1)) == 1 and tried == [1, 2, 1]  # no second row to try
    with pytest.raises(UserError, match="out of memory in trying one row.*smaller --depth"):
        choose_rows("auto", 48, 64, model, loss_of(0))
    with pytest.raises(RuntimeError, match="size"):  # another error stays what it is
        choose_rows("auto", 48, 64, model, bad_at_two)


def test_a_containers_limit_counts(tmp_path):
    assert batch_size.cgroup_room(tmp_path) == []
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n", encoding="utf-8")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("400\n", encoding="utf-8")
    (tmp_path / "memory" / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 50\n", encoding="utf-8")
    assert batch_size.cgroup_room(tmp_path) == [650]  # what it keeps of files is given back
    (tmp_path / "memory.stat").write_text("anon 3\ninactive_file 20\n", encoding="utf-8")
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("400\n", encoding="utf-8")
    assert batch_size.cgroup_room(tmp_path) == [650]  # no limit by the newer kind
    (tmp_path / "memory.max").write_text("500\n", encoding="utf-8")
    assert batch_size.cgroup_room(tmp_path) == [120]
    assert 0 < batch_size.free_memory(torch.device("cpu")) < 1 << 50
