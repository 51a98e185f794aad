"""SkyPilot's machines for services: a controller is a cluster of its own, each worker a managed job."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from launcher.clouds.base import Seen
from launcher.clouds.sky import _ENDED, _FAILED, _sky
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
        with _sky() as sky:
            made = sky.Task.from_yaml_config(dict(task), secrets_overrides=list(secrets.items()))
            sky.stream_and_get(sky.launch(made, cluster_name=name))

    def launch_job(self, name: str, task: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        write_wheel()
        with _sky() as sky:
            made = sky.Task.from_yaml_config(dict(task), secrets_overrides=list(secrets.items()))
            sky.stream_and_get(sky.jobs.launch(made, name=name))

    def machine(self, name: str) -> Seen | None:
        record = self._record(name)
        if record is None:
            return None
        cluster = _word(record.status)
        if cluster != "UP":
            return Seen(
                cluster, live=cluster == "INIT", problem=None if cluster == "INIT" else "it was stopped"
            )
        with _sky() as sky:
            newest = next(iter(sky.get(sky.job_status(name)).values()), None)
        task = cluster if newest is None else _word(newest)
        over = task in _TASK_OVER
        return Seen(task, live=not over, problem="controller and API ended" if over else None)

    def address(self, name: str, port: int) -> str | None:
        record = self._record(name)
        if record is None or _word(record.status) != "UP":
            return None
        if str(record.handle.launched_resources.cloud).lower() in UNGUARDED:
            return f"{record.handle.stable_internal_external_ips[0][0]}:{port}"
        with _sky() as sky:
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
            status = _word(record.status)
            said = (record.failure_reason or record.details or "it gave no reason").strip()
            found[name] = Seen(
                status,
                live=status not in _ENDED,
                problem=said if status in _FAILED else None,
                recoveries=record.recovery_count or 0,
            )
        return found

    def end_machine(self, name: str) -> None:
        with _sky() as sky:
            sky.get(sky.down(name))

    def end_jobs(self, names: Sequence[str]) -> None:
        live = [record.job_id for record in self._jobs(names) if _word(record.status) not in _ENDED]
        with _sky() as sky:
            sky.get(sky.jobs.cancel(job_ids=live, graceful=True, graceful_timeout=_END_S))
        while any(seen.live for seen in self.jobs(names).values()):
            time.sleep(_LOOK_S)

    def machine_logs(self, name: str) -> Iterator[str]:
        return _lines(lambda sky: sky.tail_logs(name, None, follow=False, preload_content=False))

    def job_logs(self, name: str) -> Iterator[str]:
        number = next((record.job_id for record in self._jobs([name])), None)
        if number is None:
            return iter(())
        return _lines(lambda sky: sky.jobs.tail_logs(job_id=number, follow=False, preload_content=False))

    def _record(self, name: str) -> Any | None:
        with _sky() as sky:
            found = sky.get(sky.status([name], refresh=sky.StatusRefreshMode.AUTO))
        return next((record for record in found if record.name == name), None)

    def _jobs(self, names: Sequence[str]) -> list[Any]:
        """Managed jobs of these names, the newest first."""
        with _sky() as sky:
            asked = sky.jobs.queue_v2(
                refresh=False, fields=_FIELDS, name_match=os.path.commonprefix(list(names))
            )
            found, *_ = sky.get(asked)
        return sorted((job for job in found if job.job_name in names), key=lambda job: -job.job_id)


def _word(status: Any) -> str:
    return str(getattr(status, "value", status))


def _lines(open_it: Callable[[Any], Any]) -> Iterator[str]:
    """What a machine printed, in whole lines."""
    with _sky() as sky:
        pieces = iter(open_it(sky))
    rest = ""
    while True:
        with _sky():  # not around a yield: what the caller prints is its own
            piece = next(pieces, None)
        if piece is None:
            break
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest
