"""What google-cloud-storage's exceptions mean, in words that say what to do.

Of a reply only status and reason are repeated, never its text: the library puts URLs into it, and that of an upload
under way is as good as a key.
"""

from __future__ import annotations

from typing import Any

import requests
import urllib3
from google.api_core import exceptions as broken
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from trainer.artifacts.patience import Fault, Kind

_AGAIN = {408, 409, 429, 500, 502, 503, 504}
_GIVE = "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or: gcloud auth application-default login"
_RENEW = "gcloud auth application-default login, or another GOOGLE_APPLICATION_CREDENTIALS"
_CLOCK = "set the clock: timedatectl set-ntp true"
_ENDPOINT = "is the network up, and is STORAGE_EMULATOR_HOST unset, or right?"


def judge(error: Exception, bucket: str) -> Fault | None:
    """None: not an error of GCS or of the way there."""
    if isinstance(error, DataCorruption):
        return Fault(Kind.CORRUPT, "the bytes do not match the service's checksum", again=True, most_tries=3)
    if isinstance(error, broken.GoogleAPICallError):
        return _answered(int(error.code or 0), _reasons(error.response), str(error.message), bucket)
    if isinstance(error, InvalidResponse):
        return _answered(int(error.response.status_code), _reasons(error.response), "", bucket)
    if isinstance(error, auth.GoogleAuthError):
        return _not_authenticated(error)
    if isinstance(error, requests.Timeout):
        return Fault(Kind.FAILED, "no answer in time", again=True)
    if isinstance(error, requests.exceptions.SSLError):
        hint = "is its certificate valid? REQUESTS_CA_BUNDLE names another authority"
        return Fault(Kind.FAILED, "no trusted connection", hint, again=True, most_tries=3)
    if isinstance(error, requests.ConnectionError):
        return Fault(Kind.FAILED, "it cannot be reached, or the connection broke", _ENDPOINT, again=True)
    if isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError, OSError)):
        return Fault(Kind.FAILED, "the connection broke", again=True)
    return None


def _answered(status: int, reasons: set[str], text: str, bucket: str) -> Fault:
    told = " ".join([str(status), *sorted(reasons)])
    if status in _AGAIN or reasons & {"rateLimitExceeded", "userRateLimitExceeded", "backendError"}:
        hint = (
            "the bucket gets more requests than it takes: fewer machines at once" if status == 429 else None
        )
        return Fault(Kind.FAILED, told, hint, again=True)
    if status == 412:
        return Fault(Kind.EXISTS, told)
    if status == 404 and "bucket does not exist" in text:
        hint = "create it, or correct --store"
        return Fault(Kind.REFUSED, f"there is no bucket {bucket}", hint)
    if status == 404:
        return Fault(Kind.ABSENT, told)
    if status == 401:
        return Fault(Kind.REFUSED, f"these credentials are not accepted ({told})", _GIVE, new_client=True)
    if status == 403:
        hint = f"the credentials need the role Storage Object User (roles/storage.objectUser) on {bucket}"
        return Fault(Kind.REFUSED, f"permission denied ({told})", hint, new_client=True)
    return Fault(Kind.FAILED, told, "vlaunch doctor --store URI tries what a store must be able to do")


def _not_authenticated(error: auth.GoogleAuthError) -> Fault:
    if isinstance(error, auth.DefaultCredentialsError):
        said = "no Google credentials were found, or they are no credentials"
        return Fault(Kind.REFUSED, said, _GIVE, new_client=True)
    if isinstance(error, auth.TransportError):
        return Fault(Kind.FAILED, "the credentials cannot be fetched", _ENDPOINT, again=True)
    text = str(error)
    if "reasonable timeframe" in text or "iat" in text.split():
        return Fault(
            Kind.REFUSED, "the clock of this machine is wrong: Google does not accept its time", _CLOCK
        )
    if isinstance(error, auth.RefreshError) and not error.retryable:
        return Fault(Kind.REFUSED, "the credentials have expired or were withdrawn", _RENEW, new_client=True)
    return Fault(
        Kind.REFUSED, "the credentials cannot be renewed", _RENEW, again=True, most_tries=3, new_client=True
    )


def _reasons(reply: Any) -> set[str]:
    """GCS's words for what is wrong, such as rateLimitExceeded."""
    try:
        found = [each["reason"] for each in reply.json()["error"]["errors"]]
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # not from GCS itself, but from something before it
        return set()
    return {reason for reason in found if isinstance(reason, str) and reason.isalpha()}
