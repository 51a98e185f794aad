"""The policy inside SkyPilot: a recovery strategy of managed jobs, brought in by a plugin of the API server.

SkyPilot's controller calls `launch` once and `recover` after every loss. Both ask launcher/spot/policy.py for the
order of places, by way of the run's journal, and ask SkyPilot for one place at a time, by name: a list of places to
avoid is lost on the way to its optimiser (0.14.1). Each request, refusal, start and loss goes to the journal with its
price, so the bill is exact and the next controller knows what this one knew.

By example, with places in us-east and us-west:
    launch   requested us-east, running, ..., the machine is taken
    recover  ended(preempted); requested us-west: no_capacity; requested us-east, running
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
from typing import Any

import requests
from sky import exceptions, global_user_state
from sky.jobs import recovery_strategy, state, utils
from sky.server import plugins
from sky.server.requests.queues import mp_queue
from sky.utils import context, registry

from launcher import __version__
from launcher.planning.plan import Candidate
from launcher.render import infra, use_spot
from launcher.shipment import ADDRESSES, SECRETS
from launcher.spot.ledger import Ledger
from launcher.spot.leftovers import end_leftovers
from launcher.spot.plugin import STRATEGY

log = logging.getLogger("sky.vlaunch")

# Between two looks for a reason to end: the budget, the deadline, `vlaunch stop`. At $40 an hour, eleven cents.
_WATCH_S = 10.0
# What a machine may take for its last save when the run is stopped, and how often it is looked whether it is done.
_GRACE_S = 300
_SAVED_S = 2.0


class Plugin(plugins.BasePlugin):
    """Registers the strategy in every process of the server that may meet its name or run it.

    A server that starts also ends what a killed one has left.
    """

    @property
    def name(self) -> str:
        return "vlaunch"

    @property
    def version(self) -> str:
        return __version__

    def install(self, extension_context: Any) -> None:
        if STRATEGY.lower() not in registry.JOBS_RECOVERY_STRATEGY_REGISTRY:
            register = registry.JOBS_RECOVERY_STRATEGY_REGISTRY.type_register(name=STRATEGY, default=False)
            register(Strategy)
        if extension_context.context is plugins.PluginContext.MAIN:
            for pid in end_leftovers(mp_queue.get_queue_manager_port()):
                log.warning("process %d of a server that was killed is ended", pid)


class _ServerGoneError(Exception):
    """SkyPilot's server went away before or during a request: nobody knows what would have come of it."""


