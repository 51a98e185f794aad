"""Counting a corpus, and `vlaunch data`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.read import read_corpus
from trainer.data.stats import bar, corpus_stats, histogram


def sample(question: str, *answers: str) -> dict[str, Any]:
    turns = [
        part
        for answer in answers
        for part in ({"from": "human", "value": question}, {"from": "gpt", "value": answer})
    ]
    return {"conversations": turns}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    first, second = tmp_path / "first.json", tmp_path / "second.jsonl"
    open_end = {
        "conversations": [
            *sample("five words are in this", "ok")["conversations"],
            {"from": "human", "value": "?"},
        ]
    }
    first.write_text(json.dumps([sample("hi you", "one two three", "four"), {"x": 1}, {"y": 1}, []]))
    second.write_text(json.dumps(open_end) + "\n" + json.dumps({"x": 1}) + "\n")
    return [first, second]


def test_counts_are_of_what_can_be_used_per_file_and_together(files: list[Path]) -> None:
    stats = corpus_stats(read_corpus(files))
    first, second = stats.files
    assert first.counts.as_dict() == {
        "conversations": 1,
        "turns": 4,
        "words": 8,
        "answer_words": 4,
        "characters": 29,
        "median_words": 8,
        "p95_words": 8,
        "longest_words": 8,
    }
    assert (second.counts.turns, second.counts.words, second.report.trimmed) == (2, 6, 1)
    assert (stats.total.conversations, stats.total.words, stats.trimmed) == (2, 14, 1)
    assert stats.refused == {"unknown format": 3, "not an object": 1}
    for file in stats.files:
        assert file.report.samples == file.counts.conversations + sum(file.report.refused.values())


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=50))
def test_each_conversation_is_in_exactly_one_bucket_of_the_histogram(lengths: list[int]) -> None:
    buckets = histogram(Counter(lengths))
    for bucket in buckets:
        assert bucket.conversations == sum(bucket.low <= length <= bucket.high for length in lengths)
    assert sum(bucket.conversations for bucket in buckets) == len(lengths)
    assert all(left.high + 1 == right.low for left, right in zip(buckets, buckets[1:], strict=False))


@settings(deadline=None)
@given(value=st.integers(0, 1000), more=st.integers(0, 1000))
def test_a_bar_is_never_too_long_and_only_nothing_has_none(value: int, more: int) -> None:
    drawn = bar(value, value + more, 20)
    assert len(drawn) <= 20
    assert bool(drawn) == bool(value)


# --- the verb ------------------------------------------------------------------------------------


def test_data_stats_shows_lengths_and_why_samples_were_refused(
    vlaunch: Callable[..., Any], files: list[Path]
) -> None:
    ran = vlaunch("data", "stats", *files)
    assert ran.code == 0
    assert "sharegpt json" in ran.out and "sharegpt jsonl" in ran.out and "total" in ran.out
    assert "█" in ran.out
    assert "unknown format" in ran.out and "found x" in ran.out
    assert "1 conversation(s) lost a last question" in ran.out


def test_data_stats_json_is_one_versioned_document(vlaunch: Callable[..., Any], files: list[Path]) -> None:
    answer = vlaunch("data", "stats", *files, "--json").json
    assert answer["version"] == 1
    assert [file["samples"] for file in answer["files"]] == [4, 2]
    assert answer["total"]["refused"] == {"unknown format": 3, "not an object": 1}
    assert answer["files"][0]["first_refusal"]["unknown format"].endswith("found x")
    assert answer["histogram"] == [{"low": 0, "high": 15, "conversations": 2}]


def test_data_stats_of_a_broken_file_is_exit_2_with_the_place(
    vlaunch: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "broken.json").write_text('[{"conversations": ]')
    ran = vlaunch("data", "stats", tmp_path / "broken.json")
    assert ran.code == 2 and ran.out == ""
    assert "broken.json: line 1, column 20: broken JSON: expected value" in ran.err and "Hint: " in ran.err


def test_data_example_writes_a_corpus_that_data_stats_reads(
    vlaunch: Callable[..., Any], tmp_path: Path
) -> None:
    written = vlaunch("data", "example", "--to", tmp_path / "corpus", "--json").json
    counted = vlaunch("data", "stats", written["train"]["path"], written["heldout"]["path"], "--json").json
    assert [file["conversations"] for file in counted["files"]] == [
        written["train"]["conversations"],
        written["heldout"]["conversations"],
    ]
    assert counted["total"]["refused"] == {}


def test_data_example_prints_the_two_paths_and_nothing_else_on_stdout(
    vlaunch: Callable[..., Any], tmp_path: Path
) -> None:
    ran = vlaunch("data", "example", "--to", tmp_path)
    assert ran.out.splitlines() == [str(tmp_path / "train.jsonl"), str(tmp_path / "heldout.jsonl")]
    assert "conversations to train on" in ran.err
