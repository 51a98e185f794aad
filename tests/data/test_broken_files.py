"""Files that cannot be read: each is one DataError that names the file, the place and what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Ran
from trainer.data.json_stream import read_values
from trainer.data.read import read_corpus
from trainer.errors import DataError

GOOD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
LINE = json.dumps(GOOD).encode()
DEEP = b'{"conversations": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_corpus([path]))
    assert caught.value.hint
    return caught.value.message


BROKEN = {
    "array cut off in an element": (
        b"[" + LINE + b",\n" + LINE[:27],
        "line 2, column 28: .*value, but the file ends",
    ),
    "array cut off in a string": (
        b"[" + LINE + b",\n" + LINE[:32],
        "line 2, column 29: .*expected an end of the str",
    ),
    "array cut off between elements": (
        b"[" + LINE + b",\n",
        "line 2, column 1: .*expected value, but the file",
    ),
    "array without its end": (b"[" + LINE + b"\n", "line 2, column 1: .*the file ends inside the array"),
    "array without a comma": (
        b"[\n" + LINE + b"\n" + LINE + b"]",
        "line 3, column 1: .*expected ',' or '\\]'",
    ),
    "array with a comma too many": (b"[\n" + LINE + b",\n]", "line 3, column 1: .*expected value"),
    "text after the array": (
        b"[" + LINE + b"]\nand more",
        "line 2, column 1: .*expected the end of the file",
    ),
    "single quotes": (b"[\n{'conversations': []}]", "line 2, column 2: .*double quotes"),
    "line cut off": (LINE + b"\n" + LINE[:-3] + b"\n" + LINE, f"line 2, column {len(LINE) - 2}: .*expected"),
    "line with a word": (LINE + b"\nhello\n", "line 2, column 1: .*expected value"),
    "line of zeros": (LINE + b"\n" + b"\0" * 100 + b"\n", "line 2, column 1: .*expected value"),
    "raw control character": (
        LINE + b"\n" + LINE.replace(b"Hi", b"H\0i"),
        "line 2, column 49: .*control char",
    ),
    "file of zeros": (b"\0" * 5000, "line 1, column 1: expected '\\['"),
    "CSV": (b"\n\nquestion,answer\n", "line 3, column 1: expected '\\[' .*found 'question,answer"),
    "UTF-16": (json.dumps([GOOD]).encode("utf-16"), "UTF-16"),
    "Latin-1 line": (LINE + b"\n" + LINE.replace(b"Hi", b"H\xe9"), "line 2, byte 49: 0xe9 is not UTF-8"),
    "Latin-1 array": (b"[" + LINE.replace(b"Hi", b"H\xe9") + b"]", "byte 50 of the text: 0xe9 is not UTF-8"),
    "character cut off": (b"[" + LINE.replace(b"Hi", b"H\xe2\x82"), "byte 50 of the text: 0xe2 is not UTF-8"),
    "nested in a line": (LINE + b"\n" + DEEP + b"\n", "line 2: the JSON is nested too deeply"),
    "nested in the first line": (DEEP + b"\n", "line 1: the JSON is nested too deeply"),
    "nested in an array": (b"[" + LINE + b",\n" + DEEP + b"]", "line 2: the JSON is nested too deeply"),
    "nothing but brackets": (b"[" * 100_000, "line 1: the JSON is nested too deeply"),
    "a number of 5,000 digits": (b"[" + b"7" * 5000 + b"]", "line 1, column 2: .*number of sensible length"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_text_is_named_by_file_and_place(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    data, expected = BROKEN[name]
    path = tmp_path / "corpus.json"
    path.write_bytes(pack(data))
    message = refusal(path)
    assert message.startswith(str(path))
    assert re.search(expected, message), message


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_compressed_file_that_is_cut_off_is_never_a_shorter_corpus(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = b"".join(b'{"n": %d, ' % n + LINE[1:] + b"\n" for n in range(2000))
    packed = pack(lines)
    for kept in (len(packed) - 1, len(packed) // 2, 10):
        path.write_bytes(packed[:kept])
        assert "data" in refusal(path) and str(path) in refusal(path)


def test_damaged_bytes_in_a_compressed_file_are_an_error(tmp_path: Path) -> None:
    noise = bytes(range(256)) * 4
    for name, head in (("a.gz", gzip.compress(LINE)[:12]), ("a.zst", zstandard.compress(LINE)[:6])):
        (tmp_path / name).write_bytes(head + noise)
        assert "broken" in refusal(tmp_path / name)


def test_parquet_that_is_cut_off_or_packed_again_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"conversations": [GOOD["conversations"]]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "Parquet file is broken" in refusal(path)
    path.write_bytes(gzip.compress(whole))
    assert "cannot be read as a stream" in refusal(path)


def test_parquet_without_our_columns_says_which_it_has(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), path)
    assert "unknown format, first at row 1: found completion, prompt" in refusal(path)


def test_a_path_that_is_no_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file .*missing.json"):
        read_corpus([tmp_path / "missing.json"])
    with pytest.raises(DataError, match="is a directory"):
        read_corpus([tmp_path])
    with pytest.raises(DataError, match="no corpus file"):
        read_corpus([])


def test_a_pipe_is_refused_before_it_is_emptied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is not a regular file"):
        read_corpus([tmp_path / "pipe"])


def test_what_the_system_refuses_to_read_is_said_in_one_sentence() -> None:
    # Exists, is a file, and cannot be read from its start, by root neither.
    assert refusal(Path("/proc/self/mem")) == "/proc/self/mem cannot be read: Input/output error"


@pytest.mark.parametrize(
    ("module", "data"),
    [("pyarrow", b"PAR1"), ("zstandard", zstandard.compress(LINE))],
    ids=["pyarrow", "zstandard"],
)
def test_a_missing_extra_is_exit_3_with_the_pip_command(
    tmp_path: Path, vlaunch_process: Callable[..., Ran], module: str, data: bytes
) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(data)
    # Stands before the installed one on the path and behaves as if there were none.
    (tmp_path / f"{module}.py").write_text("raise ModuleNotFoundError")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}
    ran = vlaunch_process("data", "stats", path, env=environment)
    assert ran.code == 3
    assert module in ran.err and "pip install 'vlaunch[data]'" in ran.err


# --- the stream --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def outcome(data: bytes, size: int) -> tuple[list[Any], str]:
    """(values read, what went wrong then) when the text comes in chunks of this size."""
    read = []
    try:
        for sample in read_values(Path("f"), pieces(data, size)):
            read.append(sample.value)
    except DataError as error:
        return read, error.message
    return read, ""


@settings(deadline=None)
@given(
    values=st.lists(JSON, max_size=5),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    raw=st.booleans(),
)
def test_an_array_in_chunks_of_any_size_is_the_array(
    values: list[Any], size: int, indent: int | None, raw: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=not raw).encode("utf-8", "surrogatepass")
    assert outcome(data, size) == (values, "")


@settings(deadline=None, max_examples=300)
@given(
    values=st.lists(JSON, min_size=1, max_size=4),
    cut=st.integers(0),
    lost=st.integers(0, 3),
    size=st.integers(1, 9),
)
def test_what_is_wrong_with_a_file_does_not_depend_on_how_it_comes_in(
    values: list[Any], cut: int, lost: int, size: int
) -> None:
    data = json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    cut %= len(data)
    data = data[:cut] + (data[cut + lost :] if lost else b"")
    # Whole chunks are decoded at once, so half a character is found before what is wrong further up.
    data = data.decode("utf-8", "replace").encode()
    assert outcome(data, size) == outcome(data, 1 << 20)


def test_a_long_array_is_read_in_the_memory_of_a_chunk() -> None:
    element = json.dumps({**GOOD, "more": "x" * 10_000}).encode()
    count = 4000  # 40 MB

    def chunks() -> Iterator[bytes]:
        yield b"["
        for number in range(count):
            yield element + (b"," if number < count - 1 else b"]")

    tracemalloc.start()
    try:
        assert sum(1 for _ in read_values(Path("f"), chunks())) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize("layout", ["[%s]", "%s"], ids=["array", "object"])
def test_a_single_line_of_many_megabytes_is_read(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "one-line.json"
    text = "word " * 2_000_000
    sample = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": text}]}
    path.write_text(layout % json.dumps(sample))
    assert [conversation.turns[1].text for conversation in read_corpus([path])] == [text]


def test_the_recursion_limit_is_left_alone(tmp_path: Path) -> None:
    before = sys.getrecursionlimit()
    (tmp_path / "deep.json").write_bytes(DEEP)
    refusal(tmp_path / "deep.json")
    assert sys.getrecursionlimit() == before
