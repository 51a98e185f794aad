"""Files of a corpus in buckets: what is read is copied to this machine first, what is made goes up whole at the end.

    with at_hand(folder) as hand:
        paths = hand.inputs(["s3://bucket/raw/*.jsonl.zst", "here.json"])
        output = hand.output("gs://bucket/train.jsonl")
        ...                                # everything between sees files of this machine only
        hand.deliver(output)

Copies and no ranged reads: a corpus is read twice (its hash, then its samples), Parquet from its end, and a killed job
goes on without asking the network again. Disk: every input that is in a bucket, and the output; whether it is enough
is asked before anything is fetched. Memory: one part of one object (trainer/artifacts). A copy is found again by the
object's URI, size and time of change, so an object that was replaced is fetched anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from trainer.artifacts.store import Entry, Store, open_store
from trainer.data.forms import temporary_name
from trainer.errors import DataError, NotReady, UsageError, VlaunchError

_PATTERN = "*?["


@dataclass(frozen=True, slots=True)
class _Remote:
    """An object of a bucket; `path` is where its copy lies, or what is to become it."""

    uri: str
    store: Store
    key: str
    path: Path
    size: int = 0


class Hand:
    """The files of one job. Copies and unfinished outputs are under `folder`."""

    def __init__(self, folder: Path, open_store: Callable[[str], Store] = open_store) -> None:
        self._folder = folder
        self._made = folder / "made"
        self._open = open_store
        self._remote: dict[Path, _Remote] = {}

    def inputs(self, names: Sequence[str]) -> list[Path]:
        """Paths to read, in order; a pattern (s3://bucket/raw/*.json) may be several. Fetches what is not here yet.

        Raises DataError where there is no such object, UsageError where it is an output of this job, NotReady where
        the disk is too small.
        """
        found: list[Path | _Remote] = []
        for name in names:
            found += self._look(name) if is_remote(name) else [_local(name)]
        made = {each.uri for path, each in self._remote.items() if self._made in path.parents}
        if both := next((each.uri for each in found if isinstance(each, _Remote) and each.uri in made), None):
            raise UsageError(f"{both} is an input as well", hint="write to another name")
        wanted = [each for each in found if isinstance(each, _Remote) and not each.path.exists()]
        self._check_room(sum(each.size for each in wanted))
        for each in wanted:
            _fetch(each)
        self._remote.update({each.path: each for each in found if isinstance(each, _Remote)})
        return [each.path if isinstance(each, _Remote) else each for each in found]

    def output(self, name: str) -> Path:
        """Where to write what is to be called so. Raises UsageError for a folder."""
        if not is_remote(name):
            path = _local(name)
            if path.is_dir():
                raise UsageError(f"{path} is a folder", hint=f"name the file to write: {path}/train.jsonl")
            return path
        store, key = self._split(name)
        if not key or any(mark in key for mark in _PATTERN):
            raise UsageError(
                f"{name} names no object", hint="name the object to write: s3://BUCKET/train.jsonl"
            )
        store.size(key)  # a bucket that cannot be reached is said before the work, not after it
        path = self._made / _digest(store.uri) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        self._remote[path] = _Remote(name, store, key, path)
        return path

    def name(self, path: Path) -> str:
        """What a person calls this file: its URI if it is in a bucket."""
        return self._remote[path].uri if path in self._remote else str(path)

    def beside(self, path: Path, name: str) -> Path:
        """The file of that name in the same folder or bucket, fetched if it is there."""
        near = path.with_name(name)
        remote = self._remote.get(path)
        if remote is not None and not near.exists() and remote.store.size(name) is not None:
            _fetch(_beside(remote, near))
        return near

    def deliver(self, *paths: Path | None, last: Path | None = None) -> None:
        """Outputs to their buckets, in this order. `last` says that all are there, and lies beside one of them; what
        its name held before is taken away first."""
        going = [self._remote[path] for path in paths if path in self._remote]
        final = next(
            (_beside(each, last) for each in going if last and each.path.parent == last.parent), None
        )
        if final is not None:
            final.store.delete(final.key)
        for each in (*going, *([final] if final else ())):
            each.store.put_file(each.key, each.path)

    def _split(self, uri: str) -> tuple[Store, str]:
        folder, _, key = uri.rpartition("/")
        return self._open(folder), key

    def _look(self, uri: str) -> list[_Remote]:
        store, key = self._split(uri)
        entries = list(_matching(store, key)) if key else []
        if not entries:
            raise DataError(
                f"there is no object {uri}", hint="a pattern may stand in the last part of its name only"
            )
        return [self._copy(store, entry) for entry in entries]

    def _copy(self, store: Store, entry: Entry) -> _Remote:
        uri = f"{store.uri}/{entry.key}"
        version = _digest(f"{uri}\0{entry.size}\0{entry.modified}")
        return _Remote(uri, store, entry.key, self._folder / "copies" / version / entry.key, entry.size)

    def _check_room(self, size: int) -> None:
        if not size:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise NotReady(
                f"the inputs take {size / 1e9:,.1f} GB, and {self._folder} has {free / 1e9:,.1f} GB free",
                hint="free some space, or name a folder on a larger disk with XDG_CACHE_HOME",
            )


@contextmanager
def at_hand(folder: Path) -> Iterator[Hand]:
    """Removes the folder when all went well; after an error or a kill the copies are there for the next try."""
    hand = Hand(folder)
    try:
        yield hand
    except VlaunchError as error:  # a copy's path says nothing to a person
        for path in hand._remote:
            error.message = error.message.replace(str(path), hand.name(path))
        error.args = (error.message,)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def is_remote(name: str) -> bool:
    """Whether it is in a bucket; file:///... is not."""
    return "://" in name and not name.startswith("file://")


def job_folder(cache: Path, *names: str) -> Path:
    """Where the job that makes these outputs keeps its copies: the same for the same names."""
    return cache / "data" / _digest("\0".join(names))


def local_path(name: str) -> Path:
    """A path, or file:///...; NotReady for what is in a bucket."""
    if is_remote(name):
        raise NotReady(f"{name}: this can only be a file of this machine", hint="copy it here first")
    return _local(name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _beside(remote: _Remote, path: Path) -> _Remote:
    return _Remote(f"{remote.store.uri}/{path.name}", remote.store, path.name, path)


def _local(name: str) -> Path:
    if "://" not in name:
        return Path(name).expanduser()
    path = unquote(name.removeprefix("file://").removeprefix("localhost"))
    if not path.startswith("/"):
        raise UsageError(f"{name} does not name an absolute path", hint="write it as file:///absolute/path")
    return Path(path)


def _matching(store: Store, key: str) -> Iterator[Entry]:
    start = min([key.find(mark) for mark in _PATTERN if mark in key], default=len(key))
    for entry in store.list(key[:start]):
        if "/" not in entry.key and (entry.key == key or (start < len(key) and fnmatchcase(entry.key, key))):
            yield entry
        if start == len(key):
            return  # in order of their names, the object of just this name is the first


def _fetch(remote: _Remote) -> None:
    remote.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = remote.path.with_name(temporary_name(remote.path))
    try:
        remote.store.get_file(remote.key, temporary)
        os.replace(temporary, remote.path)
    finally:
        temporary.unlink(missing_ok=True)
