"""The hand-over: SkyPilot task files, each runnable by itself with plain `sky launch`. Data, no logic."""

from __future__ import annotations

from importlib.resources import files


def load(name: str) -> str:
    """The text of a template, e.g. load("train")."""
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
