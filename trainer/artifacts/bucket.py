"""What S3 and GCS share as stores: keys, create-if-absent, files in parts, patience, and words for what fails.

A service's class (s3.py, gcs.py) makes single requests and judges its errors. Here a request is made again while
that can help; what then still fails becomes one sentence with a hint. Sentences are made of our own words, the
status and the service's error code, never of an exception's text: that may quote signed URLs and upload sessions.

Memory: files go in parts, WORKERS at a time, each part as a stream. See docs/decisions/012 for what that costs.
"""

from __future__ import annotations

import builtins
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainer.artifacts.connections import in_parallel
from trainer.artifacts.patience import Fault, Kind, Patience, Tries
from trainer.artifacts.slices import Slice, arriving, opened, write_at
from trainer.artifacts.store import SINGLE_WRITER, Entry, check_key, check_prefix, is_key
from trainer.errors import CorruptObject, MissingKey, StoreAway, StoreError, StoreRefused, UsageError

T = TypeVar("T")

MIB = 1 << 20
PART = 32 * MIB
"""Bytes of one part of a file. Smaller parts cost more requests (S3: $0.005 per thousand), larger ones lose more
work to a broken connection and leave connections idle at the end of a file."""

_BUCKET = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}"
)  # the longest are those of GCS; S3 refuses more by itself


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it is now. `version` differs whenever its bytes may."""

    size: int
    version: Any


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, by full object names. `token` leads to the next one."""

    objects: Sequence[tuple[str, int, float]]  # name, bytes, seconds by the service's clock
    folders: Sequence[str]
    token: Any


class Changed(Exception):
    """The object was replaced while its parts were read."""


class TooShort(Exception):
    """A reply ended before its time; the rest is asked for."""


_PATIENCE = Patience()


