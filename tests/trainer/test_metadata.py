"""What AWS, GCP and Azure say of a machine's end is seen for what it is, and nothing else is taken for it.

Against services that are as strict as the real ones: a client that breaks a rule of the protocol sees nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.trainer.metadata_servers import (
    FAULTS,
    AwsService,
    AzureService,
    Fault,
    GcpService,
    MetadataService,
    looks,
)
from trainer.metadata import Aws, Azure, Gcp, Service, Sighting, Unusable, Watched
from trainer.notices import follow
from trainer.preemption import Board

# A second is lost to rounding: all times of these protocols are whole seconds.
ROUNDING_S = 1.5

SERVICES: dict[str, tuple[type[MetadataService], Callable[[Service], Watched]]] = {
    "aws": (AwsService, Aws),
    "gcp": (GcpService, lambda service: Gcp(service, wait_s=0)),
    "azure": (AzureService, Azure),
}


def hurried(service: MetadataService) -> Service:
    """With a time-out that a test can wait for."""
    return Service(service.service.host, service.service.port, timeout_s=0.3)


def the_one(seen: list[Sighting]) -> Sighting:
    (sighting,) = seen
    return sighting


# The services themselves: a client that breaks a rule is refused, as by the real ones

_TTL, _TOKEN = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
_ACTION, _EVENTS = "/latest/meta-data/spot/instance-action", "/metadata/scheduledevents"
_PREEMPTED = "/computeMetadata/v1/instance/preempted"
_GOOGLE, _AZURE = {"Metadata-Flavor": "Google"}, {"Metadata": "true"}
_PROXIED = {"X-Forwarded-For": "10.0.0.1"}


@pytest.mark.parametrize(
    ("kind", "method", "path", "headers", "status"),
    [
        (AwsService, "GET", _ACTION, {}, 401),
        (AwsService, "GET", _ACTION, {_TOKEN: "made-up"}, 401),
        (AwsService, "PUT", "/latest/api/token", {}, 400),
        (AwsService, "PUT", "/latest/api/token", {_TTL: "0"}, 400),
        (AwsService, "PUT", "/latest/api/token", {_TTL: "21601"}, 400),
        (AwsService, "PUT", "/latest/api/token", {_TTL: "60", **_PROXIED}, 403),
        (AwsService, "PUT", "/2021-03-23/api/token", {_TTL: "60"}, 403),
        (AwsService, "PUT", "/latest/api/token", {_TTL: "21600"}, 200),
        (GcpService, "GET", _PREEMPTED, {}, 403),
        (GcpService, "GET", _PREEMPTED, {**_GOOGLE, **_PROXIED}, 403),
        (GcpService, "GET", "/computeMetadata/v1/instance/preempted_", _GOOGLE, 404),
        (GcpService, "GET", f"{_PREEMPTED}?wait_for_change=true&timeout_sec=soon", _GOOGLE, 400),
        (GcpService, "GET", f"{_PREEMPTED}?wait_for_change=true&timeout_sec=0", _GOOGLE, 200),
        (AzureService, "GET", f"{_EVENTS}?api-version=2020-07-01", {}, 400),
        (AzureService, "GET", _EVENTS, _AZURE, 400),
        (AzureService, "GET", f"{_EVENTS}?api-version=latest", _AZURE, 400),
        (AzureService, "GET", f"{_EVENTS}?api-version=2020-07-01", {**_AZURE, **_PROXIED}, 400),
        (AzureService, "GET", f"{_EVENTS}?api-version=2020-07-01", _AZURE, 200),
    ],
)
def test_the_services_of_these_tests_refuse_what_the_real_ones_refuse(
    served: Callable[[Any], Any],
    kind: type[MetadataService],
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
) -> None:
    assert served(kind()).service.ask(path, headers, method=method).status == status


# AWS


def test_aws_is_asked_with_a_token_that_is_fetched_once(served: Callable[[Any], Any]) -> None:
    service = served(AwsService())
    aws = Aws(service.service)

    assert [aws.look() for _ in range(5)] == [[]] * 5
    assert [request.status for request in service.asked("/latest/api/token")] == [200]
    assert {request.status for request in service.asked("/latest/meta-data")} == {404}
    assert len(service.requests) == 1 + 5 * 2


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_aws_names_the_seconds_left_by_its_own_clock(
    served: Callable[[Any], Any], action: str, ahead_s: float
) -> None:
    service = served(AwsService())
    service.ahead_s = ahead_s
    service.interrupt(120, action)

    seen = the_one(Aws(service.service).look())

    assert seen.left_s == pytest.approx(120, abs=ROUNDING_S)
    assert seen.said.startswith(f"aws: {action} at 20")


def test_an_expired_token_of_aws_is_replaced(served: Callable[[Any], Any]) -> None:
    service = served(AwsService())
    aws = Aws(service.service)
    aws.look()
    service.expire_tokens()
    service.interrupt(120)

    assert aws.look()
    assert len(service.asked("/latest/api/token")) == 2


def test_from_a_container_one_hop_away_aws_is_asked_without_a_token_where_it_allows_that(
    served: Callable[[Any], Any],
) -> None:
    service = served(AwsService(tokens="optional", container=True))
    service.interrupt(120)

    assert Aws(hurried(service)).look()


def test_where_aws_wants_a_token_that_cannot_arrive_the_hop_limit_is_named(
    served: Callable[[Any], Any],
) -> None:
    service = served(AwsService(container=True))

    with pytest.raises(Unusable, match="hop limit must be 2"):
        Aws(hurried(service)).look()


def test_an_interruption_that_aws_did_not_carry_out_is_none_for_the_next_attempt(
    served: Callable[[Any], Any],
) -> None:
    service = served(AwsService())
    service.interrupt(-3600)

    assert Aws(service.service).look() == []


def test_an_interruption_of_aws_with_an_unreadable_time_leaves_the_shortest_notice(
    served: Callable[[Any], Any],
) -> None:
    service = served(AwsService())
    service.action = {"action": "terminate", "time": "soon"}

    assert the_one(Aws(service.service, notice_s=30.0).look()).left_s == 30.0


def test_a_rebalance_recommendation_is_a_risk_without_a_time(served: Callable[[Any], Any]) -> None:
    service = served(AwsService())
    service.recommend_rebalance()

    seen = the_one(Aws(service.service).look())

    assert seen.left_s is None
    assert seen.said.startswith("aws: rebalance recommended at 20")


# GCP


def test_gcp_answers_the_moment_the_machine_is_preempted(served: Callable[[Any], Any]) -> None:
    service = served(GcpService())
    gcp = Gcp(service.service)
    assert gcp.look() == []  # the value as it is now, at once
    taken = threading.Thread(target=lambda: service.waiting.wait(60) and service.interrupt())
    taken.start()

    seen = gcp.look()  # this one waits

    taken.join()
    assert the_one(seen).left_s == 30.0
    assert all(request.headers["Metadata-Flavor"] == "Google" for request in service.requests)


def test_gcp_is_asked_twice_per_look_and_only_waits_for_what_is_new(
    served: Callable[[Any], Any],
) -> None:
    service = served(GcpService())
    gcp = Gcp(service.service, wait_s=0)

    assert [gcp.look() for _ in range(3)] == [[]] * 3

    etags = [
        request.path.partition("last_etag=")[2]
        for request in service.asked("/computeMetadata/v1/instance/pre")
    ]
    assert len(service.requests) == 6
    assert etags[0] == "0" and etags[1] == etags[2] != "0"


@pytest.mark.parametrize("event", ["TERMINATE_ON_HOST_MAINTENANCE", "MIGRATE_ON_HOST_MAINTENANCE"])
def test_host_maintenance_of_gcp_is_a_risk_without_a_time(served: Callable[[Any], Any], event: str) -> None:
    service = served(GcpService())
    service.set("instance/maintenance-event", event)

    assert the_one(Gcp(service.service).look()).left_s is None


def test_gcp_that_was_given_a_longer_notice_is_believed_to_keep_it(served: Callable[[Any], Any]) -> None:
    service = served(GcpService())
    service.interrupt()

    assert the_one(Gcp(service.service, notice_s=150.0).look()).left_s == 150.0


def test_a_reply_without_googles_own_header_is_not_googles(served: Callable[[Any], Any]) -> None:
    service = served(GcpService(flavoured=False))
    service.interrupt()

    with pytest.raises(Unusable, match="does not come from Google"):
        Gcp(service.service).look()


# Azure


def test_azure_names_the_seconds_left_by_its_own_clock(served: Callable[[Any], Any]) -> None:
    service = served(AzureService())
    service.ahead_s = 3600.0
    service.interrupt(30)

    seen = the_one(Azure(service.service).look())

    assert seen.left_s == pytest.approx(30, abs=ROUNDING_S)
    assert seen.said.startswith("azure: Preempt not before ")


def test_events_of_azure_that_name_other_machines_are_not_ours(served: Callable[[Any], Any]) -> None:
    service = served(AzureService("Gang_0"))
    azure = Azure(service.service)
    service.schedule("Preempt", 30, "Gang_1", "Gang_2")
    assert azure.look() == []
    service.schedule("Preempt", 30, "Gang_1", "GANG_0")  # names are told apart without case

    assert len(azure.look()) == 1
    assert len(service.asked("/metadata/instance/compute/name")) == 1


@pytest.mark.parametrize(
    ("kind", "status", "left_s"),
    [
        ("Terminate", "Scheduled", 300),
        ("Reboot", "Scheduled", 900),
        ("Redeploy", "Scheduled", 600),
        ("Preempt", "Started", 0),
        ("Terminate", "Started", 0),
        ("Freeze", "Scheduled", None),  # some seconds of standing still
        ("Reboot", "Started", None),  # stays in the document after the machine is up again
        ("Redeploy", "Started", None),
    ],
)
def test_only_events_of_azure_that_end_this_machine_and_are_still_to_come_count(
    served: Callable[[Any], Any], kind: str, status: str, left_s: float | None
) -> None:
    service = served(AzureService())
    service.schedule(kind, left_s or 600.0, status=status)

    seen = Azure(service.service).look()

    assert [sighting.left_s for sighting in seen] == (
        [] if left_s is None else [pytest.approx(left_s, abs=ROUNDING_S)]
    )


def test_azures_first_answer_is_waited_for_while_it_switches_the_service_on(
    served: Callable[[Any], Any],
) -> None:
    service = served(AzureService())
    service.switched_on.clear()
    service.interrupt(30)
    timer = threading.Timer(0.6, service.switched_on.set)  # twice the usual time-out
    timer.start()

    assert len(Azure(hurried(service)).look()) == 1
    timer.join()


def test_no_event_of_azure_is_ever_acknowledged(served: Callable[[Any], Any], board: Board) -> None:
    """That would let it begin earlier, for the neighbours too."""
    service = served(AzureService())
    service.interrupt(30)

    assert follow(Azure(service.service), board, 0.0, looks(3))
    assert {request.method for request in service.requests} == {"GET"}


# What is not a notice


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cloud", SERVICES)
def test_a_service_that_fails_is_no_notice_and_is_asked_again(
    served: Callable[[Any], Any], board: Board, cloud: str, fault: Fault
) -> None:
    kind, watcher = SERVICES[cloud]
    service = served(kind())
    asked = watcher(hurried(service))
    asked.look()
    service.fault = fault

    assert not follow(asked, board, 0.0, looks(2))
    assert board.read(0)[0] == []
    service.fault = None
    service.interrupt(30)
    assert follow(asked, board, 0.0, looks(3))
    assert not service.asked("/elsewhere")  # no redirect is followed


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"action": "noop", "time": "2026-01-01T00:00:00Z"},
        {"action": None},
        {"action": ["terminate"]},
    ],
)
def test_json_that_aws_does_not_document_is_no_notice(served: Callable[[Any], Any], document: object) -> None:
    service = served(AwsService())
    service.action = document

    with pytest.raises(Unusable):
        Aws(service.service).look()


@pytest.mark.parametrize("events", [None, {}, "Preempt", [1], [None]])
def test_json_that_azure_does_not_document_is_no_notice(served: Callable[[Any], Any], events: object) -> None:
    service = served(AzureService())
    service.events = events

    with pytest.raises(Unusable):
        Azure(service.service).look()


@pytest.mark.parametrize("cloud", SERVICES)
def test_no_proxy_is_asked(served: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, cloud: str) -> None:
    kind, watcher = SERVICES[cloud]
    proxy, service = served(kind()), served(kind())
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    service.interrupt(30)

    assert watcher(service.service).look()
    assert proxy.requests == []
