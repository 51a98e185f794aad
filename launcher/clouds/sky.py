"""SkyPilot as a cloud: a run is one of its managed jobs, on any cloud that it knows.

Nothing about the job is remembered on this computer. Its name follows from the run's URI, so any laptop finds it
again, also when the answer to the launch was lost on the way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.clouds.base import is_live
from launcher.clouds.sky_api import (
    ENDED,
    FAILED,
    FIX_ACCESS,
    REFUSED_CREDENTIALS,
    lines,
    loaded_plugin,
    one_line,
    refused_credentials,
    sdk,
    word,
)
from launcher.errors import NotReady, RemoteJobFailed, VlaunchError, require_extra
from launcher.render import job_name, trusted_task
from launcher.runs.attempts import box_at_work, open_attempts
from launcher.shipment import pack
from launcher.spot.plugin import STRATEGY, strategy
from launcher.wheel import write_wheel
from trainer.artifacts.journal import Journal, read_journal
from trainer.artifacts.layout import CONFIG, TASK
from trainer.artifacts.store import Store, open_store
from trainer.config import decode_config

# What a machine may take for its last save when a run is stopped.
_STOP_GRACE_S = 300
_FIELDS = ("job_id", "job_name", "status", "failure_reason", "details")
_LOG_LINES = 15
_LOOK_S = 2.0


class SkyCloud:
    """Runs looked after by the managed jobs of a SkyPilot API server."""

    def __init__(self) -> None:
        require_extra("sky", "sky", needed_for="a run on a cloud")

    def launch(self, run_uri: str) -> None:
        if self.alive(run_uri):
            raise is_live(run_uri)
        store = open_store(run_uri)
        config = decode_config(store.get(CONFIG), f"{run_uri}/{CONFIG}")
        shipment = pack(config, run_uri, strategy())
        task = trusted_task(store.get(TASK), run_uri, shipment)
        if shipment.strategy == STRATEGY and loaded_plugin() == "":
            raise NotReady(
                "SkyPilot's server was started before vlaunch's plugin was installed",
                hint="sky api stop; sky api start",
            )
        write_wheel()
        secrets = [(name, os.environ[name]) for name in shipment.secrets]
        with sdk() as sky:
            job = sky.Task.from_yaml_config(task, secrets_overrides=secrets)
            ids, _ = sky.stream_and_get(sky.jobs.launch(job, name=job_name(run_uri)))
        number = ids[0] if isinstance(ids, Sequence) else ids
        Journal(store, 0, "launcher", quiet=True).record(
            "submitted", job=number, name=job_name(run_uri), strategy=shipment.strategy
        )

    def alive(self, run_uri: str) -> bool:
        return bool(self._live_jobs(run_uri))

    def stop(self, run_uri: str) -> bool:
        live = self._live_jobs(run_uri)
        if not live:
            return False
        store = open_store(run_uri)
        attempt = max((event.attempt for event in read_journal(store)), default=0)
        Journal(store, attempt, "launcher").record("stopping", job=live[0]["job_id"])
        _await_last_save(store)
        with sdk() as sky:
            cancel = {"graceful": True, "graceful_timeout": _STOP_GRACE_S}
            sky.get(sky.jobs.cancel(job_ids=[job["job_id"] for job in live], **cancel))
        while self.alive(run_uri):
            time.sleep(_LOOK_S)
        for attempt in open_attempts(read_journal(store)):
            Journal(store, attempt, "launcher").record("ended", reason="stopped")
        return True

    def logs(self, run_uri: str, *, follow: bool) -> Iterator[str]:
        jobs = self._jobs(run_uri)
        if not jobs:
            return
        yield from _log(jobs[0]["job_id"], follow=follow)

    def verdict(self, run_uri: str) -> VlaunchError | None:
        jobs = self._jobs(run_uri)
        if not jobs or jobs[0]["status"] not in FAILED:
            return None
        job = jobs[0]
        said = one_line(job["failure_reason"] or job["details"] or "it gave no reason")
        if job["status"] in ("FAILED_PRECHECKS", "FAILED_NO_RESOURCE"):
            if REFUSED_CREDENTIALS.search(said):
                return refused_credentials(said)
            return NotReady(f"SkyPilot found no machine for {job['job_name']}: {said}", hint=FIX_ACCESS)
        what = f"{job['job_name']} is {job['status']} in SkyPilot: {said}"
        if job["status"] == "FAILED_SETUP":
            last = list(_log(job["job_id"], follow=False))[-_LOG_LINES:]
            what = "\n".join([f"setting up the machine of {job['job_name']} failed; its last words:", *last])
        return RemoteJobFailed(
            what, hint=f"sky jobs logs --controller {job['job_id']} shows what SkyPilot did"
        )

    def _live_jobs(self, run_uri: str) -> list[dict[str, Any]]:
        return [job for job in self._jobs(run_uri) if job["status"] not in ENDED]

    def _jobs(self, run_uri: str) -> list[dict[str, Any]]:
        """Managed jobs of this run, the newest first."""
        name = job_name(run_uri)
        with sdk() as sky:
            found, *_ = sky.get(sky.jobs.queue_v2(refresh=False, fields=_FIELDS, name_match=name))
        jobs = [{field: getattr(record, field) for field in _FIELDS} for record in found]
        for job in jobs:
            job["status"] = word(job["status"])
        return sorted((job for job in jobs if job["job_name"] == name), key=lambda job: -job["job_id"])


def _await_last_save(store: Store) -> None:
    """Our strategy in SkyPilot's controller reads `stopping` and tells the machine; SkyPilot's own cannot."""
    strategies = [event.data.get("strategy") for event in read_journal(store) if event.kind == "submitted"]
    if strategies[-1:] != [STRATEGY]:
        return
    patience = time.monotonic() + _STOP_GRACE_S
    while box_at_work(read_journal(store)) and time.monotonic() < patience:
        time.sleep(_LOOK_S)


def _log(job: int, *, follow: bool) -> Iterator[str]:
    return lines(lambda sky: sky.jobs.tail_logs(job_id=job, follow=follow, preload_content=False))
