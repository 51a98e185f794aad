"""Parts of a local file that several threads read or write at once, each at its own place, nothing held in memory."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.artifacts.pace import Pace, current
from trainer.errors import StoreError

_HINTS = {
    errno.ENOSPC: "the disk of this machine is full: free some space there",
    errno.EDQUOT: "the disk quota on this machine is used up: free some space there",
}


class Slice(io.RawIOBase):
    """The bytes of an open file from `start` up to `stop` as a file of their own, which begins at 0."""

    def __init__(self, descriptor: int, path: Path, start: int, stop: int, pace: Pace | None = None) -> None:
        self.descriptor, self.path, self.start, self.stop = descriptor, path, start, stop
        self._at = self._counted = start
        self._pace = pace
        self._refused: StoreError | None = (
            None  # why it could not be read on; a library may say it in its own words
        )

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Slice:
        """The bytes from `start` to `stop` of this slice."""
        end = min(self.start + stop, self.stop)
        return Slice(self.descriptor, self.path, self.start + start, end, self._pace)

    def parts(self, size: int) -> list[Slice]:
        """All of it in slices of this many bytes; the last one may be shorter."""
        return [self.part(start, start + size) for start in range(0, len(self), size)]

    def again(self) -> Slice:
        """The same slice, read from its beginning."""
        return self.part(0, len(self))

    def read(self, size: int | None = -1) -> bytes:
        left = self.stop - self._at
        try:
            data = self._from(self._at, left if size is None or size < 0 else min(size, left))
            self._at += len(data)
            if self._pace is not None and self._at > self._counted:
                # A library may read all of it twice, first for a signature: these bytes go over the wire once.
                self._pace.let(self._at - self._counted)
                self._counted = self._at
        except StoreError as error:
            self._refused = error
            raise
        return data

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Around a library that sends it: what reading raised comes out as it was, however the library wrapped it."""
        try:
            yield
        except Exception:
            if self._refused is not None:
                raise self._refused from None
            raise

    def pieces(self, size: int) -> Iterator[bytes]:
        """All of it, for a look before it is sent: the pace does not mind."""
        at = self.start
        while at < self.stop:
            piece = self._from(at, min(size, self.stop - at))
            yield piece
            at += len(piece)

    def _from(self, at: int, wanted: int) -> bytes:
        with local_errors(self.path):
            data = os.pread(self.descriptor, wanted, at)
        if wanted and not data:
            raise StoreError(
                f"{self.path} became shorter while it was sent", hint="finish writing it, then send it"
            )
        return data

    def readinto(self, buffer: Any) -> int:
        """A look as well: of all libraries here only awscrt reads so, for the signature, and then `read` is called.

        Nothing is held back or called off in it: awscrt prints a traceback for whatever its reading raises.
        """
        data = self._from(self._at, min(len(buffer), self.stop - self._at))
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self.start, os.SEEK_CUR: self._at, os.SEEK_END: self.stop}[whence]
        self._at = min(max(base + offset, self.start), self.stop)
        return self.tell()

    def tell(self) -> int:
        return self._at - self.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def write_at(target: Slice, data: bytes, at: int) -> None:
    """Write all of `data` into the slice's file, `at` bytes from the beginning of the file."""
    view = memoryview(data)
    with local_errors(target.path):
        while view:
            written = os.pwrite(target.descriptor, view, at)
            view, at = view[written:], at + written


@contextmanager
def opened(path: Path) -> Iterator[Slice]:
    """All of a file, to read at the pace of this thread."""
    with local_errors(path):
        file = open(path, "rb", buffering=0)
        size = os.fstat(file.fileno()).st_size
    with file:
        yield Slice(file.fileno(), path, 0, size, current())


@contextmanager
def arriving(path: Path, size: int) -> Iterator[Slice]:
    """All of a new file, to write; it takes its place at `path` when all went well, and is gone otherwise."""
    part = path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}.part")
    with local_errors(path):
        file = open(part, "xb", buffering=0)
    try:
        with file:
            with local_errors(path):
                os.truncate(file.fileno(), size)
            yield Slice(file.fileno(), path, 0, size)
        with local_errors(path):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """What the operating system says about a file of this machine, as one sentence; never taken for the store's."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise StoreError(f"{path}: {said}", hint=_HINTS.get(error.errno or 0)) from error
