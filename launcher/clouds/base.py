"""What the verbs need of a cloud: for a run, and for a service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True, slots=True)
class Seen:
    """A machine or a job as a cloud sees it. `status`: the cloud's own word. `problem`: why it will not come back."""

    status: str
    live: bool
    problem: str | None = None
    recoveries: int = 0


class Machines(Protocol):
    """What a service needs of a cloud: machines that stay, and jobs that are started again where they were lost.

    Everything is found by its name: nothing that a launch answers has to be remembered, so it may get lost.
    """

    def launch_machine(self, name: str, task: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        """Start a machine with a task that runs as long as the machine; returns when the task has begun."""
        ...

    def launch_job(self, name: str, task: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        """Hand over a job that goes on elsewhere when its machine is taken."""
        ...

    def machine(self, name: str) -> Seen | None:
        """None: there is none of that name."""
        ...

    def address(self, name: str, port: int) -> str | None:
        """HOST:PORT by which this computer and other machines reach a machine; None as long as it has none."""
        ...

    def jobs(self, names: Sequence[str]) -> dict[str, Seen]:
        """The newest of each name; what there is not is left out."""
        ...

    def end_machine(self, name: str) -> None:
        """Give it back."""
        ...

    def end_jobs(self, names: Sequence[str]) -> None:
        """Tell them to end, and return when they have."""
        ...

    def machine_logs(self, name: str) -> Iterator[str]:
        """What it has printed so far."""
        ...

    def job_logs(self, name: str) -> Iterator[str]:
        """The same of a job that runs or has ended."""
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


def open_machines() -> Machines:
    """Those of SkyPilot. Raises NotReady where it is not installed."""
    from launcher.clouds.sky_machines import SkyMachines

    return SkyMachines()


def is_live(run_uri: str) -> RunIsLive:
    """The refusal of a second live attempt."""
    name = run_uri.rstrip("/").rsplit("/", 1)[-1]
    return RunIsLive(f"{name} is running already", hint=f"vlaunch logs -f {name} follows it")
