"""The unfinished work of a corpus: one file per chunk of input, complete or not there.

    OUT.work/<key of the input file>/000012.part     what chunk 12 became (steps.Outcome), as bytes and columns
    OUT.work/<key of the input file>/complete        written last: how many chunks the file has

The key is a hash of the file's bytes, its name, the settings and the code, so that a part is only ever taken up
where it would come out the same again. A part is written under another name and renamed: a kill leaves nothing
that looks like one. Where a disk lost power, the checksum tells.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trainer.data.forms import temporary_name
from trainer.data.steps import Account, Outcome
from trainer.errors import CorruptObject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COMPLETE = "complete"
# Columns, one number per conversation: name -> numpy type.
_COLUMNS = {
    "lines": "<u4", "line_bytes": "<u8", "drop_bytes": "<u8", "characters": "<u8", "tokens": "<u8",
    "rounds": "<u4", "overlong": "<u4", "shortened": "<u4", "dropped_rounds": "<u4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Signatures:
    """A part without its text: what the decisions and the totals need."""

    account: Account
    columns: dict[str, NDArray[Any]]
    names: dict[str, list[str]]  # "id" and "language", one each per conversation
    chains: NDArray[np.uint64]
    minhash: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a part: the lines of its conversations, their rejected rounds, and the rejected samples.

    lines_at, dropped_at: where each conversation's begin, and the end; counts: lines of each conversation.
    """

    lines: memoryview
    lines_at: list[int]
    counts: NDArray[np.uint32]
    dropped: memoryview
    dropped_at: list[int]
    rejected: memoryview


class FileParts:
    """The parts of one input file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.part"

    def has(self, chunk: int) -> bool:
        return self.path(chunk).exists()

    def complete(self) -> int | None:
        """How many chunks the file has; None while that is not known."""
        try:
            return int((self.folder / _COMPLETE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def close(self, chunks: int) -> None:
        write_whole(self.folder / _COMPLETE, str(chunks).encode())

    def all_there(self) -> bool:
        chunks = self.complete()
        return chunks is not None and all(self.has(chunk) for chunk in range(chunks))

    def write(self, chunk: int, outcome: Outcome, minhash: NDArray[np.uint32] | None) -> None:
        write_whole(self.path(chunk), *_encode(outcome, minhash))

    def paths(self) -> Iterator[Path]:
        """In order. Raises FileNotFoundError where they are gone: another share has finished with them."""
        chunks = self.complete()
        if chunks is None:
            raise FileNotFoundError(self.folder / _COMPLETE)
        yield from (self.path(chunk) for chunk in range(chunks))


def write_whole(path: Path, *pieces: bytes) -> None:
    """Atomic for readers: the name holds all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path))
    with temporary.open("wb") as file:
        file.writelines(pieces)
    os.replace(temporary, path)


def read_signatures(path: Path) -> Signatures:
    """All of a part but its text, which is not read."""
    with path.open("rb") as file:
        header, numbers = _read_numbers(path, file)
    account = header["account"]
    return Signatures(
        Account(
            samples=account["samples"],
            forms=Counter(account["forms"]),
            drops=Counter(account["drops"]),
            notes=Counter(account["notes"]),
            first=account["first"],
        ),
        {name: numbers[name] for name in _COLUMNS},
        header["names"],
        numbers["chains"],
        numbers["minhash"].reshape(header["conversations"], -1)
        if header["conversations"]
        else numbers["minhash"],
    )


def read_text(path: Path) -> Text:
    with path.open("rb") as file:
        header, numbers = _read_numbers(path, file)
        body = file.read()
    if zlib.crc32(body) != header["text_crc32"]:
        raise _damaged(path)
    text = memoryview(body)
    lines, dropped, rejected = header["text"]
    return Text(
        text[:lines],
        _offsets(numbers["line_bytes"]),
        numbers["lines"],
        text[lines : lines + dropped],
        _offsets(numbers["drop_bytes"]),
        text[lines + dropped : lines + dropped + rejected],
    )


def _offsets(sizes: NDArray[Any]) -> list[int]:
    import numpy as np

    found: list[int] = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).tolist()
    return found


def _encode(outcome: Outcome, minhash: NDArray[np.uint32] | None) -> tuple[bytes, bytes, bytes]:
    """(header, columns, text)."""
    import numpy as np

    kept = outcome.kept
    lines = [line for each in kept for line in each.lines]
    dropped = [line for each in kept for line in each.dropped]
    found = {
        "lines": [len(each.lines) for each in kept],
        "line_bytes": [sum(map(len, each.lines)) for each in kept],
        "drop_bytes": [sum(map(len, each.dropped)) for each in kept],
    }
    numbers = [
        np.array(found.get(name) or [getattr(each, name) for each in kept], kind)
        for name, kind in _COLUMNS.items()
    ]
    numbers.append(np.array([value for each in kept for value in each.chain], "<u8"))
    numbers.append(np.zeros(0, "<u4") if minhash is None else minhash.astype("<u4").ravel())
    columns = b"".join([each.tobytes() for each in numbers])
    text = b"".join((*lines, *dropped, *outcome.rejected))
    header = {
        "conversations": len(kept),
        "chains": len(numbers[-2]),
        "minhash": len(numbers[-1]),
        "names": {"id": [each.id for each in kept], "language": [each.language for each in kept]},
        "account": {slot: getattr(outcome.account, slot) for slot in Account.__slots__},
        "numbers": len(columns),
        "crc32": zlib.crc32(columns),
        "text": [sum(map(len, each)) for each in (lines, dropped, outcome.rejected)],
        "text_crc32": zlib.crc32(text),
    }
    return json.dumps(header).encode("ascii") + b"\n", columns, text


def _read_numbers(path: Path, file: BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """(the header, its columns by name); the file then stands at its text."""
    import numpy as np

    try:
        header: dict[str, Any] = json.loads(file.readline())
        body = file.read(header["numbers"])
        whole = zlib.crc32(body) == header["crc32"]
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _damaged(path)
    found: dict[str, NDArray[Any]] = {}
    at = 0
    sizes = {
        **dict.fromkeys(_COLUMNS, header["conversations"]),
        "chains": header["chains"],
        "minhash": header["minhash"],
    }
    for name, kind in {**_COLUMNS, "chains": "<u8", "minhash": "<u4"}.items():
        found[name] = np.frombuffer(body, kind, sizes[name], at)
        at += found[name].nbytes
    return header, found


def _damaged(path: Path) -> CorruptObject:
    path.unlink(missing_ok=True)
    return CorruptObject(
        f"{path} was damaged, and is removed", hint="run the same command again: it is made anew"
    )
