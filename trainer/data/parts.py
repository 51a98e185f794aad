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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.forms import temporary_name
from trainer.data.steps import Account, Kept, Outcome
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
    """The text of a part: lines and rejected rounds per conversation, and the rejected samples."""

    lines: list[bytes]
    dropped: list[bytes]
    rejected: bytes


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
        write_whole(self.path(chunk), _encode(outcome, minhash))

    def paths(self) -> Iterator[Path]:
        """In order. Raises FileNotFoundError where they are gone: another share has finished with them."""
        chunks = self.complete()
        if chunks is None:
            raise FileNotFoundError(self.folder / _COMPLETE)
        yield from (self.path(chunk) for chunk in range(chunks))


def write_whole(path: Path, data: bytes) -> None:
    """Atomic for readers: the name holds all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path))
    temporary.write_bytes(data)
    os.replace(temporary, path)


def read_signatures(path: Path) -> Signatures:
    """All of a part but its text; the checksum is verified."""
    import numpy as np

    header, body = _read(path)
    at = sum(header["text"])
    columns: dict[str, NDArray[Any]] = {}
    count = header["conversations"]
    for name, kind in _COLUMNS.items():
        columns[name] = np.frombuffer(body, kind, count, at)
        at += columns[name].nbytes
    chains = np.frombuffer(body, "<u8", header["chains"], at)
    at += chains.nbytes
    minhash = np.frombuffer(body, "<u4", header["minhash"], at)
    account = header["account"]
    return Signatures(
        Account(
            samples=account["samples"],
            forms=Counter(account["forms"]),
            drops=Counter(account["drops"]),
            notes=Counter(account["notes"]),
            first=account["first"],
        ),
        columns,
        header["names"],
        chains,
        minhash.reshape(count, -1) if count else minhash.reshape(0, 0),
    )


def read_text(path: Path) -> Text:
    import numpy as np

    header, body = _read(path)
    lines, dropped, rejected = header["text"]
    columns = np.frombuffer(body, "<u4", header["conversations"], lines + dropped + rejected)
    at = lines + dropped + rejected + columns.nbytes
    sizes = np.frombuffer(body, "<u8", header["conversations"], at)
    drops = np.frombuffer(body, "<u8", header["conversations"], at + sizes.nbytes)
    return Text(
        _sliced(body, 0, sizes.tolist()),
        _sliced(body, lines, drops.tolist()),
        body[lines + dropped : lines + dropped + rejected],
    )


def _encode(outcome: Outcome, minhash: NDArray[np.uint32] | None) -> bytes:
    import numpy as np

    kept = outcome.kept
    lines = [b"".join(each.lines) for each in kept]
    dropped = [b"".join(each.dropped) for each in kept]
    rejected = b"".join(outcome.rejected)
    columns = [
        np.array([_number(each, name) for each in kept], kind).tobytes() for name, kind in _COLUMNS.items()
    ]
    chains = np.array([value for each in kept for value in each.chain], "<u8")
    rows = np.zeros(0, "<u4") if minhash is None else minhash.astype("<u4").ravel()
    body = b"".join((*lines, *dropped, rejected, *columns, chains.tobytes(), rows.tobytes()))
    header = {
        "conversations": len(kept),
        "text": [sum(map(len, lines)), sum(map(len, dropped)), len(rejected)],
        "chains": len(chains),
        "minhash": len(rows),
        "names": {"id": [each.id for each in kept], "language": [each.language for each in kept]},
        "account": {slot: getattr(outcome.account, slot) for slot in Account.__slots__},
        "crc32": zlib.crc32(body),
    }
    return json.dumps(header).encode("ascii") + b"\n" + body


def _number(kept: Kept, name: str) -> int:
    if name == "lines":
        return len(kept.lines)
    if name == "line_bytes":
        return sum(map(len, kept.lines))
    if name == "drop_bytes":
        return sum(map(len, kept.dropped))
    return int(getattr(kept, name))


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    head, _, body = data.partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(head)
        whole = zlib.crc32(body) == header["crc32"]
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        path.unlink(missing_ok=True)
        raise CorruptObject(
            f"{path} was damaged, and is removed", hint="run the same command again: it is made anew"
        )
    return header, body


def _sliced(body: bytes, at: int, sizes: Sequence[int]) -> list[bytes]:
    found = []
    for size in sizes:
        found.append(body[at : at + size])
        at += size
    return found
