"""What the verbs need of a cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from trainer.errors import NotReady, RunIsLive


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


def open_cloud(name: str) -> Cloud:
    """The cloud of that name.

    Raises:
        NotReady: this version cannot start runs there.
    """
    if name != "local":
        raise NotReady(f"this version looks after runs on this machine only, not on {name}")
    from launcher.clouds.local import LocalCloud

    return LocalCloud()


def is_live(run_uri: str) -> RunIsLive:
    """The refusal of a second live attempt."""
    name = run_uri.rstrip("/").rsplit("/", 1)[-1]
    return RunIsLive(f"{name} is running already", hint=f"vlaunch logs -f {name} follows it")
