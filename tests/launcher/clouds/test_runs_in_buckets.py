"""A run kept in S3 or GCS: every command that knows runs works on it, and no secret is written anywhere.

Starts real machines, as test_local.py does, because what they inherit and write is the claim.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from launcher.clouds.local import LocalCloud
from launcher.render import run_uri
from tests.artifacts.conftest import (  # noqa: F401
    KEY_ID,
    SECRET,
    Bucket,
    bucket,
    gcs,
    gcs_server,
    proxies,
    proxy,
    s3,
    s3_server,
)
from tests.artifacts.fault_proxy import Answer, FaultProxy, always
from tests.conftest import Ran
from tests.launcher.clouds.test_local import kinds, step_lines, train, until
from tests.trainer.runs import write_corpus
from trainer.artifacts.store import open_store

Vlaunch = Callable[..., Ran]
TOKEN = "session/token+of/the+tests/IQoJb3JpZ2luX2VjEBYaCXVzLWVhc3QtMSJH"


@pytest.fixture
def uri(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    """A store of the service; its runs are ended with the test, whatever became of it."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    uri = bucket().uri
    yield uri
    for name in open_store(uri).children("runs/"):
        LocalCloud().stop(run_uri(uri, name))
        until(lambda name=name: not LocalCloud().alive(run_uri(uri, name)))  # type: ignore[misc]


def test_a_run_in_a_bucket_is_stopped_resumed_and_reported_without_its_secrets(
    vlaunch: Vlaunch,
    uri: str,
    tmp_path: Path,
    isolated: Path,
) -> None:
    corpus = write_corpus(tmp_path / "chats.jsonl", 100)
    said = [vlaunch(*train(corpus, uri, "--name", "far", "--detach", steps=200))]
    assert said[0].code == 0, said[0].err
    until(lambda: "training" in kinds(uri, "far"))
    seen = command_lines()
    assert any("trainer" in line and f"{uri}/runs/far" in line for line in seen)

    said.append(vlaunch("stop", "far", "--store", uri, "--json"))
    assert said[-1].json["state"] == "stopped" and said[-1].json["durable_step"] > 0
    said.append(vlaunch("resume", "far", "--store", uri))
    assert said[-1].code == 0, said[-1].err
    assert [line["step"] for line in step_lines(vlaunch, uri, "far")] == list(range(1, 201))
    reports = [("status", "far"), ("runs",), ("metrics", "far"), ("cost-report", "far"), ("logs", "far")]
    for verb, *name in reports:
        said.append(vlaunch(verb, *name, "--store", uri))
        assert said[-1].code == 0 and said[-1].out, said[-1].err
    assert "resuming after step" in said[-1].out
    said.append(vlaunch("doctor", "--store", uri, "--debug"))
    assert "create if absent honoured" in said[-1].out

    written = {key: store_bytes(uri, key) for key in keys(uri)}
    written |= {str(path): path.read_bytes() for path in isolated.rglob("*") if path.is_file()}
    written |= {"what was said": "".join(ran.out + ran.err for ran in said).encode()}
    written |= {"argv of all processes": "\n".join(seen).encode()}
    assert {"runs/far/task.yaml", "runs/far/config.json"} <= written.keys()
    assert any(name.endswith("keeper.log") for name in written)
    assert [name for name, data in written.items() if tells_a_secret(data)] == []


def test_the_search_for_secrets_finds_them_also_in_disguise() -> None:
    for form in (SECRET, quote(TOKEN, safe=""), base64.b64encode(SECRET.encode()).decode()):
        assert tells_a_secret(f"x{form}y".encode())
    assert not tells_a_secret(KEY_ID.encode())


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_run_is_not_begun_where_an_endpoint_overwrites_what_must_stay(
    vlaunch: Vlaunch,
    bucket: Bucket,  # noqa: F811
    proxy: FaultProxy,  # noqa: F811
    tmp_path: Path,
) -> None:
    proxy.plan = always(Answer(200, "", {"ETag": '"0"'}), "PUT")
    uri = bucket(endpoint=proxy.url).uri
    begun = vlaunch(*train(write_corpus(tmp_path / "chats.jsonl", 20), uri, "--name", "far"))
    checked = vlaunch("doctor", "--store", uri)
    for ran in (begun, checked):
        assert ran.code == 3 and "overwrites an object that must be written once" in ran.err + ran.out
        assert "s3+single-writer://" in ran.err + ran.out
    alone = uri.replace("s3://", "s3+single-writer://")
    proxy.plan = lambda request: None
    assert "never let two machines write to one run" in vlaunch("doctor", "--store", alone).out


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_store_that_cannot_be_used_is_told_with_all_else_that_is_missing(
    vlaunch: Vlaunch,
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    bucket()
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1}')
    corpus = write_corpus(tmp_path / "chats.jsonl", 20)

    begun = vlaunch("train", "--model", base, "--data", corpus, "--store", "s3://no-such-bucket/x", "--yes")

    assert begun.code == 3 and "2 things are missing" in begun.err
    assert "there is no bucket no-such-bucket" in begun.err and "*.safetensors" in begun.err


def tells_a_secret(data: bytes) -> bool:
    forms = [
        form.encode()
        for secret in (SECRET, TOKEN)
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode())
    ]
    return any(form in data for form in forms)


def command_lines() -> list[str]:
    """What anybody on this machine may read of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def keys(uri: str) -> list[str]:
    return [entry.key for entry in open_store(uri).list()]


def store_bytes(uri: str, key: str) -> bytes:
    return open_store(uri).get(key)
