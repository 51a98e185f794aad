"""Requests at the same time: threads for the parts of a file, and connections that no fork shares.

Clients are made per process: a trainer forks its ranks after it has used the store, and two processes on one
connection would read each other's replies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from trainer.artifacts.patience import Patience

T = TypeVar("T")

WORKERS = 8
"""Parts under way at once; one connection to S3 or GCS carries roughly 100 MB/s at best."""


def in_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Results in order. The first failure stops what has not begun, and is raised when the rest has ended."""
    if len(jobs) < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(min(WORKERS, len(jobs))) as pool:
        futures = [pool.submit(job) for job in jobs]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        for future in done:
            future.result()
        return [future.result() for future in futures]


_clients: dict[tuple[object, ...], Any] = {}


def client_of_this_process(
    service: str, variables: tuple[str, ...], make: Callable[[], Any], patience: Patience
) -> Any:
    """One client per process and environment. Without a lock, which a fork could copy while it is held."""
    key = _client_key(service, variables, patience)
    client = _clients.get(key)
    if client is None:
        client = _clients.setdefault(key, make())
    return client


def forget_client(service: str, variables: tuple[str, ...], patience: Patience) -> None:
    _clients.pop(_client_key(service, variables, patience), None)


def _client_key(service: str, variables: tuple[str, ...], patience: Patience) -> tuple[object, ...]:
    chosen = sorted((name, value) for name, value in os.environ.items() if name.startswith(variables))
    return service, os.getpid(), patience, *chosen
