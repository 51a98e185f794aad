"""A stream of JSON cut into blocks of whole samples without decoding them: what one process gives many to do.

Where an array may be cut is not seen without parsing what stands before. But a guess is easily proved: if "[" +
everything up to the guess + "]" is JSON, the guess is the end of an element, because a parser reads from left to
right. msgspec proves 3 GB a second, six times what decoding takes. What no guess is right for (a sample of
megabytes, a broken file) goes the slow way of json_stream.py, which knows every place and the words for every error.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from trainer.data.json_stream import START, Place, Sample, read_elements, read_lines, read_values
from trainer.errors import DataError, NotReady

BLOCK = 1 << 20  # bytes of a block at least, but for the first and the last of a file
_LONGEST = 4 << 20  # without a place to cut: from here on the slow way
_FIRST_LOOK = 1 << 17  # bytes in which to learn what stands between two samples
_GUESSES = 64  # a sample has some ten turns, and behind each of them is a wrong one
_BLANK = b" \t\n\r"
_BETWEEN = re.compile(rb"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\n\r]*\[")
_GAP = re.compile(rb"[ \t\n\r,]*")
_CHANGED = "run the same command again once nothing writes to the file any more"


@dataclass(frozen=True, slots=True)
class Block:
    """Samples as they stand in the file: lines, or elements of an array with the commas between them."""

    text: bytes
    kind: str  # "jsonl" or "json"
    place: Place
    count: int

    def values(self, path: Path) -> tuple[list[Any], Callable[[int], str]]:
        """(the samples, index -> where it stands, in words). Raises DataError where they are broken."""
        import orjson

        try:
            if self.kind == "json":
                return orjson.loads(b"[" + self.text + b"]"), self._where()
            return [orjson.loads(line) for line in self.text.split(b"\n") if line.strip()], self._where()
        except ValueError:  # json may accept them, and names the place if not
            if self.kind == "json":
                found = list(read_elements(path, iter([self.text, b"]"]), place=self.place))
            else:
                found = list(read_lines(path, iter([self.text]), place=self.place))
            return [sample.value for sample in found], lambda index: found[index].where

    def _where(self) -> Callable[[int], str]:
        """Places are looked up only when one is asked for."""
        places = self._lines() if self.kind == "jsonl" else self._elements()
        known: list[str] = []

        def where(index: int) -> str:
            known.extend(islice(places, max(index + 1 - len(known), 0)))
            return known[index]

        return where

    def _lines(self) -> Iterator[str]:
        for number, line in enumerate(self.text.split(b"\n"), self.place.line):
            if line.strip():
                yield f"line {number}"

    def _elements(self) -> Iterator[str]:
        at, end, place = 0, 0, self.place
        try:
            elements = _quick()(b"[" + self.text + b"]")
        except (ValueError, RecursionError):  # cut with json's help, and decoded all the same
            yield from (one.where for one in read_elements(Path(), iter([self.text, b"]"]), place=place))
            return
        for element in elements:
            start = cast(re.Match[bytes], _GAP.match(self.text, end)).end()
            place, at = place.after(self.text[at:start]), start
            yield place.words
            end = start + len(memoryview(element))


@dataclass(frozen=True, slots=True)
class Passage:
    """A block that still stands in its file, which is not compressed: whoever works on it reads it there."""

    size: int
    kind: str
    place: Place
    count: int

    def values(self, path: Path) -> tuple[list[Any], Callable[[int], str]]:
        """As of a block. Raises DataError as well where the file is no longer what it was."""
        try:
            with path.open("rb") as file:
                file.seek(self.place.byte)
                text = file.read(self.size)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_CHANGED) from error
        if len(text) == self.size:
            values, where = Block(text, self.kind, self.place, self.count).values(path)
            if len(values) == self.count:
                return values, where
        raise DataError(f"{path} changed while it was read", hint=_CHANGED)


def read_blocks(
    path: Path, kind: str, chunks: Iterator[bytes], largest: int, plain: bool
) -> Iterator[Block | Passage | Sample]:
    """Blocks, and single samples where there is no other way. kind: "json" or "jsonl"; plain: not compressed."""
    found = _jsonl_blocks if kind == "jsonl" else _json_blocks
    for each in found(path, _gathered(chunks), largest):
        if plain and isinstance(each, Block):
            yield Passage(len(each.text), kind, each.place, each.count)
        else:
            yield each


def _json_blocks(path: Path, chunks: Iterator[bytes], largest: int) -> Iterator[Block | Sample]:
    first = next(chunks, b"")
    opening = _OPENING.match(first)
    if opening is None:  # values that stand one after another
        yield from read_values(path, chain([first], chunks), largest)
    else:
        place = START.after(first[: opening.end()].removeprefix(codecs.BOM_UTF8))._replace(byte=opening.end())
        yield from _array_blocks(path, chain([first[opening.end() :]], chunks), place, largest)


def _gathered(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces large enough to be looked through once each: a compressed file may come in frames of a few bytes."""
    held, size = [], 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= BLOCK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _jsonl_blocks(path: Path, chunks: Iterator[bytes], largest: int) -> Iterator[Block | Sample]:
    held, place = b"", START
    for chunk in chunks:
        held += chunk
        end = held.rfind(b"\n") + 1
        if end >= BLOCK:
            yield _line_block(held[:end], place)
            held, place = held[end:], Place(place.line + held.count(b"\n", 0, end), 1, place.byte + end)
        elif len(held) > _LONGEST:
            yield from read_lines(path, chain([held], chunks), largest, place)
            return
    if held:
        yield _line_block(held, place)


