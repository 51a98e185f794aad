"""Stores with behaviour of their own, and writers that can be stopped before every single store operation."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from trainer.artifacts.store import Entry, Store, check_key, check_prefix
from trainer.errors import MissingKey, StoreError

WRITES = ("put_new", "put", "put_file", "delete")


class MemoryStore:
    """What an object store promises, in a dictionary; its clock moves only when a test moves it."""

    def __init__(self, uri: str = "memory://run") -> None:
        self.uri = uri
        self.now = 1_000_000.0
        self.objects: dict[str, tuple[bytes, float]] = {}

    def put_new(self, key: str, data: bytes) -> bool:
        check_key(key)
        return self.objects.setdefault(key, (data, self.now))[0] == data

    def put(self, key: str, data: bytes) -> None:
        check_key(key)
        self.objects[key] = (data, self.now)

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def get(self, key: str) -> bytes:
        check_key(key)
        if key not in self.objects:
            raise MissingKey(f"{self.uri} has no {key}")
        return self.objects[key][0]

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def size(self, key: str) -> int | None:
        check_key(key)
        return len(self.objects[key][0]) if key in self.objects else None

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Entry]:
        check_prefix(prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after:
                data, modified = self.objects[key]
                yield Entry(key, len(data), modified)

    def children(self, prefix: str = "") -> builtins.list[str]:
        check_prefix(prefix)
        below = (key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))
        return sorted({rest.partition("/")[0] for rest in below if rest})

    def delete(self, key: str) -> None:
        check_key(key)
        self.objects.pop(key, None)


class InterceptedStore:
    """Hands every operation, before it happens, to a function that decides what becomes of it."""

    def __init__(self, inner: Store, intercept: Callable[[Operation], Any]) -> None:
        self.inner = inner
        self._intercept = intercept

    @property
    def uri(self) -> str:
        return self.inner.uri

    def put_new(self, key: str, data: bytes) -> bool:
        return bool(self._do("put_new", key, data))

    def put(self, key: str, data: bytes) -> None:
        self._do("put", key, data)

    def put_file(self, key: str, path: Path) -> None:
        self._do("put_file", key, path)

    def get(self, key: str) -> bytes:
        data: bytes = self._do("get", key)
        return data

    def get_file(self, key: str, path: Path) -> None:
        self._do("get_file", key, path)

    def size(self, key: str) -> int | None:
        size: int | None = self._do("size", key)
        return size

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Entry]:
        found: builtins.list[Entry] = self._intercept(
            Operation("list", prefix, lambda: [*self.inner.list(prefix, start_after=start_after)])
        )
        return iter(found)

    def children(self, prefix: str = "") -> builtins.list[str]:
        found: builtins.list[str] = self._do("children", prefix)
        return found

    def delete(self, key: str) -> None:
        self._do("delete", key)

    def _do(self, name: str, key: str, *more: Any) -> Any:
        return self._intercept(Operation(name, key, lambda: getattr(self.inner, name)(key, *more)))


@dataclass(frozen=True)
class Operation:
    """One call of a store that has not happened yet."""

    name: str
    key: str
    happen: Callable[[], Any]

    @property
    def writes(self) -> bool:
        return self.name in WRITES


class Fate(Enum):
    """What becomes of one store operation."""

    HAPPENS = "it happens and its result comes back"
    IS_LOST = "it never happens, the caller sees an error"
    LOSES_ITS_REPLY = "it happens, the caller sees an error"
    IS_RETRIED = "it happens, the reply is lost, and the client library asks again by itself"
    IS_DELAYED = "the caller sees an error, and it happens later"
    IS_DUPLICATED = "it happens, and once more later"
    IS_THE_END = "the writer is killed before it"


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` survives it."""


class Writer:
    """A program that runs on a thread of its own, but only ever one store operation at a time.

    Between two calls of `advance` the thread stands still just before `pending`; nothing here depends on
    time. `network` collects what is still under way when its sender has stopped waiting for it. `watch` is
    told of every operation just before it happens, also of a late one.
    """

    def __init__(
        self,
        store: Store,
        program: Callable[[Store], None],
        network: list[Operation] | None = None,
        watch: Callable[[Operation], None] = lambda operation: None,
    ) -> None:
        self.pending: Operation | None = None
        self.problem: BaseException | None = None
        self._network = [] if network is None else network
        self._watch = watch
        self._fate = Fate.HAPPENS
        self._may_go, self._stands = threading.Lock(), threading.Lock()
        self._may_go.acquire()
        self._stands.acquire()
        self._thread = threading.Thread(
            target=self._live, args=(InterceptedStore(store, self._meet), program), daemon=True
        )
        self._thread.start()
        self._wait()

    @property
    def alive(self) -> bool:
        return self.pending is not None

    def advance(self, fate: Fate = Fate.HAPPENS) -> None:
        """Let the pending operation meet its fate, and run up to the next one or to the end."""
        self._fate = fate
        self._may_go.release()
        self._wait()

    def run(self, until: Callable[[Operation], bool] = lambda operation: False) -> Writer:
        """Go on until an operation for which `until` holds is pending, or to the end."""
        while self.pending and not until(self.pending):
            self.advance()
        return self

    def kill(self) -> None:
        while self.alive:
            self.advance(Fate.IS_THE_END)

    def _wait(self) -> None:
        self._stands.acquire()
        if self.problem:
            raise self.problem

    def _live(self, store: Store, program: Callable[[Store], None]) -> None:
        try:
            program(store)
        except Killed:
            pass
        except BaseException as problem:
            self.problem = problem
        self.pending = None
        self._stands.release()

    def _meet(self, operation: Operation) -> Any:
        self.pending = operation
        self._stands.release()
        self._may_go.acquire()
        fate = self._fate
        if fate is Fate.IS_THE_END:
            raise Killed
        happen = partial(self._happen, operation)
        if fate is Fate.HAPPENS or not (operation.writes or fate is Fate.IS_LOST):
            return happen()
        if fate in (Fate.IS_DELAYED, Fate.IS_DUPLICATED):
            self._network.append(Operation(operation.name, operation.key, happen))
        if fate is Fate.IS_DUPLICATED:
            return happen()
        if fate is Fate.IS_RETRIED:
            happen()
            return self._meet(operation)
        if fate is Fate.LOSES_ITS_REPLY:
            happen()
        raise StoreError(f"{operation.name} {operation.key}: no answer")

    def _happen(self, operation: Operation) -> Any:
        self._watch(operation)
        return operation.happen()
