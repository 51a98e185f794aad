"""A signature counts for one request, for a minute, and with the right secret only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.signing import LIFETIME_S, Unsigned, Verifier, new_secret, read_secret, sign, write_private
from trainer.errors import NotReady, UsageError

SECRET = b"0" * 64


def test_what_was_signed_is_believed_within_its_time() -> None:
    for now in (1000.0, 1000.0 + LIFETIME_S, 1000.0 - LIFETIME_S):
        Verifier(SECRET).check(sign(SECRET, "POST", "/a", b"x", 1000.0), "POST", "/a", b"x", now)


@pytest.mark.parametrize(
    ("secret", "method", "path", "body", "now"),
    [
        (b"1" * 64, "POST", "/a", b"x", 1000.0),
        (SECRET, "GET", "/a", b"x", 1000.0),
        (SECRET, "POST", "/b", b"x", 1000.0),
        (SECRET, "POST", "/a", b"y", 1000.0),
        (SECRET, "POST", "/a", b"x", 1001.0 + LIFETIME_S),
        (SECRET, "POST", "/a", b"x", 999.0 - LIFETIME_S),
    ],
)
def test_anything_else_is_refused(secret: bytes, method: str, path: str, body: bytes, now: float) -> None:
    header = sign(SECRET, "POST", "/a", b"x", 1000.0)
    with pytest.raises(Unsigned):
        Verifier(secret).check(header, method, path, body, now)


@given(st.text())
def test_no_header_that_was_made_up_is_believed_or_breaks_anything(made_up: str) -> None:
    for header in (made_up, f"VLAUNCH-HMAC-SHA256 {made_up}", None):
        with pytest.raises(Unsigned):
            Verifier(SECRET).check(header, "POST", "/a", b"x", 1000.0)


def test_what_changes_something_counts_once() -> None:
    verifier = Verifier(SECRET, once=True)
    header = sign(SECRET, "POST", "/a", b"x", 1000.0)
    verifier.check(header, "POST", "/a", b"x", 1000.0)
    with pytest.raises(Unsigned, match="before"):
        verifier.check(header, "POST", "/a", b"x", 1001.0)
    verifier.check(sign(SECRET, "POST", "/a", b"x", 1000.0), "POST", "/a", b"x", 1001.0)


def test_the_memory_of_what_was_seen_is_bounded_by_time() -> None:
    verifier = Verifier(SECRET, once=True)
    for second in range(0, 1000, 10):
        verifier.check(sign(SECRET, "POST", "/a", b"", second), "POST", "/a", b"", second)
    assert len(verifier._seen) < 15


def test_a_secret_is_its_owners_alone_and_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    write_private(file, new_secret())
    assert file.stat().st_mode & 0o777 == 0o600 and len(read_secret(file)) == 64
    file.chmod(0o644)
    with pytest.raises(UsageError, match="others"):
        read_secret(file)
    write_private(file, "short")
    with pytest.raises(UsageError, match="shorter") as refused:
        read_secret(file)
    assert "short\n" not in str(refused.value)
    with pytest.raises(NotReady):
        read_secret(None)
    monkeypatch.setenv("VLAUNCH_SERVE_SECRET", "x" * 40)
    assert read_secret(None) == b"x" * 40
