"""What the verbs need of a cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Cloud(Protocol):
    """Runs the managed job of one training run: starts machines for it, again and again, until it ends."""

    def launch(self, run_uri: str) -> None:
        """Hand the run over, as its task.yaml and journal describe it; returns once it is being looked after.

        Raises RunIsLive if somebody looks after it already.
        """
        ...

    def alive(self, run_uri: str) -> bool:
        """Whether somebody looks after the run now."""
        ...

    def stop(self, run_uri: str) -> bool:
        """Ask for the end at the next step; False if nobody looks after the run."""
        ...

    def logs(self, run_uri: str, *, follow: bool) -> Iterator[str]:
        """Lines of all attempts, in order; with `follow` until the run is no longer looked after."""
        ...
