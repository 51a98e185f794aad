"""What a worker on a rented machine is told by its task: it may be taken, and only others know its address."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.protocol import Announcement
from tests.serving.stack import Stack, stack

PREEMPTED = 75


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path, workers=0) as made:
        yield made


def test_a_worker_that_is_told_to_go_ends_with_75_where_its_machine_is_what_goes(front: Stack) -> None:
    on_spot, steady = front.worker("scripted", "--spot"), front.worker()
    for process, code in ((on_spot, PREEMPTED), (steady, 0)):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == code


def test_a_worker_that_its_operator_drains_is_not_to_be_started_elsewhere(front: Stack) -> None:
    worker = front.worker("scripted", "--spot")
    status, _, _ = front.request("POST", "/admin/drain", {"url": front.worker_url(worker)})
    assert status == 200 and worker.wait() == 0


def test_a_worker_can_be_reached_where_the_controller_sees_it(front: Stack) -> None:
    worker = front.worker("scripted", "--advertise", "seen", "--label", "front-worker-0")
    (known,) = front.workers()
    assert known["url"].startswith("http://127.0.0.1:") and not known["url"].endswith(":0")
    assert known["label"] == "front-worker-0"
    assert front.chat("count to 2")[2]["choices"][0]["message"]["content"] == "1 2"
    status, _, _ = front.request("POST", "/admin/drain", {"url": known["url"]})
    assert status == 200 and worker.wait() == 0


def test_what_a_worker_says_of_its_port_is_believed_and_of_its_host_only_if_it_knows_it() -> None:
    from starlette.requests import Request

    from serving.controller import _reachable

    def seen(url: str, client: str) -> str:
        said = Announcement(url=url, life="0" * 16, born=1.0, models=("m",), context=1)
        request = Request({"type": "http", "client": (client, 1234), "headers": []})
        return _reachable(said, request).url

    assert seen("http://0.0.0.0:21002", "10.0.0.7") == "http://10.0.0.7:21002"
    assert seen("http://0.0.0.0:21002", "2001:db8::1") == "http://[2001:db8::1]:21002"
    assert seen("http://10.0.0.3:21002", "10.0.0.7") == "http://10.0.0.3:21002"
