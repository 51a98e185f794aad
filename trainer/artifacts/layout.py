"""Every key of a run: built here, parsed here, and spelled out nowhere else.

    runs/<run_id>/config.json                                   write-once
    runs/<run_id>/task.yaml                                     what was launched, without secrets
    runs/<run_id>/attempt/<attempt6>                            whose machine has this ordinal
    runs/<run_id>/epoch/<epoch8>                                the claim of an attempt
    runs/<run_id>/epoch/<epoch8>.start                          where it resumed, or that it is void
    runs/<run_id>/blob/<sha256>                                 shared: corpus, imported weights, caches
    runs/<run_id>/blob/<sha256>-e<epoch8>                       a checkpoint file, sent by one epoch
    runs/<run_id>/manifest/<step12>-e<epoch8>.json              the commit point of a checkpoint
    runs/<run_id>/metrics/<last12>-<first12>-e<epoch8>.jsonl    steps first+1 to last
    runs/<run_id>/journal/<utc>-<attempt6>-<seq6>-<kind>.json
    runs/<run_id>/cache/<name>.json                             what was derived, naming its blobs
    runs/<run_id>/export/...                                    the final model, with manifest.json
    runs/<run_id>/logs/attempt-<attempt6>/...
    runs/<run_id>/upload.json                                   how far a long upload is; a hint, replaced

Numbers have a fixed width, so that the order of the keys is the order of the numbers.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

CONFIG = "config.json"
TASK = "task.yaml"
EPOCHS = "epoch/"
BLOBS = "blob/"
MANIFESTS = "manifest/"
METRICS = "metrics/"
JOURNAL = "journal/"
CACHE = "cache/"
EXPORT = "export/"
EXPORT_MANIFEST = "export/manifest.json"
LOGS = "logs/"
UPLOAD = "upload.json"

SHA256 = r"[0-9a-f]{64}"
BLOB_NAME = rf"{SHA256}(?:-e\d{{8}})?"
"""The name of a blob: the hash of its bytes, and for a checkpoint file the epoch that sent it."""

_UTC = "%Y%m%dT%H%M%S.%fZ"
_EPOCH = re.compile(r"epoch/(\d{8})(\.start)?")
_BLOB = re.compile(rf"blob/({SHA256})(?:-e(\d{{8}}))?")
_MANIFEST = re.compile(r"manifest/(\d{12})-e(\d{8})\.json")
_METRICS = re.compile(r"metrics/(\d{12})-(\d{12})-e(\d{8})\.jsonl")
_JOURNAL = re.compile(r"journal/(\d{8}T\d{6}\.\d{6}Z)-(\d{6})-(\d{6})-([a-z_]+)\.json")
_RUN_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


class EpochKey(NamedTuple):
    epoch: int
    is_start: bool


class BlobKey(NamedTuple):
    sha256: str
    epoch: int | None  # None: shared by all epochs


class ManifestKey(NamedTuple):
    step: int
    epoch: int


class MetricsKey(NamedTuple):
    first: int  # not included
    last: int  # included
    epoch: int


class JournalKey(NamedTuple):
    time: datetime
    attempt: int
    seq: int
    kind: str


def attempt_key(attempt: int) -> str:
    return f"attempt/{attempt:06d}"


def epoch_key(epoch: int) -> str:
    return f"epoch/{epoch:08d}"


def epoch_start_key(epoch: int) -> str:
    return f"epoch/{epoch:08d}.start"


def parse_epoch_key(key: str) -> EpochKey | None:
    found = _EPOCH.fullmatch(key)
    return EpochKey(int(found[1]), found[2] is not None) if found else None


def blob_name(sha256: str, epoch: int | None = None) -> str:
    return sha256 if epoch is None else f"{sha256}-e{epoch:08d}"


def blob_key(name: str) -> str:
    """The key of a blob by its name, which is a bare sha256 or `blob_name(sha256, epoch)`."""
    return f"blob/{name}"


def parse_blob_key(key: str) -> BlobKey | None:
    found = _BLOB.fullmatch(key)
    return BlobKey(found[1], int(found[2]) if found[2] else None) if found else None


def manifest_key(step: int, epoch: int) -> str:
    return f"manifest/{step:012d}-e{epoch:08d}.json"


def parse_manifest_key(key: str) -> ManifestKey | None:
    found = _MANIFEST.fullmatch(key)
    return ManifestKey(int(found[1]), int(found[2])) if found else None


def metrics_key(first: int, last: int, epoch: int) -> str:
    """The steps after `first` up to and including `last`; in order of `last`, which decides validity."""
    return f"metrics/{last:012d}-{first:012d}-e{epoch:08d}.jsonl"


def parse_metrics_key(key: str) -> MetricsKey | None:
    found = _METRICS.fullmatch(key)
    return MetricsKey(int(found[2]), int(found[1]), int(found[3])) if found else None


def journal_key(utc: datetime, attempt: int, seq: int, kind: str) -> str:
    return f"journal/{utc.astimezone(UTC).strftime(_UTC)}-{attempt:06d}-{seq:06d}-{kind}.json"


def parse_journal_key(key: str) -> JournalKey | None:
    found = _JOURNAL.fullmatch(key)
    if not found:
        return None
    time = datetime.strptime(found[1], _UTC).replace(tzinfo=UTC)
    return JournalKey(time, int(found[2]), int(found[3]), found[4])


def export_key(name: str) -> str:
    return f"export/{name}"


def cache_key(name: str) -> str:
    """A derived thing's description; always JSON, because garbage collection reads the blobs it names."""
    return f"cache/{name.removesuffix('.json')}.json"


def log_key(attempt: int, name: str) -> str:
    return f"logs/attempt-{attempt:06d}/{name}"


def run_prefix(run_id: str) -> str:
    return f"runs/{run_id}"


def valid_run_id(name: str) -> bool:
    """At most 40 of a-z, 0-9 and dashes, no dash at either end.

    SkyPilot puts the name into cluster names, clouds put those into host names: lower case, and short
    enough that a suffix still fits into the 63 characters of a DNS label.
    """
    return _RUN_ID.fullmatch(name) is not None
