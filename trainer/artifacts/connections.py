"""Requests at the same time: threads for the parts of a file, and connections that no fork shares.

Clients are made per process: a trainer forks its ranks after it has used the store, and two processes on one
connection would read each other's replies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any, TypeVar

from trainer.artifacts.patience import Patience

T = TypeVar("T")

WORKERS = 8
"""Parts under way at once in a process; one connection to S3 or GCS carries roughly 100 MB/s at best."""


def in_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Results in order. The first failure stops what has not begun, and is raised when the rest has ended."""
    if len(jobs) < 2:
        return [job() for job in jobs]
    futures = [_workers().submit(job) for job in jobs]
    done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    for future in waiting:
        future.cancel()
    wait(futures)
    for future in done:
        future.result()
    return [future.result() for future in futures]


_pool: ThreadPoolExecutor | None = (
    None  # one for all files of a process: memory does not grow with their number
)


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _making:
        if _pool is None:
            _pool = ThreadPoolExecutor(WORKERS)
        return _pool


_clients: dict[tuple[object, ...], Any] = {}
_making = Lock()  # a client costs 0.1 CPU seconds, and the parts of a file all want one at once


def client_of_this_process(
    service: str, variables: tuple[str, ...], make: Callable[[], Any], patience: Patience
) -> Any:
    """One client per process, patience and environment; `variables` are the prefixes of names that matter."""
    key = _client_key(service, variables, patience)
    with _making:
        if key not in _clients:
            _clients[key] = make()
        return _clients[key]


def forget_client(service: str, variables: tuple[str, ...], patience: Patience) -> None:
    """The next request makes a new one, and reads the credentials again."""
    _clients.pop(_client_key(service, variables, patience), None)


def _client_key(service: str, variables: tuple[str, ...], patience: Patience) -> tuple[object, ...]:
    chosen = sorted((name, value) for name, value in os.environ.items() if name.startswith(variables))
    return service, os.getpid(), patience, *chosen


def _begin_process() -> None:
    """In the child of a fork: another thread may have held the lock, and no other thread is there any more."""
    global _making, _pool
    _making, _pool = Lock(), None


os.register_at_fork(after_in_child=_begin_process)
