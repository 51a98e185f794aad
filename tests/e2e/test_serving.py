"""A service on real SkyPilot over two real Slurm clusters, asked while workers come and are lost."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from typing import Any

from tests.e2e.slurm.rig import Rig, until
from tests.e2e.test_recovery import run_options


class Asking:
    """Asks again and again, until it is stopped; every answer and every failure is kept."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: list[float] = []
        self.failures: list[str] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Until so many more answers have come."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted or self.failures, f"{count} more answers")

    def _run(self) -> None:
        while not self._over.wait(0.05):
            try:
                ask(self._answer)
                self.answers.append(time.monotonic())
            except OSError as error:
                self.failures.append(str(error))


def ask(answer: dict[str, Any]) -> str:
    body = {"model": answer["model"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    with urllib.request.urlopen(_request(answer, "/v1/chat/completions", json.dumps(body).encode())) as reply:
        return str(json.loads(reply.read())["choices"][0]["message"]["content"])


def workers(answer: dict[str, Any]) -> set[str]:
    """Labels of those that the API can choose."""
    with urllib.request.urlopen(_request(answer, "/admin/workers", None)) as reply:
        return {one["label"] for one in json.loads(reply.read())["workers"] if one["state"] == "ready"}


def _request(answer: dict[str, Any], path: str, data: bytes | None) -> urllib.request.Request:
    headers = {"Authorization": f"Bearer {answer['api_key']}", "Content-Type": "application/json"}
    return urllib.request.Request(answer["url"].removesuffix("/v1") + path, data, headers)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def serve(rig: Rig, *more: object) -> dict[str, Any]:
    line = ["serve", "served", "--store", rig.store, "--device", "cpu", "--yes", "--json", *more]
    found: dict[str, Any] = json.loads(rig.vlaunch(*line, timeout=900).stdout)
    return found


def test_requests_go_on_while_workers_come_and_are_cancelled(rig: Rig) -> None:
    rig.vlaunch("train", "--infra", "local", *run_options(rig, "served", 20))
    ports = ("--port", free_port(), "--controller-port", free_port())
    try:
        front = serve(rig, "--infra", "slurm/us-east", "--workers", 2, "--name", "front", *ports)
        both = {"front-worker-0", "front-worker-1"}
        assert workers(front) == both
        with Asking(front) as asking:
            asking.more(5)
            where = front["controller"].removeprefix("http://")
            joined = (
                "--infra",
                "slurm/us-west",
                "--controller-ip",
                where,
                "--secret-file",
                front["secret_file"],
            )
            serve(rig, "--name", "more", *joined)
            assert workers(front) == both | {"more-worker-0"}

            region = rig.take("front-worker-0")
            asking.more(20)
            until(
                lambda: workers(front) == {"front-worker-1", "more-worker-0"} or _came_back(rig),
                "it is missed",
            )
            until(lambda: workers(front) == both | {"more-worker-0"}, "it was started again", 600)
            asking.more(5)

        assert asking.failures == [] and region == "us-east"
        status = json.loads(rig.vlaunch("status", "front", "--json").stdout)
        assert (status["state"], status["restarts"]) == ("ready", 1)
        assert "the controller knows this worker" in rig.vlaunch("logs", "front").stdout
        rig.vlaunch("stop", "more")
        assert workers(front) == both
        rig.vlaunch("stop", "front")
        assert json.loads(rig.vlaunch("status", "front", "--json").stdout)["state"] == "stopped"
        assert [rig.machines(name) for name in ("front", "more")] == [[], []]
    finally:
        for name in ("more", "front"):
            rig.vlaunch("stop", name, check=False)


def _came_back(rig: Rig) -> bool:
    """It was started again before anybody looked."""
    return bool(json.loads(rig.vlaunch("status", "front", "--json").stdout)["restarts"])
