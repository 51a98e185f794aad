"""The answer on stdout, the conversation on stderr; JSON that every reader can parse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.output import confirm, table, to_json


@dataclass(frozen=True)
class Point:
    step: int
    loss: float


def test_json_begins_with_its_version_and_is_one_line_off_a_terminal() -> None:
    text = to_json({"runs": [1, 2]})
    assert text == '{"version": 1, "runs": [1, 2]}'


def test_values_of_ours_are_written_plainly() -> None:
    data = {
        "at": datetime(2026, 11, 20, tzinfo=UTC),
        "path": Path("/x"),
        "point": Point(3, 0.5),
        "some": {2, 1},
    }
    assert json.loads(to_json(data)) == {
        "version": 1,
        "at": "2026-11-20T00:00:00+00:00",
        "path": "/x",
        "point": {"step": 3, "loss": 0.5},
        "some": [1, 2],
    }


def test_a_loss_that_is_no_number_is_null_and_not_broken_json() -> None:
    data = {"points": [Point(1, float("nan")), Point(2, float("inf")), Point(3, 0.1)]}
    losses = [point["loss"] for point in json.loads(to_json(data))["points"]]
    assert losses == [None, None, 0.1]


def test_a_table_off_a_terminal_has_no_colour_and_shortens_nothing() -> None:
    text = table(["RUN", "STEP"], [("x" * 300, 12), ("[bold]y[/bold]", None)], right={"STEP"})
    assert "\x1b" not in text
    header, first, second = text.splitlines()
    assert first.split() == ["x" * 300, "12"]
    assert second.split() == ["[bold]y[/bold]", "-"]
    assert len(header) == len(first)


def test_without_a_terminal_nothing_is_asked() -> None:
    confirm("Spend $3?", yes=True)
    with pytest.raises(UsageError) as caught:
        confirm("Spend $3?", yes=False)
    assert caught.value.hint == "--yes agrees beforehand"