def _line_block(text: bytes, place: Place) -> Block:
    if place == START and text.startswith(codecs.BOM_UTF8):
        text, place = text.removeprefix(codecs.BOM_UTF8), START._replace(byte=len(codecs.BOM_UTF8))
    return Block(text, "jsonl", place, sum(1 for line in text.split(b"\n") if line.strip()))


def _array_blocks(
    path: Path, chunks: Iterator[bytes], place: Place, largest: int
) -> Iterator[Block | Sample]:
    held, likely = b"", b""
    for chunk in chunks:
        held += chunk
        if len(held) < BLOCK:
            continue
        found = _cut(held, likely)
        if found is not None:
            end, start, count = found
            likely = held[end - 2 : start + 2]
            yield Block(held[:end], "json", place, count)
            held, place = held[start:], place.after(held, start)
        elif len(held) > _LONGEST:
            break
    else:
        text = held.rstrip(_BLANK)
        if text.endswith(b"]") and (count := _count(text, len(text) - 1, _quick())):
            yield Block(text[:-1], "json", place, count)
            return
    yield from read_elements(path, chain([held], chunks), largest, place)


def _cut(text: bytes, likely: bytes) -> tuple[int, int, int] | None:
    """(end of the last element that another follows, where that one begins, how many end by then)."""
    at = len(text)
    for _ in range(_GUESSES if likely else 0):  # turns may end as samples do
        if (at := text.rfind(likely, 0, at)) < 0:
            break
        if count := _count(text, at + 2, _quick()):
            return at + 2, at + len(likely) - 2, count
    # json takes a few things that msgspec does not: NaN, half a surrogate pair.
    looks = (
        (len(text) if likely else _FIRST_LOOK, _quick(), _GUESSES),
        (len(text), _quick(), _GUESSES),
        (len(text), json.loads, _GUESSES // 4),
    )
    for size, parse, guesses in looks:
        for guess in [*_BETWEEN.finditer(text, 0, size)][: -guesses - 1 : -1]:
            if count := _count(text, guess.start() + 1, parse):
                return guess.start() + 1, guess.end(), count
    return None


def _count(text: bytes, end: int, parse: Callable[[bytes], Sequence[Any]]) -> int:
    """How many elements of an array end where text[:end] does; 0 where that is no place between two."""
    try:
        return len(parse(b"".join((b"[", memoryview(text)[:end], b"]"))))
    except (ValueError, RecursionError):
        return 0


@cache
def _quick() -> Callable[[bytes], Sequence[Any]]:
    """The elements of an array, looked over but not decoded."""
    try:
        import msgspec
    except ImportError as error:
        raise NotReady("preparing a corpus needs msgspec", hint="pip install 'vlaunch[data]'") from error
    return msgspec.json.Decoder(list[msgspec.Raw]).decode
