"""S3, and what speaks its language, as a store: through boto3, which reads AWS_* and ~/.aws by itself.

Create-if-absent is `If-None-Match: *` on a single PUT. Retries are ours (bucket.py), so boto3's are off: one budget,
one place, and a 412 is never taken for a failure.

A body's checksum stands in the header, read from the file just before the body is. boto3 would send it behind the
body, in frames within frames: that copies each byte six times, and older servers cannot read it.
"""

from __future__ import annotations

import base64
import logging
import secrets
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3.session
from botocore import exceptions as broken
from botocore.config import Config

from trainer.artifacts.bucket import MIB, BucketStore, Changed, Found, Page
from trainer.artifacts.connections import client_of_this_process, forget_client, in_parallel
from trainer.artifacts.patience import Fault
from trainer.artifacts.s3_faults import code_of, judge, status_of
from trainer.artifacts.slices import Slice
from trainer.errors import StoreError, StoreRefused

try:
    from awscrt.checksums import crc32c as _checksum

    _ALGORITHM = "CRC32C"
except ImportError:  # no wheel for this machine
    from zlib import crc32 as _checksum

    _ALGORITHM = "CRC32"
_SUM = f"Checksum{_ALGORITHM}"

_VARIABLES = ("AWS_", "BOTO_")
_MOST_PARTS = 10_000  # of one object, by S3's rules
_PIECE = MIB  # bytes that a download holds at a time
_LOOK = MIB // 4  # bytes that are summed at a time: they stay in a core's cache

# Its remarks are not for the log of a run, and those for debugging would put session tokens there.
logging.getLogger("botocore").setLevel(logging.WARNING)


