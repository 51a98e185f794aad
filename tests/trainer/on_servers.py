"""Runs whose store is a bucket on one of the servers of the tests: how their processes find it."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from tests.artifacts.servers import BUCKET
from tests.trainer.killing import SMALL_PARTS
from trainer.artifacts.layout import EXPORT
from trainer.artifacts.store import Store

PART = "60000"


@dataclass(frozen=True)
class Server:
    """The environment in which `root` names a bucket on it."""

    name: str
    root: str
    environment: dict[str, str]

    @classmethod
    def s3(cls, url: str, key: str = "any", secret: str = "one") -> Server:
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        # moto alone takes parts below 5 MiB.
        parts = {SMALL_PARTS: PART} if key == "any" else {}
        return cls("s3", f"s3://{BUCKET}", environment | parts)

    @classmethod
    def gcs(cls, url: str) -> Server:
        environment = {"STORAGE_EMULATOR_HOST": url, "NO_GCE_CHECK": "true", SMALL_PARTS: PART}
        return cls("gcs", f"gs://{BUCKET}", environment)

    def behind(self, url: str) -> Server:
        """The same one, reached through a proxy at this address."""
        variable = "AWS_ENDPOINT_URL" if self.name == "s3" else "STORAGE_EMULATOR_HOST"
        return Server(self.name, self.root, {**self.environment, variable: url})

    def new_run(self) -> str:
        """The URI of a run that does not exist yet."""
        return f"{self.root}/{secrets.token_hex(6)}/runs/trained"


def exported_hashes(store: Store) -> dict[str, str]:
    """SHA-256 of each exported file."""
    names = [entry.key for entry in store.list(EXPORT)]
    return {name.removeprefix(EXPORT): hashlib.sha256(store.get(name)).hexdigest() for name in names}
