"""How well the tokenizer compresses: bytes per token on validation text and on samples, beside GPT-2, GPT-4, GPT-4o.

    python -m scripts.tok_eval                  # validation text of the pocket world
    python -m scripts.tok_eval --data=FOLDER    # of your own text

Prints a table and leaves it, with a picture, for the report card. The comparison needs the published ranks: from the
folder `$NANOCHAT_TEST_DATA/tokenizer_vectors`, or from tiktoken's cache. Nothing is downloaded; one whose files are
not at hand, or not as they were published, is said to be absent. The samples (`nanochat/sample_texts.py`) are for
comparing tokenizers only.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tiktoken
from rich.console import Console
from rich.table import Table

from nanochat import configurator
from nanochat.common import check_at_least, print0
from nanochat.dataset import text_iterator
from nanochat.report import get_report
from nanochat.report_render import table_cells
from nanochat.sample_texts import SAMPLES
from nanochat.tokenizer import RustBPETokenizer, byte_level_characters, get_tokenizer, ranks_of_lines

BLOBS = "https://openaipublic.blob.core.windows.net/"  # tiktoken names the files of its cache after these addresses


@dataclass(frozen=True)
class Published:
    """A tokenizer that others have published: where its files lie, and what they must hold."""

    encoding: str
    """Its name in tiktoken."""
    file: str
    """Its ranks in tokenizer_vectors/."""
    sha256: dict[str, str]
    """Address below `BLOBS` -> hash, of all files that tiktoken reads; the last is `file`."""


PUBLISHED = {
    "GPT-2": Published("gpt2", "encoder.json", {
        "gpt-2/encodings/main/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "gpt-2/encodings/main/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"}),
    "GPT-4": Published("cl100k_base", "cl100k_base.tiktoken", {
        "encodings/cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"}),
    "GPT-4o": Published("o200k_base", "o200k_base.tiktoken", {
        "encodings/o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"}),
}


@dataclass
class Config:
    """Measure the tokenizer's compression."""

    data: str = "pocket"
    """Where the validation text comes from: pocket, fineweb-edu, hub:OWNER/NAME, or a folder."""
    max_chars: int = 1_000_000
    """Characters of validation text to measure on at most."""


# --------------------------------------------------------------------------- the published tokenizers


def published_tokenizers() -> dict[str, RustBPETokenizer]:
    """The tokenizers of GPT-2, GPT-4 and GPT-4o whose files are at hand, each with its own split pattern."""
    test_data = os.environ.get("NANOCHAT_TEST_DATA")
    folder = Path(test_data) / "tokenizer_vectors" if test_data else None
    found = {}
    for name, one in PUBLISHED.items():
        if folder and (folder / "patterns.json").is_file() and _holds(folder / one.file, list(one.sha256.values())[-1]):
            found[name] = encoder_from_folder(folder, one.encoding, one.file)
        elif _is_cached(one):
            encoding = tiktoken.get_encoding(one.encoding)  # tiktoken has no public name for ranks and pattern
            found[name] = RustBPETokenizer(encoding._mergeable_ranks, encoding._pat_str, {})
    return found


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _is_cached(one: Published) -> bool:
    """Whether tiktoken has all of its files. Hashes too: what is damaged it would delete and download again."""
    default = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    # "" turns its cache off
    return bool(cache) and all(
        _holds(Path(cache) / hashlib.sha1((BLOBS + address).encode("ascii")).hexdigest(), sha256)
        for address, sha256 in one.sha256.items()
    )


def encoder_from_folder(folder: Path, encoding: str, file: str) -> RustBPETokenizer:
    """The tokenizer of published files in `folder`: GPT-2's encoder.json or base64 rank lines, and patterns.json."""
    text = (folder / file).read_text(encoding="utf-8")
    if file.endswith(".json"):
        byte_of = byte_level_characters()
        del (ids := json.loads(text))["<|endoftext|>"]
        ranks = {bytes(byte_of[c] for c in token): rank for token, rank in ids.items()}
    else:
        ranks = ranks_of_lines(text)
    patterns = json.loads((folder / "patterns.json").read_text(encoding="utf-8"))
    return RustBPETokenizer(ranks, patterns["r50k_base" if encoding == "gpt2" else encoding], {})


# --------------------------------------------------------------------------- measuring, showing


