"""Files of text as documents, and documents as parquet shards: every way that a file can be broken has its message.

    txt, md   one document a file; a file longer than 32 768 characters is cut at the last blank line, newline or
              space before that, so that a single book is still many documents (`"".join(pieces)` is the file)
    jsonl     one document a line, from its "text"
    parquet   one document a row, from its column `text`

A row group's `text` is also known by its bytes in the file (`text_chunks`): their CRC-32 tells rot from text.

`dataset.py` uses it; there is nothing to run here. Not covered: encodings other than UTF-8, compressed text files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from nanochat.common import UserError
from nanochat.files import fsync_dir

FORMATS = ".txt, .md, .jsonl, .parquet"
CHUNK_CHARS = 32768
GROUP_ROWS, GROUP_CHARS = 1024, 1 << 20  # a row group of a converted shard ends at whichever comes first
SHARD_CHARS = 128 << 20


@dataclass(frozen=True)
class TextChunk:
    """The `text` of one row group: `rows` documents, `bytes` of text, and where it lies in the file (compressed)."""

    rows: int
    bytes: int
    offset: int
    length: int


def document_hash(text: str) -> str:
    """64 bits that stand for a document: which side of the split it is on must not depend on where it lies."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


# --------------------------------------------------------------------------- reading


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one file, empty ones left out. `UserError`s name the file and the place in it."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _parquet_documents(path)
        elif kind == ".jsonl":
            yield from _jsonl_documents(path)
        else:
            yield from split_long_text(_decode(path.read_bytes(), str(path)))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}): mend or remove it") from e


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 at byte {e.start} (0x{raw[e.start]:02x}): "
                        "convert it (iconv -f latin1 -t utf-8) or remove it") from None


