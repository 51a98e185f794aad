"""How a run saves: the save under way, how often there is one, and why so often.

Pure: from the journal, and from the word that a box leaves in the store while a save takes long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from launcher.runs.attempts import moment
from trainer.artifacts.journal import RunEvent

# A box tells of a save under way every 5 s.
_WORD_IS_OLD_S = 60.0


@dataclass(frozen=True, slots=True)
class Saving:
    """A save under way, as its box last told."""

    step: int
    sent_bytes: int
    total_bytes: int
    bytes_per_s: float

    @property
    def left_s(self) -> float | None:
        return (self.total_bytes - self.sent_bytes) / self.bytes_per_s if self.bytes_per_s else None


@dataclass(frozen=True, slots=True)
class Saves:
    """The newest attempt's."""

    saving: Saving | None  # only where it takes long
    every: timedelta | None  # as it was last planned, where time decides
    until_next: timedelta | None  # while one is to come
    store_is_slow: bool  # the store decides `every`, not the balance of cost and risk

    def as_dict(self) -> dict[str, Any]:
        return {
            "next_save_s": self.until_next.total_seconds() if self.until_next is not None else None,
            "save_every_s": self.every.total_seconds() if self.every is not None else None,
            "store_is_slow": self.store_is_slow,
            "saving": asdict(self.saving) if self.saving is not None else None,
        }


def saves_of(
    events: Sequence[RunEvent], upload: Mapping[str, Any] | None, now: datetime, *, running: bool
) -> Saves:
    """`upload` is what the store holds as `upload.json`; `running`: steps are being made."""
    newest = max((event.attempt for event in events), default=0)
    mine = [event for event in events if event.attempt == newest]
    last = next((event.data for event in reversed(mine) if event.kind == "checkpoint"), {})
    every = timedelta(seconds=float(last["next_s"])) if "next_s" in last else None
    taken = moment(last.get("taken_at"))
    next_save = taken + every - now if running and taken is not None and every is not None else None
    return Saves(
        saving=_saving(mine, upload, now) if running else None,
        every=every,
        until_next=max(timedelta(0), next_save) if next_save is not None else None,
        store_is_slow=bool(last.get("store_is_slow")),
    )


def _saving(events: Sequence[RunEvent], told: Mapping[str, Any] | None, now: datetime) -> Saving | None:
    """None where the word is old, of another attempt, or of a save that is over. A damaged word is none."""
    epochs = [event.data.get("epoch") for event in events if event.kind == "started"]
    try:
        if told is None or told["epoch"] not in epochs:
            return None
        took_s = float(told["time"]) - float(told["began"])
        saving = Saving(int(told["step"]), int(told["sent"]), int(told["total"]), told["sent"] / took_s)
        age_s = now.timestamp() - float(told["time"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    ended = [event.data.get("step") for event in events if event.kind in ("checkpoint", "save_failed")]
    return None if saving.step in ended or age_s > _WORD_IS_OLD_S else saving
