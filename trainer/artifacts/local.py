"""A directory as a store: a local disk for the embedded cloud, a shared file system for a cluster.

A file appears under its key complete or not at all: it is written under `.tmp/`, flushed, and then linked
(create-if-absent: link(2) fails with EEXIST, which is atomic, unlike rename) or renamed (replace) to its
place; the folder is flushed too, so that a power cut cannot take back what was reported. A killed writer
leaves a file under `.tmp/`, which `sweep` removes.
"""

from __future__ import annotations

import builtins
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.artifacts.pace import copy_file
from trainer.artifacts.store import TEMPORARY, Entry, check_key, check_prefix
from trainer.errors import MissingKey, StoreError

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_HINTS = {
    errno.ENOSPC: "the disk is full: free some space there, or use another disk",
    errno.EDQUOT: "the disk quota is used up: free some space there, or use another disk",
    errno.EROFS: "the file system is mounted read-only: give another --store, or mount it writable",
    errno.EACCES: "this user may not do that: check the owner and the mode of the directory",
    errno.EPERM: "this user, or this file system, does not allow that: a store needs hard links",
    errno.EOPNOTSUPP: "this file system has no hard links: give a --store on another one",
    errno.EXDEV: "part of the store is on another file system: keep the whole store on one",
    errno.ESTALE: "the network file system lost its server: mount it again",
    errno.EIO: "the disk reports a fault: look at the system log, and give another --store",
}


class LocalStore:
    """Keys are paths below `root`; safe for any number of threads, processes and (over NFS) machines."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.uri = self.root.as_uri()

    def put_new(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._explained(f"write {key} to", path):
            same = _holds(path, data)
            if same is None:
                with self._written(data) as finished:
                    _make_folder(os.path.dirname(path))
                    same = _link_new(finished, path, data)
            # Also where it was there already: its creator may have died before this flush.
            _flush_folder(os.path.dirname(path))
            return same

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._explained(f"write {key} to", path), self._written(data) as finished:
            _replace(finished, path)

    def put_file(self, key: str, path: Path) -> None:
        final = self._path(key)
        with self._explained(f"write {key} to", final), self._written(path) as finished:
            _replace(finished, final)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._explained(f"read {key} from", path), self._present(key), open(path, "rb") as file:
            return file.read()

    def get_file(self, key: str, path: Path) -> None:
        source = self._path(key)
        with self._explained(f"fetch {key} from", str(path)):
            with self._present(key):
                opened = open(source, "rb")
            with opened, open(path, "wb") as target:
                shutil.copyfileobj(opened, target, 1 << 20)

    def size(self, key: str) -> int | None:
        path = self._path(key)
        with self._explained(f"read {key} from", path):
            try:
                status = os.stat(path)
                return status.st_size if stat.S_ISREG(status.st_mode) else None
            except _ABSENT:
                return None

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        folder, slash, stem = prefix.rpartition("/")
        with self._explained(f"list {prefix or 'everything'} in", str(self.root)):
            yield from self._walk(folder + slash, stem, start_after)

    def children(self, prefix: str = "") -> builtins.list[str]:
        check_prefix(prefix)
        folder, slash, stem = prefix.rpartition("/")
        names = []
        with self._explained(f"list {prefix or 'everything'} in", str(self.root)):
            for name, is_folder in self._names(folder + slash, stem):
                # A folder without a file in it is part of no key: as in an object store, it is not there.
                if not is_folder or next(self._walk(f"{folder}{slash}{name}/", "", ""), None):
                    names.append(name)
        return sorted(names)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._explained(f"delete {key} from", path), suppress(*_ABSENT):
            os.unlink(path)
            _flush_folder(os.path.dirname(path))

    def sweep(self, older_than_s: float) -> int:
        """Remove what killed writers left under .tmp/ longer ago than this; how many files."""
        swept = 0
        with self._explained("sweep", str(self.root)), self._written(b"") as clock:
            now = os.stat(clock).st_mtime  # the file system's clock, which may be a server's
            with os.scandir(os.path.dirname(clock)) as found:
                for item in found:
                    with suppress(FileNotFoundError):  # its writer finished in this moment
                        if item.path != clock and now - item.stat().st_mtime > older_than_s:
                            os.unlink(item.path)
                            swept += 1
        return swept

    def _path(self, key: str) -> str:
        check_key(key)
        return os.path.join(self.root, key)

    def _walk(self, folder: str, stem: str, start_after: str) -> Iterator[Entry]:
        # A folder sorts by its name with the slash: "a.b" comes before "a/b", as it does among keys.
        for key in sorted(
            folder + name + ("/" if deeper else "") for name, deeper in self._names(folder, stem)
        ):
            if key.endswith("/"):
                if key > start_after or start_after.startswith(key):
                    yield from self._walk(key, "", start_after)
            elif key > start_after:
                with suppress(FileNotFoundError):  # deleted since the folder was read
                    status = os.stat(os.path.join(self.root, key))
                    yield Entry(key, status.st_size, status.st_mtime)

    def _names(self, folder: str, stem: str) -> builtins.list[tuple[str, bool]]:
        try:
            with os.scandir(os.path.join(self.root, folder)) as found:
                wanted = (item for item in found if item.name.startswith(stem) and item.name != TEMPORARY)
                return [(item.name, item.is_dir()) for item in wanted]
        except _ABSENT:
            return []

    @contextmanager
    def _written(self, source: bytes | Path) -> Iterator[str]:
        """A finished, flushed file under .tmp/ with these contents, gone again afterwards."""
        folder = os.path.join(self.root, TEMPORARY)
        _make_folder(folder)
        path = os.path.join(folder, f"{os.getpid()}-{secrets.token_hex(8)}")
        try:
            if isinstance(source, Path):
                copy_file(source, Path(path))
            else:
                with open(path, "xb") as file:
                    file.write(source)
            _flush(path)
            yield path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    @contextmanager
    def _present(self, key: str) -> Iterator[None]:
        try:
            yield
        except _ABSENT:
            raise MissingKey(f"{self.uri} has no {key}") from None

    @contextmanager
    def _explained(self, doing: str, path: str) -> Iterator[None]:
        """Turn what the operating system says into one sentence and a hint."""
        try:
            yield
        except OSError as error:
            where = error.filename2 or error.filename or path  # of a copy or a link: the new one
            said = error.strerror or str(error)
            hint = _HINTS.get(error.errno or 0, f"look at {self.root}, or give another --store")
            raise StoreError(f"cannot {doing} {self.uri}: {said} ({where})", hint=hint) from error


def _holds(path: str, data: bytes) -> bool | None:
    """Are these bytes there; None where nothing is."""
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except FileNotFoundError:
        return None


def _link_new(finished: str, path: str, data: bytes) -> bool:
    try:
        os.link(finished, path)
        return True
    except FileExistsError:
        # Another writer was faster. (Gone again already: False is as true, it was there.)
        return _holds(path, data) or False


def _replace(finished: str, path: str) -> None:
    _make_folder(os.path.dirname(path))
    os.replace(finished, path)
    _flush_folder(os.path.dirname(path))


def _make_folder(path: str) -> None:
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    _make_folder(above)
    with suppress(FileExistsError):
        os.mkdir(path)
    _flush_folder(above)


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_flush_folder = _flush  # a name that exists is a file's contents in its folder: fsync(2) on the folder
