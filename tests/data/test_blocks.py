"""JSON cut into blocks without decoding: the same samples at the same places as the careful reader finds."""

from __future__ import annotations

import codecs
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import corpora
from trainer.data.chunks import LARGEST, read_chunks
from trainer.data.containers import inspect_file, read_samples
from trainer.data.json_blocks import BLOCK, Block, Passage
from trainer.errors import DataError

SAMPLES = corpora.raw_samples(2000)
ODD = '},\n  {"id": "not a sample"}, {]}, [ "conversations"'  # in a text, it looks like a place to cut


def in_blocks(path: Path) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for chunk in read_chunks(path):
        values, where = chunk.values(path)
        assert len(values) == len(chunk) and chunk.first == len(found) + 1
        found += [(where(index), value) for index, value in enumerate(values)]
    return found


def carefully(path: Path) -> list[tuple[str, Any]]:
    return [
        (sample.where, sample.value) for sample in read_samples(path, inspect_file(path), largest=LARGEST)
    ]


def written(path: Path, samples: list[Any], layout: str) -> Path:
    if path.suffix == ".jsonl":
        separator = "\n\n" if layout == "blank lines" else "\n"
        path.write_text(separator.join(json.dumps(each, ensure_ascii=False) for each in samples))
    else:
        indent = {"indented": 2, "deeply indented": 8}.get(layout)
        separators = (",", ":") if layout == "compact" else None
        path.write_text(json.dumps(samples, ensure_ascii=False, indent=indent, separators=separators))
    return path


@pytest.mark.parametrize("layout", ["compact", "one line", "indented", "deeply indented"])
def test_an_array_is_cut_between_samples_whatever_its_layout(tmp_path: Path, layout: str) -> None:
    samples = [{**each, "note": f"é {ODD} 漢"} for each in SAMPLES]
    path = written(tmp_path / "a.json", samples, layout)
    assert in_blocks(path) == carefully(path)
    chunks = list(read_chunks(path))
    assert len(chunks) > 2 and all(isinstance(chunk.content, Passage) for chunk in chunks)
    assert all(chunk.content.size < 4 * BLOCK for chunk in chunks if isinstance(chunk.content, Passage))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert in_blocks(path) == carefully(path)
    assert all(isinstance(chunk.content, Block) for chunk in read_chunks(path))


@pytest.mark.parametrize("layout", ["lines", "blank lines"])
def test_lines_are_cut_at_their_ends(tmp_path: Path, layout: str) -> None:
    path = written(tmp_path / "a.jsonl", SAMPLES, layout)
    assert in_blocks(path) == carefully(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_order_mark_moves_nothing(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, SAMPLES, "indented")
    before = in_blocks(path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert in_blocks(path) == carefully(path) == before


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, SAMPLES, "indented")
    chunks = list(read_chunks(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="changed while it was read"):
        chunks[-1].values(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        chunks[0].values(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_what_only_the_careful_reader_takes_is_taken(tmp_path: Path, name: str) -> None:
    """Half a surrogate pair and NaN, which are refused or ignored as samples, never as files."""
    samples = [*SAMPLES[:300], {"note": "half \ud83d"}, {"note": float("nan")}, *SAMPLES[300:]]
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(samples))
    else:
        path.write_text("\n".join(map(json.dumps, samples)))
    found, careful = in_blocks(path), carefully(path)
    assert [where for where, _ in found] == [where for where, _ in careful]
    assert repr(found) == repr(careful)


def test_a_sample_of_many_megabytes_is_no_end_of_the_blocks(tmp_path: Path) -> None:
    samples = [*SAMPLES[:50], {"note": "x" * (6 << 20)}, *SAMPLES[50:]]
    for name in ("a.json", "a.jsonl"):
        path = written(tmp_path / name, samples, "indented")
        assert in_blocks(path) == carefully(path)


def test_a_file_in_frames_of_a_few_bytes_takes_no_longer(tmp_path: Path) -> None:
    """Counted, not timed: each byte is looked through a few times at most."""
    import zstandard

    from trainer.data import json_blocks

    path = written(tmp_path / "a.json", [*SAMPLES[:30], {"note": "y" * 900_000}, *SAMPLES[30:90]], "compact")
    data = path.read_bytes()
    packer = zstandard.ZstdCompressor()
    path.write_bytes(b"".join(packer.compress(data[at : at + 100]) for at in range(0, len(data), 100)))
    pieces = list(json_blocks._gathered(data[at : at + 100] for at in range(0, len(data), 100)))
    assert b"".join(pieces) == data and len(pieces) <= 1 + len(data) // BLOCK
    assert in_blocks(path) == carefully(path)


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 10**9), seed=st.integers(0, 10**6))
def test_a_file_that_is_cut_off_or_damaged_is_an_error_at_the_same_place(
    tmp_path_factory: pytest.TempPathFactory, cut: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    dice = random.Random(seed)
    for name in ("a.json", "a.jsonl"):
        path = written(folder / name, SAMPLES[:250], dice.choice(["compact", "indented"]))
        data = path.read_bytes()
        at = cut % len(data)
        path.write_bytes(
            data[:at] + (b"" if dice.random() < 0.5 else dice.choice([b"\xff", b"}", b'"']) + data[at + 1 :])
        )
        try:
            expected: object = carefully(path)
        except DataError as error:
            expected = error.message
        try:
            found: object = in_blocks(path)
        except DataError as error:
            found = error.message
        assert found == expected