class S3Store(BucketStore):
    """`s3://bucket/prefix`; `s3+single-writer://...` for services that do not honour If-None-Match."""

    service = "S3"

    @property
    def _client(self) -> Any:
        return client_of_this_process("s3", _VARIABLES, self._new_client, self.patience)

    def _new_client(self) -> Any:
        config = Config(
            connect_timeout=self.patience.connect_s,
            read_timeout=self.patience.answer_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=32,
            tcp_keepalive=True,
            user_agent_extra="vlaunch",
        )
        try:
            # A session of its own: the default one is shared, and not made for threads.
            session = boto3.session.Session()
            client = session.client("s3", config=config)
            if client.meta.endpoint_url.startswith("https:") and _sums(client):
                # As boto3 does it with its own checksums: what TLS guards is not hashed again for the signature.
                chosen = {"payload_signing_enabled": False} | (client.meta.config.s3 or {})
                client = session.client("s3", config=config.merge(Config(s3=chosen)))
            return client
        except ValueError as error:
            if isinstance(error, broken.BotoCoreError):
                raise
            hint = "write it as https://host or http://host:port"
            raise StoreRefused("AWS_ENDPOINT_URL is not a URL", hint=hint) from None

    def _forget_client(self) -> None:
        forget_client("s3", _VARIABLES, self.patience)

    def _describe(self) -> str:
        found = boto3.session.Session().get_credentials()
        by = f"credentials by {found.method}" if found else "no credentials"
        return f"{self._endpoint}, region {self._client.meta.region_name}, {by}"

    def region(self) -> str:
        if not self._endpoint.endswith(".amazonaws.com"):
            return ""
        told = self._ask("read", "the bucket", lambda: self._client.head_bucket(Bucket=self.bucket))
        return f"aws/{told['BucketRegion']}" if told.get("BucketRegion") else ""

    def sweep(self, older_than_s: float) -> int:
        """Abort multipart uploads that killed writers have left: their parts are billed, and no listing shows them.

        Where the credentials do not allow to list them, nothing is swept: a lifecycle rule of the bucket can.
        """
        swept = 0
        marker: dict[str, Any] = {}
        while True:
            try:
                page = self._ask("sweep", "unfinished uploads", partial(self._uploads, marker))
            except StoreRefused:
                return swept
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for upload in page.get("Uploads", []):
                if (now - upload["Initiated"]).total_seconds() > older_than_s:
                    self._abort(upload["Key"], upload["UploadId"])
                    swept += 1
            if not page.get("IsTruncated"):
                return swept
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _uploads(self, marker: dict[str, Any]) -> Any:
        return self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.root, **marker)

    def _abort(self, name: str, upload: str) -> None:
        self._ask(
            "sweep",
            name,
            lambda: self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload),
        )

    def _create(self, name: str, data: bytes) -> None:
        self._put(name, data, IfNoneMatch="*")

    def _replace(self, name: str, data: bytes) -> None:
        self._put(name, data)

    def _send(self, name: str, content: Slice) -> None:
        self._put(name, content, ContentLength=len(content))

    def _put(self, name: str, body: bytes | Slice, **more: Any) -> None:
        client = self._client
        with body.own_errors() if isinstance(body, Slice) else nullcontext():
            client.put_object(Bucket=self.bucket, Key=name, Body=body, **_sum_of(body, client), **more)

    def _send_parts(self, key: str, name: str, content: Slice) -> None:
        mark = secrets.token_hex(8)
        upload = self._ask("write", key, lambda: self._begin(name, mark))
        try:
            size = max(self.part, -(-len(content) // _MOST_PARTS))
            jobs = [
                partial(self._ask, "write", key, partial(self._send_part, name, upload, number, part))
                for number, part in enumerate(content.parts(size), 1)
            ]
            parts = in_parallel(jobs)
            self._ask("write", key, lambda: self._complete(name, upload, mark, parts))
        except BaseException:
            with suppress(StoreError):
                self._abort(name, upload)
            raise

    def _begin(self, name: str, mark: str) -> str:
        client = self._client
        begun = client.create_multipart_upload(
            Bucket=self.bucket, Key=name, Metadata={"upload": mark}, **_algorithm(client)
        )
        upload: str = begun["UploadId"]
        return upload

    def _send_part(self, name: str, upload: str, number: int, part: Slice) -> dict[str, Any]:
        client, body = self._client, part.again()
        summed = _sum_of(body, client)
        with body.own_errors():
            sent = client.upload_part(
                Bucket=self.bucket,
                Key=name,
                UploadId=upload,
                PartNumber=number,
                Body=body,
                ContentLength=len(body),
                **summed,
            )
        # A service that knows no checksums says none, and is told none.
        told = {_SUM: summed[_SUM]} if _SUM in sent else {}
        return {"PartNumber": number, "ETag": sent["ETag"], **told}

    def _complete(self, name: str, upload: str, mark: str, parts: list[dict[str, Any]]) -> None:
        try:
            self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except broken.ClientError as error:
            # Completed already, and the reply was lost: then the object bears the mark of this upload.
            if code_of(error) != "NoSuchUpload":
                raise
            there = self._client.head_object(Bucket=self.bucket, Key=name)
            if there["Metadata"].get("upload") != mark:
                raise

    def _read(self, name: str) -> bytes:
        # Not `with body`: that is the bare connection, without checksum and length.
        with closing(self._client.get_object(Bucket=self.bucket, Key=name)["Body"]) as body:
            data: bytes = body.read()
            return data

    def _read_range(
        self, name: str, found: Found, start: int, stop: int, write: Callable[[bytes], object]
    ) -> None:
        # All of it without a range: then the service's checksum of the object is verified too.
        wanted = {} if (start, stop) == (0, found.size) else {"Range": f"bytes={start}-{stop - 1}"}
        reply = self._client.get_object(Bucket=self.bucket, Key=name, **wanted)
        with closing(reply["Body"]) as body:
            if reply["ETag"] != found.version:
                raise Changed
            while piece := body.read(_PIECE):
                write(piece)

    def _look(self, name: str) -> Found | None:
        try:
            there = self._client.head_object(Bucket=self.bucket, Key=name)
        except broken.ClientError as error:
            if status_of(error) == 404:
                return None
            if status_of(error) in (400, 403):
                # A reply to HEAD has no body, so the reason is missing; a listing is refused for the same one.
                self._page(name, "", "", None)
            raise
        return Found(there["ContentLength"], there["ETag"])

    def _page(self, prefix: str, start_after: str, delimiter: str, token: Any) -> Page:
        wanted = {"StartAfter": start_after, "Delimiter": delimiter, "ContinuationToken": token}
        given = {name: value for name, value in wanted.items() if value}
        page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **given)
        return Page(
            objects=[
                (one["Key"], one["Size"], one["LastModified"].timestamp()) for one in page.get("Contents", [])
            ],
            folders=[found["Prefix"] for found in page.get("CommonPrefixes", [])],
            token=page.get("NextContinuationToken"),
        )

    def _remove(self, name: str) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=name)

    def _judge(self, error: Exception) -> Fault | None:
        return judge(error, self.bucket, self._endpoint)

    @property
    def _endpoint(self) -> str:
        """Without a user and a password, which a URL may have in it."""
        try:
            parts = urlsplit(self._client.meta.endpoint_url)
        except (broken.BotoCoreError, StoreError):
            return "the endpoint"
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def _sums(client: Any) -> bool:
    """Whether checksums are sent: not where AWS_REQUEST_CHECKSUM_CALCULATION says that a server takes none."""
    return bool(client.meta.config.request_checksum_calculation != "when_required")


def _algorithm(client: Any) -> dict[str, str]:
    return {"ChecksumAlgorithm": _ALGORITHM} if _sums(client) else {}


def _sum_of(body: bytes | Slice, client: Any) -> dict[str, str]:
    """As put_object and upload_part take it. 0.05 CPU seconds per GB, and the second reading of a file."""
    if not _sums(client):
        return {}
    value = 0
    for piece in body.pieces(_LOOK) if isinstance(body, Slice) else [body]:
        value = _checksum(piece, value)
    return _algorithm(client) | {_SUM: base64.b64encode(value.to_bytes(4, "big")).decode()}
