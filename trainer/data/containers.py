"""Samples out of files: whatever the compression and the container, one stream with bounded memory.

What a file is, its first bytes say, not its name. A file that cannot be read is one DataError
that names the file and the place; a single bad *sample* is not this module's business.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer.data import json_blocks
from trainer.data.json_blocks import Block, Passage
from trainer.data.json_stream import Sample, is_json, read_lines, read_values
from trainer.errors import DataError, NotReady

_CHUNK = 1 << 19
_PACKED_CHUNK = 1 << 16  # zstd unpacks all it is given at once, so it is given less
_PARQUET_ROWS = 256
_PARQUET_COLUMNS = ("id", "conversations", "conversation", "messages", "instruction", "input", "output")

_INSTALL = "pip install 'vlaunch[data]'"
_SEND_AGAIN = "the file may be cut off or damaged: copy it again, or pack it again from its source"
_ACCEPTED = "a corpus is ShareGPT, OpenAI messages or Alpaca: .json, .jsonl or .parquet, plain, .gz or .zst"


@dataclass(frozen=True, slots=True)
class Container:
    """What a file's first bytes say. kind: json jsonl parquet empty; compression: "" gzip zstd."""

    kind: str
    compression: str


def inspect_file(path: Path) -> Container:
    """What the file is. Reads about a chunk. Raises DataError if it is nothing known."""
    with _reading(path):
        with path.open("rb") as file:
            compression = _compression(file.read(4))
        head = b""
        for chunk in _chunks(path, compression):
            head += chunk
            if len(head) >= _CHUNK:
                break
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        hint = f"iconv -f UTF-16 -t UTF-8 {path} > utf8.json"
        raise DataError(f"{path}: the text is UTF-16; expected UTF-8", hint=hint)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return Container(_kind(path, start, line=head.count(b"\n", 0, len(head) - len(start)) + 1), compression)


def read_samples(
    path: Path,
    container: Container,
    *,
    largest: int | None = None,
    moved: Callable[[int], None] | None = None,
) -> Iterator[Sample]:
    """The samples in file order. Raises DataError where the file is broken.

    largest: bytes of a line; a longer one is passed over in bounded memory and comes as `Unreadable`. In a JSON
        array a larger sample is a DataError, as its end cannot be found without reading it.
    moved: told how many bytes of the file have been read.
    """
    if container.kind == "empty":
        return
    with _reading(path):
        if container.kind == "parquet":
            yield from _read_parquet(path, container.compression, moved)
        elif container.kind == "jsonl":
            yield from read_lines(path, _chunks(path, container.compression, moved), largest)
        else:
            yield from read_values(path, _chunks(path, container.compression, moved), largest)


def read_blocks(
    path: Path, container: Container, *, largest: int, moved: Callable[[int], None] | None = None
) -> Iterator[Block | Passage | Sample]:
    """As `read_samples`, but JSON comes undecoded, in blocks of many samples, wherever that can be."""
    if container.kind in ("json", "jsonl"):
        with _reading(path):
            chunks = _chunks(path, container.compression, moved)
            plain = not container.compression
            yield from json_blocks.read_blocks(path, container.kind, chunks, largest, plain)
    else:
        yield from read_samples(path, container, largest=largest, moved=moved)


def _kind(path: Path, start: bytes, line: int) -> str:
    if not start:
        return "empty"
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        # A first line that is a whole value, or too long to be one of a pretty-printed object.
        first, newline, _ = start.partition(b"\n")
        return "jsonl" if not newline or is_json(first) else "json"
    shown = start[:20].decode("utf-8", "backslashreplace")
    raise DataError(
        f"{path}: line {line}, column 1: expected '[' or '{{' (JSON) or Parquet, found {shown!r}",
        hint=_ACCEPTED,
    )


def _compression(magic: bytes) -> str:
    if magic.startswith(b"\x1f\x8b"):
        return "gzip"
    return "zstd" if magic == b"\x28\xb5\x2f\xfd" else ""


def _chunks(path: Path, compression: str, moved: Callable[[int], None] | None = None) -> Iterator[bytes]:
    with path.open("rb") as file:
        source = gzip.GzipFile(fileobj=file) if compression == "gzip" else file
        plain = iter(lambda: source.read(_CHUNK), b"")
        for chunk in _unzstd(path, file) if compression == "zstd" else plain:
            yield chunk
            if moved:
                moved(file.tell())


def _unzstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    # Not zstandard.open: its reader takes a file that is cut off for a file that ends.
    try:
        import zstandard
    except ImportError as error:
        raise NotReady(f"{path} is compressed with zstd, which needs zstandard", hint=_INSTALL) from error
    frame = None
    try:
        while packed := file.read(_PACKED_CHUNK):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(packed)
                packed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: the zstd data is broken: {error}", hint=_SEND_AGAIN) from error
    if frame is not None:
        raise DataError(f"{path}: the zstd data ends in the middle of a frame", hint=_SEND_AGAIN)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what the system and gzip raise into one sentence about the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip data is broken: {error}", hint=_SEND_AGAIN) from error
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "check the path and its permissions"
        raise DataError(f"{path} cannot be read: {reason}", hint=hint) from error


def _read_parquet(
    path: Path, compression: str, moved: Callable[[int], None] | None = None
) -> Iterator[Sample]:
    if compression:
        unpack = "gunzip" if compression == "gzip" else "unzstd"
        raise DataError(
            f"{path}: Parquet inside {compression} cannot be read as a stream",
            hint=f"unpack it first: {unpack} {path}",
        )
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise NotReady(f"{path} is Parquet, which needs pyarrow", hint=_INSTALL) from error
    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            columns = [name for name in names if name in _PARQUET_COLUMNS] or names
            row, rows, size = 0, file.metadata.num_rows, path.stat().st_size
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    yield Sample(f"row {row}", value)
                if moved:
                    moved(size * row // (rows or 1))
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: the Parquet file is broken: {first}", hint=_SEND_AGAIN) from error
