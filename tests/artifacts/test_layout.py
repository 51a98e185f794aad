"""Keys: what is built can be parsed, and their order is the order of what they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.artifacts import layout

exact = settings(derandomize=True, database=None, max_examples=50)
steps, epochs = st.integers(0, 10**12 - 1), st.integers(1, 10**8 - 1)
times = st.datetimes(datetime(2020, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC))


@exact
@given(step=steps, first=steps, epoch=epochs, time=times, attempt=st.integers(0, 999999))
def test_every_key_parses_to_what_it_was_built_from(
    step: int, first: int, epoch: int, time: datetime, attempt: int
) -> None:
    assert layout.parse_epoch_key(layout.epoch_key(epoch)) == (epoch, False)
    assert layout.parse_epoch_key(layout.epoch_start_key(epoch)) == (epoch, True)
    assert layout.parse_manifest_key(layout.manifest_key(step, epoch)) == (step, epoch)
    assert layout.parse_metrics_key(layout.metrics_key(first, step, epoch)) == (first, step, epoch)
    for sender in (None, epoch):
        blob = layout.blob_key(layout.blob_name("0f" * 32, sender))
        assert layout.parse_blob_key(blob) == ("0f" * 32, sender)
    key = layout.journal_key(time, attempt, 7, "save_failed")
    assert layout.parse_journal_key(key) == (time, attempt, 7, "save_failed")


@exact
@given(one=st.tuples(steps, epochs), other=st.tuples(steps, epochs))
def test_keys_sort_as_their_numbers(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (one < other) == (layout.manifest_key(*one) < layout.manifest_key(*other))
    assert (one < other) == (layout.metrics_key(0, *one) < layout.metrics_key(0, *other))
    assert layout.epoch_key(one[1]) < layout.epoch_start_key(one[1]) < layout.epoch_key(one[1] + 1)


def test_journal_keys_are_in_utc_wherever_the_writer_is() -> None:
    noon = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    there = noon.astimezone(timezone(timedelta(hours=8)))
    key = layout.journal_key(there, 1, 2, "started")
    assert key == "journal/20261120T120000.000000Z-000001-000002-started.json"
    assert key == layout.journal_key(noon, 1, 2, "started")


@pytest.mark.parametrize(
    "key", ["", "epoch/1", "epoch/00000001.void", "manifest/1-e1.json", "blob/xyz", "journal/x"]
)
def test_what_is_not_one_of_our_keys_parses_to_nothing(key: str) -> None:
    parsers = (
        layout.parse_epoch_key,
        layout.parse_blob_key,
        layout.parse_manifest_key,
        layout.parse_metrics_key,
        layout.parse_journal_key,
    )
    assert [parse(key) for parse in parsers] == [None] * 5


def test_the_other_keys_are_those_of_the_design() -> None:
    assert layout.run_prefix("v13") == "runs/v13"
    assert layout.export_key("model.safetensors") == "export/model.safetensors"
    assert layout.cache_key("tokens") == layout.cache_key("tokens.json") == "cache/tokens.json"
    assert layout.attempt_key(3) == "attempt/000003"
    assert layout.log_key(3, "box.log") == "logs/attempt-000003/box.log"


@pytest.mark.parametrize("name", ["a", "v13-0412", "a" * 40, "0"])
def test_names_that_a_run_may_have(name: str) -> None:
    assert layout.valid_run_id(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "..", "a/b", "a" * 41, "a\n", "é"])
def test_names_that_a_run_may_not_have(name: str) -> None:
    assert not layout.valid_run_id(name)
