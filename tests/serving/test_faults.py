"""Whatever dies, hangs or goes away: requests end, with an answer or a clear error, and nothing stays taken."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.stack import Stack, Stream, stack, texts, wait_until
from tests.trainer.metadata_servers import GcpService


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Stack]:
    """A service with two workers of one model."""
    with stack(tmp_path, workers=2) as made:
        yield made


def has(service: Stack, url: str) -> dict[str, Any] | None:
    return next((said for said in service.workers() if said["url"] == url), None)


def busy_worker(service: Stack) -> Any:
    """The process of the worker that has a request in hand."""
    wait_until(lambda: [said for said in service.workers() if said["sent"]])
    (url,) = [said["url"] for said in service.workers() if said["sent"]]
    return next(p for p in service.started[2:] if p.poll() is None and service.worker_url(p) == url)


def test_a_request_whose_worker_is_killed_before_its_first_token_is_answered_by_another(pair: Stack) -> None:
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(pair.chat, "silence", max_tokens=1)
        victim = busy_worker(pair)
        victim.kill()
        other = next(p for p in pair.started[2:] if p is not victim)
        wait_until(lambda: has(pair, pair.worker_url(other))["sent"] == 1)  # type: ignore[index]
        other.kill()  # the second death ends it: the request might be what kills
        status, _, body = asked.result()
    assert (status, body["error"]["code"]) == (502, "worker_lost")


def test_killed_workers_cost_no_request_that_another_can_answer(pair: Stack) -> None:
    first, second = pair.started[2:]
    first.kill()
    answers = [pair.chat("count to 3") for _ in range(10)]
    assert [status for status, *_ in answers] == [200] * 10
    wait_until(lambda: len(pair.workers()) == 1)
    second.kill()
    status, headers, body = pair.chat("count to 3")
    assert status in (502, 503) and "worker" in body["error"]["message"]
    wait_until(lambda: not pair.workers())
    status, headers, body = pair.chat("count to 3")
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "no_worker", "5")
    assert pair.request("GET", "/ready")[0] == 503 and pair.request("GET", "/health")[0] == 200


def test_a_stream_whose_worker_is_killed_ends_with_an_error_and_without_done(pair: Stack) -> None:
    stream = Stream(pair, "wait")
    stream.open()
    events = stream.events()
    first = next(events)
    busy_worker(pair).kill()
    rest = list(events)
    stream.close()
    assert first["choices"][0]["delta"]["content"] == "1"
    assert [event["error"]["code"] for event in rest] == ["worker_lost"]
    assert pair.chat("count to 2")[0] == 200
    wait_until(pair.idle)


def test_a_request_that_kills_engines_kills_two_and_not_all(tmp_path: Path) -> None:
    with stack(tmp_path, workers=3) as service:
        status, _, body = service.chat("die")
        assert (status, body["error"]["code"]) == (502, "worker_lost")
        assert service.chat("count to 2")[0] == 200
        assert sorted(p.poll() is None for p in service.started[2:]) == [False, False, True]


def test_a_worker_that_hangs_is_out_within_seconds_and_its_stream_ends(pair: Stack) -> None:
    stream = Stream(pair, "wait")
    stream.open()
    next(events := stream.events())
    hung = busy_worker(pair)
    hung.send_signal(signal.SIGSTOP)
    assert [event["error"]["code"] for event in events] == ["worker_lost"]
    assert [pair.chat("count to 3")[0] for _ in range(4)] == [200] * 4
    hung.send_signal(signal.SIGCONT)  # and it is back, as if nothing had been
    wait_until(lambda: len(pair.workers()) == 2)
    wait_until(pair.idle)


def test_a_broken_engine_ends_its_worker_and_another_answers(pair: Stack) -> None:
    assert pair.chat("break")[0] == 500
    wait_until(lambda: [p.poll() for p in pair.started[2:]].count(1) == 1)
    wait_until(lambda: len(pair.workers()) == 1)
    assert pair.chat("count to 2")[0] == 200


def test_the_controller_may_be_killed_and_restarted_under_load(pair: Stack) -> None:
    controller = pair.started[0]
    with ThreadPoolExecutor(8) as pool:
        before = [pool.submit(pair.chat, "count to 50") for _ in range(40)]
        controller.kill()
        controller.wait()
        during = [pool.submit(pair.chat, "count to 50") for _ in range(40)]
        assert {asked.result()[0] for asked in before + during} == {200}
        pair.controller()
        after = [pool.submit(pair.chat, "count to 50") for _ in range(40)]
        assert {asked.result()[0] for asked in after} == {200}
    wait_until(lambda: pair.get("/metrics").decode().count("vlaunch_controller_up 1.0"))
    assert len(pair.workers()) == 2
    pair.started[2].kill()
    wait_until(lambda: len(pair.workers()) == 1)


def test_the_api_may_be_killed_and_restarted_and_knows_everybody_again(pair: Stack) -> None:
    stream = Stream(pair, "wait")
    stream.open()
    next(stream.events())
    pair.started[1].kill()
    pair.started[1].wait()
    pair.api()
    wait_until(lambda: len(pair.workers()) == 2)
    assert pair.chat("count to 2")[0] == 200
    wait_until(pair.idle)  # the workers noticed that nobody listens to that stream


def test_a_client_that_goes_away_frees_its_place_at_once(service: Stack) -> None:
    for script in ("wait", "silence", "wait"):
        stream = Stream(service, script)
        if script == "wait":
            stream.open()
            next(stream.events())
        else:
            wait_until(lambda: [said for said in service.workers() if said["sent"]])
        stream.close()
    wait_until(service.idle)


def test_a_drained_worker_finishes_what_it_has_and_takes_nothing_new(pair: Stack) -> None:
    streams = [Stream(pair, f"count to {2000 + number}") for number in range(16)]
    for stream in streams:
        stream.open()
    first, second = pair.started[2:]
    first.send_signal(signal.SIGTERM)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda stream: list(stream.events()), streams))
        more = [pair.chat("count to 2")[0] for _ in range(5)]
    for number, events in enumerate(answers):
        assert events[-1] == "[DONE]"
        assert texts(events).split()[-1] == str(2000 + number)
    assert more == [200] * 5
    assert first.wait(30) == 0
    wait_until(lambda: len(pair.workers()) == 1)
    assert second.poll() is None


def test_an_operator_drains_a_worker_by_its_url(pair: Stack) -> None:
    url = pair.worker_url(pair.started[2])
    assert pair.request("POST", "/admin/drain", {"url": "http://127.0.0.1:1"})[0] == 404
    assert pair.request("POST", "/admin/drain", {"url": url})[0] == 200
    assert pair.started[2].wait(30) == 0
    wait_until(lambda: has(pair, url) is None)


def test_the_clouds_notice_drains_a_worker(tmp_path: Path) -> None:
    with GcpService() as cloud, stack(tmp_path, workers=1) as service:
        spot = service.worker(VLAUNCH_CLOUD="gcp", VLAUNCH_METADATA_URL=cloud.url)
        cloud.interrupt(in_s=30)
        assert spot.wait(30) == 75
        assert service.chat("count to 2")[0] == 200


def test_a_client_that_does_not_read_is_cut_at_the_deadline(tmp_path: Path) -> None:
    with stack(tmp_path, "--timeout-s", 2) as service:
        stream = Stream(
            service, "count to 8000", logprobs=True, top_logprobs=20
        )  # more than all buffers hold
        wait_until(lambda: not service.idle())
        wait_until(service.idle)
        assert stream.open().status == 200
        status, _, body = service.chat("silence")
        assert (status, body["error"]["code"]) == (504, "timeout")


@pytest.mark.parametrize("many", [200])
def test_hundreds_of_clients_that_hang_up_leak_nothing(service: Stack, many: int) -> None:
    body = b'{"model":"scripted","stream":true,"messages":[{"role":"user","content":"count to 100"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    for number in range(many):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall((head + body)[: len(head) + number % (len(body) + 1)])
            if number % 2:
                client.settimeout(0.01)
                try:
                    client.recv(1 + number)
                except TimeoutError:
                    pass
    wait_until(service.idle)
    assert service.chat("count to 2")[0] == 200
