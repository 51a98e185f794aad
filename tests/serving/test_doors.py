"""What strangers can do to a service: nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.protocol import ANNOUNCE_PATH, DRAIN_PATH, TABLE_PATH, Announcement
from serving.signing import sign, write_private
from tests.serving.stack import Stack, wait_until

USER, OPERATOR = "sk-user-0123456789", "sk-operator-0123456789"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose API has keys."""
    folder = tmp_path_factory.mktemp("locked")
    write_private(folder / "keys", f"# ours\n{USER}\n{OPERATOR} inference,admin\n")
    made = Stack(folder)
    try:
        made.controller()
        made.api("--api-key-file", folder / "keys", "--allow-origin", "https://friend.example")
        made._start("worker-2", "serving.worker", "--port", "0", "--model", "/scripted", "--engine",
                    "tests.serving.scripted:engine", "--controller", made.controller_url)  # fmt: skip
        wait_until(lambda: made.request("GET", "/ready")[0] == 200)
        yield made
    finally:
        made.stop()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


GUARDED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/metrics"),
    ("POST", "/votes"),
    ("GET", "/admin/workers"),
    ("POST", "/admin/drain"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_path_that_does_something_needs_a_key(locked: Stack, method: str, path: str) -> None:
    for headers in ({}, bearer("sk-wrong-0123456789"), bearer(""), {"authorization": f"Basic {USER}"}):
        status, _, body = locked.request(method, path, {}, **headers)
        assert (status, body["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("path", ["/admin/workers", "/admin/drain"])
def test_operators_paths_need_the_scope_of_operators(locked: Stack, path: str) -> None:
    method = "GET" if path.endswith("workers") else "POST"
    assert locked.request(method, path, {}, **bearer(USER))[0] == 403
    assert locked.request(method, path, {}, **bearer(OPERATOR))[0] in (200, 400)


def test_what_needs_no_key_tells_nothing(locked: Stack) -> None:
    assert locked.request("GET", "/health")[::2] == (200, b"")
    assert locked.request("GET", "/ready")[::2] == (200, b"")
    assert locked.request("GET", "/")[0] == 200


def test_pages_of_other_origins_get_no_permission_but_the_one_that_was_named(locked: Stack) -> None:
    ask = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    _, headers, _ = locked.request("OPTIONS", "/v1/chat/completions", origin="https://evil.example", **ask)
    assert "access-control-allow-origin" not in headers
    _, headers, _ = locked.request("OPTIONS", "/v1/chat/completions", origin="https://friend.example", **ask)
    assert headers["access-control-allow-origin"] == "https://friend.example"


def test_without_keys_a_browser_cannot_be_made_to_call_the_api(service: Stack) -> None:
    assert service.request("GET", "/v1/models", host="evil.example")[0] == 403
    assert service.request("GET", "/v1/models", origin="https://evil.example")[0] == 403
    assert service.request("GET", "/v1/models", host=f"localhost:{service.port}")[0] == 200
    _, headers, _ = service.request("OPTIONS", "/v1/models", origin="https://evil.example")
    assert "access-control-allow-origin" not in headers


def test_without_keys_the_api_listens_on_loopback_alone(tmp_path: Path) -> None:
    made = Stack(tmp_path)
    api = made._start("api", "serving.api", "--host", "0.0.0.0", "--port", "0")
    assert api.wait(30) == 2
    assert "needs keys" in (tmp_path / "api.log").read_text()
    made.stop()


class Call:
    """A request to the controller, signed as wished."""

    def __init__(self, service: Stack) -> None:
        self.port = service.controller_door.getsockname()[1]

    def __call__(self, path: str, body: bytes, header: str = "") -> int:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", path, body, {"authorization": header})
        status = connection.getresponse().status
        connection.close()
        return status


def announcement(url: str = "http://127.0.0.1:9") -> bytes:
    said = Announcement(url=url, life="0" * 16, born=1e12, models=("stranger",), context=9)
    return said.model_dump_json().encode()


def test_no_unsigned_call_changes_anything_of_the_controller(service: Stack) -> None:
    call = Call(service)
    for path in (ANNOUNCE_PATH, DRAIN_PATH, TABLE_PATH):
        assert call(path, announcement()) == 401
        assert call(path, announcement(), "Bearer x") == 401
        assert call(path, announcement(), sign(b"x" * 64, "POST", path, announcement(), time.time())) == 401
    assert [model["id"] for model in service.get("/v1/models")["data"]] == ["scripted"]


def test_a_signed_call_counts_once_and_only_with_an_address(service: Stack) -> None:
    call, secret = Call(service), service.secret_file.read_bytes()
    body = b'{"url":"http://127.0.0.1:1"}'
    header = sign(secret, "POST", DRAIN_PATH, body, time.time())
    assert [call(DRAIN_PATH, body, header) for _ in range(2)] == [404, 401]
    evil = announcement().replace(b"http://127.0.0.1:9", b"http://127.0.0.1:9/../x")
    assert call(ANNOUNCE_PATH, evil, sign(secret, "POST", ANNOUNCE_PATH, evil, time.time())) == 400


def test_a_worker_answers_nobody_but_its_service(service: Stack) -> None:
    import http.client

    (worker,) = service.workers()
    port = int(worker["url"].rpartition(":")[2])
    for headers in ({}, {"authorization": "Bearer x"}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/chat/completions", b"{}", headers)
        assert connection.getresponse().status == 401
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/%2e%2e/api/app.py",
        "//etc/passwd",
        "/page/..%2f..%2f",
        "/page/",
        "/page/app.js%00",
    ],
)
def test_no_path_leads_out_of_the_pages_files(service: Stack, path: str) -> None:
    status, _, body = service.request("GET", path)
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")


def raw(service: Stack, data: bytes, *, more: bytes = b"", wait_s: float = 30.0) -> bytes:
    """What comes back until the server hangs up, when `data` is sent and then nothing."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=wait_s) as client:
        client.sendall(data)
        got = b""
        try:
            while piece := client.recv(65536):
                got += piece
                if more:
                    client.sendall(more)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                raise
        return got


def test_a_body_that_is_too_long_is_refused_unread(service: Stack) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        client.sendall(head)
        try:
            for _ in range(200):
                client.sendall(b"x" * 65536)
        except ConnectionError:
            pass
        else:
            assert b"413" in client.recv(100)


def test_headers_without_end_are_cut(service: Stack) -> None:
    assert raw(service, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20000) == b""
    # Slow ones: the clock of 10 s runs from the first byte, whatever drips in.
    assert raw(service, b"GET / HTTP/1.1\r\nhost: x\r\n") == b""


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n"]
)
def test_what_is_no_http_is_told_so(service: Stack, data: bytes) -> None:
    assert raw(service, data).startswith((b"HTTP/1.1 400", b""))


def test_votes_are_kept_for_evaluation_and_nothing_else_is(service: Stack) -> None:
    side = {"model": "scripted", "answer": "x"}
    vote = {"question": "q", "left": side, "right": side, "winner": "left"}
    assert service.request("POST", "/votes", vote)[0] == 200
    assert service.request("POST", "/votes", {**vote, "winner": "me"})[0] == 400
    assert service.request("POST", "/votes", {**vote, "more": 1})[0] == 400
    assert service.request("POST", "/votes", b"x" * 70000)[0] == 413
    (line,) = (service.folder / "votes.jsonl").read_text().splitlines()
    assert json.loads(line)["winner"] == "left"