def measure(texts: dict[str, list[str]], tokenizers: dict[str, RustBPETokenizer]) -> dict[str, dict]:
    """`{text: {"bytes": 420, "tokens": {"ours": 105, "GPT-2": 98}}}`; bytes are those of UTF-8.

    Every tokenizer must give the bytes back: a count of tokens that lost something would be no compression.
    """
    results = {}
    for label, parts in texts.items():
        raw, tokens = [part.encode("utf-8") for part in parts], {}
        for name, tokenizer in tokenizers.items():
            encoded = tokenizer.encode_batch(parts)
            if [tokenizer.decode_bytes(ids.tolist()) for ids in encoded.rows()] != raw:
                raise RuntimeError(f"the tokenizer {name} does not give the text {label!r} back")
            tokens[name] = len(encoded.ids)
        results[label] = {"bytes": sum(map(len, raw)), "tokens": tokens}
    return results


def comparison_table(results: dict[str, dict], title: str, notes: list[str]) -> dict:
    """A table for the report card: a row a text; bytes per token of ours, of each other, and the difference.

    4.0 of ours beside 3.2 of theirs is "+25.0%": a token of ours holds a quarter more.
    """
    others = [name for name in next(iter(results.values()))["tokens"] if name != "ours"]
    columns = {"text": "", "bytes": ",", "ours": ".2f"}
    for name in others:
        columns |= {name: ".2f", f"vs {name}": "+.1%"}
    rows = []
    for label, row in results.items():
        ours, cells = row["tokens"]["ours"], []
        for name in others:
            cells += [row["bytes"] / row["tokens"][name], row["tokens"][name] / ours - 1]
        rows.append([label, row["bytes"], row["bytes"] / ours, *cells])
    return {"title": title, "columns": columns, "rows": rows, "note": " ".join(notes)}


def comparison_bars(results: dict[str, dict], title: str) -> dict:
    """The same figures as a picture for the report card."""
    names = next(iter(results.values()))["tokens"]
    series = {name: [row["bytes"] / row["tokens"][name] for row in results.values()] for name in names}
    return {"title": title, "unit": "bytes per token", "groups": list(results), "series": series}


def print_table(record: dict) -> None:
    """The table on the terminal, narrow enough for 80 columns."""
    table = Table(title=record["title"], box=None, pad_edge=False, padding=(0, 0, 0, 1))
    for name, spec in record["columns"].items():
        table.add_column(name, justify="right" if spec else "left")
    for row in table_cells(record):
        table.add_row(*row)
    Console().print(table)


def reading_notes(tokenizers: dict[str, RustBPETokenizer], absent: list[str]) -> list[str]:
    """What one must know to read the table: the sizes, what "vs" is, who is missing, what cannot be compared."""
    sizes = {name: one.get_vocab_size() - len(one.get_special_tokens()) for name, one in tokenizers.items()}
    notes = ["Vocabularies without special tokens: " + ", ".join(f"{k} {v:,}" for k, v in sizes.items()) + "."]
    if len(sizes) > 1:
        notes.append("vs: how much more text a token of ours holds than one of theirs.")
    if absent:
        missing = f"not compared with {', '.join(absent)}"
        notes.append(f"Absent: {missing}; neither tiktoken's cache nor $NANOCHAT_TEST_DATA has their ranks.")
    notes.append("Compare within a row only: in UTF-8 a Latin letter is one byte, other letters are two to four.")
    notes.append("The samples are short and made to compare tokenizers, nothing else.")
    return notes


def main(config: Config) -> None:
    check_at_least(1, max_chars=config.max_chars)
    started = time.perf_counter()
    tokenizer = get_tokenizer()
    published = published_tokenizers()
    tokenizers = {"ours": tokenizer, **published}
    absent = [name for name in PUBLISHED if name not in published]
    validation = [text for text in text_iterator(config.data, "val", max_chars=config.max_chars) if text]
    texts = ({"validation": validation} if validation else {}) | {name: [text] for name, text in SAMPLES.items()}
    results = measure(texts, tokenizers)

    pocket = " (pocket)" if config.data == "pocket" else ""
    shown = {label + pocket if label == "validation" else label: row for label, row in results.items()}
    title, notes = "bytes per token, more is better", reading_notes(tokenizers, absent)
    table = comparison_table(shown, title, notes)
    print_table(table)
    print0("\n".join(notes))
    own = results.get("validation")
    get_report().log("tok_eval", {
        "config": asdict(config),
        "data": config.data,
        "seconds": time.perf_counter() - started,
        "vocab_size": tokenizer.get_vocab_size(),
        "validation_bytes_per_token": own["bytes"] / own["tokens"]["ours"] if own else None,
        "compression": results,
        "not_compared_with": absent,
        "compression_table": table,
        "compression_bars": comparison_bars(shown, title),
    })


if __name__ == "__main__":
    configurator.main(main, Config)
