"""Does a store keep its promise: what is created first stays, and a listing shows it. And how fast is it.

Some endpoints that speak S3 take `If-None-Match: *` and overwrite all the same (rclone serve s3; servers from before
2024). Two attempts of one run would then both believe that they own it. So a run is begun only where an object that
is created twice with different bytes is refused the second time, or where the user has said by the store's name that
there is never a second writer.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.artifacts.store import SINGLE_WRITER, Store
from trainer.errors import StoreError, StoreRefused

MIB = 1 << 20
FOLDER = ".probe/"
_SAMPLES = (MIB, 32 * MIB)  # the larger one only where the smaller one took less than a second
_SHORT_S = 1.0

ALONE = f"use another store; or, if never two machines write at once, {SINGLE_WRITER}:// in place of s3://"


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second each way, measured with an object of this many bytes that cannot be compressed."""

    size: int
    up: float
    down: float


def answer_s(store: Store) -> float:
    """Check the promises; about five requests. Returns the seconds that a small write took.

    Raises:
        StoreRefused: the store overwrites, or does not show, what was written.
        StoreError: it cannot be used at all.
    """
    key = FOLDER + secrets.token_hex(8)
    began = time.perf_counter()
    store.put_new(key, b"first")
    spent_s = time.perf_counter() - began
    try:
        if store.put_new(key, b"second") or store.get(key) != b"first":
            raise StoreRefused(f"{store.uri} overwrites an object that must be written once", hint=ALONE)
        if key not in [entry.key for entry in store.list(FOLDER)]:
            raise StoreRefused(f"{store.uri} does not list what was written", hint="use another store")
    finally:
        with suppress(StoreError):
            store.delete(key)
    return spent_s


def speed(store: Store) -> Speed:
    """Send and fetch one object, through a temporary file."""
    key = FOLDER + secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="vlaunch-probe-") as folder:
        path = Path(folder) / "sample"
        try:
            for size in _SAMPLES:
                path.write_bytes(os.urandom(size))
                began = time.perf_counter()
                store.put_file(key, path)
                sent = time.perf_counter()
                store.get_file(key, path)
                came = time.perf_counter()
                measured = Speed(size, size / (sent - began), size / (came - sent))
                if came - began > _SHORT_S:
                    break
        finally:
            with suppress(StoreError):
                store.delete(key)
    return measured
