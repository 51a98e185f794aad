"""SkyPilot's machines for services: a controller is a cluster of its own, each worker a managed job."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.clouds.base import Seen
from launcher.clouds.sky_api import ENDED, FAILED, lines, sdk, word
from launcher.errors import require_extra
from launcher.services.render import UNGUARDED
from launcher.wheel import write_wheel

_FIELDS = ("job_id", "job_name", "status", "failure_reason", "details", "recovery_count")
_LOOK_S = 2.0
# A worker's longest drain, and some.
_END_S = 150
# Of a cluster's task: nobody starts it again.
_TASK_OVER = ("FAILED", "FAILED_SETUP", "FAILED_DRIVER", "SUCCEEDED", "CANCELLED")


class SkyMachines:
    """launcher.clouds.base.Machines, by a SkyPilot API server."""

    def __init__(self) -> None:
        require_extra("sky", "sky", needed_for="a service on a cloud")

    def launch_machine(self, name: str, task: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        write_wheel()
        with sdk() as sky:
            made = sky.Task.from_yaml_config(dict(task), secrets_overrides=list(secrets.items()))
            sky.stream_and_get(sky.launch(made, cluster_name=name))

    def launch_job(self, name: str, task: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        write_wheel()
        with sdk() as sky:
            made = sky.Task.from_yaml_config(dict(task), secrets_overrides=list(secrets.items()))
            sky.stream_and_get(sky.jobs.launch(made, name=name))

    def machine(self, name: str) -> Seen | None:
        record = self._record(name)
        if record is None:
            return None
        cluster = word(record.status)
        if cluster != "UP":
            return Seen(
                cluster, live=cluster == "INIT", problem=None if cluster == "INIT" else "it was stopped"
            )
        with sdk() as sky:
            newest = next(iter(sky.get(sky.job_status(name)).values()), None)
        task = cluster if newest is None else word(newest)
        over = task in _TASK_OVER
        return Seen(task, live=not over, problem="controller and API ended" if over else None)

    def address(self, name: str, port: int) -> str | None:
        record = self._record(name)
        if record is None or word(record.status) != "UP":
            return None
        if str(record.handle.launched_resources.cloud).lower() in UNGUARDED:
            return f"{record.handle.stable_internal_external_ips[0][0]}:{port}"
        with sdk() as sky:
            try:
                found = sky.get(sky.endpoints(name, port))
            except (RuntimeError, ValueError):  # not open yet
                return None
        return str(next(iter(found.values()))) if found else None

    def jobs(self, names: Sequence[str]) -> dict[str, Seen]:
        newest: dict[str, Any] = {}
        for record in self._jobs(names):
            newest.setdefault(record.job_name, record)
        found = {}
        for name, record in newest.items():
            status = word(record.status)
            said = (record.failure_reason or record.details or "it gave no reason").strip()
            found[name] = Seen(
                status,
                live=status not in ENDED,
                problem=said if status in FAILED else None,
                recoveries=record.recovery_count or 0,
            )
        return found

    def end_machine(self, name: str) -> None:
        with sdk() as sky:
            sky.get(sky.down(name))

    def end_jobs(self, names: Sequence[str]) -> None:
        live = [record.job_id for record in self._jobs(names) if word(record.status) not in ENDED]
        with sdk() as sky:
            sky.get(sky.jobs.cancel(job_ids=live, graceful=True, graceful_timeout=_END_S))
        while any(seen.live for seen in self.jobs(names).values()):
            time.sleep(_LOOK_S)

    def machine_logs(self, name: str) -> Iterator[str]:
        return lines(lambda sky: sky.tail_logs(name, None, follow=False, preload_content=False))

    def job_logs(self, name: str) -> Iterator[str]:
        number = next((record.job_id for record in self._jobs([name])), None)
        if number is None:
            return iter(())
        return lines(lambda sky: sky.jobs.tail_logs(job_id=number, follow=False, preload_content=False))

    def _record(self, name: str) -> Any | None:
        with sdk() as sky:
            found = sky.get(sky.status([name], refresh=sky.StatusRefreshMode.AUTO))
        return next((record for record in found if record.name == name), None)

    def _jobs(self, names: Sequence[str]) -> list[Any]:
        """Managed jobs of these names, the newest first."""
        with sdk() as sky:
            asked = sky.jobs.queue_v2(
                refresh=False, fields=_FIELDS, name_match=os.path.commonprefix(list(names))
            )
            found, *_ = sky.get(asked)
        return sorted((job for job in found if job.job_name in names), key=lambda job: -job.job_id)
