"""The only door to SkyPilot's SDK: a call to its API server, and what it says in our words.

The server may be local or remote: SkyPilot's own settings say which.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from launcher.errors import NotReady, Problem, VlaunchError, require_extra

# Of SkyPilot's managed jobs: in these nobody looks after the run any more.
FAILED = ("FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER")
ENDED = ("SUCCEEDED", "CANCELLED", *FAILED)
_ANSWER_S = 10.0
FIX_ACCESS = "`sky check` says what is missing for each cloud"
# Of botocore, google-auth and SkyPilot itself, for keys that are too old or that nobody knows.
REFUSED_CREDENTIALS = re.compile(
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


@contextmanager
def sdk() -> Iterator[Any]:
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


def lines(open_log: Callable[[Any], Any]) -> Iterator[str]:
    """What a machine printed, in whole lines. `open_log`: from the SDK to the pieces as they come."""
    with sdk() as sky:
        pieces = iter(open_log(sky))
    rest = ""
    while True:
        with sdk():  # not around a yield: what the caller prints is its own
            piece = next(pieces, None)
        if piece is None:
            break
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest


def word(status: Any) -> str:
    """SkyPilot's word for a status, which it gives as an enum or as text."""
    return str(getattr(status, "value", status))


def loaded_plugin() -> str | None:
    """The version of our plugin in the running API server: "" where it has none, None where no server runs."""
    require_extra("sky", "sky", needed_for="a run on a cloud")
    with sdk():
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
    with sdk() as sky:
        asked = sky.client.sdk
        sky.stream_and_get(asked.check(tuple(clouds), verbose=False), output_stream=told)
        enabled = {str(cloud).lower() for cloud in sky.get(asked.enabled_clouds())}
    return {cloud: _no_access(cloud, told.getvalue()) for cloud in clouds if cloud not in enabled}


def _no_access(cloud: str, told: str) -> Problem:
    """The problem with a cloud, from what `sky check` printed: its name and `disabled`, and the reason below."""
    found = re.search(
        rf"^ *{cloud}: disabled *\n((?: {{3,}}.*\n?)*)", _ANSI.sub("", told), re.MULTILINE | re.IGNORECASE
    )
    reason = " ".join(found[1].split()) if found else ""
    if refusal := REFUSED_CREDENTIALS.search(reason):
        what = f"the credentials of {cloud} have expired or are not accepted ({refusal[0]})"
        return Problem(what, f"{_FIX_CREDENTIALS}; sky check {cloud} says more")
    said = reason.partition(": ")[2].partition(". ")[0].rstrip(".")
    return Problem(
        f"SkyPilot cannot use {cloud}" + (f": {said}" if said else ""),
        f"sky check {cloud} says what is missing",
    )


def _translated(error: Exception, exceptions: Any) -> VlaunchError:
    said = one_line(str(error)) or type(error).__name__
    if isinstance(error, exceptions.ApiServerConnectionError):
        return NotReady(
            f"SkyPilot's API server does not answer: {said}", hint="sky api status; sky api start"
        )
    if isinstance(error, exceptions.InvalidCloudCredentials) or REFUSED_CREDENTIALS.search(said):
        return refused_credentials(said)
    if isinstance(error, exceptions.NoCloudAccessError | exceptions.CloudUserIdentityError):
        return NotReady(f"SkyPilot has no cloud to use: {said}", hint=FIX_ACCESS)
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


def refused_credentials(said: str) -> NotReady:
    return NotReady(f"the cloud does not accept SkyPilot's credentials: {said}", hint=_FIX_CREDENTIALS)


def one_line(said: str) -> str:
    return " ".join(_ANSI.sub("", said).split())
