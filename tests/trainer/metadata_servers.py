"""The metadata services of AWS, GCP and Azure, as strict as the real ones, on loopback.

Each enforces what its documentation says a client must do, and answers in the documented form; the sources stand at
each rule. What the real ones are known to do wrong, and what other things at their address do, are faults.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

from trainer.metadata import Service

# No test may wait for ever on a server that keeps silent.
PATIENCE_S = 60.0

Fault = Literal[
    "status 500",
    "status 503",
    "html",
    "redirect",
    "no http",
    "cut short",
    "endless",
    "hangs",
    "drips",
    "closes",
]
FAULTS: tuple[Fault, ...] = Fault.__args__  # type: ignore[attr-defined]

_PAGE = b"<!DOCTYPE html>\n<html lang=en><title>Welcome</title><p>Log in to use this network: TRUE terminate</html>"


@dataclass(frozen=True)
class Request:
    """One request that came, and the status of the answer."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    """0: none was sent."""


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class MetadataService:
    """What the three have in common: an address, a clock, a memory of requests, and faults."""

    server_name: ClassVar[str] = ""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.ahead_s = 0.0
        """How much its clock is ahead of this machine's."""
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.changed = threading.Condition()
        self._http = _Server(self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def service(self) -> Service:
        return Service("127.0.0.1", self._http.server_port)

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> Answer | None:
        """None: no answer ever arrives."""
        raise NotImplementedError

    def interrupt(self, in_s: float) -> None:
        """The machine is taken in so many seconds."""
        raise NotImplementedError

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path.startswith(path)]

    def __enter__(self) -> MetadataService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        with self.changed:
            self.changed.notify_all()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.changed:
            yield
            self.changed.notify_all()


class AwsService(MetadataService):
    """IMDS. docs.aws.amazon.com/AWSEC2/latest/UserGuide: instancedata-data-retrieval,
    instance-metadata-v2-how-it-works, spot-instance-termination-notices, rebalance-recommendations."""

    server_name = "EC2ws"

    def __init__(
        self, *, tokens: Literal["required", "optional"] = "required", container: bool = False
    ) -> None:
        super().__init__()
        self.tokens, self.container = tokens, container
        self.action: dict[str, str] | None = None
        self.advice: dict[str, str] | None = None
        self._valid_until: dict[str, float] = {}

    def interrupt(self, in_s: float, action: str = "terminate") -> None:
        """{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"""
        self.action = {"action": action, "time": _iso(self.now + timedelta(seconds=in_s))}

    def recommend_rebalance(self) -> None:
        """{"noticeTime": "2020-10-27T08:22:00Z"}"""
        self.advice = {"noticeTime": _iso(self.now)}

    def expire_tokens(self) -> None:
        self._valid_until = dict.fromkeys(self._valid_until, 0.0)

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> Answer | None:
        if method == "PUT":
            return self._new_token(path, headers)
        if method not in (
            "GET",
            "HEAD",
        ):  # "GET and HEAD methods are allowed in IMDSv2 instance metadata requests"
            return Answer(405)
        token = headers.get("x-aws-ec2-metadata-token")
        # "When token usage is set to required, requests without a valid token or with an expired token receive a 401";
        # a request with the header is one of IMDSv2, also where tokens are optional.
        if (token is None and self.tokens == "required") or (
            token is not None and self._valid_until.get(token, 0.0) <= time.monotonic()
        ):
            return Answer(401)
        items = {
            "/latest/meta-data/spot/instance-action": self.action,
            "/latest/meta-data/events/recommendations/rebalance": self.advice,
        }
        if items.get(path) is None:  # "or a 404 - Not Found HTTP error code if the resource is not available"
            return Answer(404, _PAGE)
        # "All instance metadata is returned as text (HTTP content type text/plain)"
        return Answer(200, json.dumps(items[path]).encode(), {"Content-Type": "text/plain"})

    def _new_token(self, path: str, headers: dict[str, str]) -> Answer | None:
        # "Issuing PUT requests to any version-specific path ... 403"; "PUT requests are rejected if they contain an
        # X-Forwarded-For header"; 400: "The PUT request is not valid", which wants a TTL of 1 to 21600 seconds.
        if path != "/latest/api/token" or "x-forwarded-for" in headers:
            return Answer(403)
        ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return Answer(400)
        # "if the hop limit is 1, the IMDSv2 response does not return because going to the container is ... a hop"
        if self.container:
            return None
        token = secrets.token_urlsafe(40)
        self._valid_until[token] = time.monotonic() + int(ttl)
        told = {"X-aws-ec2-metadata-token-ttl-seconds": ttl, "Content-Type": "text/plain"}
        return Answer(200, token.encode(), told)


