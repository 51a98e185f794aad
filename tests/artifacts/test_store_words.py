"""What goes wrong with a store is said in one sentence, with what to do about it, and nothing secret in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.artifacts.conftest import KEY_ID, ONCE, SECRET, Bucket
from tests.artifacts.fault_proxy import Answer, FaultProxy, all_well, always
from trainer.artifacts.bucket import BucketStore
from trainer.artifacts.store import open_store
from trainer.errors import MissingKey, StoreError, StoreRefused, UsageError

SIGNED = "https://x/?X-Amz-Signature=5ecre7;upload_id=5ecre7"


def s3_error(status: int, code: str, extra: str = "", **headers: str) -> Answer:
    """As S3 writes it, with something in it that must not be repeated."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, f"<Error><Code>{code}</Code><Message>{SIGNED}</Message>{extra}</Error>", named)


def gcs_error(status: int, reason: str, text: str = SIGNED) -> Answer:
    body = f'{{"error": {{"code": {status}, "message": "{text}", "errors": [{{"reason": "{reason}"}}]}}}}'
    return Answer(status, body, {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Case:
    answer: Answer
    says: str
    hint: str
    exit_code: int = 3
    methods: str = field(default=".")


# Fixed, for cases are made when tests are collected, minutes before they run.
THEIR_CLOCK = "Wed, 01 Jan 2020 00:00:00 GMT"

S3_CASES = {
    "wrong bucket": Case(
        s3_error(404, "NoSuchBucket"), "there is no bucket bucket-of-tests at http://", "--store"
    ),
    "no permission": Case(
        s3_error(403, "AccessDenied"), r"permission denied \(403 AccessDenied\)", "s3:PutObject"
    ),
    "expired token": Case(s3_error(400, "ExpiredToken"), "the credentials have expired", "aws sso login"),
    "unknown key": Case(s3_error(403, "InvalidAccessKeyId"), "are not known there", "AWS_PROFILE"),
    "wrong secret": Case(s3_error(403, "SignatureDoesNotMatch"), "secret key does not belong", "AWS_SECRET"),
    "wrong clock": Case(
        s3_error(403, "RequestTimeTooSkewed", Date=THEIR_CLOCK),
        r"the clock of this machine is \d{9,} s ahead",
        "timedatectl",
    ),
    "wrong region, named in a header": Case(
        s3_error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"),
        "is in region eu-west-1",
        "=eu-west-1",
    ),
    "wrong region, named in the body": Case(
        s3_error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
        "is in region eu-west-1",
        "AWS_DEFAULT_REGION=eu-west-1",
    ),
    "wrong region, not named": Case(
        s3_error(301, "PermanentRedirect"), "redirects in circles", "AWS_ENDPOINT_URL"
    ),
    "no If-None-Match": Case(
        s3_error(501, "NotImplemented"), "does not know If-None-Match", "s3[+]single-writer://", methods="PUT"
    ),
    "too many requests": Case(s3_error(503, "SlowDown"), "503 SlowDown", "fewer machines", exit_code=1),
    "quota": Case(
        s3_error(403, "QuotaExceeded"), "quota of the bucket is used up", "delete old runs", exit_code=1
    ),
    "something new": Case(s3_error(418, "Teapot"), "418 Teapot", "vlaunch doctor --store", exit_code=1),
}

GCS_CASES = {
    "wrong bucket": Case(
        gcs_error(404, "notFound", "The specified bucket does not exist."),
        "there is no bucket bucket-of-",
        "--store",
    ),
    "no permission": Case(gcs_error(403, "forbidden"), r"permission denied \(403 forbidden\)", "objectUser"),
    "expired token": Case(gcs_error(401, "authError"), "credentials", "gcloud auth"),
    "too many requests": Case(
        gcs_error(429, "rateLimitExceeded"), "429 rateLimitExceeded", "fewer", exit_code=1
    ),
    "something new": Case(gcs_error(418, "teapot"), "418 teapot", "vlaunch doctor --store", exit_code=1),
}

CALLS: dict[str, Callable[[BucketStore, Path], object]] = {
    "create": lambda store, path: store.put_new("a/key", b"x"),
    "write": lambda store, path: store.put("a/key", b"x"),
    "send": lambda store, path: store.put_file("a/key", path),
    "read": lambda store, path: store.get("a/key"),
    "fetch": lambda store, path: store.get_file("a/key", path),
    "size": lambda store, path: store.size("a/key"),
    "list": lambda store, path: list(store.list()),
}


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("case", S3_CASES.values(), ids=S3_CASES)
def test_what_s3_refuses_is_one_sentence(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, case: Case
) -> None:
    all_calls_say(bucket, proxy, tmp_path, case)


@pytest.mark.parametrize("bucket", ["gcs"], indirect=True)
@pytest.mark.parametrize("case", GCS_CASES.values(), ids=GCS_CASES)
def test_what_gcs_refuses_is_one_sentence(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, case: Case
) -> None:
    all_calls_say(bucket, proxy, tmp_path, case)


def all_calls_say(bucket: Bucket, proxy: FaultProxy, folder: Path, case: Case) -> None:
    """A HEAD's reply has no body, so that of S3 has no reason: then the listing is asked for it."""
    store = bucket(ONCE, proxy.url)
    (folder / "file").write_bytes(b"x" * 250_000)
    proxy.plan = always(case.answer, case.methods)
    for name in ("create",) if case.methods == "PUT" else CALLS:
        if name in ("size", "fetch") and case.answer.status in (404, 418, 503):
            continue  # without a body it is an object that is not there, or nothing more than its number
        with pytest.raises(StoreError, match=case.says) as caught:
            CALLS[name](store, folder / "file")
        one_sentence(caught.value, case.hint)
        assert caught.value.exit_code == case.exit_code


def one_sentence(error: StoreError, hint: str = "") -> None:
    assert "\n" not in error.message and len(error.message) < 300
    assert error.hint and re.search(hint, error.hint)
    for secret in (SECRET, KEY_ID, "5ecre7", "Signature="):
        assert secret not in f"{error.message} {error.hint}"


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_token_that_expires_is_read_again_once_it_is_renewed(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "credentials"
    lines = "[default]\naws_access_key_id={}\naws_secret_access_key=s\naws_session_token=t\n"
    keys.write_text(lines.format("AKIAOLD"))
    store = bucket(ONCE, proxy.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    store.put("a", b"1")
    proxy.plan = lambda request: s3_error(400, "ExpiredToken") if b"AKIAOLD" in request.head else None
    with pytest.raises(StoreRefused, match="expired"):
        store.put("a", b"2")
    keys.write_text(lines.format("AKIANEW"))
    store.put("a", b"3")
    assert store.get("a") == b"3"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AWS_PROFILE", "no-such-profile", "there is no such AWS_PROFILE"),
        ("AWS_ENDPOINT_URL", "nonsense", "AWS_ENDPOINT_URL is not a URL"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "it cannot be reached"),
        ("AWS_ACCESS_KEY_ID", None, "no AWS credentials were found|AWS credentials are incomplete"),
    ],
)
def test_wrong_settings_of_aws_are_one_sentence(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, says: str
) -> None:
    store = s3(ONCE)
    monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    for call in (lambda: store.get("a"), store.describe, lambda: list(store.list())):
        if call == store.describe and value == "http://127.0.0.1:1" or value is None:
            continue  # makes no request
        with pytest.raises(StoreError, match=says) as caught:
            call()
        one_sentence(caught.value)


def test_wrong_settings_of_google_are_one_sentence(
    gcs: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    store = gcs(ONCE, "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        store.get("a")
    one_sentence(caught.value, "STORAGE_EMULATOR_HOST")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    (tmp_path / "key.json").write_text(f'{{"private_key": "{SECRET}"')
    for path in ("", str(tmp_path / "absent.json"), str(tmp_path / "key.json")):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
        with pytest.raises(StoreRefused, match="no Google credentials") as refused:
            store.get("a")
        one_sentence(refused.value, "gcloud auth application-default login")


@pytest.mark.parametrize("uri", ["s3://", "s3://a", "s3://UP_/x/../y", "gs://b c/x", "s3://bucket//x"])
def test_a_uri_that_names_no_bucket_or_no_folder_is_refused_at_once(uri: str) -> None:
    with pytest.raises((StoreError, UsageError)):
        open_store(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="no credentials") as caught:
        open_store(f"s3://{KEY_ID}:{SECRET}@bucket/folder")
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


def test_an_object_that_is_absent_is_no_fault_of_the_bucket(bucket: Bucket) -> None:
    with pytest.raises(MissingKey):
        bucket(ONCE).get("a")


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_single_writer_creates_what_is_absent_without_the_endpoints_help(
    bucket: Bucket, proxy: FaultProxy
) -> None:
    store = open_store(bucket(ONCE, proxy.url).uri.replace("s3://", "s3+single-writer://"))
    proxy.plan = lambda request: (
        s3_error(501, "NotImplemented") if b"if-none-match" in request.head.lower() else None
    )
    assert store.put_new("a", b"1") and store.put_new("a", b"1") and not store.put_new("a", b"2")
    assert store.get("a") == b"1"
    proxy.plan = all_well
