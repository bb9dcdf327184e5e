"""Text to ids and back: byte-pair encoding, and the one rendering of conversations with their supervision mask.

Two classes differ only in who learns the merges: `RustBPETokenizer` (our crate `rustbpe`) and `HuggingFaceTokenizer`
(the `tokenizers` library, for machines without a Rust toolchain). Both encode single texts through tiktoken and many
at once through `rustbpe`, where it is built: the ids are the same (but see `_parts`). Both are saved in one format: a
directory with `tokenizer.tiktoken` (a line per token: base64 of its bytes, its rank) and `tokenizer_config.json` (split
pattern, special tokens, trainer, SHA-256). Ids: 0..255 the bytes, then the merges in the order they were learned, then
the special tokens.

Text from people or data is always encoded as ordinary text: typing `<|bos|>` never makes the special token.

Train one: `python -m scripts.tok_train`. Use it: `get_tokenizer().encode("hello")`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from nanochat.common import UserError, get_base_dir, print0
from nanochat.conversation import TURN_END, checked_messages, rendering
from nanochat.files import atomic_write

SPECIAL_TOKENS = [
    "<|bos|>",  # begins every document and conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the calculator ...
    "<|python_end|>",
    "<|output_start|>",  # ... which answers
    "<|output_end|>",
]
RANKS_FILE, CONFIG_FILE = "tokenizer.tiktoken", "tokenizer_config.json"


def split_pattern(max_digits: int = 2) -> str:
    """The GPT-4 style split pattern with digits in groups of 1 to `max_digits`.

    GPT-4 takes three; a small vocabulary spends its ids better on words: `split_pattern(2)` cuts "12345" to 12|34|5.
    """
    if not 1 <= max_digits <= 9:
        raise UserError(f"--max_digits={max_digits} is impossible: a group of digits has one to nine")
    digits = rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    )


SPLIT_PATTERN = split_pattern(2)

# tiktoken's regex engine panics inside a whitespace run of about a million characters (`\s+(?!\S)` backtracks over
# all of it). Any run of twice this length contains a whole block of this length at a multiple of it.
SPACE_BLOCK = 16_384


def _parts(text: str) -> list[str]:
    """`text` cut so that no part holds a whitespace run long enough to make tiktoken panic.

    Text without a whitespace run of 16 384 characters is never cut. Where `rustbpe` is built, text with one goes
    through that, uncut; else the tokens inside the run may differ, and the text still decodes to itself.
    """
    if len(text) < SPACE_BLOCK:
        return [text]
    parts: list[str] = []
    begin = 0
    for i in range(0, len(text) - SPACE_BLOCK + 1, SPACE_BLOCK):
        if text[i : i + SPACE_BLOCK].isspace():
            parts += [text[begin:i], text[i : i + SPACE_BLOCK]]
            begin = i + SPACE_BLOCK
    parts.append(text[begin:])
    return [part for part in parts if part]


def _refuse_one_string(texts: Iterable[str]) -> None:
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of str, not one str: wrap it in a list")


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, not {type(text).__name__}")
    return text


def _fingerprint(ranks_text: str, pattern: str, special_tokens: dict[str, int]) -> str:
    rest = json.dumps([pattern, sorted(special_tokens.items())])
    return hashlib.sha256((ranks_text + rest).encode("utf-8", errors="replace")).hexdigest()


def _check_vocabulary(ranks: dict[bytes, int], lines: int, pattern: Any, special: Any, trainer: Any) -> None:
    """A ValueError for what no training can have given, and what tiktoken would take, or panic at."""
    if not (isinstance(pattern, str) and isinstance(trainer, str) and len(pattern) <= 10_000):
        raise ValueError("its pattern and its trainer must be short texts")
    pattern.encode("utf-8")  # half a character is such an error
    if len(ranks) != lines or sorted(ranks.values()) != list(range(lines)) or b"" in ranks:
        raise ValueError("the ranks are not 0, 1, 2, ..., each of a token of its own")
    if any(bytes([b]) not in ranks for b in range(256)):
        raise ValueError("a byte has no token")
    ids = list(special.values())
    if any(type(id) is not int for id in ids) or sorted(ids) != list(range(lines, lines + len(ids))):
        raise ValueError("the ids of the special tokens are not those after the ranks")
    if "<|bos|>" not in special:
        raise ValueError("there is no <|bos|>")


def _valid_unicode(text: str) -> str:
    r"""Lone surrogates (JSON's "\ud800") have no UTF-8: each becomes U+FFFD, as in tiktoken's encoder."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------------------------------------------- tokenizer


OnProgress = Callable[[str, int, "int | None"], None]


class EncodedBatch(NamedTuple):
    """Text i has the ids `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray  # uint16 for vocabularies of up to 65 536 tokens, else uint32
    offsets: np.ndarray  # (texts + 1,) int64

    def rows(self) -> list[np.ndarray]:
        """The ids of each text, as views."""
        bounds = self.offsets.tolist()
        return [self.ids[begin:end] for begin, end in zip(bounds, bounds[1:])]


class Rendered(NamedTuple):
    """A conversation as tokens."""

    ids: np.ndarray  # (n,) as in EncodedBatch
    mask: np.ndarray  # (n,) bool: what the model learns to say
    turns: list[int]  # how many ids there are up to the end of each assistant message


class RustBPETokenizer:
    """A byte-pair-encoding tokenizer with chat special tokens; its merges are learned by `rustbpe`."""

    trainer_name = "rust"

    def __init__(self, ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int], trainer: str = ""):
        """`ranks`: token bytes -> id, dense from 0; `special_tokens`: name -> id. Most callers want a classmethod."""
        self.pattern = pattern
        self.trainer = trainer or self.trainer_name
        self._ranks = sorted(ranks.items(), key=lambda item: item[1])
        self._special = dict(special_tokens)
        self._own_fingerprint = ""
        self._encoding = tiktoken.Encoding(
            "nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self._special
        )

    @classmethod
    def train_from_iterator(
        cls, texts: Iterable[str], vocab_size: int, pattern: str = SPLIT_PATTERN, on_progress: OnProgress | None = None
    ) -> RustBPETokenizer:
        """Learn a vocabulary of `vocab_size` ids in all, special tokens included, from texts read once.

        A corpus with fewer distinct pairs than that gives a smaller vocabulary and a warning. `on_progress(stage, done,
        total)` hears ten times a second how far it is: ("counting", words, None), then ("merging", merges, wanted).
        (`HuggingFaceTokenizer` does not call it: given one, that library shows bars of its own at a terminal.)
        """
        _refuse_one_string(texts)
        num_ranks = vocab_size - len(SPECIAL_TOKENS)
        if num_ranks < 256:
            least = 256 + len(SPECIAL_TOKENS)
            raise UserError(f"--vocab_size={vocab_size} is too small: the bytes and special tokens alone need {least}")
        if vocab_size > 2**31:
            raise UserError(f"--vocab_size={vocab_size} is too large: ids have 31 bits")
        ranks = cls._learn(texts, num_ranks, pattern, on_progress)
        return cls(ranks, pattern, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})

    @staticmethod
    def _learn(
        texts: Iterable[str], num_ranks: int, pattern: str, on_progress: OnProgress | None
    ) -> dict[bytes, int]:
        trainer = _rust_tokenizer()
        if trainer is None:
            raise UserError(
                "rustbpe is not built: `maturin develop --release -m rustbpe/Cargo.toml`, or use --trainer=huggingface"
            )
        tokenizer = trainer()
        tokenizer.train_from_iterator(texts, num_ranks, pattern=pattern, progress=on_progress)
        return dict(tokenizer.get_mergeable_ranks())

    # ------------------------------------------------------------------------------------------- save and load

    def _ranks_text(self) -> str:
        return "".join(f"{base64.b64encode(token).decode('ascii')} {rank}\n" for token, rank in self._ranks)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over ranks, pattern and special tokens: equal fingerprints encode alike (but see `_parts`)."""
        if not self._own_fingerprint:  # every save of a checkpoint asks for it; nothing of it ever changes
            self._own_fingerprint = _fingerprint(self._ranks_text(), self.pattern, self._special)
        return self._own_fingerprint

    def files(self) -> dict[str, bytes]:
        """The two files of the format; the config, which comes last, makes them valid."""
        config = {
            "pattern": self.pattern,
            "special_tokens": self._special,
            "trainer": self.trainer,
            "sha256": self.fingerprint(),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return {RANKS_FILE: self._ranks_text().encode("utf-8"), CONFIG_FILE: text.encode("utf-8")}

    def save(self, directory: str | Path) -> None:
        """Write them into `directory`."""
        for name, content in self.files().items():
            atomic_write(Path(directory) / name, content)

    @classmethod
    def from_directory(cls, directory: str | Path) -> RustBPETokenizer:
        """Load what `save` wrote, whichever trainer made it; refuse it when its hash does not match."""
        ranks_file, config_file = Path(directory) / RANKS_FILE, Path(directory) / CONFIG_FILE
        for path in (ranks_file, config_file):
            if not path.is_file():
                raise UserError(f"no tokenizer here: {path} is missing; run python -m scripts.tok_train")
        remedy = "restore the folder or train the tokenizer again"
        try:
            config = json.loads(config_file.read_bytes())
            pattern, special = config["pattern"], config["special_tokens"]
            ranks_text = ranks_file.read_bytes().decode("ascii", errors="replace")
            intact = _fingerprint(ranks_text, pattern, special) == config["sha256"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f"{config_file} is damaged: {remedy}") from e
        if not intact:
            raise UserError(f"{ranks_file} does not match the sha256 in {CONFIG_FILE}, one was changed: {remedy}")
        try:
            ranks, trainer = ranks_of_lines(ranks_text), config.get("trainer", "")
            _check_vocabulary(ranks, len(ranks_text.splitlines()), pattern, special, trainer)
            return cls(ranks, pattern, special, trainer)
        except ValueError as e:  # also what tiktoken says of a pattern
            raise UserError(f"{directory} holds no tokenizer of ours ({str(e)[:200]}): {remedy}") from e

    # --------------------------------------------------------------------------------------------- vocabulary

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._ranks) + len(self._special)

    def get_special_tokens(self) -> list[str]:
        """Names of the special tokens, in the order of their ids."""
        return sorted(self._special, key=self._special.__getitem__)

    def encode_special(self, name: str) -> int:
        """Id of a special token: `encode_special("<|bos|>")`. KeyError for any other text."""
        return self._special[name]

    def get_bos_token_id(self) -> int:
        """Id of `<|bos|>`."""
        return self._special["<|bos|>"]

    def id_to_token(self, id: int) -> str:
        """The text of one id (bytes that are no whole character show as U+FFFD)."""
        return self.decode([id])

    def token_bytes(self) -> list[int]:
        """Length of every id in raw bytes, 0 for special tokens: the denominators of bits per byte.

        Lengths come from the bytes themselves: half a character decoded to text would count as three (U+FFFD).
        """
        return [len(token) for token, _ in self._ranks] + [0] * len(self._special)

    # --------------------------------------------------------------------------------------- encode and decode

    def encode(
        self,
        text: str | list[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 0,
    ) -> list[int] | list[list[int]]:
        """Ids of one text, or of each text of a list (on `num_threads` threads, 0: all cores). The text is ordinary
        text always.

        `prepend` and `append`: an id or the name of a special token, put before and after every text.
        `encode("hi", prepend="<|bos|>") -> [65527, 5303]`
        """
        before = [] if prepend is None else [self._id_of(prepend)]
        after = [] if append is None else [self._id_of(append)]
        if isinstance(text, str):
            return before + self._encode_ordinary(text) + after
        return [before + row.tolist() + after for row in self.encode_batch(text, num_threads).rows()]

    __call__ = encode

    def _id_of(self, token: int | str) -> int:
        return self.encode_special(token) if isinstance(token, str) else int(token)

    def _encode_ordinary(self, text: str) -> list[int]:
        parts = _parts(text)
        if len(parts) > 1 and self._bulk is not None:
            return self._bulk.encode(text)  # which needs no cuts
        ids: list[int] = []
        for part in parts:
            ids += self._encoding.encode_ordinary(part)
        return ids

    @cached_property
    def _bulk(self) -> Any:
        """This vocabulary in `rustbpe`, None where that is not built."""
        tokenizer = _rust_tokenizer()
        if tokenizer is None:
            return None
        try:
            return tokenizer.from_ranks(self._ranks, self.pattern)
        except ValueError as e:
            raise UserError(f"rustbpe refuses this vocabulary, which no training can have given: {e}") from e

    def __getstate__(self) -> dict:
        """Without `_bulk`, which is no Python object: a copy, or another process, makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_bulk"}

    def encode_batch(self, texts: Sequence[str], num_threads: int = 0) -> EncodedBatch:
        """Ids of many texts in one flat array, without a Python object per token; `num_threads` 0: all cores.

        Where `rustbpe` is not built, tiktoken does it.

        `encode_batch(["ab", "", "c"])` -> ids [97, 98, 99] uint16, offsets [0, 2, 2, 3]
        """
        _refuse_one_string(texts)
        dtype = np.uint16 if self.get_vocab_size() <= 2**16 else np.uint32
        if self._bulk is not None:
            ids, offsets = self._bulk.encode_batch(texts, num_threads=num_threads)
            ids = np.frombuffer(ids, np.uint16 if len(self._ranks) <= 2**16 else np.uint32)
            return EncodedBatch(ids.astype(dtype, copy=False), np.frombuffer(offsets, np.int64))
        pieces, lengths = [np.zeros(0, dtype)], [0]
        texts, threads = list(texts), num_threads or os.cpu_count() or 1
        for begin in range(0, len(texts), 256):  # so that few lists of Python integers live at once
            parts = [_parts(_checked(text)) for text in texts[begin : begin + 256]]
            flat = [part for one in parts for part in one]
            if threads == 1:  # tiktoken would start a thread even for one
                encoded = iter(map(self._encoding.encode_ordinary, flat))
            else:
                encoded = iter(self._encoding.encode_ordinary_batch(flat, num_threads=threads))
            for one in parts:
                rows = [np.asarray(next(encoded), dtype) for _ in one]
                pieces += rows
                lengths.append(sum(map(len, rows)))
        return EncodedBatch(np.concatenate(pieces), np.cumsum(lengths, dtype=np.int64))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. Special tokens show as their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of ids, exactly: what a streaming reader needs to cut at whole characters."""
        return self._encoding.decode_bytes(ids)

    # -------------------------------------------------------------------------------------------- conversations

    def render_conversation(self, conversation: dict, max_tokens: int | None = 2048) -> tuple[list[int], list[int]]:
        """`(ids, mask)` of a conversation, cut after `max_tokens` (None: never); mask 1: what the model learns to say.

        The layout and what is learned of it stand in conversation.py.
        """
        ids: list[int] = []
        mask: list[int] = []
        for is_text, value, learned in rendering(conversation):
            tokens = self._encode_ordinary(value) if is_text else [self._special[value]]
            ids += tokens
            mask += [learned] * len(tokens)
        return ids[:max_tokens], mask[:max_tokens]

    def render_conversations(self, rows: Iterable[Any], num_threads: int = 0) -> list[Rendered | UserError]:
        """Many conversations whole, with one `encode_batch`: the ids and masks that they have one by one, much faster.

        A row that cannot be rendered is answered with its error, and so is an error that stands for a row already;
        the others are what they would be without it.
        """
        answers: list[Any] = []
        for row in rows:
            try:
                answers.append(row if isinstance(row, UserError) else rendering(row))
            except UserError as e:
                answers.append(e)
        parts = [part for plan in answers if isinstance(plan, list) for part in plan]
        encoded = self.encode_batch([value for is_text, value, _ in parts if is_text], num_threads)
        text_part = np.fromiter((is_text for is_text, _, _ in parts), bool, len(parts))
        size = np.ones(len(parts), np.int64)
        size[text_part] = np.diff(encoded.offsets)
        ends = np.cumsum(size)  # of the parts, laid end to end
        in_text = np.repeat(text_part, size)
        ids = np.empty(len(in_text), encoded.ids.dtype)
        ids[in_text] = encoded.ids  # the texts are in order, so their ids are, too
        ids[~in_text] = [self._special[value] for is_text, value, _ in parts if not is_text]
        mask = np.repeat(np.fromiter((learned for _, _, learned in parts), bool, len(parts)), size)
        first = begin = 0
        for i, plan in enumerate(answers):
            if isinstance(plan, list):
                part_ends = ends[first : first + len(plan)].tolist()
                turns = [end - begin for end, part in zip(part_ends, plan) if part[1] == TURN_END and not part[0]]
                answers[i] = Rendered(ids[begin : part_ends[-1]], mask[begin : part_ends[-1]], turns)
                first, begin = first + len(plan), part_ends[-1]
        return answers

    def render_for_completion(self, conversation: dict) -> list[int]:
        """Ids that ask for the last assistant message: it is dropped, the ids end with <|assistant_start|>."""
        turns = checked_messages(conversation)
        if turns[-1][0] == "assistant":
            turns = turns[:-1]
        messages = [{"role": role, "content": content} for role, content in turns]
        ids, _ = self.render_conversation({"messages": messages}, max_tokens=None)
        return [*ids, self._special["<|assistant_start|>"]]

    def visualize_tokenization(self, ids: Sequence[int], mask: Sequence[int], with_token_id: bool = False) -> str:
        """The tokens for a terminal, apart by `|`: green where the mask is 1, red where it is 0."""
        shown = []
        for id, supervised in zip(ids, mask, strict=True):
            number = f"\033[90m({id})\033[0m" if with_token_id else ""
            shown.append(f"\033[{92 if supervised else 91}m{self.id_to_token(id)}\033[0m{number}")
        return "|".join(shown)


class HuggingFaceTokenizer(RustBPETokenizer):
    """The same tokenizer, its merges learned by the `tokenizers` library: slower, but it needs no Rust toolchain."""

    trainer_name = "huggingface"

    @staticmethod
    def _learn(
        texts: Iterable[str], num_ranks: int, pattern: str, on_progress: OnProgress | None
    ) -> dict[bytes, int]:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        bar = on_progress is not None and sys.stderr.isatty()  # the library has one of its own
        trainer = trainers.BpeTrainer(vocab_size=num_ranks, show_progress=bar, initial_alphabet=alphabet)
        # cut at huge runs of whitespace: the library's time grows with the square of a word's length
        trained.train_from_iterator((part for text in texts for part in _parts(_valid_unicode(text))), trainer)
        # The library writes each byte as a printable character, in an order of its own; we give the bytes 0..255.
        byte_of = byte_level_characters()
        ranks = {bytes([b]): b for b in range(256)}
        for left, right in json.loads(trained.to_str())["model"]["merges"]:
            ranks.setdefault(bytes(byte_of[c] for c in left + right), len(ranks))
        if len(ranks) < num_ranks:
            warnings.warn(
                f"the corpus holds too few distinct pairs: {len(ranks) - 256} merges learned instead of "
                f"{num_ranks - 256}, the vocabulary is smaller than asked",
                stacklevel=3,
            )
        return ranks


def byte_level_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins: character -> byte. Visible Latin-1 stands for itself, the others follow from 256."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


# ------------------------------------------------------------------------------------------------- which one, where


def _rust_tokenizer() -> Any:
    """The class `rustbpe.Tokenizer`, None where there was no Rust toolchain to build it."""
    try:
        from rustbpe import Tokenizer  # not `import rustbpe`: the source folder alone would satisfy that
    except ImportError:
        return None
    if not hasattr(Tokenizer, "from_ranks"):
        raise UserError("the installed rustbpe is not the one of this source: bash dev/setup.sh builds it; without a "
                        "Rust toolchain, pip uninstall rustbpe")
    return Tokenizer


def ranks_of_lines(text: str) -> dict[bytes, int]:
    """Token bytes -> rank, from lines of base64 and a number: tiktoken's text format, which is ours too."""
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, text.splitlines())}


def pick_tokenizer_class(trainer: str = "auto") -> type[RustBPETokenizer]:
    """The class for `trainer`: "rust", "huggingface", or "auto" = rust where it is built (a printed line where not)."""
    if trainer == "auto":
        if _rust_tokenizer() is None:
            print0("rustbpe is not built: the tokenizer trains through HuggingFace tokenizers (same format, slower)")
            return HuggingFaceTokenizer
        return RustBPETokenizer
    classes = {"rust": RustBPETokenizer, "huggingface": HuggingFaceTokenizer}
    if trainer not in classes:
        raise UserError(f"--trainer={trainer} is unknown: choose auto, rust or huggingface")
    return classes[trainer]


def get_tokenizer() -> RustBPETokenizer:
    """The tokenizer that `scripts.tok_train` left under the base directory."""
    return RustBPETokenizer.from_directory(get_base_dir() / "tokenizer")


def get_token_bytes(device: str = "cpu"):
    """`get_tokenizer().token_bytes()` as an int64 tensor (vocab_size,) on `device`."""
    import torch

    return torch.tensor(get_tokenizer().token_bytes(), dtype=torch.int64, device=device)
