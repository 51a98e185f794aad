"""Google Cloud Storage as a store: through google-cloud-storage, which finds credentials and endpoint by itself.

Create-if-absent is `ifGenerationMatch=0`. Every upload carries a CRC32C. Retries are ours (bucket.py), so the
library's are off: one budget, one place.

A large file goes as up to 32 parts that are sent side by side and then composed into one object, which appears at
once and whole. The parts lie under `.tmp/`, where no listing looks; what a killed writer leaves there is swept. The
other way, multipart uploads of the XML interface, has no emulator to test it against.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from google.api_core import exceptions as broken
from google.cloud import storage
from requests.adapters import HTTPAdapter

from trainer.artifacts.bucket import MIB, BucketStore, Changed, Found, Page
from trainer.artifacts.connections import client_of_this_process, forget_client, in_parallel
from trainer.artifacts.gcs_faults import judge
from trainer.artifacts.patience import Fault
from trainer.artifacts.slices import Slice
from trainer.artifacts.store import TEMPORARY
from trainer.errors import StoreError

_VARIABLES = ("GOOGLE_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST", "API_ENDPOINT_OVERRIDE", "GCLOUD_")
_MOST_PARTS = 32  # of one compose request, by GCS's rules
_CHUNK = 8 * MIB  # bytes of one request of an upload or a download: the library holds all of them in memory
_CONNECTIONS = 32  # kept open: for four files at once
_FIELDS = "items(name,size,timeCreated),prefixes,nextPageToken"


class GCSStore(BucketStore):
    """`gs://bucket/prefix`."""

    @property
    def _client(self) -> Any:
        return client_of_this_process("gcs", _VARIABLES, _new_client, self.patience)

    def _forget_client(self) -> None:
        forget_client("gcs", _VARIABLES, self.patience)

    def _describe(self) -> str:
        client = self._client
        return f"{client.api_endpoint}, credentials by {type(client._credentials).__module__}"

    def region(self) -> str:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            return ""
        found = self._ask("read", "the bucket", lambda: self._client.get_bucket(self.bucket, **self._once))
        return f"gcp/{str(found.location).lower()}"

    def sweep(self, older_than_s: float) -> int:
        """Delete the parts of unfinished uploads; the time is that of a part of our own, put for the purpose."""
        folder = f"{self.root}{TEMPORARY}/"
        clock = folder + secrets.token_hex(8)
        self._ask("sweep", TEMPORARY, lambda: self._replace(clock, b""))
        parts = {name: made for page in self._pages(folder, "", "") for name, _, made in page.objects}
        now = parts.pop(clock)
        old = [name for name, made in parts.items() if now - made > older_than_s]
        self._drop([*old, clock])
        return len(old)

    def _create(self, name: str, data: bytes) -> None:
        self._upload(name, io.BytesIO(data), len(data), if_generation_match=0)

    def _replace(self, name: str, data: bytes) -> None:
        self._upload(name, io.BytesIO(data), len(data))

    def _send(self, name: str, content: Slice) -> None:
        self._upload(name, content, len(content))

    def _upload(self, name: str, file: Any, size: int, **more: Any) -> None:
        blob = self._bucket.blob(name, chunk_size=_CHUNK)
        blob.upload_from_file(
            file, size=size, content_type="application/octet-stream", checksum="crc32c", **self._once, **more
        )

    def _send_parts(self, key: str, name: str, content: Slice) -> None:
        size = max(self.part, -(-len(content) // _MOST_PARTS))
        parts = content.parts(size)
        folder = f"{self.root}{TEMPORARY}/{secrets.token_hex(8)}"
        names = [f"{folder}-{number:02d}" for number in range(len(parts))]
        try:
            in_parallel(
                [
                    partial(self._ask, "write", key, partial(self._send_again, part_name, part))
                    for part_name, part in zip(names, parts, strict=True)
                ]
            )
            self._ask("write", key, lambda: self._compose(name, names))
        finally:
            self._drop(names)

    def _send_again(self, name: str, part: Slice) -> None:
        self._send(name, part.again())

    def _compose(self, name: str, names: list[str]) -> None:
        whole = self._bucket.blob(name)
        whole.content_type = "application/octet-stream"
        whole.compose([self._bucket.blob(part) for part in names], **self._once)

    def _drop(self, names: list[str]) -> None:
        """Delete parts; one that stays is swept later."""

        def drop(name: str) -> None:
            try:
                self._ask("delete", name, lambda: self._remove(name))
            except StoreError:
                pass

        in_parallel([partial(drop, name) for name in names])

    def _read(self, name: str) -> bytes:
        data: bytes = self._bucket.blob(name).download_as_bytes(
            raw_download=True, checksum="crc32c", **self._once
        )
        return data

    def _read_range(
        self, name: str, found: Found, start: int, stop: int, write: Callable[[bytes], object]
    ) -> None:
        for at in range(start, stop, _CHUNK):
            end = min(at + _CHUNK, stop)
            # All of it without a range: then the service's checksum of the object is verified too.
            part: dict[str, Any] = {"checksum": "crc32c"}
            if (at, end) != (0, found.size):
                part = {"checksum": None, "start": at, "end": end - 1}
            try:
                piece = self._bucket.blob(name).download_as_bytes(
                    if_generation_match=found.version,
                    raw_download=True,
                    single_shot_download=True,
                    **part,
                    **self._once,
                )
            except broken.PreconditionFailed:
                raise Changed from None
            write(piece)

    def _look(self, name: str) -> Found | None:
        blob = self._bucket.get_blob(name, **self._once)
        return Found(blob.size, blob.generation) if blob else None

    def _page(self, prefix: str, start_after: str, delimiter: str, token: Any) -> Page:
        pages = self._client.list_blobs(
            self.bucket, prefix=prefix, start_offset=start_after or None, delimiter=delimiter or None,
            page_token=token, fields=_FIELDS, **self._once,
        )  # fmt: skip
        page = next(pages.pages)
        return Page(
            objects=[(blob.name, blob.size, blob.time_created.timestamp()) for blob in page],
            folders=sorted(pages.prefixes),
            token=pages.next_page_token,
        )

    def _remove(self, name: str) -> None:
        self._bucket.blob(name).delete(**self._once)

    @property
    def _bucket(self) -> Any:
        return self._client.bucket(self.bucket)

    @property
    def _once(self) -> dict[str, Any]:
        return {"retry": None, "timeout": (self.patience.connect_s, self.patience.answer_s)}

    def _judge(self, error: Exception) -> Fault | None:
        return judge(error, self.bucket)


def _new_client() -> Any:
    # Objects belong to a bucket, so no project is needed; without a name, the library looks for one and fails.
    client = storage.Client(project="none")
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=_CONNECTIONS))
    return client
