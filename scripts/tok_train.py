"""Train the tokenizer: first stage of the pipeline.

    python -m scripts.tok_train                                  # on the pocket world
    python -m scripts.tok_train --data=FOLDER --vocab_size=8192  # on your own text

Reads the training text of `--data`; writes `tokenizer/` under the base directory, for `tok_eval` and `base_train`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from nanochat import configurator
from nanochat.common import check_at_least, get_base_dir, print0, stage_progress
from nanochat.dataset import text_iterator
from nanochat.report import get_report
from nanochat.tokenizer import RustBPETokenizer, pick_tokenizer_class, split_pattern

ROUND_TRIP_TEXTS = [
    "Hello, world! It's 12345.678 o'clock; they've 1,000,000 things to do.",
    "def f(x):\n\treturn {'a': x ** 2}  # comment\r\n\n\n    trailing   ",
    "Grüße, мир, 世界, ここ, 한국어, مرحبا, नमस्ते, Ελλάδα, 👩‍👩‍👧‍👦🇪🇺, e\u0301, \u200b\ufeff\x00",
    "<|bos|> typed by a person <|assistant_end|>",
]


@dataclass
class Config:
    """Train the tokenizer."""

    data: str = "pocket"
    """Where text comes from: pocket, fineweb-edu:N, hub:OWNER/NAME:N, or a folder (txt, md, jsonl, parquet)."""
    max_chars: int = 2_000_000_000
    """Characters to train on at most."""
    doc_cap: int = 10_000
    """Characters taken from one document at most, so that no long one dominates."""
    vocab_size: int = 65536
    """Number of tokens, the 256 bytes and the special tokens included."""
    max_digits: int = 2
    """Longest group of digits in one token: 1 makes arithmetic easiest, 3 makes numbers shortest."""
    trainer: Literal["auto", "rust", "huggingface"] = "auto"
    """Who learns the merges; auto: rust where it is built, else huggingface."""


class Counter:
    """Passes texts on and remembers how many characters and documents went by."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.documents, self.characters = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.documents += 1
            self.characters += len(text)
            yield text


def check_round_trip(tokenizer: RustBPETokenizer) -> None:
    """Encode and decode give the text back, and no text gives a special id: else the tokenizer is not worth saving."""
    first_special = tokenizer.get_vocab_size() - len(tokenizer.get_special_tokens())
    for text in ROUND_TRIP_TEXTS:
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text or max(ids) >= first_special:
            raise RuntimeError(f"the trained tokenizer does not give {text!r} back")


def token_length_stats(tokenizer: RustBPETokenizer) -> dict[str, float]:
    """Bytes per learned token, bytes and special tokens left out: lengths [2, 3, 7] -> min 2, mean 4, max 7."""
    lengths = [n for n in tokenizer.token_bytes() if n > 1] or [1]
    return {
        "token_bytes_min": min(lengths),
        "token_bytes_max": max(lengths),
        "token_bytes_mean": statistics.fmean(lengths),
        "token_bytes_std": statistics.pstdev(lengths),
    }


def main(config: Config) -> None:
    check_at_least(1, max_chars=config.max_chars, doc_cap=config.doc_cap)
    started = time.perf_counter()
    tokenizer_class = pick_tokenizer_class(config.trainer)
    texts = Counter(text_iterator(config.data, "train", max_chars=config.max_chars, doc_cap=config.doc_cap))
    with stage_progress() as tell:
        tokenizer = tokenizer_class.train_from_iterator(
            texts, config.vocab_size, split_pattern(config.max_digits), on_progress=tell
        )
    seconds = time.perf_counter() - started
    check_round_trip(tokenizer)
    folder = get_base_dir() / "tokenizer"
    tokenizer.save(folder)

    stats = token_length_stats(tokenizer)
    print0(
        f"tokenizer: {tokenizer.get_vocab_size():,} tokens from {texts.characters:,} characters in "
        f"{texts.documents:,} documents ({config.data}), {seconds:.1f} s with {tokenizer.trainer} -> {folder}"
    )
    get_report().log("tok_train", {
        "config": asdict(config),
        "data": config.data,
        "seconds": seconds,
        "trainer": tokenizer.trainer,
        "vocab_size": tokenizer.get_vocab_size(),
        "documents": texts.documents,
        "characters": texts.characters,
        "fingerprint": tokenizer.fingerprint(),
        **stats,
    })


if __name__ == "__main__":
    configurator.main(main, Config)
