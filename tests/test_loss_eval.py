"""Bits per byte: which positions count, by how many bytes, and what happens when none does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing as mp

from nanochat.dataloader import Batch, conversation_loader
from nanochat.loss_eval import LossResult, continue_openings, evaluate_bpb, evaluate_loss, first_rows
from nanochat.tokenizer import SPECIAL_TOKENS, pick_tokenizer_class
from tasks.common import Task, TaskMixture
from tests.helpers import small_model, small_tokenizer

LENGTHS = torch.tensor([1, 3, 2, 0, 0])  # two special tokens, the first of them BOS
BOS = 3


class GivenLosses(torch.nn.Module):
    """Stands where a model would: the loss of a position is a function of its target, so sums can be done by hand."""

    def __init__(self, by_target):
        super().__init__()
        self.by_target, self.docs = torch.tensor(by_target), []

    def forward(self, inputs, targets, loss_reduction="mean", doc=None):
        assert loss_reduction == "none" and not self.training
        self.docs.append(doc)
        return torch.where(targets >= 0, self.by_target[targets.clamp(min=0)], torch.nan)  # NaN: must not be looked at


def test_sum_counts_bytes_of_supervised_ordinary_targets_only():
    model = GivenLosses([1.0, 2.0, 4.0, 100.0, 100.0]).train()
    inputs = torch.tensor([[3, 0, 3, 1]])
    first, second = torch.tensor([[0, 3, 1, -1]]), torch.tensor([[2, 4, -1, 2]])
    result = evaluate_loss(model, [(inputs, first), Batch(inputs, second, {})], LENGTHS)
    assert (result.nats, result.bytes, result.tokens) == (1 + 2 + 4 + 4, 1 + 3 + 2 + 2, 4)
    assert result.bpb == pytest.approx(11 / 8 / math.log(2))
    assert model.docs[0].tolist() == [[1, 1, 2, 2]]  # BOS was found from the byte lengths
    assert model.training  # left as it came


def test_bpb_of_a_uniform_guess_over_bytes_is_eight_bits():
    model = GivenLosses([math.log(256)] * 5)
    one_byte_each = torch.tensor([1, 1, 1, 0, 0])
    batches = [(torch.tensor([[3, 1, 2]]), torch.tensor([[0, 1, 2]]))]
    assert evaluate_bpb(model, batches, one_byte_each) == pytest.approx(8)


def test_zero_bytes_is_infinite_not_an_error():  # trap: bpb-zero
    model = GivenLosses([1.0] * 5)
    inputs = torch.tensor([[3, 0]])
    for targets in ([[-1, -1]], [[3, 4]], [[3, -1]]):
        assert evaluate_bpb(model, [(inputs, torch.tensor(targets))], LENGTHS) == math.inf
    assert evaluate_bpb(model, [], LENGTHS) == math.inf


def test_bytes_are_raw_bytes_of_tokens():  # trap: bpb-bytes
    """Half a character counts as the bytes it is, not as the three of U+FFFD."""
    tokenizer = pick_tokenizer_class().train_from_iterator(["aaaa"], 256 + len(SPECIAL_TOKENS))
    text = "naïve 日本 🙂"
    ids = tokenizer.encode(text, prepend="<|bos|>")
    assert len(ids) - 1 > len(text)  # the characters are in pieces
    inputs, targets = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
    model = GivenLosses([1.0] * tokenizer.get_vocab_size())
    assert evaluate_loss(model, [(inputs, targets)], tokenizer.token_bytes()).bytes == len(text.encode("utf-8"))


def _rank(rank: int, world_size: int, store: str, out) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    model = GivenLosses([1.0, 2.0, 4.0, 100.0, 100.0])
    mine = [] if rank else [(torch.tensor([[3, 0]]), torch.tensor([[0, 1]]))]  # one rank has nothing: both still agree
    out.put(evaluate_loss(model, mine, LENGTHS))
    torch.distributed.destroy_process_group()


def test_ranks_add_up(tmp_path):
    context = mp.get_context("spawn")
    out = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, 2, str(tmp_path / "store"), out)) for r in range(2)]
    for p in ranks:
        p.start()
    results = [out.get(timeout=240) for _ in ranks]
    for p in ranks:
        p.join(timeout=60)
    assert [(r.nats, r.bytes, r.tokens) for r in results] == [(3.0, 4, 2)] * 2


def test_openings_fit_the_context_in_a_language_without_spaces():
    tokenizer = small_tokenizer()
    model = small_model(tokenizer, sequence_len=32)
    texts = ["世界人权宣言" * 40, "Mira lives in Tarn and keeps 12 goats", "", "x"]
    samples = continue_openings(model, tokenizer, texts, n=4, max_tokens=8)
    assert [s["prompt"] for s in samples][1:] == ["Mira lives in Tarn and keeps", "", "x"]
    assert samples[0]["prompt"].startswith("世界人权") and len(tokenizer(samples[0]["prompt"])) <= 17
    assert all(s["completion"] for s in samples)


def test_the_first_rows_are_the_same_for_any_batch_size_and_number_of_ranks(tmp_path):  # trap: tiny-eval
    """The first 37 rows of a longer stream, summed over ranks, in batches of 1 to 16; then more rows than there are."""
    tokenizer = small_tokenizer()
    model = small_model(tokenizer)
    task = TaskMixture([Said([f"{i} + {i} = {2 * i}. " * (i % 7 + 1) for i in range(300)])])

    def total(B: int, world_size: int, rows: int) -> LossResult:
        results = []
        for rank in range(world_size):
            with conversation_loader(task, tokenizer, B, 64, epochs=1, rank=rank, world_size=world_size) as loader:
                results.append(evaluate_loss(model, first_rows(loader, rows), tokenizer.token_bytes()))
        return LossResult(*(sum(getattr(r, name) for r in results) for name in ("nats", "bytes", "tokens")))

    for rows in (37, 10_000):
        whole = total(1, 1, rows)
        assert whole.tokens > 0
        for B, world_size in ((16, 1), (5, 2), (16, 3), (3, 4)):
            part = total(B, world_size, rows)
            assert (part.tokens, part.bytes) == (whole.tokens, whole.bytes)
            assert part.nats == pytest.approx(whole.nats, rel=1e-6)
    assert total(1, 1, 37).tokens < total(1, 1, 10_000).tokens


class Said(Task):
    """One conversation a text."""

    def __init__(self, texts: list[str]):
        super().__init__()
        self.texts = texts

    eval_type = "generative"

    def num_examples(self) -> int:
        return len(self.texts)

    def get_example(self, index: int) -> dict:
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": self.texts[index]}]}
