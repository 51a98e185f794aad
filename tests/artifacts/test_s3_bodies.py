"""What an S3 server is told of a body: its length and its checksum before it, and nothing in frames."""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path

import google_crc32c
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.artifacts.conftest import PART, Bucket
from tests.artifacts.fault_proxy import FaultProxy, Request
from trainer.artifacts.pace import GivenUp, Pace, carried

SMALL, LARGE = b"a small file", bytes(range(256)) * (PART // 100)  # the second goes in three parts


@pytest.fixture
def https(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before moto, with a certificate that boto3 is told to trust."""
    certificate = certify(tmp_path / "certificate.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultProxy(s3_server, context) as proxy:
        yield proxy


def certify(path: Path) -> Path:
    """A key and its own certificate for 127.0.0.1, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    here = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    day = timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day).add_extension(
        here, False
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def sent(store_proxy: FaultProxy) -> list[Request]:
    """Requests with a file in them, in the order of their parts."""
    return sorted((r for r in store_proxy.requests if r.method == "PUT"), key=lambda r: r.path)


def header(request: Request, name: str) -> str | None:
    found = re.search(rf"(?i)\r\n{name}: *([^\r]*)".encode(), request.head)
    return found[1].decode() if found else None


def in_header(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def parts(data: bytes) -> list[bytes]:
    return [data[at : at + PART] for at in range(0, len(data), PART)]


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "in parts"])
def test_over_tls_a_body_has_its_length_and_its_crc32c_before_it_and_is_not_hashed_again(
    s3: Bucket, https: FaultProxy, tmp_path: Path, data: bytes
) -> None:
    store = s3(endpoint=https.url)
    (tmp_path / "file").write_bytes(data)
    store.put_file("a/key", tmp_path / "file")

    assert store.get("a/key") == data
    bodies = parts(data) or [b""]
    assert [header(r, "x-amz-checksum-crc32c") for r in sent(https)] == [in_header(body) for body in bodies]
    assert [header(r, "content-length") for r in sent(https)] == [str(len(body)) for body in bodies]
    assert {header(r, "x-amz-content-sha256") for r in sent(https)} == {"UNSIGNED-PAYLOAD"}
    assert {header(r, "transfer-encoding") for r in sent(https)} == {None}


def test_without_tls_the_signature_holds_the_body_as_well(
    s3: Bucket, s3_server: str, proxies: Bucket, tmp_path: Path
) -> None:
    proxy = proxies(s3_server)
    (tmp_path / "file").write_bytes(SMALL)
    s3(endpoint=proxy.url).put_file("a/key", tmp_path / "file")

    assert [header(r, "x-amz-content-sha256") for r in sent(proxy)] == [sha256(SMALL).hexdigest()]
    assert [header(r, "x-amz-checksum-crc32c") for r in sent(proxy)] == [in_header(SMALL)]


def test_a_server_that_takes_no_checksums_gets_a_signature_over_the_body_over_tls_too(
    s3: Bucket, https: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    (tmp_path / "file").write_bytes(LARGE)
    s3(endpoint=https.url).put_file("a/key", tmp_path / "file")

    wanted = [sha256(part).hexdigest() for part in parts(LARGE)]
    assert [header(r, "x-amz-content-sha256") for r in sent(https)] == wanted
    assert {header(r, "x-amz-checksum-crc32c") for r in sent(https)} == {None}


def test_the_look_at_a_file_before_it_is_sent_does_not_count_as_sending(
    s3: Bucket, https: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    pace = Pace()
    with carried(pace):
        s3(endpoint=https.url).put_file("a/key", tmp_path / "file")

    assert pace.sent == len(LARGE)


def test_a_transfer_that_is_called_off_on_its_way_ends_as_one_called_off_over_tls_too(
    s3: Bucket, https: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    pace = Pace()
    pace.stop("nobody wants it")
    with carried(pace), pytest.raises(GivenUp, match="^nobody wants it$"):
        s3(endpoint=https.url).put_file("a/key", tmp_path / "file")
