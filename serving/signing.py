"""Who belongs: every call between our processes carries an HMAC over method, path, time and body.

The key is one secret of the service, which never travels. A signature counts for one request, for a minute; what
changes something is also refused the second time. Sha-256 of a request costs 10 us per 10 KB.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from trainer.errors import NotReady, UsageError

HEADER = "authorization"
_SCHEME = "VLAUNCH-HMAC-SHA256"
# Clocks of cloud machines follow NTP to well below a second; a minute forgives a laptop.
LIFETIME_S = 60.0
_SHORTEST_SECRET = 32

SECRET_VARIABLE = "VLAUNCH_SERVE_SECRET"


class Unsigned(Exception):
    """The request does not prove that it comes from a process of this service; the message says why."""


def sign(secret: bytes, method: str, path: str, body: bytes, now: float) -> str:
    """The value of the Authorization header for one request at `now`, unix seconds."""
    at, nonce = f"{now:.3f}", secrets.token_hex(8)
    return f"{_SCHEME} {at}.{nonce}.{_mac(secret, method, path, at, nonce, body)}"


class Verifier:
    """Checks signatures; with `once`, each counts a single time."""

    def __init__(self, secret: bytes, *, once: bool = False) -> None:
        self._secret = secret
        self._once = once
        self._seen: dict[str, float] = {}  # in order of time; only valid ones get in

    def check(self, header: str | None, method: str, path: str, body: bytes, now: float) -> None:
        """Raises Unsigned."""
        scheme, _, value = (header or "").partition(" ")
        if scheme != _SCHEME:
            raise Unsigned("this call needs the signature of a process of the service")
        at_and_nonce, _, mac = value.rpartition(".")
        at, _, nonce = at_and_nonce.rpartition(".")  # the time has a point of its own
        good = _mac(self._secret, method, path, at, nonce, body)
        if not hmac.compare_digest(good.encode(), mac.encode()):
            raise Unsigned("the signature is not one of this service's secret")
        if abs(now - float(at)) > LIFETIME_S:
            raise Unsigned("the signature has expired; look at the clocks of both machines")
        if self._once:
            self._remember(mac, now)

    def _remember(self, mac: str, now: float) -> None:
        for old in [old for old, until in self._seen.items() if until < now]:
            del self._seen[old]
        if mac in self._seen:
            raise Unsigned("this very call was made before")
        self._seen[mac] = now + 2 * LIFETIME_S


def _mac(secret: bytes, method: str, path: str, at: str, nonce: str, body: bytes) -> str:
    said = "\n".join((method, path, at, nonce, hashlib.sha256(body).hexdigest()))
    return hmac.new(secret, said.encode(), hashlib.sha256).hexdigest()


def new_secret() -> str:
    return secrets.token_hex(_SHORTEST_SECRET)


def new_key() -> str:
    """A key for clients of the API."""
    return f"sk-{secrets.token_hex(24)}"


def read_secret(file: Path | None) -> bytes:
    """The secret of the service, from a file of its owner's alone or from VLAUNCH_SERVE_SECRET.

    Raises:
        NotReady: there is none. UsageError: it is too short, or others can read the file.
    """
    if file is None:
        text = os.environ.get(SECRET_VARIABLE, "")
        if not text:
            raise NotReady(
                "there is no secret that makes workers and controller one service",
                hint=f"--secret-file FILE, or the variable {SECRET_VARIABLE}",
            )
        return _long_enough(text, SECRET_VARIABLE)
    return _long_enough(read_private(file), str(file))


def read_private(file: Path) -> str:
    """The text of a file that only its owner can read."""
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise UsageError(f"{file} can be read by others", hint=f"chmod 600 {file}")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is no text") from None


def write_private(file: Path, text: str) -> None:
    """A file that only its owner can read, from its first byte on; whole or not at all."""
    arriving = file.with_name(f"{file.name}.part")
    arriving.unlink(missing_ok=True)
    with open(os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    arriving.replace(file)


def _long_enough(text: str, source: str) -> bytes:
    secret = text.strip().encode()
    if len(secret) < _SHORTEST_SECRET:
        raise UsageError(
            f"the secret in {source} is shorter than {_SHORTEST_SECRET} characters",
            hint="python -c 'import secrets; print(secrets.token_hex(32))' makes one",
        )
    return secret
