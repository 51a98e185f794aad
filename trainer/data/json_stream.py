"""JSON values out of a stream of bytes, one at a time, and the exact place where the JSON is broken.

A JSON array of a million conversations is one value to `json.load`. Here it is read element by
element: memory is one element and one chunk, whatever the size of the file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from trainer.errors import DataError

# One dialogue of this size is 60 million tokens: surely a file without the line ends it should have.
MAX_SAMPLE = 256 << 20
# Of a value cut off by the end of the buffer, json reports a place at most this far before that
# end: "-Infinit" and "\ud83d\ude0" are the longest pieces that it takes as one.
_LONGEST_PIECE = 16
_BLANK = " \t\n\r"
_OPEN_STRING = "Unterminated string"  # json's words; its place is where the string starts


_CONTINUES = bytes(range(0x80, 0xC0))  # bytes that begin no character of UTF-8


class Place(NamedTuple):
    """Of the next byte of a text: line and column (in characters), both from 1, and the number of bytes before it."""

    line: int
    column: int
    byte: int

    def after(self, text: bytes, size: int | None = None) -> Place:
        """The place behind the first `size` of these bytes."""
        size = len(text) if size is None else size
        lines, tail = text.count(b"\n", 0, size), text[text.rfind(b"\n", 0, size) + 1 : size]
        characters = len(tail) if tail.isascii() else len(tail.translate(None, _CONTINUES))
        return Place(self.line + lines, (1 if lines else self.column) + characters, self.byte + size)

    @property
    def words(self) -> str:
        return f"line {self.line}, column {self.column}"


START = Place(1, 1, 0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a file. `where` is its place in words: "line 12", "row 3"."""

    where: str
    value: Any


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The value of a sample that was passed over: why, in the words of a refusal."""

    reason: str
    detail: str


def read_lines(
    path: Path, chunks: Iterator[bytes], largest: int | None = None, place: Place = START
) -> Iterator[Sample]:
    """JSON lines: one value per line that is not blank. A line longer than `largest` bytes is `Unreadable`."""
    quick = _quick_decoder()
    for number, raw in enumerate(_lines(path, chunks, largest), start=place.line):
        if isinstance(raw, int):
            yield Sample(f"line {number}", Unreadable("too large", f"a line of {raw:,} bytes"))
            continue
        raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not raw.strip():
            continue
        try:
            value = _loads(raw, quick)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, f"line {number}, byte {error.start + 1}", error) from error
        except RecursionError:
            raise _too_deep(path, number) from None
        except ValueError as error:
            column = error.pos + 1 if isinstance(error, json.JSONDecodeError) else 1
            raise _broken_json(path, number, column, _expectation(error)) from error
        yield Sample(f"line {number}", value)


def read_values(path: Path, chunks: Iterator[bytes], largest: int | None = None) -> Iterator[Sample]:
    """The elements of a JSON array, or values that stand one after another. A larger one is a DataError."""
    stream = _Stream(path, chunks, largest or MAX_SAMPLE)
    if stream.peek() == "\ufeff":
        stream.skip()
    if stream.peek() == "[":
        stream.skip()
        yield from _elements(stream)
    else:
        while stream.peek():
            yield stream.sample()


def read_elements(
    path: Path, chunks: Iterator[bytes], largest: int | None = None, place: Place = START
) -> Iterator[Sample]:
    """The elements of a JSON array of which the chunks are what follows its "[", or follows a comma in it."""
    yield from _elements(_Stream(path, chunks, largest or MAX_SAMPLE, place))


def is_json(line: bytes) -> bool:
    """Whether these bytes are one whole JSON value, however deep."""
    try:
        json.loads(line)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _elements(stream: _Stream) -> Iterator[Sample]:
    mark = stream.peek()
    while mark != "]":
        yield stream.sample()
        mark = stream.peek()
        if mark == ",":
            stream.skip()
            stream.peek()
        elif mark != "]":
            raise stream.broken("expected ',' or ']'" if mark else "the file ends inside the array")
    stream.skip()
    if stream.peek():
        raise stream.broken("expected the end of the file after the array's ']'")


def _lines(path: Path, chunks: Iterator[bytes], largest: int | None) -> Iterator[bytes | int]:
    """Lines as bytes, or their length where it is over `largest`.

    Only "\\n" ends one: JSON text may hold U+2028 and its like unescaped.
    """
    number, size, pending = 1, 0, [b""]
    for chunk in chunks:
        *full, rest = chunk.split(b"\n")
        for line in full:
            size += len(line)
            yield size if largest and size > largest else b"".join((*pending, line))
            number, size, pending = number + 1, 0, []
        size += len(rest)
        if largest and size > largest:
            pending = []  # nothing of it is kept, only its length
            continue
        pending.append(rest)
        if size > MAX_SAMPLE:
            raise _too_big(path, number, MAX_SAMPLE)
    yield size if largest and size > largest else b"".join(pending)


def _loads(raw: bytes, quick: Callable[[bytes], Any]) -> Any:
    try:
        return quick(raw)
    except ValueError:  # json decides, and names the place
        return json.loads(raw.decode("utf-8"))


def _quick_decoder() -> Callable[[bytes], Any]:
    """orjson where it is installed: the same values, three times as fast. It refuses what json may accept."""
    try:
        import orjson
    except ImportError:

        def none(raw: bytes) -> Any:
            raise ValueError

        return none
    return cast(Callable[[bytes], Any], orjson.loads)


class _Stream:
    """A buffer over the text of a file that knows the line and column of everything in it.

    A value that does not decode is either broken or not all there yet; in the second case json's
    complaint is at the end of the buffer or about an unterminated string. The buffer is then
    doubled, so a long value costs twice its length at most, not its square.
    """

    def __init__(
        self, path: Path, chunks: Iterator[bytes], largest: int = MAX_SAMPLE, place: Place = START
    ) -> None:
        self._path = path
        self._largest = largest
        self._chunks = chunks
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder()
        self._read = place.byte  # bytes decoded so far, to name the place of a wrong one
        self._ended = False
        self._text = ""
        self._at = 0
        self._known = 0  # a place in the buffer, and its line and column; counting goes on from there
        self._line, self._column = place.line, place.column

    def peek(self) -> str:
        """Goes to the next character that is not blank and returns it; "" at the end of the file."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _BLANK:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._fill(1):
                return ""

    def skip(self) -> None:
        """Goes past the character that `peek` returned."""
        self._at += 1

    def sample(self) -> Sample:
        """The value here, with its place."""
        self._know()
        where = f"line {self._line}, column {self._column}"
        return Sample(where, self._value())

    def broken(self, expected: str, offset: int = 0) -> DataError:
        return _broken_json(self._path, *self._place(self._at + offset), expected)

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise _too_deep(self._path, self._place(self._at)[0]) from None
            except json.JSONDecodeError as error:
                offset, left = error.pos - self._at, len(self._text) - error.pos
                cut = left <= _LONGEST_PIECE or error.msg.startswith(_OPEN_STRING)
                if cut and self._fill(len(self._text) - self._at):
                    continue
                ends = "" if left else ", but the file ends here"
                raise self.broken(_expectation(error) + ends, offset) from error
            except ValueError as error:
                raise self.broken(_expectation(error)) from error
            # An object has an end, but "1" may go on as "1e+5" in the next chunk.
            length, complete = end - self._at, isinstance(value, dict | list) or end + 2 < len(self._text)
            if complete or not self._fill(1):
                self._at += length
                return value

    def _fill(self, wanted: int) -> bool:
        """Drops what was used and reads `wanted` more characters; False if there are none at all."""
        if self._ended:
            return False
        self._know()
        parts, self._at, self._known = [self._text[self._at :]], 0, 0
        if len(parts[0]) > self._largest:
            raise _too_big(self._path, self._line, self._largest)
        got = 0
        while got < wanted and not self._ended:
            parts.append(self._decode(next(self._chunks, None)))
            got += len(parts[-1])
        self._text = "".join(parts)
        return got > 0

    def _decode(self, chunk: bytes | None) -> str:
        self._ended = chunk is None
        held = len(self._utf8.getstate()[0])
        try:
            text = self._utf8.decode(chunk or b"", final=self._ended)
        except UnicodeDecodeError as error:
            place = f"byte {self._read - held + error.start + 1} of the text"
            raise _not_utf8(self._path, place, error) from error
        self._read += len(chunk or b"")
        return text

    def _know(self) -> None:
        self._line, self._column = self._place(self._at)
        self._known = self._at

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of position `at` in the buffer, not before the known one."""
        lines = self._text.count("\n", self._known, at)
        if not lines:
            return self._line, self._column + at - self._known
        return self._line + lines, at - self._text.rfind("\n", self._known, at)


# --- the sentences ----------------------------------------------------------------------------


def _expectation(error: ValueError) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"expected a number of sensible length ({error})"
    if error.msg.startswith(_OPEN_STRING):
        return "expected an end of the string that starts here"
    text = error.msg.removesuffix(" at")
    return (text[:1].lower() + text[1:]).replace("expecting", "expected")


def _broken_json(path: Path, line: int, column: int, expected: str) -> DataError:
    return DataError(
        f"{path}: line {line}, column {column}: broken JSON: {expected}",
        hint="correct the file at that place; if it ends too early, copy it again",
    )


def _not_utf8(path: Path, place: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}: {place}: 0x{error.object[error.start]:02x} is not UTF-8 text",
        hint=f"if it is Latin-1: iconv -f LATIN1 -t UTF-8 {path} > utf8.json",
    )


def _too_deep(path: Path, line: int) -> DataError:
    return DataError(
        f"{path}: line {line}: the JSON is nested too deeply (hundreds of levels)",
        hint="a conversation needs four levels: take this sample out",
    )


def _too_big(path: Path, line: int, largest: int) -> DataError:
    return DataError(
        f"{path}: line {line}: one sample is larger than {largest >> 20} MiB",
        hint="write one sample per line (JSON lines), or one JSON array of samples",
    )
