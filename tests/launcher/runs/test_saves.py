"""How a run saves, as status tells it."""

from __future__ import annotations

from datetime import timedelta

from launcher.report.terminal import status_text
from launcher.runs.runview import RunRecord, view
from launcher.runs.saves import Saves, saves_of
from tests.launcher.lives import at, event, launcher, request
from trainer.artifacts.journal import RunEvent

BEGUN = [
    launcher("created", 0, 0), request(1, 1), launcher("running", 2), event("started", 3, epoch=1),
    event("training", 4, step=1),
]  # fmt: skip


def word(step: int = 40, sent: float = 3e8, seconds: float = 130.0, epoch: int = 1) -> dict[str, object]:
    times = {"began": at(100).timestamp(), "time": at(seconds).timestamp()}
    return {"epoch": epoch, "step": step, "sent": int(sent), "total": 900_000_000, **times}


def saved(step: int, seconds: float, **data: object) -> RunEvent:
    return event("checkpoint", seconds + 1, step=step, taken_at=at(seconds).isoformat(), **data)


def seen(*events: RunEvent, upload: object = None, now: float = 132.0) -> Saves:
    return saves_of([*BEGUN, *events], upload, at(now), running=True)  # type: ignore[arg-type]


def test_a_long_upload_is_told_with_what_is_left() -> None:
    saving = seen(upload=word()).saving
    assert saving is not None and (saving.step, saving.bytes_per_s, saving.left_s) == (40, 1e7, 60.0)
    run = RunRecord(
        "tiny", "file:///x", (*BEGUN, saved(30, 90, next_s=70.0, store_is_slow=True)), upload=word()
    )
    text = status_text(view(run, at(132)), run.costs(at(132)), at(132))
    assert "saving         step 40: 300 of 900 MB, 10.0 MB/s, 1m 00s to go" in text
    assert "saves          every 1m 10s: twice what the store takes for one" in text


def test_a_word_is_dropped_when_it_is_old_or_its_save_is_over_or_it_is_a_zombies() -> None:
    assert seen(upload=word(), now=500).saving is None
    assert seen(saved(40, 120), upload=word()).saving is None
    assert seen(event("save_failed", 131, step=40, error="full"), upload=word()).saving is None
    assert seen(upload=word(epoch=2)).saving is None


def test_a_damaged_word_is_none() -> None:
    for damaged in ({}, {"epoch": 1}, {**word(), "sent": "many"}, {**word(), "time": at(100).timestamp()}):
        assert seen(upload=damaged).saving is None


def test_the_next_save_is_counted_from_when_the_last_one_was_taken() -> None:
    planned = seen(saved(40, 100, next_s=50.0))
    assert (planned.every, planned.until_next) == (timedelta(seconds=50), timedelta(seconds=18))
    assert seen(saved(40, 10, next_s=50.0)).until_next == timedelta(0)
    assert seen(saved(40, 100)).every is None, "by steps, nobody can say"
