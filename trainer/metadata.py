"""How AWS, GCP and Azure tell a machine of its end: three protocols of their metadata services, one look each.

Every machine of these clouds has the service at the same link-local address, without credentials. What it says is
believed only in exactly the form that the cloud documents: a page of a captive portal, a redirect or a broken reply
is no notice. No proxy is ever asked: it could not answer for this machine.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlencode

from trainer.preemption import DEFAULT_NOTICE_S

# AWS: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
# GCP: https://cloud.google.com/compute/docs/metadata/querying-metadata
# Azure: https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service
ADDRESS = "169.254.169.254"

# A reply is some hundred bytes; Azure's list of events may be longer. More is not read.
_LONGEST_REPLY = 1 << 16


class Unusable(Exception):
    """The service did not say anything that may be believed."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing that is said of this machine now."""

    key: str
    """The same for the same thing, however often it is seen."""
    said: str
    left_s: float | None = None
    """Seconds until the machine is gone, by the service's own clock; None where there is a risk and no time."""


class Watched(Protocol):
    """One cloud's service. A look takes some seconds at most, except where the service itself waits for a change."""

    pause_s: float
    """Seconds between two looks."""

    def look(self) -> list[Sighting]:
        """All that is said of this machine now.

        Raises:
            Unusable, OSError, http.client.HTTPException, ValueError: nothing is known; look again later.
        """