class GcpService(MetadataService):
    """cloud.google.com/compute/docs/metadata/querying-metadata; replies as in salrashid123/gce_metadata_server#11."""

    server_name = "Metadata Server for VM"

    def __init__(self, *, flavoured: bool = True) -> None:
        super().__init__()
        self.values = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}
        self.waiting = threading.Event()
        """Set as soon as somebody waits for a change."""
        self._flavour = {"Metadata-Flavor": "Google"} if flavoured else {}

    def interrupt(self, in_s: float = 30.0) -> None:
        """No time is told: it is gone in up to 30 seconds."""
        self.set("instance/preempted", "TRUE")

    def set(self, key: str, value: str) -> None:
        with self._change():
            self.values[key] = value

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> Answer | None:
        # Without the header, or through a proxy: 403 and a page.
        if headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in headers:
            return Answer(403, _PAGE, {"Content-Type": "text/html; charset=UTF-8", **self._flavour})
        key = path.removeprefix("/computeMetadata/v1/")
        if method != "GET" or key not in self.values:
            return Answer(404, _PAGE, {"Content-Type": "text/html; charset=UTF-8", **self._flavour})
        if query.get("wait_for_change", "false").lower() == "true":
            if not query.get("timeout_sec", "0").isdigit():
                return Answer(400, _PAGE, self._flavour)
            self._wait(key, query.get("last_etag"), float(query.get("timeout_sec") or PATIENCE_S))
        told = {"Content-Type": "application/text", "ETag": self._etag(key), **self._flavour}
        return Answer(200, self.values[key].encode(), told)

    def _wait(self, key: str, last_etag: str | None, timeout_s: float) -> None:
        """Until it changes; not at all if last_etag is another one's; at most timeout_sec, then as it is."""
        with self.changed:
            known = self._etag(key) if last_etag is None else last_etag
            if known == self._etag(key):
                self.waiting.set()
            self.changed.wait_for(lambda: self._etag(key) != known or self.closing.is_set(), timeout_s)

    def _etag(self, key: str) -> str:
        return hashlib.sha256(f"{key}={self.values[key]}".encode()).hexdigest()[:16]


class AzureService(MetadataService):
    """learn.microsoft.com/azure/virtual-machines: linux/scheduled-events, instance-metadata-service."""

    server_name = "Microsoft-IIS/10.0"
    versions = ("2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01")
    instance_versions = ("2019-06-01", "2020-09-01", "2021-02-01")

    def __init__(self, name: str = "TrainNO_3") -> None:
        super().__init__()
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.incarnation = 1
        self.switched_on = threading.Event()
        """The first request waits for this: the service is enabled by it, which takes up to two minutes."""
        self.switched_on.set()

    def interrupt(self, in_s: float = 30.0) -> None:
        self.schedule("Preempt", in_s)

    def schedule(self, kind: str, in_s: float, *resources: str, status: str = "Scheduled") -> dict[str, Any]:
        """The form of version 2020-07-01. NotBefore is blank once the event has started."""
        moment = format_datetime(self.now + timedelta(seconds=in_s), usegmt=True)
        event = {
            "EventId": secrets.token_hex(16).upper(),
            "EventStatus": status,
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": list(resources or (self.name,)),
            "NotBefore": moment if status == "Scheduled" else "",
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
        with self._change():
            self.events.append(event)
            self.incarnation += 1
        return event

    def cancel(self) -> None:
        """ "In that case the event is removed from the Events array"; so it is when it is over."""
        with self._change():
            self.events.clear()
            self.incarnation += 1

    def answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str]) -> Answer | None:
        # "Failure to include the header in the request results in a Bad Request response"; so does a proxy's header.
        if headers.get("metadata", "").lower() != "true" or "x-forwarded-for" in headers:
            return _bad("Required metadata header not specified")
        versions = self.versions if path == "/metadata/scheduledevents" else self.instance_versions
        if query.get("api-version") not in versions:  # "Versions are mandatory"
            return _bad("api-version is invalid or was not specified in the request")
        if path == "/metadata/instance/compute/name" and query.get("format") == "text":
            return Answer(200, self.name.encode(), {"Content-Type": "text/plain; charset=utf-8"})
        if path != "/metadata/scheduledevents":
            return Answer(404, b'{"error": "Not found"}')
        if method == "POST":
            return Answer(200)
        self.switched_on.wait(PATIENCE_S)
        document = {"DocumentIncarnation": self.incarnation, "Events": self.events}
        return Answer(200, json.dumps(document).encode(), {"Content-Type": "application/json; charset=utf-8"})


def looks(count: int) -> Callable[[], bool]:
    """For trainer.notices.follow: go on so many times."""
    left = iter(range(count))
    return lambda: next(left, None) is not None


def _bad(said: str) -> Answer:
    return Answer(400, json.dumps({"error": f"Bad request. {said}"}).encode())


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, owner: MetadataService) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not wait for the end of a broken answer is right."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner, fault = self.server.owner, self.server.owner.fault
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        answer = None if fault else owner.answer(self.command, parts.path, query, headers)
        # Before the answer leaves: who has it may look here at once.
        owner.requests.append(
            Request(self.command, self.path, dict(self.headers.items()), answer.status if answer else 0)
        )
        if fault:
            self._break(fault)
        elif answer:
            self._send(answer)
        else:
            self._silence()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def version_string(self) -> str:
        return self.server.owner.server_name

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(self.server.owner.now, usegmt=True)

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _silence(self) -> None:
        self.server.owner.closing.wait(PATIENCE_S)
        self.close_connection = True

    def _break(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.startswith("status"):
            return self._send(
                Answer(int(fault.split()[1]), HTTPStatus(int(fault.split()[1])).phrase.encode())
            )
        if fault == "html":  # a captive portal, or a proxy that means well
            self._send(Answer(200, _PAGE, {"Content-Type": "text/html"}))
        if fault == "redirect":
            self._send(Answer(302, _PAGE, {"Location": f"{self.server.owner.url}/elsewhere"}))
        if fault == "hangs":
            self._silence()
        if fault == "no http":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
        if fault == "cut short":
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"action": "term')
        if fault == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
            while not self.server.owner.closing.is_set():
                self.wfile.write(b"x" * 65536)
        if fault == "drips":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
            while not self.server.owner.closing.wait(0.02):
                self.wfile.write(b"x")
