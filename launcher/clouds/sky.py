"""SkyPilot as a cloud: a run is one of its managed jobs, on any cloud that it knows. The only door to SkyPilot's SDK.

Nothing about the job is remembered on this computer. Its name follows from the run's URI, so any laptop finds it
again, also when the answer to the launch was lost on the way. The API server may be local or remote: SkyPilot's own
settings say which.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from launcher.clouds.base import is_live
from launcher.errors import NotReady, Problem, RemoteJobFailed, VlaunchError, require_extra
from launcher.render import job_name, trusted_task
from launcher.runs.attempts import box_at_work, open_attempts
from launcher.shipment import pack
from launcher.spot.plugin import STRATEGY, strategy
from launcher.wheel import write_wheel
from trainer.artifacts.journal import Journal, read_journal
from trainer.artifacts.layout import CONFIG, TASK
from trainer.artifacts.store import Store, open_store
from trainer.config import decode_config

# Of SkyPilot's managed jobs: in these nobody looks after the run any more.
_FAILED = ("FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER")
_ENDED = ("SUCCEEDED", "CANCELLED", *_FAILED)
# What a machine may take for its last save when a run is stopped.
_STOP_GRACE_S = 300
_FIELDS = ("job_id", "job_name", "status", "failure_reason", "details")
_LOG_LINES = 15
_ANSWER_S = 10.0
_LOOK_S = 2.0
_FIX_ACCESS = "`sky check` says what is missing for each cloud"
# Of botocore, google-auth and SkyPilot itself, for keys that are too old or that nobody knows.
_REFUSED_CREDENTIALS = re.compile(
    r"ExpiredToken|RequestExpired|InvalidClientToken|invalid_grant|reauthenticat\w*|access token is expired"
    r"|InvalidCloudCredentials|invalid cloud credentials",
    re.IGNORECASE,
)
# SkyPilot's server keeps the variables that it was started with.
_FIX_CREDENTIALS = (
    "sign in there again (aws sso login, gcloud auth application-default login); sky api stop; sky api start"
)
_FIX_SERVER = (
    "~/.sky/api_server/server.log says why; where it names a port in use, a killed server has left a process there: "
    "lsof -ti :50011 | xargs kill"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


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
        with _sky() as sky:
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
        with _sky() as sky:
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
        yield from _lines(jobs[0]["job_id"], follow=follow)

    def verdict(self, run_uri: str) -> VlaunchError | None:
        jobs = self._jobs(run_uri)
        if not jobs or jobs[0]["status"] not in _FAILED:
            return None
        job = jobs[0]
        said = _one_line(job["failure_reason"] or job["details"] or "it gave no reason")
        if job["status"] in ("FAILED_PRECHECKS", "FAILED_NO_RESOURCE"):
            if _REFUSED_CREDENTIALS.search(said):
                return _credentials(said)
            return NotReady(f"SkyPilot found no machine for {job['job_name']}: {said}", hint=_FIX_ACCESS)
        what = f"{job['job_name']} is {job['status']} in SkyPilot: {said}"
        if job["status"] == "FAILED_SETUP":
            last = list(_lines(job["job_id"], follow=False))[-_LOG_LINES:]
            what = "\n".join([f"setting up the machine of {job['job_name']} failed; its last words:", *last])
        return RemoteJobFailed(
            what, hint=f"sky jobs logs --controller {job['job_id']} shows what SkyPilot did"
        )

    def _live_jobs(self, run_uri: str) -> list[dict[str, Any]]:
        return [job for job in self._jobs(run_uri) if job["status"] not in _ENDED]

    def _jobs(self, run_uri: str) -> list[dict[str, Any]]:
        """Managed jobs of this run, the newest first."""
        name = job_name(run_uri)
        with _sky() as sky:
            found, *_ = sky.get(sky.jobs.queue_v2(refresh=False, fields=_FIELDS, name_match=name))
        jobs = [{field: getattr(record, field) for field in _FIELDS} for record in found]
        for job in jobs:
            job["status"] = getattr(job["status"], "value", job["status"])
        return sorted((job for job in jobs if job["job_name"] == name), key=lambda job: -job["job_id"])


def _await_last_save(store: Store) -> None:
    """Our strategy in SkyPilot's controller reads `stopping` and tells the machine; SkyPilot's own cannot."""
    strategies = [event.data.get("strategy") for event in read_journal(store) if event.kind == "submitted"]
    if strategies[-1:] != [STRATEGY]:
        return
    patience = time.monotonic() + _STOP_GRACE_S
    while box_at_work(read_journal(store)) and time.monotonic() < patience:
        time.sleep(_LOOK_S)


def loaded_plugin() -> str | None:
    """The version of our plugin in the running API server: "" where it has none, None where no server runs."""
    require_extra("sky", "sky", needed_for="a run on a cloud")
    with _sky():
        import requests
        from sky.server import common

        try:
            found = requests.get(f"{common.get_server_url()}/api/plugins", timeout=_ANSWER_S).json()
        except (requests.RequestException, ValueError):
            return None
    named = [entry for entry in found.get("plugins", []) if entry.get("name") == "vlaunch"]
    return str(named[0].get("version")) if named else ""


def access_problems(clouds: Sequence[str]) -> dict[str, Problem]:
    """What keeps SkyPilot from starting machines on each of these clouds, by cloud: asks them for the account's rights.

    Some seconds. What SkyPilot remembers of an earlier answer is not trusted: keys expire.
    """
    require_extra("sky", "sky", needed_for="a run on a cloud")
    told = io.StringIO()
    with _sky() as sky:
        sdk = sky.client.sdk
        sky.stream_and_get(sdk.check(tuple(clouds), verbose=False), output_stream=told)
        enabled = {str(cloud).lower() for cloud in sky.get(sdk.enabled_clouds())}
    return {cloud: _no_access(cloud, told.getvalue()) for cloud in clouds if cloud not in enabled}


def _no_access(cloud: str, told: str) -> Problem:
    """The problem with a cloud, from what `sky check` printed: its name and `disabled`, and the reason below."""
    found = re.search(
        rf"^ *{cloud}: disabled *\n((?: {{3,}}.*\n?)*)", _ANSI.sub("", told), re.MULTILINE | re.IGNORECASE
    )
    reason = " ".join(found[1].split()) if found else ""
    if refusal := _REFUSED_CREDENTIALS.search(reason):
        what = f"the credentials of {cloud} have expired or are not accepted ({refusal[0]})"
        return Problem(what, f"{_FIX_CREDENTIALS}; sky check {cloud} says more")
    said = reason.partition(": ")[2].partition(". ")[0].rstrip(".")
    return Problem(
        f"SkyPilot cannot use {cloud}" + (f": {said}" if said else ""),
        f"sky check {cloud} says what is missing",
    )


def _lines(job: int, *, follow: bool) -> Iterator[str]:
    """What the job's machines printed, in whole lines."""
    with _sky() as sky:
        pieces = iter(sky.jobs.tail_logs(job_id=job, follow=follow, preload_content=False))
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


