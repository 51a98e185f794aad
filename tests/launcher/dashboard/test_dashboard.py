"""The dashboard as a browser and as a stranger meet it: a real server, plain HTTP, and Chromium where there is one."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.dashboard.server import Dashboard
from launcher.dashboard.shelf import Shelf, Shown
from tests.conftest import Ran
from tests.launcher.lives import event, write_run
from tests.launcher.tracking.wandb_server import WandbServer
from trainer.artifacts.store import open_store

Vlaunch = Callable[..., Ran]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Page:
    status: int
    headers: dict[str, str]
    text: str


class Served:
    """`vlaunch dashboard` as a program of its own."""

    def __init__(self, store: str) -> None:
        command = [sys.executable, "-m", "launcher", "dashboard", "--store", store, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["url"]
        self.port = int(self.url.rsplit(":", 1)[1].strip("/"))

    def ask(self, path: str = "/", method: str = "GET", host: str | None = None) -> Page:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        page = Page(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())
        connection.close()
        return page

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("store"))
    write_run(folder, "demo")
    return folder


@pytest.fixture(scope="module")
def dashboard(store: str) -> Iterator[Served]:
    served = Served(store)
    yield served
    assert served.stop() == 0  # Ctrl-C is how it is meant to end


def test_every_run_is_in_the_table_with_its_dollars(dashboard: Served) -> None:
    page = dashboard.ask()
    assert page.status == 200 and '<a href="/runs/demo">demo</a>' in page.text
    assert "40 of 40" in page.text and "$0.0081" in page.text and "finished" in page.text


def test_a_run_has_loss_speed_attempts_and_bill(dashboard: Served) -> None:
    page = dashboard.ask("/runs/demo")
    assert page.status == 200
    for heading in ("Loss", "Speed", "Attempts", "Bill"):
        assert f"<h2>{heading}</h2>" in page.text
    assert "<title>Attempts over time</title>" in page.text and "aws/eu-west-1" in page.text


def test_a_page_that_a_strangers_name_leads_to_is_refused(dashboard: Served) -> None:
    """DNS rebinding: a name of theirs resolves to this computer, but their name is still in the Host header."""
    for host in (
        "rebound.example",
        f"rebound.example:{dashboard.port}",
        "127.0.0.1",
        f"[::1]:{dashboard.port}",
        "",
    ):
        page = dashboard.ask(host=host) if host else dashboard.ask(host=" ")
        assert page.status == 421 and "demo" not in page.text
    assert dashboard.ask(host=f"localhost:{dashboard.port}").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../../etc/passwd",
        "/runs/%2e%2e/demo",
        "/runs/demo/config.json",
        "/runs/",
        "/runs",
        "//etc/passwd",
        "/x",
    ],
)
def test_nothing_but_runs_has_an_address(dashboard: Served, path: str) -> None:
    assert dashboard.ask(path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_it_can_only_be_looked_at(dashboard: Served, method: str) -> None:
    assert dashboard.ask(method=method).status == 501


def test_a_page_runs_its_own_script_alone_and_loads_nothing(dashboard: Served) -> None:
    page = dashboard.ask()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page.text)
    assert "default-src &#x27;none&#x27;" in policy and "sha256-" in policy and "unsafe-eval" not in policy
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text)
    assert page.headers["x-frame-options"] == "DENY" and page.headers["cache-control"] == "no-store"


def test_head_has_no_body(dashboard: Served) -> None:
    page = dashboard.ask(method="HEAD")
    assert page.status == 200 and page.text == "" and int(page.headers["content-length"]) > 1000


def test_what_is_new_in_the_store_is_on_the_next_page(tmp_path: Path) -> None:
    served = Served(str(tmp_path / "store"))
    try:
        assert "There is no run in this store yet" in served.ask().text
        live = open_store(str(tmp_path / "store/runs/new-run"))
        for item in (event("started", 0, 1, epoch=1, resumed_from=0), event("training", 1, 1, step=1)):
            live.put_new(item.key, item.encode())
        broken = open_store(str(tmp_path / "store/runs/broken"))
        broken.put_new("journal/20260101T000000.000000Z-000001-000000-started.json", b"{")
        page = served.ask()
        while "/runs/new-run" not in page.text:  # it is read again at most every two seconds
            page = served.ask()
        assert "running" in page.text and "broken: " in page.text and "is not readable" not in page.text
    finally:
        served.stop()


def test_a_port_that_is_taken_is_one_clear_error(
    dashboard: Served, vlaunch_process: Vlaunch, store: str
) -> None:
    done = vlaunch_process("dashboard", "--store", store, "--port", dashboard.port)
    assert done.code == 1 and "cannot listen on port" in done.err and "--port 0" in done.err


class Growing(Shelf):
    """A store that is empty when it is first looked at; a run comes before the second time."""

    looks = 0

    def look(self) -> Shown:
        self.looks += 1
        if self.looks == 2:
            write_run(self.store, "demo")
        self._stale_at = 0.0
        return super().look()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_real_browser_the_page_renews_itself(tmp_path: Path) -> None:
    """Chromium loads the page of an empty store; the run that comes later is there without a reload, and its console
    has nothing to say."""
    assert CHROMIUM is not None
    with Dashboard(Growing(str(tmp_path / "store")), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        # On a clock of its own the browser lets ten seconds pass as fast as it can.
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", server.url,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        finally:
            server.shutdown()
            thread.join()
        assert server.shelf.looks > 1  # type: ignore[attr-defined]
    assert '<a href="/runs/demo">' in done.stdout
    assert "Content Security Policy" not in done.stderr and "CONSOLE" not in done.stderr


def test_without_a_key_the_workspace_is_printed(vlaunch_process: Vlaunch) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra [wandb] is not installed")
    done = vlaunch_process("dashboard", "--wandb", "--json")
    assert done.code == 0, done.err
    made = done.json["workspace"]
    names = {section["name"] for section in made["spec"]["section"]["panelBankConfig"]["sections"]}
    assert {"Learning", "Throughput", "Dollars", "Attempts"} <= names


def test_with_a_key_the_workspace_is_made_at_the_server(vlaunch_process: Vlaunch) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra [wandb] is not installed")
    with WandbServer().served() as server:
        environment = {**os.environ, **server.environment}
        done = vlaunch_process("dashboard", "--wandb", "--json", env=environment)
        assert done.code == 0 and done.json["url"].startswith(server.url), done.err
        shown = json.dumps(server.views)
    for metric in ("train/loss", "speed/tokens_per_s", "run/goodput", "run/dollars", "run/attempt"):
        assert f'"{metric}"' in shown
