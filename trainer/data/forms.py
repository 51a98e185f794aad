"""One conversation -> one line of JSON, in the form asked for, and files of such lines in any container.

    sharegpt  {"id": ..., "conversations": [{"from": "human", "value": ...}, ...]}
    openai    {"id": ..., "messages": [{"role": "user", "content": ...}, ...]}
    alpaca    {"id": ..., "instruction": ..., "input": "", "output": ...}    one round without a system turn only

The container is the name's: .json .jsonl .parquet, the first two also with .gz or .zst. Bytes are the same every
time: no time, no name and no thread count goes into a compressed file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from trainer.conversation import ASSISTANT, SYSTEM, USER, Conversation
from trainer.errors import DataError, NotReady, UsageError

INSTALL = "pip install 'vlaunch[data]'"
CONTAINERS = (".jsonl", ".json", ".parquet")
_SHAREGPT = {USER: "human", ASSISTANT: "gpt", SYSTEM: "system"}
_ROWS = 1024  # of a Parquet row group

Told = Callable[[memoryview], object]


def sharegpt(conversation: Conversation) -> dict[str, Any]:
    turns = [{"from": _SHAREGPT[turn.role], "value": turn.text} for turn in conversation.turns]
    return {"id": conversation.id, "conversations": turns}


def openai(conversation: Conversation) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    return {"id": conversation.id, "messages": turns}


def alpaca(conversation: Conversation) -> dict[str, Any]:
    roles = [turn.role for turn in conversation.turns]
    if roles != [USER, ASSISTANT]:
        raise DataError(
            f"conversation {conversation.id!r} is not one question and one answer, which is all that Alpaca holds",
            hint="write --form sharegpt or --form openai",
        )
    question, answer = conversation.turns
    return {"id": conversation.id, "instruction": question.text, "input": "", "output": answer.text}


FORMS: dict[str, Callable[[Conversation], dict[str, Any]]] = {
    "sharegpt": sharegpt,
    "openai": openai,
    "alpaca": alpaca,
}


def encoder() -> Callable[[Any], bytes]:
    """A value -> compact JSON in UTF-8 without a line end."""
    try:
        import orjson
    except ImportError as error:
        raise NotReady("preparing a corpus needs orjson", hint=INSTALL) from error
    return cast(Callable[[Any], bytes], orjson.dumps)


def check_output(path: Path) -> None:
    """Raises UsageError for a name that no container has, before any work is done."""
    container, compression = split_name(path)
    if container not in CONTAINERS or (container == ".parquet" and compression):
        raise UsageError(
            f"{path.name}: the name does not say what to write",
            hint="end it in .jsonl, .json (each also with .gz or .zst) or .parquet",
        )


def split_name(path: Path) -> tuple[str, str]:
    """("a.jsonl.zst") -> (".jsonl", ".zst")."""
    suffix = path.suffix.lower()
    if suffix in (".gz", ".zst"):
        return path.with_suffix("").suffix.lower().replace(".ndjson", ".jsonl"), suffix
    return suffix.replace(".ndjson", ".jsonl"), ""


class LineWriter(Protocol):
    def __call__(self, lines: bytes | memoryview, /) -> object:
        """Samples as JSON, each with its line end."""
        ...


@contextmanager
def writing(path: Path, scratch: Path | None = None, told: Told = lambda _: None) -> Iterator[LineWriter]:
    """Writes samples to `path`, which appears complete or not at all.

    scratch: a folder for the unfinished file, if it is on the same disk; what a kill leaves there goes with it.
    told: called with every piece of the file in order, such as a hash's `update`: nobody need read it again.
    """
    check_output(path)
    container, compression = split_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = scratch if scratch and scratch.stat().st_dev == path.parent.stat().st_dev else path.parent
    temporary = folder / temporary_name(path)
    try:
        with io.BufferedWriter(_TellingFile(temporary, told)) as file:
            if container == ".parquet":
                with _parquet(file) as write:
                    yield write
            else:
                with _compressed(file, compression) as stream, _lines(stream, container) as write:
                    yield write
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


class _TellingFile(io.FileIO):
    """A new file that is written from its beginning to its end, and tells what."""

    def __init__(self, path: Path, told: Told) -> None:
        super().__init__(path, "wb")
        self._told = told

    def write(self, data: Any) -> int:
        size = super().write(data)
        self._told(memoryview(data)[:size])
        return size


def temporary_name(path: Path) -> str:
    """Not the process id: on a shared disk, two machines may have the same."""
    return f".{path.name}.{secrets.token_hex(4)}.tmp"


def file_hash(path: Path, moved: Callable[[int], None] | None = None) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            if moved:
                moved(len(chunk))
    return digest.hexdigest()


@contextmanager
def _compressed(file: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    if compression == ".gz":
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            yield cast(BinaryIO, packed)
    elif compression == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise NotReady("writing .zst needs zstandard", hint=INSTALL) from error
        with zstandard.ZstdCompressor(level=6).stream_writer(file, closefd=False) as packed:
            yield packed
    else:
        yield file


@contextmanager
def _lines(stream: BinaryIO, container: str) -> Iterator[LineWriter]:
    if container == ".jsonl":
        yield stream.write
        return
    before = b"[\n"

    def write(lines: bytes | memoryview) -> None:
        nonlocal before
        stream.write(before + bytes(lines).rstrip(b"\n").replace(b"\n", b",\n"))
        before = b",\n"

    yield write
    stream.write(b"\n]\n" if before == b",\n" else b"[]\n")


@contextmanager
def _parquet(file: BinaryIO) -> Iterator[LineWriter]:
    try:
        import orjson
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise NotReady("writing Parquet needs pyarrow", hint=INSTALL) from error
    rows: list[Any] = []
    writer: Any = None

    def flush() -> None:
        nonlocal writer
        if rows:
            table = pa.Table.from_pylist(rows)
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            rows.clear()

    def write(lines: bytes | memoryview) -> None:
        for line in bytes(lines).splitlines():
            rows.append(orjson.loads(line))
            if len(rows) == _ROWS:
                flush()

    yield write
    flush()
    if writer is None:
        pq.write_table(pa.table({"id": pa.array([], pa.string())}), file)
    else:
        writer.close()


def lines_of(conversations: Iterable[Conversation], form: str) -> Iterator[bytes]:
    """The lines of conversations, each with its line end."""
    encode, shape = encoder(), FORMS[form]
    for conversation in conversations:
        yield encode(shape(conversation)) + b"\n"