class Strategy(recovery_strategy.FailoverStrategyExecutor):
    """Leaves the region that failed, as long as there is another."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._task = self.dag.tasks[0]
        self._ledger = Ledger(self._task.envs.get("VLAUNCH_RUN", ""))
        self._watch: asyncio.Task[None] | None = None
        self._leaving = False
        self._asked = False
        self._failure: Exception | None = None

    async def launch(self) -> float:
        _reach_the_store(self._task)
        self._watch_anew()
        return await self._find_machine(recovery=False)

    async def on_resume(self, cluster_name: str) -> None:
        """The controller was started again beside a machine that runs."""
        _reach_the_store(self._task)
        self._watch_anew()

    async def recover(self) -> float:
        _reach_the_store(self._task)
        if not self._leaving:
            self._watch_anew()
        if self._leaving or await asyncio.to_thread(self._ledger.stop_asked, self.job_id):
            await asyncio.Event().wait()  # no machine is wanted any more: the watch cancels this job
        await asyncio.to_thread(self._ledger.lost)
        await asyncio.to_thread(self._cleanup_cluster)
        return await self._find_machine(recovery=True)

    async def _find_machine(self, *, recovery: bool) -> float:
        """Rounds over all places until one gives a machine; the pause between two rounds is SkyPilot's own."""
        asked_for = self._task.resources
        places = {(_infra(resources), resources.use_spot): resources for resources in asked_for}
        try:
            while True:
                reasons: list[Exception] = []
                for candidate in await asyncio.to_thread(self._ledger.order, list(places)):
                    resources = places[infra(candidate), use_spot(candidate)]
                    self._asked, self._failure = False, None
                    try:
                        submitted, error = await self._try(candidate, resources, recovery)
                    except _ServerGoneError:
                        break  # this place was not refused: it may be the first again
                    if submitted is not None:
                        return submitted
                    reasons += [error] if error else []
                wrong_everywhere = len(reasons) == len(places)  # not full: another round is no better
                if not recovery and wrong_everywhere:
                    raise reasons[-1]
                await asyncio.sleep(self.RETRY_INIT_GAP_SECONDS)
        finally:
            self._task.set_resources(asked_for)

    async def _try(
        self, candidate: Candidate, resources: Any, recovery: bool
    ) -> tuple[float | None, Exception | None]:
        """One place, once: when the job was submitted there, or why it can never be (credentials, no such machine)."""
        attempt = await asyncio.to_thread(self._ledger.requested, candidate)
        self._task.set_resources([resources])
        self._task.update_envs({"VLAUNCH_ATTEMPT": str(attempt), "VLAUNCH_REGION": candidate.region})
        error, said = None, "no machine"
        try:
            submitted: float | None = await self._launch(
                max_retry=1, raise_on_failure=True, recovery=recovery
            )
        except exceptions.ProvisionPrechecksError as refusal:
            submitted, error, said = None, refusal, "; ".join(str(reason) for reason in refusal.reasons)
        except exceptions.ManagedJobReachedMaxRetriesError as refusal:
            submitted, said = None, str(self._failure or refusal)
            lost = isinstance(self._failure, requests.RequestException | exceptions.ApiServerConnectionError)
            if lost or not self._asked:
                await asyncio.to_thread(self._ledger.lost)
                raise _ServerGoneError(said) from refusal
        except exceptions.ClusterSetUpError as failure:
            if not recovery:
                raise
            submitted, said = None, str(failure)
        if submitted is None:
            await asyncio.to_thread(self._ledger.refused, attempt, candidate, said)
        else:
            await asyncio.to_thread(self._tell_running, attempt)
        return submitted, error

    async def _await_launch_request(self, request_id: str, stream_task: asyncio.Future[Any]) -> None:
        """As SkyPilot's, which logs why a request failed, and then tells only that it failed."""
        self._asked = True
        try:
            await super()._await_launch_request(request_id, stream_task)
        except Exception as error:
            self._failure = error
            raise

    def _watch_anew(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.create_task(self._watch_for_the_end())

    async def _watch_for_the_end(self) -> None:
        """The budget and the deadline hold, and `vlaunch stop` is obeyed, also where every laptop is closed."""
        while not await asyncio.to_thread(self._is_to_end):
            await asyncio.sleep(_WATCH_S)
            if await asyncio.to_thread(self._is_over):
                return  # the controller lives on for other jobs
        self._leaving = True
        await self._let_it_save()
        await asyncio.to_thread(self._cancel_own_job)
        await asyncio.to_thread(self._ledger.stopped)

    def _is_over(self) -> bool:
        status = state.get_status(self.job_id)
        return status is None or status.is_terminal()

    def _is_to_end(self) -> bool:
        return self._ledger.limit() is not None or self._ledger.stop_asked(self.job_id)

    async def _let_it_save(self) -> None:
        """SkyPilot's own cancel takes the machine away within seconds: interrupt the box before, and wait for it."""
        if not await asyncio.to_thread(self._ledger.box_at_work):
            return
        try:
            await asyncio.to_thread(self._interrupt)
            async with asyncio.timeout(_GRACE_S):
                while await asyncio.to_thread(self._ledger.box_at_work):
                    await asyncio.sleep(_SAVED_S)
        except Exception as error:  # of many kinds; the run ends all the same, at its newest checkpoint
            log.warning("the last step may not be saved: %r", error)

    def _interrupt(self) -> None:
        """Ctrl-C to the trainer of this run on each machine: that is its word for saving and leaving."""
        handle = global_user_state.get_handle_from_cluster_name(self.cluster_name)
        if handle is None:
            return
        # The bracket keeps the pattern from finding the command that holds it; the oldest is the supervisor.
        pattern = "[t]rainer --run " + re.escape(self._task.envs["VLAUNCH_RUN"]) + " "
        for runner in handle.get_command_runners():
            runner.run(f"pkill -INT -o -f {shlex.quote(pattern)}", stream_logs=False)

    def _cancel_own_job(self) -> None:
        workspace = state.get_workspace(self.job_id)
        utils.cancel_jobs_by_id(
            [self.job_id], current_workspace=workspace, graceful=True, graceful_timeout=_GRACE_S
        )

    def _tell_running(self, attempt: int) -> None:
        got = self._launched_resources
        self._ledger.running(attempt, got.zone or "", got.instance_type or "", _usd_per_hour(got))


def _usd_per_hour(resources: Any) -> float | None:
    """As SkyPilot's catalog or configuration has it; None where neither does."""
    try:
        return float(resources.get_cost(3600)) or None
    except Exception as error:  # of many kinds, and no price is worth a machine
        log.info("no price of %s: %s", resources, error)
        return None


def _infra(resources: Any) -> str:
    parts = (str(resources.cloud).lower(), resources.region, resources.zone)
    return "/".join(part for part in parts if part)


def _reach_the_store(task: Any) -> None:
    """The store's address and keys, as the machine gets them, for this job alone: jobs share the controller."""
    job = context.get()
    if job is None:
        return
    given = {**task.envs, **{name: secret.get_secret_value() for name, secret in task.secrets.items()}}
    job.override_envs({name: given[name] for name in (*ADDRESSES, *SECRETS) if name in given})