class BucketStore(ABC):
    """A prefix of a bucket as a store. Safe for any number of threads, processes and machines; can be pickled.

    Credentials, endpoint and region are those of the service's own library and its environment variables.
    """

    service: str  # for messages

    def __init__(self, uri: str, patience: Patience = _PATIENCE, part: int = PART) -> None:
        self.uri = uri.rstrip("/")
        self.patience, self.part = patience, part
        self.scheme, _, rest = self.uri.partition("://")
        self.bucket, _, prefix = rest.partition("/")
        self.single_writer = self.scheme == SINGLE_WRITER
        if set(self.bucket) & set(":@"):  # before anything repeats it
            raise UsageError("a store's URI holds no credentials", hint="give them as docs/stores.md says")
        if not _BUCKET.fullmatch(self.bucket):
            said = f"{uri}: {self.bucket!r} cannot be a bucket"
            raise UsageError(said, hint=f"write {self.scheme}://BUCKET/FOLDER")
        if prefix:
            check_key(prefix)
        self.root = prefix + "/" if prefix else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, self.patience, self.part)

    def put_new(self, key: str, data: bytes) -> bool:
        name = self._name(key)
        if self.single_writer:
            return self._put_new_alone(key, data)
        try:
            self._ask("create", key, lambda: self._create(name, data))
            return True
        except _Exists:
            # Perhaps it was ourselves, and the reply was lost. (Gone again already: False is as true, it was there.)
            return self._holds(key, data) or False

    def put(self, key: str, data: bytes) -> None:
        name = self._name(key)
        self._ask("write", key, lambda: self._replace(name, data))

    def put_file(self, key: str, path: Path) -> None:
        name = self._name(key)
        with opened(path) as whole:
            if not len(whole):
                self._ask("write", key, lambda: self._replace(name, b""))
            elif len(whole) <= self.part:
                self._ask("write", key, lambda: self._send(name, whole.again()))
            else:
                self._send_parts(key, name, whole)

    def get(self, key: str) -> bytes:
        name = self._name(key)
        return self._ask("read", key, lambda: self._read(name))

    def get_file(self, key: str, path: Path) -> None:
        name = self._name(key)
        found = self._ask("read", key, lambda: self._look(name))
        if found is None:
            raise self._missing(key)
        with arriving(path, found.size) as whole:
            in_parallel([partial(self._fetch, key, found, part) for part in whole.parts(self.part)])

    def size(self, key: str) -> int | None:
        name = self._name(key)
        found = self._ask("read", key, lambda: self._look(name))
        return found.size if found else None

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        after = self.root + start_after if start_after else ""
        last = ""
        for page in self._pages(self.root + prefix, after, ""):
            for name, size, modified in page.objects:
                if name <= last:
                    raise StoreError(f"{self.uri} does not list in order", hint=_UNORDERED)
                last = name
                key = name.removeprefix(self.root)
                if is_key(key) and key > start_after:  # not: folders of a console, unfinished parts
                    yield Entry(key, size, modified)

    def children(self, prefix: str = "") -> builtins.list[str]:
        check_prefix(prefix)
        above = self.root + prefix[: prefix.rfind("/") + 1]
        names: set[str] = set()
        for page in self._pages(self.root + prefix, "", "/"):
            names.update(name.removeprefix(above) for name, _, _ in page.objects)
            names.update(folder.removeprefix(above).rstrip("/") for folder in page.folders)
        return sorted(name for name in names if is_key(name))

    def delete(self, key: str) -> None:
        name = self._name(key)
        with suppress(MissingKey):
            self._ask("delete", key, lambda: self._remove(name))

    def describe(self) -> str:
        """Endpoint, region and where credentials come from, without a secret, for `vlaunch doctor`."""
        return self._ask("reach", "the service", self._describe)

    # What a service adds: one request each, errors as the library raises them.

    @abstractmethod
    def _describe(self) -> str: ...

    @abstractmethod
    def sweep(self, older_than_s: float) -> int:
        """Remove unfinished uploads that are older than this by the service's clock; how many."""

    @abstractmethod
    def _create(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def _replace(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def _send(self, name: str, content: Slice) -> Any: ...

    @abstractmethod
    def _send_parts(self, key: str, name: str, content: Slice) -> None:
        """Many requests, each through `_ask`; the object appears at the end or not at all."""

    @abstractmethod
    def _read(self, name: str) -> bytes: ...

    @abstractmethod
    def _read_range(
        self, name: str, found: Found, start: int, stop: int, write: Callable[[bytes], object]
    ) -> None:
        """Hand the bytes from start to stop to `write`, piece by piece. Changed if it is another object now."""

    @abstractmethod
    def _look(self, name: str) -> Found | None: ...

    @abstractmethod
    def _page(self, prefix: str, start_after: str, delimiter: str, token: Any) -> Page: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...

    @abstractmethod
    def _judge(self, error: Exception) -> Fault | None:
        """What an exception of the library means; None for a mistake in this program."""

    @abstractmethod
    def _forget_client(self) -> None: ...

    # What they share.

    def _name(self, key: str) -> str:
        check_key(key)
        name = self.root + key
        if len(name.encode()) > 1024:
            said = f"refused the key {key!r}: with {self.uri} before it, it is too long"
            raise StoreError(said, hint="use a shorter prefix")
        return name

    def _holds(self, key: str, data: bytes) -> bool | None:
        """Are these bytes there; None where nothing is."""
        try:
            return self.get(key) == data
        except MissingKey:
            return None

    def _put_new_alone(self, key: str, data: bytes) -> bool:
        """For services that overwrite where they should refuse: right as long as nobody else writes this key."""
        same = self._holds(key, data)
        if same is None:
            self.put(key, data)
        return same is not False

    def _missing(self, key: str) -> MissingKey:
        return MissingKey(f"{self.uri} has no {key}")

    def _pages(self, prefix: str, start_after: str, delimiter: str) -> Iterator[Page]:
        token = None
        while True:
            ask = partial(self._page, prefix, start_after, delimiter, token)
            page = self._ask("list", prefix.removeprefix(self.root) or "everything", ask)
            yield page
            token = page.token
            if not token:
                return

    def _fetch(self, key: str, found: Found, target: Slice) -> None:
        """Fill one part of a local file. What has arrived is not asked for again, unless it arrived damaged."""
        at = reached = target.start

        def write(piece: bytes) -> None:
            nonlocal at, reached
            if at + len(piece) > target.stop:
                raise TooShort  # longer than asked for: what comes is not what was meant
            write_at(target, piece, at)
            at += len(piece)
            reached = max(reached, at)

        def rest() -> None:
            nonlocal at
            try:
                self._read_range(self._name(key), found, at, target.stop, write)
            except Exception as error:
                if (fault := self._judge(error)) and fault.kind is Kind.CORRUPT:
                    at = target.start
                raise
            if at < target.stop:
                raise TooShort

        try:
            self._ask("read", key, rest, progress=lambda: reached)
        except Changed:
            said = f"{key} was replaced in {self.uri} while it was read"
            raise StoreError(said, hint="read it again") from None

    def _ask(
        self, doing: str, key: str, request: Callable[[], T], progress: Callable[[], int] = lambda: 0
    ) -> T:
        """Make a request until it succeeds or patience ends. Progress made since a failure forgives it."""
        tries = Tries(self.patience)
        while True:
            try:
                return request()
            except (StoreError, Changed):
                raise
            except TooShort:
                fault: Fault | None = Fault(Kind.FAILED, "the reply was cut off", again=True)
            except Exception as error:
                fault = self._judge(error)
                if fault is None:
                    raise
            assert fault is not None
            if fault.new_client:
                self._forget_client()
            pause = tries.pause(fault, progress())
            if pause is None:
                raise self._told(doing, key, fault)
            time.sleep(pause)

    def _told(self, doing: str, key: str, fault: Fault) -> StoreError:
        if fault.kind is Kind.ABSENT and doing in ("read", "delete"):
            return self._missing(key)
        if fault.kind is Kind.ABSENT:  # of what is written or listed only the bucket can be absent
            fault = Fault(Kind.REFUSED, f"there is no bucket {self.bucket}", "create it, or correct --store")
        kinds = {Kind.EXISTS: _Exists, Kind.CORRUPT: CorruptObject, Kind.REFUSED: StoreRefused}
        said = f"cannot {doing} {key} {_WHERE[doing]} {self.uri}: {fault.said}"
        return kinds.get(fault.kind, StoreAway if fault.passes else StoreError)(said, hint=fault.hint)


class _Exists(StoreError):
    """Never leaves this file."""


_WHERE = {
    "reach": "of",
    "read": "from",
    "write": "to",
    "create": "in",
    "list": "in",
    "delete": "from",
    "sweep": "in",
}

_UNORDERED = "S3 directory buckets do not: use a general purpose bucket"
