"""How well the tokenizer compresses: bytes per token on validation text and on samples, beside GPT-2, GPT-4, GPT-4o.

    python -m scripts.tok_eval

The comparison needs the published ranks: from the folder `$NANOCHAT_TEST_DATA/tokenizer_vectors`, or from tiktoken's
cache. Nothing is downloaded; where they are not at hand, the table says so and shows ours alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import tiktoken
from rich.console import Console
from rich.table import Table

from nanochat import configurator
from nanochat.common import print0
from nanochat.dataset import text_iterator
from nanochat.report import get_report
from nanochat.tokenizer import RustBPETokenizer, byte_level_characters, get_tokenizer

Encode = Callable[[str], list[int]]
BLOBS = "https://openaipublic.blob.core.windows.net/"
# name -> tiktoken's name, its file in tokenizer_vectors/, the addresses under which tiktoken caches it
PUBLISHED = {
    "GPT-2": ("gpt2", "encoder.json", ["gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"]),
    "GPT-4": ("cl100k_base", "cl100k_base.tiktoken", ["encodings/cl100k_base.tiktoken"]),
    "GPT-4o": ("o200k_base", "o200k_base.tiktoken", ["encodings/o200k_base.tiktoken"]),
}

SAMPLES = {
    "English": "The ferry left at dawn. Nobody on deck had slept, and the harbour lights kept trembling on the water "
    "long after the town itself was gone. \"We'll be back by spring,\" she said, not quite believing it.",
    "code": "def running_mean(values, window=3):\n    total = 0.0\n    for i, value in enumerate(values):\n"
    "        total += value\n        if i >= window:\n            total -= values[i - window]\n"
    "        yield total / min(i + 1, window)\n",
    "numbers": "In 2024 the shop sold 1,482 lamps at 39.95 each, 17 % more than in 1998; order no. 00731945, "
    "tel. 555-0142. 3.14159265 * 2 ** 10 = 3216.99 and 12 / 60 = 0.2",
    "Cyrillic": "Утром над рекой стоял туман, и старый паром шёл медленно, почти на ощупь.",
    "Chinese": "清晨的河面上有雾，渡船走得很慢，船上的人都没有说话。",
    "Japanese": "朝の川には霧が出ていて、渡し船はゆっくりと進んでいった。",
    "Korean": "아침 강에는 안개가 끼어 있었고 나룻배는 천천히 움직였다.",
    "Arabic": "كان الضباب يغطي النهر في الصباح، وكانت العبّارة تسير ببطء.",
    "Hindi": "सुबह नदी पर कोहरा था और नाव धीरे-धीरे चल रही थी।",
    "emoji": "Well done 👏🏽! See you at the 🏖️ tomorrow 👩‍👧‍👦 🇵🇹 ❤️‍🔥",
}


@dataclass
class Config:
    """Measure the tokenizer's compression."""

    data: str = "pocket"
    """Where the validation text comes from: pocket, hub, or a folder."""
    max_chars: int = 1_000_000
    """Characters of validation text to measure on at most."""


def published_encoders() -> dict[str, Encode]:
    """The encoders of GPT-2, GPT-4 and GPT-4o whose files are at hand."""
    encoders: dict[str, Encode] = {}
    folder = Path(os.environ.get("NANOCHAT_TEST_DATA", "")) / "tokenizer_vectors"
    default_cache = Path(tempfile.gettempdir()) / "data-gym-cache"  # these are the places where tiktoken itself looks
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default_cache
    for name, (encoding, file, addresses) in PUBLISHED.items():
        cached = [Path(cache) / hashlib.sha1((BLOBS + address).encode("ascii")).hexdigest() for address in addresses]
        if all(path.is_file() for path in cached):
            encoders[name] = tiktoken.get_encoding(encoding).encode_ordinary
        elif (folder / file).is_file():
            encoders[name] = encoder_from_folder(folder, encoding, file)
    return encoders


def encoder_from_folder(folder: Path, encoding: str, file: str) -> Encode:
    """An encoder from published files in `folder`: GPT-2's encoder.json or base64 rank lines, and patterns.json."""
    text = (folder / file).read_text(encoding="utf-8")
    if file.endswith(".json"):
        byte_of = byte_level_characters()
        del (ids := json.loads(text))["<|endoftext|>"]
        ranks = {bytes(byte_of[c] for c in token): rank for token, rank in ids.items()}
    else:
        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in text.splitlines()}
    patterns = json.loads((folder / "patterns.json").read_text(encoding="utf-8"))
    pattern = patterns["r50k_base" if encoding == "gpt2" else encoding]
    return RustBPETokenizer(ranks, pattern, {}).encode


def measure(texts: dict[str, list[str]], encoders: dict[str, Encode]) -> dict[str, dict]:
    """`{text: {"bytes": 420, "tokens": {"ours": 105, "GPT-2": 98}}}`"""
    return {
        label: {
            "bytes": sum(len(part.encode("utf-8", "replace")) for part in parts),
            "tokens": {name: sum(len(encode(part)) for part in parts) for name, encode in encoders.items()},
        }
        for label, parts in texts.items()
    }


def comparison_table(results: dict[str, dict], names: list[str], title: str) -> Table:
    """One row a text: bytes per token of each tokenizer; of others also our tokens against theirs."""
    table = Table(title=title, caption="in brackets: tokens that ours needs, against theirs" if names[1:] else None)
    for column in ("text", "bytes", "tokens", *names):
        table.add_column(column, justify="left" if column == "text" else "right")
    for label, row in results.items():
        ours, cells = row["tokens"]["ours"], []
        for name in names:
            tokens = row["tokens"][name]
            more = "" if name == "ours" else f" ({ours / tokens - 1:+.0%})"
            cells.append(f"{row['bytes'] / tokens:.2f}{more}")
        table.add_row(label, f"{row['bytes']:,}", f"{ours:,}", *cells)
    return table


def main(config: Config) -> None:
    started = time.perf_counter()
    tokenizer = get_tokenizer()
    published = published_encoders()
    encoders: dict[str, Encode] = {"ours": tokenizer.encode, **published}
    validation = [text for text in text_iterator(config.data, "val", max_chars=config.max_chars) if text]
    texts = ({"validation": validation} if validation else {}) | {k: [v] for k, v in SAMPLES.items()}
    results = measure(texts, encoders)

    title = f"{tokenizer.get_vocab_size():,} tokens · {config.data} · bytes per token (higher is better)"
    Console().print(comparison_table(results, list(encoders), title))
    absent = [name for name in PUBLISHED if name not in published]
    if absent:
        print0(f"not compared with {', '.join(absent)}: the published ranks are not at hand, and nothing is downloaded")
    first = next(iter(results.values()))  # the validation text, if there is any
    get_report().log("tok_eval", {
        "config": asdict(config),
        "data": config.data,
        "seconds": time.perf_counter() - started,
        "vocab_size": tokenizer.get_vocab_size(),
        "validation_bytes_per_token": first["bytes"] / first["tokens"]["ours"] if validation else None,
        "compression": results,
        "not_compared_with": absent,
    })


if __name__ == "__main__":
    configurator.main(main, Config)
