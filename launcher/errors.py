"""The laptop's view of errors: trainer's tree, what only the laptop can lack, and the nearest right name.

cli.py is the one place where these become text and an exit code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trainer.errors import (
    ConfigError,
    CorruptObject,
    DataError,
    Fenced,
    Interrupted,
    LimitReached,
    MissingKey,
    NotReady,
    Preempted,
    RemoteJobFailed,
    RunIsLive,
    StoreError,
    StoreRefused,
    UsageError,
    VlaunchError,
    nearest,
)

__all__ = [
    "ConfigError",
    "CorruptObject",
    "DataError",
    "Fenced",
    "Interrupted",
    "LimitReached",
    "MissingExtra",
    "MissingKey",
    "NotReady",
    "Preempted",
    "Problem",
    "RemoteJobFailed",
    "RunIsLive",
    "StoreError",
    "StoreRefused",
    "UsageError",
    "VlaunchError",
    "nearest",
    "require_extra",
]


class Problem(NamedTuple):
    """Something found before anything starts, so that all can be told at once. Each part is one sentence."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


class MissingExtra(NotReady):
    """A part of vlaunch that pip installs only on request is not there."""

    def __init__(self, extra: str, *, needed_for: str, missing: Iterable[str]) -> None:
        super().__init__(f"{needed_for} needs {', '.join(missing)}", hint=f"pip install 'vlaunch[{extra}]'")
        self.extra = extra


def require_extra(extra: str, *modules: str, needed_for: str) -> None:
    """Raises MissingExtra unless all `modules` can be imported; looks for them without importing."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtra(extra, needed_for=needed_for, missing=missing)