@dataclass(frozen=True, slots=True)
class Service:
    """Where a metadata service answers."""

    host: str = ADDRESS
    port: int = 80
    timeout_s: float = 2.0  # it answers within milliseconds; aws-node-termination-handler waits as long

    def ask(
        self, path: str, headers: dict[str, str], *, method: str = "GET", patience_s: float = 0.0
    ) -> Reply:
        """One request on a connection of its own; neither redirects nor proxies are followed.

        patience_s: how much longer than usual the service may take before it answers.
        """
        timeout_s = self.timeout_s + patience_s
        ends = time.monotonic() + timeout_s
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = bytearray()
            while len(body) < _LONGEST_REPLY and (piece := response.read1(_LONGEST_REPLY)):
                body += piece
                if time.monotonic() > ends:
                    raise Unusable(f"{path} came too slowly")
            if response.length or len(body) >= _LONGEST_REPLY:
                raise Unusable(f"{path} is cut short or has no end")
            return Reply(path, response.status, response.headers, bytes(body))
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service answered."""

    path: str
    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unusable(f"{self.path} is no JSON") from None

    def seconds_until(self, moment: datetime) -> float:
        """By the clock of the service, which set `moment`; by ours only where it does not tell its own."""
        try:
            now = _utc(parsedate_to_datetime(self.headers.get("Date", "")))
        except (ValueError, TypeError):
            now = datetime.now(UTC)
        return (_utc(moment) - now).total_seconds()

    def expect(self, *statuses: int) -> Reply:
        if self.status not in statuses:
            raise Unusable(f"{self.path} answers with status {self.status}")
        return self


class Aws:
    """EC2: a spot interruption two minutes ahead, and the advice to rebalance before that is certain.

    docs.aws.amazon.com/AWSEC2/latest/UserGuide: spot-instance-termination-notices.html, rebalance-recommendations.html,
    instance-metadata-v2-how-it-works.html. Two requests per look, and one for a token every six hours.
    """

    pause_s = 5.0  # "We recommend that you check for these interruption notices every 5 seconds."

    _TOKEN, _TOKEN_TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"
    _LONGEST_TTL = "21600"  # six hours, the most that IMDSv2 gives
    _ACTIONS = ("terminate", "stop", "hibernate")
    # "If Amazon EC2 fails to terminate the instance, ... the value remains in the instance metadata with the original
    # approximate time, which is now in the past." An attempt that is started again there must not leave at once.
    _STALE_S = -60.0

    def __init__(self, service: Service, notice_s: float = DEFAULT_NOTICE_S) -> None:
        self._service, self._notice_s = service, notice_s
        self._token: str | None = None

    def look(self) -> list[Sighting]:
        return self._interruption() or self._advice()  # the second must not be able to hide the first

    def _interruption(self) -> list[Sighting]:
        """{"action": "terminate", "time": "2017-09-18T08:22:00Z"}, or 404 as long as nothing is planned."""
        reply = self._get("/latest/meta-data/spot/instance-action")
        if reply is None:
            return []
        said = _fields(reply.json(), reply.path)
        action, moment = str(said.get("action")), str(said.get("time"))
        if action not in self._ACTIONS:
            raise Unusable(f"{reply.path} has the unknown action {action[:40]!r}")
        try:
            left_s = reply.seconds_until(datetime.fromisoformat(moment))
        except ValueError:
            left_s = self._notice_s  # it goes, and the time cannot be read
        if left_s < self._STALE_S:
            return []
        return [Sighting(f"{action} {moment}", f"aws: {action} at {moment}", left_s)]

    def _advice(self) -> list[Sighting]:
        """{"noticeTime": "2020-10-27T08:22:00Z"}, or 404."""
        reply = self._get("/latest/meta-data/events/recommendations/rebalance")
        if reply is None:
            return []
        since = _fields(reply.json(), reply.path).get("noticeTime")
        return [Sighting(f"rebalance {since}", f"aws: rebalance recommended at {since}")]

    def _get(self, path: str) -> Reply | None:
        """None for 404. A token that has expired is replaced; where none is to be had IMDSv1 is tried."""
        if self._token is None:
            self._token = self._new_token()
        reply = self._ask(path)
        if reply.status == 401:
            self._token = self._new_token()
            if not self._token:
                raise Unusable("it wants a token and gives none: from a container the hop limit must be 2")
            reply = self._ask(path)
        return None if reply.expect(200, 404).status == 404 else reply

    def _ask(self, path: str) -> Reply:
        return self._service.ask(path, {self._TOKEN: self._token} if self._token else {})

    def _new_token(self) -> str:
        """Empty where there is none: a reply to PUT does not get into a container that is one hop away."""
        try:
            reply = self._service.ask("/latest/api/token", {self._TOKEN_TTL: self._LONGEST_TTL}, method="PUT")
        except (OSError, http.client.HTTPException):
            return ""
        return reply.text if reply.status == 200 and re.fullmatch(r"[!-~]{1,1024}", reply.text) else ""


class Gcp:
    """Compute Engine: the key `preempted` turns TRUE, and `maintenance-event` tells of work on the host.

    cloud.google.com/compute/docs: instances/create-use-spot, metadata/getting-live-migration-notice,
    gpus/gpu-host-maintenance. A look waits for a change, so the first of the 30 s are not lost to polling.
    """

    pause_s = 1.0  # Google's own sample waits as long after a 503, which "the service can return during maintenance"

    # Waited for a change at most, then maintenance is looked at: machines without a GPU are told of that 60 s ahead.
    _WAIT_S = 20
    _MAINTENANCE = {
        "MIGRATE_ON_HOST_MAINTENANCE": "gcp: host maintenance, the machine is moved",
        # An hour ahead where there is a GPU, and no time is told: save now, and leave when SIGTERM comes.
        "TERMINATE_ON_HOST_MAINTENANCE": "gcp: host maintenance, the machine will be stopped",
    }

    def __init__(self, service: Service, notice_s: float = DEFAULT_NOTICE_S, wait_s: int = _WAIT_S) -> None:
        self._service, self._notice_s, self._wait_s = service, notice_s, wait_s
        self._etag = "0"  # no value has this one: the first reply comes at once, as in Google's sample

    def look(self) -> list[Sighting]:
        if self._get("instance/preempted", wait=True) == "TRUE":
            # No time is told: "up to 30 seconds", or VLAUNCH_NOTICE_S where the machine was given a longer notice.
            return [Sighting("preempted", "gcp: preempted", self._notice_s)]
        event = self._get("instance/maintenance-event")
        if event == "NONE":
            return []
        if event not in self._MAINTENANCE:
            raise Unusable(f"maintenance-event is {event[:40]!r}")
        return [Sighting(event, self._MAINTENANCE[event])]

    def _get(self, key: str, *, wait: bool = False) -> str:
        query = {"wait_for_change": "true", "timeout_sec": str(self._wait_s), "last_etag": self._etag}
        reply = self._service.ask(
            f"/computeMetadata/v1/{key}{'?' + urlencode(query) if wait else ''}",
            {"Metadata-Flavor": "Google"},
            patience_s=self._wait_s if wait else 0.0,
        ).expect(200)
        # Google's libraries take a reply without this header for that of somebody else.
        if reply.headers.get("Metadata-Flavor") != "Google":
            raise Unusable(f"{key} does not come from Google's service")
        if wait:
            if reply.text not in ("TRUE", "FALSE"):
                raise Unusable(f"{key} is {reply.text[:40]!r}")
            self._etag = reply.headers.get("ETag") or "0"
        return reply.text


class Azure:
    """Scheduled Events: a document with everything that will happen to this machine and its neighbours.

    learn.microsoft.com/azure/virtual-machines/linux/scheduled-events. Events are never acknowledged: that would only
    make them begin earlier, for the neighbours too.
    """

    pause_s = 1.0  # "we recommend that you poll the service once per second"

    _EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
    _NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    _HEADERS = {"Metadata": "true"}
    # The service is switched on by the first request: "a delayed response in your first call of up to two minutes".
    _FIRST_PATIENCE_S = 130.0
    # Minimum notice, for a time that cannot be read. A Freeze of some seconds harms nothing and is not in here.
    _ENDS = {"Preempt": 30.0, "Terminate": 300.0, "Reboot": 900.0, "Redeploy": 600.0}

    def __init__(self, service: Service) -> None:
        self._service = service
        self._patience_s = self._FIRST_PATIENCE_S
        self._name: str | None = None
        self._incarnation: object = None
        self._events: list[dict[str, Any]] = []

    def look(self) -> list[Sighting]:
        reply = self._service.ask(self._EVENTS, self._HEADERS, patience_s=self._patience_s).expect(200)
        self._patience_s = 0.0
        document = _fields(reply.json(), self._EVENTS)
        incarnation, events = document.get("DocumentIncarnation"), document.get("Events")
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            raise Unusable("scheduledevents has no list of events")
        # "Documents with the same incarnation contain the same event information."
        if incarnation is None or incarnation != self._incarnation:
            self._events = [event for event in events if self._ends_us(event)]
            self._incarnation = incarnation
        return [self._sighting(event, reply) for event in self._events]

    def _ends_us(self, event: dict[str, Any]) -> bool:
        """A Reboot or Redeploy that has started is either over for us or cannot be helped any more, and stays in the
        document for minutes after it: an attempt that was started again must not leave for it."""
        kind, started = event.get("EventType"), event.get("EventStatus") == "Started"
        if kind not in self._ENDS or (started and kind in ("Reboot", "Redeploy")):
            return False
        resources = event.get("Resources")
        if self._name is None:
            self._name = self._own_name()
        if not isinstance(resources, list) or self._name is None:
            return True  # leaving for a neighbour costs a restart, staying for our own costs work
        return self._name in [str(name).casefold() for name in resources]

    def _sighting(self, event: dict[str, Any], reply: Reply) -> Sighting:
        kind, moment = str(event["EventType"]), str(event.get("NotBefore") or "")
        if event.get("EventStatus") == "Started":
            left_s, when = 0.0, "now"
        else:
            when = f"not before {moment}"
            try:
                left_s = reply.seconds_until(parsedate_to_datetime(moment))
            except (ValueError, TypeError):
                left_s = self._ENDS[kind]
        return Sighting(str(event.get("EventId")), f"azure: {kind} {when}", left_s)

    def _own_name(self) -> str | None:
        """Events of a whole group of machines come to each of them; names are told apart without case."""
        try:
            reply = self._service.ask(self._NAME, self._HEADERS)
        except (OSError, http.client.HTTPException):
            return None
        return reply.text.casefold() if reply.status == 200 and reply.text else None


def _fields(said: object, path: str) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise Unusable(f"{path} is no JSON object")
    return said


def _utc(moment: datetime) -> datetime:
    """The clouds' times are UTC, also where they do not say so."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
