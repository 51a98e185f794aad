"""What the verbs need of a cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from trainer.errors import RunIsLive, VlaunchError


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

    def verdict(self, run_uri: str) -> VlaunchError | None:
        """Why nobody looks after a run that has not come to an end, where the cloud knows more than the store."""
        ...

    def logs(self, run_uri: str, *, follow: bool) -> Iterator[str]:
        """Lines of all attempts, in order; with `follow` until the run is no longer looked after."""
        ...


def open_cloud(name: str) -> Cloud:
    """This machine for "local", SkyPilot for all others.

    Raises:
        NotReady: SkyPilot is not installed.
    """
    if name == "local":
        from launcher.clouds.local import LocalCloud

        return LocalCloud()
    from launcher.clouds.sky import SkyCloud

    return SkyCloud()


def is_live(run_uri: str) -> RunIsLive:
    """The refusal of a second live attempt."""
    name = run_uri.rstrip("/").rsplit("/", 1)[-1]
    return RunIsLive(f"{name} is running already", hint=f"vlaunch logs -f {name} follows it")
