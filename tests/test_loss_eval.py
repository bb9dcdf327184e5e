"""Bits per byte: which positions count, by how many bytes, and what happens when none does."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from nanochat.dataloader import Batch, conversation_loader, tokenizing_distributed_data_loader_with_state
from nanochat.dataset import corpus, text_iterator
from nanochat.loss_eval import (
    LossResult,
    continue_openings,
    evaluate_bpb,
    evaluate_loss,
    first_rows,
    measured_documents,
)
from nanochat.tokenizer import SPECIAL_TOKENS, pick_tokenizer_class
from scripts import base_loss
from tasks.common import Task, TaskMixture
from tests.export_trials import save
from tests.helpers import byte_tokenizer, small_model, small_tokenizer

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


# --------------------------------------------------------------------------- the bytes behind the figure


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Documents of 0 to some 600 bytes, longer than a row too, with characters of one to four bytes."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(300):
        (folder / f"{i:03d}.txt").write_text(f"{i}: naïve 日本 🙂 {'la ' * (i * 7 % 190)}", encoding="utf-8")
    return folder


def test_measured_documents_are_the_text_itself(texts):
    """Of a whole split all bytes, of a row one text a document; what is cut goes on in another text."""
    tokenizer, whole = byte_tokenizer(), corpus(texts)
    with tokenizing_distributed_data_loader_with_state(tokenizer, 4, 256, "val", data=whole) as loader:
        batches = list(loader)
    found = list(measured_documents(batches, tokenizer))
    wanted = [text.encode("utf-8") for text in text_iterator(whole, "val")]
    assert sum(map(len, found)) == sum(map(len, wanted)) and len(wanted) > 5
    short = [text for text in wanted if len(text) < 256]
    assert len(short) > 2 and not [text for text in short if found.count(text) != wanted.count(text)]
    for text in wanted:  # each is put together of the texts that lie in it
        assert text.startswith(tuple(found)) and text.endswith(tuple(found))


def test_bytes_of_the_baselines_are_those_of_the_figure_for_any_batch_size_and_ranks(texts):
    """Also of the training split, which has no end, and where the last batch is used in part."""
    tokenizer, whole = small_tokenizer(), corpus(texts)
    model = GivenLosses([1.0] * tokenizer.get_vocab_size()).eval()
    for split, rows in (("train", 1), ("train", 37), ("val", 5), ("val", 10_000)):
        seen = set()
        for B, world_size in ((1, 1), (32, 1), (3, 2), (4, 3)):
            bytes_ = 0
            for rank in range(world_size):
                def loader(rank=rank, B=B, world_size=world_size, split=split):
                    return tokenizing_distributed_data_loader_with_state(
                        tokenizer, B, 64, split, data=whole, rank=rank, world_size=world_size, workers=0)

                bytes_ += evaluate_loss(model, first_rows(loader(), rows), tokenizer.token_bytes()).bytes
                documents = list(measured_documents(first_rows(loader(), rows), tokenizer))
                if world_size == 1:
                    seen.add(b"|".join(documents))
            assert bytes_ == sum(len(d) for d in next(iter(seen)).split(b"|")) > 0
        assert len(seen) == 1


def test_what_is_not_supervised_is_not_compressed_either():
    tokenizer = small_tokenizer()
    task = Said(["First answer. ", "Second, 日本."])
    with conversation_loader(task, tokenizer, 2, 64, epochs=1) as loader:
        found = list(measured_documents(loader, tokenizer))
    assert sorted(found) == [text.encode("utf-8") for text in task.texts]  # no "?" and no special token


def test_base_loss_shows_baselines_the_same_for_two_ranks(texts, tmp_path, monkeypatch):
    tokenizer, reports = small_tokenizer(), []
    settings = {"data": str(texts), "split_tokens": 3000, "device_batch_size": 7, "device_type": "cpu"}
    for ranks in (1, 2):
        base = tmp_path / str(ranks)
        save(small_model(tokenizer), tokenizer, base, "base")
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
        if ranks == 1:
            base_loss.main(base_loss.Config(**settings))
        else:
            command = [sys.executable, "-m", "nanochat.launch", "2", "scripts.base_loss"]
            done = subprocess.run(command + [f"--{key}={value}" for key, value in settings.items()], text=True,
                                  capture_output=True, encoding="utf-8", cwd=Path(base_loss.__file__).parents[1])
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.count("ngram") == 1  # rank 0 alone
        reports.append(json.loads((base / "report/base_loss.json").read_text(encoding="utf-8")))
    one, two = reports
    figures = [f"{split}_{name}_bpb" for split in ("train", "val") for name in ("gzip", "xz", "ngram")]
    assert [one[name] for name in figures] == [two[name] for name in figures]
    for split in ("train", "val"):
        assert one[f"{split}_bytes"] == two[f"{split}_bytes"] > 0
        assert one[f"{split}_bpb"] == pytest.approx(two[f"{split}_bpb"], rel=1e-6)
        assert 0 < one[f"{split}_ngram_bpb"] < one[f"{split}_gzip_bpb"] < 8 < one[f"{split}_bpb"] * 4
    rows = {row[0]: row[1:3] for row in one["baselines_table"]["rows"]}
    assert rows == {"this model": [one["train_bpb"], one["val_bpb"]],
                    **{n: [one[f"train_{n}_bpb"], one[f"val_{n}_bpb"]] for n in ("gzip", "xz", "ngram")}}


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
