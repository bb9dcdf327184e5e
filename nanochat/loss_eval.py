"""Bits per byte: how many bits the model needs for one byte of text, whatever the tokenizer.

The loss per token cannot be compared between vocabularies; the loss per byte of the text behind the tokens can. Targets
that stand for no bytes (special tokens) or are not supervised (-1) count on neither side.

    evaluate_bpb(model, batches, token_bytes)   one number
    evaluate_loss(model, batches, token_bytes)  what it is made of
    measured_documents(batches, tokenizer)      the very bytes that it is for, to measure something else on

    continue_openings(model, tokenizer, texts)  for the eye: how the model goes on where a text begins

There is nothing to run here: `python -m scripts.base_loss` measures a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nanochat.attention import packed_documents
from nanochat.dataloader import Batch, Loader
from nanochat.engine import Engine
from nanochat.ranks import sum_over_ranks, wire_device

if TYPE_CHECKING:
    from nanochat.gpt import GPT


@dataclass(frozen=True)
class LossResult:
    """Summed over all batches and ranks: nats of loss, bytes and tokens that they are for."""

    nats: float
    bytes: int
    tokens: int

    @property
    def bpb(self) -> float:
        """Bits per byte; infinite where there was nothing to measure (never a division by zero).

        `nats=6.93, bytes=10 -> 1.0`: ln 2 = 0.693 nats are a bit.
        """
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.inf

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens if self.tokens else math.inf


@torch.no_grad()
def evaluate_loss(
    model: Any, batches: Iterable[Any], token_bytes: Tensor | Sequence[int], bos: int | None = None
) -> LossResult:
    """Run `model` over `batches` (`Batch`es, or `(inputs, targets)` pairs, each (B, T)) and add up.

    token_bytes: (vocab_size,) raw byte length per id, 0 for special tokens. `bos`: the id that starts a document; left
    out, it is the first id of zero bytes, which in our tokenizers is <|bos|>. Under torch.distributed every rank brings
    its own batches and gets the sum over all. The model is left in the mode (train or eval) that it came in.
    """
    lengths, dtype = torch.as_tensor(token_bytes), getattr(model, "compute_dtype", torch.float32)
    if bos is None:
        bos = int((lengths == 0).nonzero()[0])
    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    nats = count = None
    try:
        for batch in batches:
            inputs, targets = batch if isinstance(batch, tuple) else (batch.inputs, batch.targets)
            lengths = lengths.to(inputs.device)
            losses = model(inputs, targets, loss_reduction="none", doc=packed_documents(inputs, bos, dtype))
            bytes_ = torch.where(targets >= 0, lengths[targets.clamp(min=0)], 0)  # (B, T)
            counted = bytes_ > 0
            # `where`, not a product: the loss of a position that does not count may be anything, NaN too
            wide = torch.float32 if inputs.device.type == "mps" else torch.float64
            batch_nats = torch.where(counted, losses.view_as(targets).float(), 0.0).sum(dtype=wide)
            batch_count = torch.stack([bytes_.sum(), counted.sum()])
            nats = batch_nats if nats is None else nats + batch_nats
            count = batch_count if count is None else count + batch_count
    finally:
        if was_training:
            model.train()
    totals = [0.0, 0, 0] if nats is None else [nats.item(), *count.tolist()]
    # float64 holds counts exactly up to 2^53 bytes, so one tensor carries all three
    totals = sum_over_ranks(torch.tensor(totals, dtype=torch.float64, device=wire_device())).tolist()
    return LossResult(totals[0], int(totals[1]), int(totals[2]))


def first_rows(loader: Loader, rows: int) -> Iterator[Batch]:
    """This rank's batches of the first `rows` rows of a loader's stream.

    The set is the same for any batch size and number of ranks: what lies behind it in the last batch is not supervised.
    """
    for seen in range(0, rows, loader.rows):
        batch = next(loader, None)
        if batch is None:
            return
        ours = max(0, rows - seen - loader.rank * loader.B)
        batch.targets[ours:] = -1
        yield batch


def measured_documents(batches: Iterable[Batch], tokenizer: Any) -> Iterator[bytes]:
    """The bytes that `evaluate_loss` counts over the same batches, one text for each document in each row.

    `inputs=[bos, 5, 6, bos], targets=[5, 6, -1, 7] -> decode([5, 6]), decode([7])`. A document that goes on in another
    row is two texts: the model, too, begins anew there.
    """
    lengths, bos = np.asarray(tokenizer.token_bytes()), tokenizer.get_bos_token_id()
    for batch in batches:
        for inputs, targets in zip(batch.inputs.cpu().numpy(), batch.targets.cpu().numpy(), strict=True):
            for part in np.split(targets, np.flatnonzero(inputs == bos)):
                supervised = part[part >= 0]
                counted = supervised[lengths[supervised] > 0]
                if len(counted):
                    yield tokenizer.decode_bytes(counted.tolist())


def evaluate_bpb(
    model: Any, batches: Iterable[Any], token_bytes: Tensor | Sequence[int], bos: int | None = None
) -> float:
    """Bits per byte of `model` over `batches`; see `evaluate_loss`."""
    return evaluate_loss(model, batches, token_bytes, bos).bpb


def continue_openings(
    model: GPT, tokenizer: Any, texts: Iterable[str], *, n: int = 4, words: int = 6, max_tokens: int = 48
) -> list[dict[str, str]]:
    """Greedy continuations of how the first `n` texts begin: `[{"prompt": "Mira lives in", "completion": " Tarn."}]`.

    A prompt takes at most half of the context: six "words" of a language without spaces can be a page.
    """
    openings = [" ".join(text.split()[:words]) for text in islice(texts, n)]
    prompts = [tokenizer.encode(opening, prepend=tokenizer.get_bos_token_id())[: max(1, model.config.sequence_len // 2)]
               for opening in openings]
    completions, _ = Engine(model, tokenizer).generate_batch(prompts, max_tokens=max_tokens, temperature=0.0)
    return [{"prompt": tokenizer.decode(prompt[1:]), "completion": tokenizer.decode(ids)}
            for prompt, ids in zip(prompts, completions, strict=True)]
