"""What people type becomes a value at once, and prints back as it was written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.values import Dollars, Duration, Gpus, Infra, KeyValue, PreemptEvery, parse_store_uri


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("30m", 1800), ("40s", 40), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("0", 0)],
)
def test_a_duration_is_seconds_and_prints_back_the_same(text: str, seconds: float) -> None:
    value = Duration.parse(text)
    assert value == seconds
    assert (str(value), f"{value}") == (text, text)
    assert str(pickle.loads(pickle.dumps(value))) == text


@given(st.integers(min_value=0, max_value=10**10))
def test_every_duration_that_we_print_can_be_typed(milliseconds: int) -> None:
    value = Duration(milliseconds / 1000)
    assert Duration.parse(str(value)) == pytest.approx(value, abs=1e-6)


@given(st.integers(min_value=0, max_value=10**6))
def test_every_amount_below_a_thousand_dollars_that_we_print_can_be_typed(cents: int) -> None:
    assert Dollars.parse(str(Dollars(cents / 100)).replace(",", "")) == cents / 100


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (PreemptEvery.parse, "40s,5s"),
        (PreemptEvery.parse, "40s"),
        (Infra.parse, "local"),
        (Infra.parse, "aws/us-east-1"),
        (Infra.parse, "slurm/c1/gpu"),
        (Infra.parse, "aws/*/us-east-1a"),
        (Gpus.parse, "A100-80GB:8"),
        (KeyValue.parse, "learning_rate=1e-5"),
        (KeyValue.parse, "note=a=b c"),
        (Dollars.parse, "$12.50"),
        (Dollars.parse, "$300"),
        (parse_store_uri, "s3://bucket/prefix"),
        (parse_store_uri, "file:///tmp/store"),
    ],
)
def test_a_value_prints_back_the_same(parse: object, text: str) -> None:
    assert str(parse(text)) == text  # type: ignore[operator]


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (Duration.parse, "30", "write 30s, 30m or 30h"),
        (Duration.parse, "soon", "write for example 40s"),
        (Duration.parse, "-5s", "no duration"),
        (Duration.parse, "", "no duration"),
        (Duration.parse, "5m1h", "no duration"),
        (PreemptEvery.parse, "0s", "longer than 0s"),
        (PreemptEvery.parse, "40s,40s", "jitter of 40s must be shorter"),
        (Dollars.parse, "3e2", "no amount"),
        (Dollars.parse, "-3", "no amount"),
        (Infra.parse, "awz", "did you mean aws?"),
        (Infra.parse, "aws//x", "CLOUD[/REGION[/ZONE]]"),
        (Gpus.parse, "A100:0", "NAME[:COUNT]"),
        (Gpus.parse, "8", "NAME[:COUNT]"),
        (KeyValue.parse, "lr", "no '='"),
        (KeyValue.parse, "=3", "no name"),
        (parse_store_uri, "gcs://x", "did you mean gs?"),
        (parse_store_uri, "s3://", "no bucket"),
        (parse_store_uri, "file://x/y", "not absolute"),
        (parse_store_uri, "", "empty store"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(parse: object, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        parse(text)  # type: ignore[operator]
    assert says in str(caught.value)


def test_a_plain_path_is_a_store_and_the_store_agrees(isolated: Path) -> None:
    from trainer.artifacts.store import open_store

    uri = parse_store_uri("my store")
    assert uri == f"file://{isolated}/work/my%20store"
    assert parse_store_uri(uri) == uri == open_store(uri).uri
    assert parse_store_uri("~/store") == f"file://{isolated}/store"