def split_long_text(text: str, limit: int = CHUNK_CHARS) -> Iterator[str]:
    """Cut a long text near `limit` characters, at the best place before it. `"ab cd ef", 4 -> "ab ", "cd ", "ef"`."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        ends = (window.rfind(mark) + len(mark) for mark in ("\n\n", "\n", " ") if mark in window)
        end = next((e for e in ends if e > limit // 2), limit)  # a cut in the first half would only make crumbs
        yield window[:end]
        start += end
    if text[start:].strip():
        yield text[start:]


def _jsonl_documents(path: Path) -> Iterator[str]:
    with open(path, "rb") as f:
        for number, raw in enumerate(f, start=1):
            line = _decode(raw, f"{path}:{number}")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text = row["text"]
                text.encode("utf-8")  # JSON can spell half of a surrogate pair, which is no text
            except json.JSONDecodeError as e:
                raise UserError(f"{path}:{number}: not valid JSON ({e.msg}, column {e.colno})") from None
            except (KeyError, TypeError, AttributeError):
                raise UserError(f'{path}:{number}: not an object with a "text" string') from None
            except UnicodeEncodeError as e:
                raise UserError(f"{path}:{number}: text holds a lone surrogate (character {e.start})") from None
            except RecursionError:
                raise UserError(f"{path}:{number}: JSON nested too deeply") from None
            if text.strip():
                yield text


def open_parquet(path: Path) -> tuple[pq.FileMetaData, int]:
    """The footer of a parquet file and the index of its `text` column; a `UserError` says what is wrong with either."""
    try:
        with _open(path) as source, pq.ParquetFile(source) as f:
            metadata, schema = f.metadata, f.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as e:
        raise _broken(path, e) from e
    if "text" not in schema.names:
        raise UserError(f"{path}: no column named 'text' (it has {', '.join(schema.names[:8])}): rename the right one")
    kind = schema.field("text").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise UserError(f"{path}: column 'text' holds {kind}, not strings")
    columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return metadata, columns.index("text")


def text_chunks(metadata: pq.FileMetaData, column: int) -> list[TextChunk]:
    """Where the text of each row group lies, from what `open_parquet` returns."""
    chunks = []
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        chunk = group.column(column)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < start:
            start = chunk.dictionary_page_offset  # the dictionary stands before the pages that use it
        chunks.append(TextChunk(group.num_rows, chunk.total_uncompressed_size, start, chunk.total_compressed_size))
    return chunks


def row_group_texts(path: Path, row_group: int, crc32: int | None = None) -> list[str]:
    """The documents of one row group, null and empty ones left out.

    With `crc32` the bytes of the column are compared with it before they are decoded: bytes that have changed since
    it was taken are a `UserError`, never text.
    """
    try:
        with _open(path) as source, pq.ParquetFile(source) as f:  # one open file: what is checked is read
            if crc32 is not None:
                names = [f.metadata.schema.column(i).path for i in range(f.metadata.num_columns)]
                chunk = text_chunks(f.metadata, names.index("text"))[row_group]
                if zlib.crc32(source.read_at(chunk.length, chunk.offset)) != crc32:
                    raise UserError(f"{path}: row group {row_group} has changed since the file was checked (its CRC-32 "
                                    "differs): put the right file back, and look after the disk")
            column = f.read_row_group(row_group, columns=["text"]).column("text")
    except (pa.ArrowException, OSError, ValueError, IndexError) as e:
        raise _broken(path, e) from e
    try:
        return [text for text in column.to_pylist() if text]
    except UnicodeDecodeError:
        for row in range(len(column)):
            try:
                column[row].as_py()
            except UnicodeDecodeError as e:
                raise UserError(f"{path}: document {row} of row group {row_group} is not UTF-8 at byte {e.start}: "
                                "write the file again with clean text") from None
        raise


def _parquet_documents(path: Path) -> Iterator[str]:
    metadata, _ = open_parquet(path)
    for row_group in range(metadata.num_row_groups):
        yield from row_group_texts(path, row_group)


def _open(path: Path) -> pa.OSFile:
    return pa.OSFile(os.fsencode(path))  # as bytes: pyarrow cannot take a name that is not UTF-8 as text


def _broken(path: Path, e: Exception) -> UserError:
    reason = (str(e).splitlines() or [type(e).__name__])[0].rstrip(". ")
    return UserError(f"{path}: not a readable parquet file ({reason}): replace or remove it")


# --------------------------------------------------------------------------- writing


def write_shards(folder: Path, documents: Iterable[str], pinned: set[str], validation: Iterable[str] = (),
                 left_out: Collection[str] = ()) -> None:
    """`train-*.parquet` and `val-*.parquet` in `folder`.

    A document whose hash is pinned is validation text, once; so are all of `validation`, whatever their hashes. One
    whose hash is in `left_out` is validation text that stands elsewhere: it is not written.
    """
    train, val = _ShardWriter(folder, "train"), _ShardWriter(folder, "val")
    seen: set[str] = set()
    try:
        for text in validation:
            val.add(text)
        for text in documents:
            key = document_hash(text) if pinned or left_out else ""
            if key in pinned:
                if key not in seen:  # a copy that is added to the folder later must not weigh in twice
                    seen.add(key)
                    val.add(text)
            elif key not in left_out:
                train.add(text)
    finally:
        train.close()
        val.close()


class _ShardWriter:
    """Documents → row groups → shards."""

    SCHEMA = pa.schema([("text", pa.large_string())])

    def __init__(self, folder: Path, prefix: str):
        self.folder, self.prefix = folder, prefix
        self.texts: list[str] = []
        self.group_chars = self.shard_chars = self.shards = 0
        self.writer: pq.ParquetWriter | None = None

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.group_chars += len(text)
        if len(self.texts) >= GROUP_ROWS or self.group_chars >= GROUP_CHARS:
            self._flush()
        if self.shard_chars >= SHARD_CHARS:
            self.close()

    def _flush(self) -> None:
        if not self.texts:
            return
        if self.writer is None:
            path = self.folder / f"{self.prefix}-{self.shards:05d}.parquet"
            self.writer = pq.ParquetWriter(path, self.SCHEMA, compression="zstd")
            self.shards += 1
        self.writer.write_table(pa.table({"text": pa.array(self.texts, pa.large_string())}))
        self.shard_chars += self.group_chars
        self.texts, self.group_chars = [], 0

    def close(self) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()
        self.writer, self.shard_chars = None, 0


def build_once(final: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `final`, filled by `fill(temporary)`: whole or not there, made by one process while others wait."""
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{final}.lock"):
            if final.is_dir():
                return final
            for stale in final.parent.glob(f".{final.name}-*"):  # we hold the lock: these are of processes that died
                shutil.rmtree(stale, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
            try:
                fill(temporary)
                _make_durable(temporary)
                os.chmod(temporary, 0o755)
                os.replace(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            fsync_dir(final.parent)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left to make {final}: free some or set NANOCHAT_BASE_DIR to another disk") from e
        raise UserError(f"cannot make {final} ({e.strerror or e}): set NANOCHAT_BASE_DIR to a folder where you can "
                        "write") from e
    return final


def _make_durable(folder: Path) -> None:
    """Flush every file below `folder` to disk: a rename must not become visible before the bytes it promises."""
    for where, _, names in os.walk(folder):
        for name in names:
            fd = os.open(os.path.join(where, name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        fsync_dir(Path(where))