@contextmanager
def _sky() -> Iterator[Any]:
    """The SDK. What it prints is conversation, and what it raises becomes one of our errors."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    with redirect_stdout(sys.stderr):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what SkyPilot's own imports do is not the user's to mend
            import sky
            from sky import exceptions

        try:
            yield sky
        except VlaunchError:
            raise
        except Exception as error:
            raise _translated(error, exceptions) from error


def _translated(error: Exception, exceptions: Any) -> VlaunchError:
    said = _one_line(str(error)) or type(error).__name__
    if isinstance(error, exceptions.ApiServerConnectionError):
        return NotReady(
            f"SkyPilot's API server does not answer: {said}", hint="sky api status; sky api start"
        )
    if isinstance(error, exceptions.InvalidCloudCredentials) or _REFUSED_CREDENTIALS.search(said):
        return _credentials(said)
    if isinstance(error, exceptions.NoCloudAccessError | exceptions.CloudUserIdentityError):
        return NotReady(f"SkyPilot has no cloud to use: {said}", hint=_FIX_ACCESS)
    if isinstance(error, exceptions.ResourcesUnavailableError):
        return NotReady(
            f"no machine could be had: {said}",
            hint="a quota may be 0: vlaunch doctor; more --infra gives more chances",
        )
    if isinstance(error, exceptions.ApiServerAuthenticationError | exceptions.PermissionDeniedError):
        return NotReady(f"SkyPilot's API server refuses: {said}", hint="sky api login")
    if isinstance(error, RuntimeError) and "API server process exited" in said:
        return NotReady(f"SkyPilot's API server could not be started: {said}", hint=_FIX_SERVER)
    return VlaunchError(
        f"SkyPilot failed: {said}", hint="--debug shows where; sky api logs shows what it did"
    )


def _credentials(said: str) -> NotReady:
    return NotReady(f"the cloud does not accept SkyPilot's credentials: {said}", hint=_FIX_CREDENTIALS)


def _one_line(said: str) -> str:
    return " ".join(_ANSI.sub("", said).split())
