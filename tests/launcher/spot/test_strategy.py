"""The strategy inside SkyPilot's real classes; only the launch of a machine is made up.

Private names of SkyPilot 0.14.1 are used by the strategy: this file fails when another version changes them.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests

from trainer.artifacts.journal import Journal, read_journal
from trainer.artifacts.store import open_store

if find_spec("sky") is None:
    pytest.skip("SkyPilot is not installed: vlaunch[sky]", allow_module_level=True)

EAST, WEST = {"infra": "slurm/us-east", "cpus": "2+"}, {"infra": "slurm/us-west", "cpus": "2+"}


class World:
    """Which places have machines; what was asked for."""

    def __init__(self, *full: str, wrong: Sequence[str] = ()) -> None:
        self.full, self.wrong = set(full), set(wrong)
        self.failures: list[Exception] = []
        self.asked: list[str] = []


def executor(world: World, run: str, places: Sequence[dict[str, str]]) -> Any:
    """The strategy as SkyPilot's controller makes it, in this world."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports use what sqlalchemy has deprecated
        from sky import Task, backends, exceptions
        from sky.jobs import recovery_strategy
        from sky.server import plugins

        from launcher.spot.strategy import Plugin, Strategy

    Plugin().install(plugins.ExtensionContext(context=plugins.PluginContext.CONTROLLER))
    recovery = {"strategy": "VLAUNCH", "recover_on_exit_codes": [75]}
    task = Task.from_yaml_config(
        {
            "run": "true",
            "envs": {"VLAUNCH_RUN": run},
            "resources": {"ordered": list(places), "job_recovery": recovery},
        }
    )
    backend = object.__new__(backends.CloudVmRayBackend)
    made = recovery_strategy.StrategyExecutor.make("c", backend, task, 1, 0, None, set(), None, None)
    assert isinstance(made, Strategy) and made.recover_on_exit_codes == [75]

    async def launch(max_retry: int, raise_on_failure: bool, recovery: bool) -> float | None:
        assert max_retry == 1
        (resources,) = made.dag.tasks[0].resources
        world.asked.append(resources.region)
        if world.failures:
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(failure := world.failures.pop())
            if not isinstance(failure, RuntimeError):  # that one comes before there is a request
                with suppress(Exception):
                    await made._await_launch_request("1", failed)
            failed.exception()
            raise exceptions.ManagedJobReachedMaxRetriesError("after 1 retries")
        if resources.region in world.wrong and raise_on_failure:
            raise exceptions.ProvisionPrechecksError(reasons=[ValueError("no credentials")])
        if resources.region in world.full | world.wrong:
            return None
        made._launched_resources = resources
        return 1.0

    made._launch, made._cleanup_cluster, made.RETRY_INIT_GAP_SECONDS = launch, lambda: None, 0
    return made


def test_every_recovery_leaves_the_region_and_is_journaled(tmp_path: Path) -> None:
    world, run = World(), str(tmp_path / "runs/x")
    strategy = executor(world, run, [EAST, WEST])

    asyncio.run(strategy.launch())
    for _ in range(3):
        asyncio.run(strategy.recover())

    assert world.asked == ["us-east", "us-west", "us-east", "us-west"]
    told = [(e.attempt, e.kind) for e in read_journal(open_store(run))]
    assert told[:4] == [(1, "requested"), (1, "running"), (1, "ended"), (2, "requested")]


def test_a_full_region_is_tried_once_a_round(tmp_path: Path) -> None:
    world = World("us-west")
    strategy = executor(world, str(tmp_path / "runs/x"), [EAST, WEST])

    asyncio.run(strategy.launch())
    asyncio.run(strategy.recover())

    assert world.asked == ["us-east", "us-west", "us-east"]


def test_the_machine_is_told_its_attempt_and_region(tmp_path: Path) -> None:
    strategy = executor(World("us-east"), str(tmp_path / "runs/x"), [EAST, WEST])

    asyncio.run(strategy.launch())

    envs = strategy.dag.tasks[0].envs
    assert (envs["VLAUNCH_ATTEMPT"], envs["VLAUNCH_REGION"]) == ("2", "us-west")


