"""A W&B server in a hundred lines: what wandb-core 0.26 asks of one, as recorded from it, and a memory of all of it.

GraphQL operations are answered by name. A stream of history lines is kept as it arrives, so that a test sees what was
sent twice, and as it would be shown, by offset. `silent` makes it accept connections and never answer.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Curve:
    """One run on the server."""

    history: list[dict[str, Any]] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    """Steps in the order in which they came, whatever their offset."""
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    begun: int = 0
    """How often somebody began to write to it."""

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


class WandbServer:
    """Start with `served()`."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.views: list[dict[str, Any]] = []
        self.everything = bytearray()
        """All that was ever sent to it, but for the header with the key."""
        self.changed = threading.Condition()
        self.silent = threading.Event()
        self.gone = threading.Event()
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.2",  # instead of 15 s
        }

    @contextmanager
    def served(self) -> Iterator[WandbServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.gone.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def wait_for_more(self, than: int, timeout_s: float = 120.0) -> None:
        """Until more steps have come than so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.count() > than, timeout_s), f"no step came after {than}"

    def count(self) -> int:
        """Steps that have come."""
        return sum(len(curve.received) for curve in self.curves.values())

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or ""
        if operation == "RunResumeStatus":
            return {
                "model": {
                    "id": "p",
                    "name": variables["project"],
                    "entity": _ME,
                    "bucket": self._bucket(name),
                }
            }
        if operation == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._upserted(name, variables), "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation in ("viewer", "Viewer", "GetViewer", "GetDefaultEntity"):
            return {"viewer": _VIEWER}
        if operation == "UpsertView2":
            self.views.append(json.loads(variables["spec"]))
            return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}
        return {}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """What came in on /files/ENTITY/PROJECT/RUN/file_stream."""
        with self.changed:
            curve = self.curves.setdefault(run, Curve())
            files = sent.get("files") or {}
            if chunk := files.get("wandb-history.jsonl"):
                rows = [json.loads(line) for line in chunk["content"]]
                curve.received += [row["_step"] for row in rows]
                curve.history[chunk["offset"] : chunk["offset"] + len(rows)] = rows
            if chunk := files.get("wandb-summary.json"):
                curve.summary.update(json.loads(chunk["content"][-1]))
            if sent.get("exitcode") is not None:
                curve.exit_codes.append(sent["exitcode"])
            self.changed.notify_all()

    def _bucket(self, run: str) -> dict[str, Any] | None:
        curve = self.curves.get(run)
        if curve is None:
            return None
        tail = json.dumps([json.dumps(row) for row in curve.history[-1:]])
        return {
            "id": run, "name": run, "displayName": run, "summaryMetrics": json.dumps(curve.summary),
            "logLineCount": 0, "historyLineCount": len(curve.history), "eventsLineCount": 0,
            "historyTail": tail, "eventsTail": "[]", "config": json.dumps(curve.config), "tags": [], "notes": None,
            "wandbConfig": json.dumps({"t": 1}),  # without it the run counts as never begun
        }  # fmt: skip

    def _upserted(self, run: str, variables: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            curve = self.curves.setdefault(run, Curve())
            if variables.get("displayName"):  # only the first of a writer's many has it
                curve.names.add(variables["displayName"])
                curve.begun += 1
            curve.config.update(json.loads(variables.get("config") or "{}"))
            self.changed.notify_all()
        return {
            "id": run, "name": run, "displayName": run, "description": None, "config": "{}", "sweepName": None,
            "project": {"id": "p", "name": variables.get("project"), "entity": _ME},
            "historyLineCount": len(curve.history),
        }  # fmt: skip


_ME = {"id": "e", "name": "me"}
_VIEWER = {
    "id": "u", "name": "me", "username": "me", "email": "", "admin": False, "flags": "{}", "entity": "me",
    "deletedAt": None, "apiKeys": {"edges": []}, "teams": {"edges": []},
}  # fmt: skip


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed, or hung up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        state.everything += self.path.encode() + b"\n" + body + b"\n"
        if state.silent.is_set():
            state.gone.wait()
            self.close_connection = True
            return
        if self.path == "/upload":
            return self._reply({})
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode():
            return self._reply({"errors": [{"message": "not your run"}]}, 401)
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:(?:query|mutation)\s+)?(\w+)\s*[({]", asked["query"])
            assert operation is not None
            return self._reply({"data": state.answer(operation[1], asked.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            state.stream(self.path.split("/")[-2], json.loads(body))
        self._reply({"exitcode": None, "limits": {}})

    do_PUT = do_POST

    def _reply(self, answer: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
