"""How an attempt on several machines comes to one end.

Each node reports what became of its ranks. One judgement is made of all reports, and every node leaves with its exit
code: one 75 among them is enough for SkyPilot to start the job again (should_restart_on_failure of 0.14), so a
fault must not be a fault here and a preemption there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

from trainer.errors import Preempted, VlaunchError
from trainer.lines import Message

_LONGEST_TEXT = 8000  # characters of an error that other nodes are told

Kind = Literal["finished", "preempted", "left", "halted", "gone", "failed"]


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one node, or of all of them.

    finished, preempted: its ranks ended by themselves, as all agreed to. left: told to go before there were ranks.
    halted: ended because of another node. gone: not heard of any more. failed: an error, with its exit code.
    """

    kind: Kind
    exit_code: int = 0
    error: str = ""
    hint: str | None = None
    certain: bool = True
    """False for a failure that may be the mere echo of another node's: a broken connection among the ranks."""

    @property
    def calm(self) -> bool:
        """Whether the other nodes come to the same end by themselves."""
        return self.kind in ("finished", "preempted")

    @classmethod
    def from_message(cls, message: Message) -> Report:
        fields = {name: message[name] for name in ("kind", "exit_code", "error", "hint", "certain")}
        return cls(**fields)

    def message(self, say: str) -> Message:
        short = replace(self, error=self.error[:_LONGEST_TEXT], hint=self.hint and self.hint[:_LONGEST_TEXT])
        return {"say": say, **asdict(short)}


def failure(error: BaseException, *, certain: bool = True) -> Report:
    """An error as the journal, the supervisor and the other nodes read it."""
    message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, VlaunchError) else "the traceback is in vlaunch logs"
    return Report("failed", getattr(error, "exit_code", 1), message, hint, certain)


def gone(who: str, why: str) -> Report:
    return Report(
        "gone", Preempted.exit_code, f"{who} is gone: {why}", "start the same command again elsewhere"
    )


def judge(reports: list[Report]) -> Report:
    """One end for all nodes, from what became of each, in the order in which it was heard.

    A fault that stands for itself wins over a lost machine, and that over a fault that may be its echo.
    """
    order: list[Callable[[Report], bool]] = [
        lambda report: report.kind == "failed" and report.certain,
        lambda report: report.kind == "gone",
        lambda report: report.kind == "failed",
        lambda report: report.kind == "left",
        lambda report: report.kind == "preempted",
        lambda report: report.kind == "halted",
    ]
    for matches in order:
        if found := next(filter(matches, reports), None):
            return found
    return Report("finished")
