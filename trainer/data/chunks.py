"""Input files as chunks of samples, each with its number: the unit of work, of resuming and of sharing out.

A chunk never crosses files, and where it ends depends on the file's samples alone. So chunk 12 of a file is the
same in every run, on every machine, and from .json, .jsonl.zst or .parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.containers import inspect_file, read_samples
from trainer.data.json_stream import Sample, Unreadable

SAMPLES = 128  # of a chunk
CHARACTERS = 4 << 20  # of a chunk, so that memory has a bound in bytes too
LARGEST = 16 << 20  # bytes of one sample: five million tokens
_DEEPEST = 32  # a conversation needs four levels


@dataclass(frozen=True, slots=True)
class Chunk:
    """first: the number of its first sample in the file, from 1."""

    number: int
    first: int
    samples: list[Sample]


def read_chunks(path: Path, moved: Callable[[int], None] | None = None) -> Iterator[Chunk]:
    """The chunks of a file. Memory: one chunk. Raises DataError where the file is broken."""
    samples: list[Sample] = []
    number, first, weight = 0, 1, 0
    for sample in read_samples(path, inspect_file(path), largest=LARGEST, moved=moved):
        size = _weight(sample.value, 0)
        if size < 0:
            detail = f"more than {_DEEPEST} levels"
            sample = Sample(sample.where, Unreadable("nested too deeply", detail))
        elif size > LARGEST:
            sample = Sample(sample.where, Unreadable("too large", f"{size:,} characters"))
            size = 0
        samples.append(sample)
        weight += max(size, 0)
        if len(samples) == SAMPLES or weight > CHARACTERS:
            yield Chunk(number, first, samples)
            number, first, samples, weight = number + 1, first + len(samples), [], 0
    if samples:
        yield Chunk(number, first, samples)


def _weight(value: Any, depth: int) -> int:
    """Characters in a JSON value, roughly; negative where it is nested too deeply."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        inner: Any = value.values()
    elif isinstance(value, list):
        inner = value
    else:
        return 8
    if depth == _DEEPEST:
        return -1
    total = 8
    for each in inner:
        size = len(each) if isinstance(each, str) else _weight(each, depth + 1)
        if size < 0:
            return -1
        total += size
    return total
