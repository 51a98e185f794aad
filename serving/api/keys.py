"""Who may do what: keys from a file of one key per line, each with its scopes.

    sk-3f...  inference
    sk-9a...  inference,admin   # the operator's

Only hashes are kept in memory and compared. Without keys everybody is admitted, which is for loopback alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from serving.openai.errors import ApiError
from serving.signing import read_private
from trainer.errors import UsageError

INFERENCE, ADMIN = "inference", "admin"
SCOPES = frozenset((INFERENCE, ADMIN))
_SHORTEST_KEY = 16


class Keys:
    """The keys of a service; `none()` admits everybody."""

    def __init__(self, scopes: Mapping[str, frozenset[str]] | None) -> None:
        self._scopes = scopes  # by the key's hash

    @classmethod
    def none(cls) -> Keys:
        return cls(None)

    @classmethod
    def read(cls, file: Path) -> Keys:
        """Raises UsageError, which never repeats a key."""
        found = {}
        for number, line in enumerate(read_private(file).splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            scopes = frozenset(words[1].split(",")) if len(words) == 2 else frozenset((INFERENCE,))
            if len(words) > 2 or not scopes <= SCOPES:
                raise UsageError(f"{file}, line {number}: a key, and perhaps {','.join(sorted(SCOPES))}")
            if len(words[0]) < _SHORTEST_KEY:
                raise UsageError(f"{file}, line {number}: a key has at least {_SHORTEST_KEY} characters")
            found[_hash(words[0])] = scopes
        if not found:
            raise UsageError(f"{file} has no key", hint="one per line, and perhaps its scopes")
        return cls(found)

    @property
    def needed(self) -> bool:
        return self._scopes is not None

    def check(self, authorization: str, scope: str) -> None:
        """`authorization`: the header's value. Raises ApiError 401 or 403."""
        if self._scopes is None:
            return
        kind, _, key = authorization.partition(" ")
        scopes = self._scopes.get(_hash(key.strip())) if kind.lower() == "bearer" else None
        if scopes is None:
            message = "the API key is not known here" if authorization else "an API key is needed"
            raise ApiError(401, f"{message}: Authorization: Bearer KEY", code="invalid_api_key")
        if scope not in scopes:
            raise ApiError(403, f"this key does not have the scope {scope}", code="insufficient_scope")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
