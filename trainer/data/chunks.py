"""Input files as chunks of samples, each with its number: the unit of work, of resuming and of sharing out.

A chunk never crosses files, and where it ends depends on the file's bytes alone, so chunk 12 of a file is the same in
every run and on every machine. Whoever works on a chunk decodes it, and reads its text where it stands in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.containers import inspect_file, read_blocks
from trainer.data.json_blocks import Block, Passage
from trainer.data.json_stream import Sample, Unreadable

SAMPLES = 128  # of a chunk of what is no text, or no text that could be cut
CHARACTERS = 4 << 20  # of one, so that memory has a bound in bytes too
LARGEST = 16 << 20  # bytes of one sample: five million tokens
_DEEPEST = 32  # a conversation needs four levels
_OUTER = frozenset((dict, list))  # what holds other values in JSON
_NESTED = Unreadable("nested too deeply", f"more than {_DEEPEST} levels")


@dataclass(frozen=True, slots=True)
class Chunk:
    """first: the number of its first sample in the file, from 1."""

    number: int
    first: int
    content: Block | Passage | list[Sample]

    def __len__(self) -> int:
        return len(self.content) if isinstance(self.content, list) else self.content.count

    def values(self, path: Path) -> tuple[list[Any], Callable[[int], str]]:
        """(the samples, index -> where it stands, in words). Raises DataError where the text is broken."""
        content = self.content
        if isinstance(content, list):
            return [sample.value for sample in content], lambda index: content[index].where
        values, where = content.values(path)
        for index, value in enumerate(values):
            if _too_deep(value):
                values[index] = _NESTED
        return values, where


def read_chunks(path: Path, moved: Callable[[int], None] | None = None) -> Iterator[Chunk]:
    """The chunks of a file. Memory: one chunk. Raises DataError where the file is broken, or `Chunk.values` does."""
    samples: list[Sample] = []
    number, first, weight = 0, 1, 0
    for found in read_blocks(path, inspect_file(path), largest=LARGEST, moved=moved):
        if not isinstance(found, Sample):
            if samples:
                yield Chunk(number, first, samples)
                number, first, samples, weight = number + 1, first + len(samples), [], 0
            yield Chunk(number, first, found)
            number, first = number + 1, first + found.count
            continue
        sample = _within_bounds(found)
        samples.append(sample)
        weight += _characters(sample.value)
        if len(samples) == SAMPLES or weight > CHARACTERS:
            yield Chunk(number, first, samples)
            number, first, samples, weight = number + 1, first + len(samples), [], 0
    if samples:
        yield Chunk(number, first, samples)


def _within_bounds(sample: Sample) -> Sample:
    if isinstance(sample.value, Unreadable):
        return sample
    if _too_deep(sample.value):
        return Sample(sample.where, _NESTED)
    size = _characters(sample.value)
    return (
        sample if size <= LARGEST else Sample(sample.where, Unreadable("too large", f"{size:,} characters"))
    )


def _too_deep(value: Any) -> bool:
    level = [value] if type(value) in _OUTER else []
    for _ in range(_DEEPEST):
        found: list[Any] = []
        for outer in level:
            for inner in outer.values() if isinstance(outer, dict) else outer:
                if type(inner) in _OUTER:  # quicker than isinstance, for which most values are neither
                    found.append(inner)
        if not found:
            return False
        level = found
    return True


def _characters(value: Any) -> int:
    """In a JSON value that is not too deep, roughly."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return 8 + sum(map(_characters, value.values()))
    return 8 + sum(map(_characters, value)) if isinstance(value, list) else 8
