"""How rows are cut: what fits together, what fits into memory."""

from __future__ import annotations

import pytest
import torch

from nanochat import batch_size
from nanochat.batch_size import choose_rows, divisors, rows_per_rank, saved_bytes
from nanochat.common import UserError
from nanochat.dataloader import Batch
from nanochat.train import StageConfig, document_loss
from tests.helpers import small_model, small_tokenizer


@pytest.fixture(scope="module")
def parts():
    """A model and its loss."""
    tokenizer = small_tokenizer()
    return small_model(tokenizer), document_loss(tokenizer.get_bos_token_id())


def ranks(monkeypatch, n: int) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(n))


def test_each_rank_has_an_equal_share_of_a_step(monkeypatch):
    assert rows_per_rank(4096, 8, 256) == 16 and rows_per_rank(4096, "auto", 256) == 16
    ranks(monkeypatch, 2)
    assert rows_per_rank(8192, 16, 256) == 16
    ranks(monkeypatch, 3)
    assert rows_per_rank(3 * 5 * 32, 5, 32) == 5


@pytest.mark.parametrize(
    ("total", "rows", "T", "n", "words"),
    [(100, 8, 16, 1, r"--total_batch_size=100 is not a multiple of --device_batch_size=8 × --max_seq_len=16 "
                     r"\(= 128 tokens\): these would fit: --total_batch_size=128$"),
     (300, 2, 16, 4, r"× 4 ranks \(= 128 tokens\): these would fit: --total_batch_size=256 or 384$"),
     (768, 5, 16, 2, r"--total_batch_size=640 or 800, or --device_batch_size=4 or 6$"),
     (64, 8, 16, 1, r"--total_batch_size=128, or --device_batch_size=4$"),
     (0, 8, 16, 1, r"--total_batch_size=0 is impossible"),
     (128, 0, 16, 1, r"--device_batch_size=0 is impossible")],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(monkeypatch, total, rows, T, n, words):
    ranks(monkeypatch, n)
    with pytest.raises(UserError, match=words):
        rows_per_rank(total, rows, T)


def test_deterministic_mode_needs_a_tree_that_ranks_can_share(monkeypatch):
    assert rows_per_rank(96 * 16, 3, 16, deterministic=True) == 96
    with pytest.raises(UserError, match="needs a --device_batch_size"):
        rows_per_rank(96 * 16, "auto", 16, deterministic=True)
    ranks(monkeypatch, 4)
    assert rows_per_rank(96 * 16, 3, 16, deterministic=True) == 24
    ranks(monkeypatch, 3)
    with pytest.raises(UserError, match="on 1, 2, 4, 8, ... ranks, not on 3"):
        rows_per_rank(96 * 16, 3, 16, deterministic=True)
    assert rows_per_rank(96 * 16, 4, 16) == 32


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
    assert StageConfig(device_batch_size="auto").device_batch_size == "auto"


def test_a_containers_limit_counts(tmp_path):
    assert batch_size.cgroup_room(tmp_path) == []
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n", encoding="utf-8")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("400\n", encoding="utf-8")
    assert batch_size.cgroup_room(tmp_path) == [600]
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("400\n", encoding="utf-8")
    assert batch_size.cgroup_room(tmp_path) == [600]  # no limit by the newer kind
    (tmp_path / "memory.max").write_text("500\n", encoding="utf-8")
    assert batch_size.cgroup_room(tmp_path) == [100]
    assert 0 < batch_size.free_memory(torch.device("cpu")) < 1 << 50
