"""A service of real processes on free ports of this machine, each of which a test can kill."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.listening import listen
from serving.signing import new_secret, write_private

ENGINE = "tests.serving.scripted:engine"
# Until something that must come is there; only a broken test waits so long.
PATIENCE_S = 30.0


class Stack:
    """Controller, API and workers of one service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret_file = folder / "secret"
        write_private(self.secret_file, new_secret())
        self.started: list[subprocess.Popen[bytes]] = []
        self.doors: list[socket.socket] = []
        self.streams: list[Stream] = []
        self.controller_door = self._door()
        self.api_door = self._door()
        self.controller_url = _url(self.controller_door)
        self.url = _url(self.api_door)

    @property
    def port(self) -> int:
        return int(self.api_door.getsockname()[1])

    def _door(self) -> socket.socket:
        self.doors.append(listen("127.0.0.1", 0))
        return self.doors[-1]

    def controller(self) -> subprocess.Popen[bytes]:
        return self._start("controller", "serving.controller", "--fd", self.controller_door)

    def api(self, *more: object) -> subprocess.Popen[bytes]:
        return self._start(
            "api", "serving.api", "--fd", self.api_door, "--controller", self.controller_url, *more
        )

    def worker(self, name: str = "scripted", *more: object, **environment: str) -> subprocess.Popen[bytes]:
        """A worker that the API can choose by now."""
        before = {said["life"] for said in self.workers()}
        started = self._start(
            f"worker-{len(self.started)}",
            "serving.worker",
            *("--port", "0", "--model", f"/nowhere/{name}", "--engine", ENGINE),
            *("--controller", self.controller_url, *more),
            **environment,
        )
        wait_until(lambda: {said["life"] for said in self.workers()} - before)
        return started

    def workers(self) -> list[dict[str, Any]]:
        """What the API knows of workers; none while it starts."""
        try:
            return list(self.get("/admin/workers")["workers"])
        except (OSError, http.client.HTTPException):
            return []

    def worker_url(self, process: subprocess.Popen[bytes]) -> str:
        """The only one that listens on a port of this process's."""
        log = (self.folder / f"worker-{self.started.index(process)}.log").read_text()
        return log.partition("answers at ")[2].split()[0]

    def _start(self, name: str, module: str, *words: object, **environment: str) -> subprocess.Popen[bytes]:
        given = [word.fileno() if isinstance(word, socket.socket) else word for word in words]
        fds = [word.fileno() for word in words if isinstance(word, socket.socket)]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, given), "--secret-file", str(self.secret_file)],
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env={**os.environ, **environment},
            )
        self.started.append(process)
        return process

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body) of one request; JSON is parsed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            data = (
                body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            )
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, {"content-type": "application/json", **sent})
            reply = connection.getresponse()
            raw = reply.read()
            kind = reply.headers.get_content_type()
            return reply.status, dict(reply.headers), json.loads(raw) if kind == "application/json" else raw
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Any:
        return self.request("GET", path, **headers)[2]

    def chat(self, script: str, **more: Any) -> tuple[int, dict[str, str], Any]:
        ask = {"model": "scripted", "messages": [{"role": "user", "content": script}], **more}
        return self.request("POST", "/v1/chat/completions", ask)

    def idle(self) -> bool:
        """No request is open anywhere: nothing leaked."""
        lines = self.get("/metrics").decode().splitlines()
        open_now = [line for line in lines if line.startswith("vlaunch_open_requests ")]
        busy = [s for s in self.workers() if s["running"] or s["waiting"] or s["sent"]]
        return open_now == ["vlaunch_open_requests 0.0"] and not busy

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for stream in self.streams:
            stream.close()
        for door in self.doors:
            door.close()


@contextmanager
def stack(folder: Path, *api: object, workers: int = 1) -> Iterator[Stack]:
    """A service that is ready."""
    made = Stack(folder)
    try:
        made.controller()
        made.api(*api)
        for _ in range(workers):
            made.worker()
        yield made
    finally:
        made.stop()


class Stream:
    """An answer that is read event by event, over a socket of its own."""

    reply: http.client.HTTPResponse | None = None

    def __init__(self, service: Stack, script: str, **more: Any) -> None:
        service.streams.append(self)
        ask = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": script}], **more}
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
        self._connection.request(
            "POST", "/v1/chat/completions", json.dumps(ask), {"content-type": "application/json"}
        )

    def open(self) -> http.client.HTTPResponse:
        self.reply = self._connection.getresponse()
        return self.reply

    def events(self) -> Iterator[Any]:
        """Parsed events; [DONE] is the string."""
        assert self.reply is not None
        for line in self.reply:
            if line.startswith(b"data: "):
                yield "[DONE]" if line.strip() == b"data: [DONE]" else json.loads(line[6:])

    def close(self) -> None:
        if self.reply is not None:
            self.reply.close()
        self._connection.close()


def texts(events: list[Any]) -> str:
    return "".join(c["delta"]["content"] for e in events if isinstance(e, dict) for c in e.get("choices", []))


def wait_until(true: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    """Looks again and again: for what happens in another process, where there is nothing to wait on."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _url(door: socket.socket) -> str:
    return f"http://127.0.0.1:{door.getsockname()[1]}"