def test_a_first_launch_that_can_never_succeed_fails_with_skypilots_reason(tmp_path: Path) -> None:
    from sky import exceptions

    world = World(wrong=["us-east", "us-west"])
    strategy = executor(world, str(tmp_path / "runs/x"), [EAST, WEST])

    with pytest.raises(exceptions.ProvisionPrechecksError):
        asyncio.run(strategy.launch())

    assert world.asked == ["us-east", "us-west"]
    refusals = [e for e in read_journal(open_store(str(tmp_path / "runs/x"))) if e.kind == "no_capacity"]
    assert ["no credentials" in e.data["error"] for e in refusals] == [True, True]


def test_a_recovery_goes_on_past_a_place_that_never_can_be_and_the_journal_says_why(tmp_path: Path) -> None:
    world = World()
    strategy = executor(world, str(tmp_path / "runs/x"), [EAST, WEST])
    asyncio.run(strategy.launch())
    world.wrong.add("us-west")

    asyncio.run(strategy.recover())

    assert world.asked == ["us-east", "us-west", "us-east"]
    (refusal,) = [e for e in read_journal(open_store(str(tmp_path / "runs/x"))) if e.kind == "no_capacity"]
    assert refusal.data["error"] == "no credentials"


@pytest.mark.parametrize(
    "failure", [requests.ConnectionError("refused"), RuntimeError("exited unexpectedly")]
)
def test_a_server_that_is_gone_or_does_not_start_says_nothing_of_the_region(
    tmp_path: Path, failure: Exception
) -> None:
    world = World()
    strategy = executor(world, str(tmp_path / "runs/x"), [EAST, WEST])
    asyncio.run(strategy.launch())
    world.failures.append(failure)

    asyncio.run(strategy.recover())

    assert world.asked == ["us-east", "us-west", "us-west"]
    ends = [e.data["reason"] for e in read_journal(open_store(str(tmp_path / "runs/x"))) if e.kind == "ended"]
    assert ends == ["preempted", "orphaned"]


def test_a_refusal_is_journaled_in_the_clouds_own_words(tmp_path: Path) -> None:
    from sky import exceptions

    world = World()
    world.failures.append(exceptions.ResourcesUnavailableError("InsufficientInstanceCapacity"))
    asyncio.run(executor(world, str(tmp_path / "runs/x"), [EAST, WEST]).launch())

    (refusal,) = [e for e in read_journal(open_store(str(tmp_path / "runs/x"))) if e.kind == "no_capacity"]
    assert refusal.data == {"regions": ["us-east"], "error": "InsufficientInstanceCapacity"}


def test_the_task_keeps_all_its_places_for_the_next_recovery(tmp_path: Path) -> None:
    strategy = executor(World(), str(tmp_path / "runs/x"), [EAST, WEST])

    asyncio.run(strategy.launch())

    assert [r.region for r in strategy.dag.tasks[0].resources] == ["us-east", "us-west"]


def test_a_job_that_is_asked_to_stop_saves_first_and_gets_no_other_machine(tmp_path: Path) -> None:
    world, run = World(), str(tmp_path / "runs/x")
    strategy, store = executor(world, run, [EAST, WEST]), open_store(run)

    async def life() -> None:
        await strategy.launch()
        Journal(store, 1, "box").record("started", epoch=1)
        Journal(store, 1, "launcher").record("stopping", job=strategy.job_id)
        recovery = asyncio.create_task(
            strategy.recover()
        )  # the box leaves with 75, as before any other machine
        strategy._cancel_own_job = lambda: recovery.get_loop().call_soon_threadsafe(recovery.cancel)
        await asyncio.wait([recovery])
        await strategy._watch

    strategy._interrupt = lambda: Journal(store, 1, "box").record("preempted", step=9, durable_step=9)
    asyncio.run(life())

    told = [(e.kind, e.data.get("reason")) for e in read_journal(store) if e.kind in ("preempted", "ended")]
    assert told == [("preempted", None), ("ended", "stopped")]
    assert world.asked == ["us-east"]
