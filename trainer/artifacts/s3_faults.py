"""What boto3's exceptions and S3's error codes mean, in words that say what to do.

Of a reply only status, code and region are repeated, never its text: some servers put keys and signatures there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from botocore import exceptions as broken
from botocore.parsers import ResponseParserError

from trainer.artifacts.patience import Fault, Kind
from trainer.artifacts.probe import ALONE

# 409: another request for the same key is under way. 400: what was sent did not arrive as it was sent.
_AGAIN = {
    "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "IncompleteBody", "InternalError",
    "OperationAborted", "PriorRequestNotComplete", "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "TransactionInProgress",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_WRONG_REGION = {
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "IncorrectEndpoint", "PermanentRedirect",
}  # fmt: skip

_GIVE = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a machine whose role may use it"
)
_RENEW = "renew them (aws sso login, or new keys in ~/.aws); a run that goes on reads them again by itself"
_ENDPOINT = "is the network up, and is AWS_ENDPOINT_URL right?"
_TRUSTED = "is its certificate valid? AWS_CA_BUNDLE names another authority"


def _user(said: str, hint: str) -> Fault:
    """Only the user can change it; whoever asks again later reads the credentials again."""
    return Fault(Kind.REFUSED, said, hint, new_client=True)


def _passing(said: str, hint: str | None = None) -> Fault:
    return Fault(Kind.FAILED, said, hint, again=True)


def _thrice(fault: Fault) -> Fault:
    return replace(fault, again=True, most_tries=3)


# By class; the first that fits. Their texts quote URLs, so none is repeated.
_BROKEN: tuple[tuple[tuple[type[Exception], ...], Fault], ...] = (
    # A machine asks for its role over the network and waits for one second: that may well fail once.
    ((broken.NoCredentialsError,), _thrice(_user("no AWS credentials were found", _GIVE))),
    ((broken.CredentialRetrievalError,), _thrice(_user("the AWS credentials cannot be fetched", _RENEW))),
    ((broken.PartialCredentialsError,), _user("the AWS credentials are incomplete", _GIVE)),
    (
        (broken.ProfileNotFound,),
        _user("there is no such AWS_PROFILE", "aws configure list-profiles names all"),
    ),
    (
        (broken.SSOError, broken.LoginError, broken.TokenRetrievalError),
        _user("the AWS session has ended", _RENEW),
    ),
    (
        (broken.FlexibleChecksumError,),
        _thrice(Fault(Kind.CORRUPT, "the bytes do not match the service's checksum")),
    ),
    ((broken.ConnectTimeoutError,), _passing("it cannot be reached in time", _ENDPOINT)),
    ((broken.ReadTimeoutError,), _passing("no answer in time", _ENDPOINT)),
    ((broken.SSLError,), _thrice(_passing("no trusted connection", _TRUSTED))),
    ((broken.ConnectionError,), _passing("it cannot be reached", _ENDPOINT)),
    ((broken.IncompleteReadError, ResponseParserError), _passing("the reply was cut off")),
    (
        (broken.HTTPClientError, urllib3.exceptions.HTTPError, OSError),
        _passing("the connection broke", _ENDPOINT),
    ),
)


def judge(error: Exception, bucket: str, endpoint: str) -> Fault | None:
    """None: not an error of S3 or of the way there."""
    if isinstance(error, broken.ClientError):
        return _answered(error, bucket, endpoint)
    if _in_circles(error):
        return _user("it redirects in circles", _ENDPOINT)
    for kinds, fault in _BROKEN:
        if isinstance(error, kinds):
            return fault
    if isinstance(error, broken.ParamValidationError):
        return Fault(Kind.REFUSED, f"{bucket!r} cannot be a bucket", "look at the name in --store")
    if isinstance(error, broken.BotoCoreError):
        said = f"the AWS settings cannot be used ({type(error).__name__})"
        return Fault(Kind.REFUSED, said, "look at the variables AWS_* and at ~/.aws/config", new_client=True)
    return None


def _in_circles(error: BaseException | None) -> bool:
    """boto3 follows redirects to other regions, however many; whoever is called last may wrap what ends it."""
    while error is not None and not isinstance(error, RecursionError):
        error = error.__cause__ or error.__context__
    return error is not None


def code_of(error: broken.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: broken.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answered(error: broken.ClientError, bucket: str, endpoint: str) -> Fault:
    code, status = code_of(error), status_of(error)
    headers: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    told = f"{status} {code}" if code != str(status) else code
    if code in _AGAIN or status == 429 or (status >= 500 and status != 501):
        return Fault(Kind.FAILED, told, _SLOW.get(code), again=True, wait_s=_retry_after(headers))
    if status == 412:
        return Fault(Kind.EXISTS, told)
    if code == "NoSuchBucket":
        hint = "create it, or correct --store; AWS_PROFILE and AWS_ENDPOINT_URL decide where it is looked for"
        return Fault(Kind.REFUSED, f"there is no bucket {bucket} at {endpoint}", hint)
    if code == "NoSuchUpload":
        return Fault(Kind.FAILED, f"the upload was aborted by somebody else ({told})", "send it again")
    if status == 404:
        return Fault(Kind.ABSENT, told)
    if status == 501 and error.operation_name == "PutObject":
        return Fault(Kind.REFUSED, f"{endpoint} does not know If-None-Match ({told})", ALONE)
    if code in _EXPIRED:
        return Fault(Kind.REFUSED, f"the credentials have expired ({told})", _RENEW, new_client=True)
    if code == "RequestTimeTooSkewed":
        return Fault(Kind.REFUSED, f"{_skew(headers)} ({told})", "set the clock: timedatectl set-ntp true")
    if code in _WRONG_REGION or status == 301:
        return _elsewhere(error, headers, told)
    return _refused(code, status, told, bucket)


_SLOW = {"SlowDown": "the bucket gets more requests than it takes: fewer machines at once, or another prefix"}


def _refused(code: str, status: int, told: str, bucket: str) -> Fault:
    if code in ("InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "UnrecognizedClientException"):
        said = f"these credentials are not known there ({told})"
        return Fault(
            Kind.REFUSED, said, "look at AWS_PROFILE and AWS_ACCESS_KEY_ID, and at ~/.aws", new_client=True
        )
    if code == "SignatureDoesNotMatch":
        said = f"the secret key does not belong to the access key ({told})"
        return Fault(
            Kind.REFUSED, said, "look at AWS_SECRET_ACCESS_KEY, and at ~/.aws/credentials", new_client=True
        )
    if code == "QuotaExceeded":
        return Fault(
            Kind.FAILED, f"the quota of the bucket is used up ({told})", "raise it, or delete old runs"
        )
    if status in (401, 403):
        hint = (
            "the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and "
            f"s3:AbortMultipartUpload on {bucket}"
        )
        return Fault(Kind.REFUSED, f"permission denied ({told})", hint, new_client=True)
    return Fault(Kind.FAILED, told, "vlaunch doctor --store URI tries what a store must be able to do")


def _elsewhere(error: broken.ClientError, headers: Mapping[str, str], told: str) -> Fault:
    region = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
    if region:
        said, hint = f"the bucket is in region {region}", f"set AWS_DEFAULT_REGION={region}"
    else:
        said, hint = "the bucket is in another region", "set AWS_DEFAULT_REGION to the region of the bucket"
    return Fault(Kind.REFUSED, f"{said} ({told})", hint)


def _skew(headers: Mapping[str, str]) -> str:
    try:
        ahead_s = (datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return "the clock of this machine is wrong"
    return f"the clock of this machine is {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}"


def _retry_after(headers: Mapping[str, Any]) -> float:
    after = str(headers.get("retry-after", ""))
    return float(after) if after.isdigit() else 0.0
