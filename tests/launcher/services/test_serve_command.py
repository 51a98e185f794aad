"""`vlaunch serve` and what goes with it, as programs of their own: up, used, looked at, killed, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.clouds.local_machine import process_start
from launcher.services import here
from tests.conftest import Ran
from tests.serving.stack import ENGINE, wait_until

Vlaunch = Callable[..., Ran]
FREE = ("--port", "0", "--controller-port", "0")


@pytest.fixture
def model(isolated: Path) -> Path:
    folder = isolated / "scripted"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def serve(vlaunch_process: Vlaunch, model: Path) -> Iterator[Callable[..., Ran]]:
    """Starts a detached service; all of them are stopped at the end."""

    def run(*more: object, **options: Any) -> Ran:
        return vlaunch_process(
            "serve", model, "--engine", ENGINE, "--detach", "--json", *FREE, *more, **options
        )

    yield run
    for name in here.names():
        here.stop(name)


def processes(name: str) -> list[int]:
    pids = list(here.view(name).processes.values())
    return [pid for pid in pids if pid is not None]


def gone(pids: list[int]) -> bool:
    return all(process_start(pid) is None for pid in pids)


def test_a_service_is_up_when_its_model_has_answered_and_stops_clean(
    serve: Callable[..., Ran], vlaunch: Vlaunch
) -> None:
    ran = serve("--name", "demo")
    assert ran.code == 0, ran.err
    answer = ran.json
    assert (answer["name"], answer["model"], answer["api_key"]) == ("demo", "scripted", None)
    assert vlaunch("status", "demo", "--json").json["state"] == "ready"
    said = vlaunch("message", "count to 3", "--json").json
    assert (said["answer"], said["model"]) == ("1 2 3", "scripted")
    assert vlaunch("message", "count to 3", "--url", answer["url"]).out == "1 2 3\n"
    pids = processes("demo")
    assert len(pids) == 3
    assert serve("--name", "demo").code == 3
    assert vlaunch("stop", "demo", "--json").json["was_running"] is True
    assert gone(pids) and vlaunch("status", "demo", "--json").json["state"] == "stopped"
    assert "drained" in vlaunch("logs", "demo").out
    assert vlaunch("message", "count to 3", "--url", answer["url"]).code == 3


def test_a_process_that_is_killed_is_started_again(serve: Callable[..., Ran], vlaunch: Vlaunch) -> None:
    serve("--name", "demo", "--workers", "2")
    before = here.view("demo").processes
    for name in ("worker-0", "controller", "api"):
        os.kill(before[name] or 0, signal.SIGKILL)
    wait_until(lambda: here.view("demo").restarts == 3)
    wait_until(lambda: all(here.view("demo").processes[name] not in (None, pid) for name, pid in before.items()
                           if name != "worker-1"))  # fmt: skip
    wait_until(lambda: vlaunch("message", "count to 2").code == 0)
    assert here.view("demo").processes["worker-1"] == before["worker-1"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word that a parent died is Linux's")
def test_no_process_outlives_a_supervisor_that_is_killed(serve: Callable[..., Ran], vlaunch: Vlaunch) -> None:
    serve("--name", "demo")
    pids = processes("demo")
    state = json.loads((here.home("demo") / "state.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    wait_until(lambda: gone(pids))
    wait_until(lambda: here.view("demo").state == "killed")
    assert serve("--name", "demo").code == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_service_in_the_foreground_ends_with_its_command(model: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "launcher",
        "serve",
        str(model),
        "--engine",
        ENGINE,
        "--name",
        "demo",
        *FREE,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("page   http://127.0.0.1:")
        pids = processes("demo")
        process.send_signal(number)
        process.stdout.read()
    wait_until(lambda: gone(pids))
    wait_until(lambda: here.view("demo").state == "stopped")


def test_workers_join_a_service_elsewhere_and_leave_it(
    serve: Callable[..., Ran], vlaunch: Vlaunch, tmp_path: Path
) -> None:
    first = serve("--name", "first").json
    where = first["controller"].removeprefix("http://")
    refused = serve("--name", "second", "--controller-ip", where)
    assert refused.code == 3 and "secret" in refused.err
    second = serve("--name", "second", "--controller-ip", where, "--secret-file", first["secret_file"])
    assert second.code == 0, second.err
    assert second.json["workers"] == 1
    import urllib.request

    def workers() -> list[Any]:
        with urllib.request.urlopen(first["page"] + "admin/workers") as reply:
            return list(json.loads(reply.read())["workers"])

    assert len(workers()) == 2
    vlaunch("stop", "second")
    wait_until(lambda: len(workers()) == 1)
    assert vlaunch("message", "count to 2", "--url", first["url"]).code == 0


def test_any_address_but_loopback_has_a_key_that_chat_finds_by_itself(
    serve: Callable[..., Ran], vlaunch: Vlaunch
) -> None:
    answer = serve("--name", "open", "--host", "0.0.0.0").json
    assert answer["api_key"].startswith("sk-")
    url = answer["url"]
    assert vlaunch("message", "count to 2", "--url", url).code == 1
    assert vlaunch("message", "count to 2").out == "1 2\n"
    home = here.home("open")
    assert {
        path.name: path.stat().st_mode & 0o077 for path in home.iterdir() if path.name in ("secret", "keys")
    } == {
        "secret": 0,
        "keys": 0,
    }
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert answer["api_key"] not in told and (home / "secret").read_text() not in told


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("./nowhere",), 2, "no folder, no run"),
        (("nothing",), 2, "no folder, no run"),
        (("MODEL", "--host", "example.org"), 2, "no address"),
        (("MODEL", "--infra", "aws"), 2, "cannot read"),
        (("MODEL", "--template", "vicunna"), 2, "did you mean"),
        (("MODEL", "--controller-ip", "x:y"), 2, "no IP"),
        (("MODEL", "--adapter", "a=/nowhere"), 2, "no folder there"),
        (("MODEL", "--name", "Not A Name"), 2, "is no name"),
        (("MODEL", "--secret-file", "MODEL/config.json"), 2, "--controller-ip"),
    ],
)
def test_what_cannot_be_served_is_one_clear_error(
    vlaunch: Vlaunch, model: Path, line: tuple[str, ...], code: int, said: str
) -> None:
    ran = vlaunch("serve", *(word.replace("MODEL", str(model)) for word in line))
    assert (ran.code, ran.out) == (code, "") and said in ran.err
    assert ran.err.count("Error:") == 1


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_nothing_running(
    vlaunch_process: Vlaunch, model: Path
) -> None:
    ran = vlaunch_process("serve", model, "--engine", "no.such:engine", "--name", "bad", "--detach", *FREE)
    assert ran.code == 1 and "there is no engine 'no.such:engine'" in ran.err
    assert here.view("bad").state == "failed" and processes("bad") == []


def test_chat_in_a_pipe(serve: Callable[..., Ran], vlaunch_process: Vlaunch, isolated: Path) -> None:
    serve("--name", "demo")
    lines = [
        "count to 3",
        "/regen",
        '"""say two',
        'lines"""',
        "/save said.json",
        "/reset",
        "/load said.json",
        "/undo",
        "/sytem x",
        "/model other",
        "fail after 2",
        "count to 1",
        "/exit",
        "never asked",
    ]
    ran = vlaunch_process("chat", "--model", "scripted", input="\n".join(lines))
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "1 2 3",
        "1 2 3",
        "two",
        "lines",
        "Error: there is no /sytem",
        "Hint: did you mean /system?",
        "Error: there is no model 'other'",
        "Hint: there is scripted",
        "1 2",
        "Error: the engine failed",
        "1",
    ]
    (said,) = json.loads((isolated / "work/said.json").read_text())
    assert [turn["value"] for turn in said["conversations"]] == [
        "count to 3",
        "1 2 3",
        "say two\nlines",
        "two\nlines",
    ]


def test_a_real_model_is_served_from_its_folder(
    vlaunch_process: Vlaunch, vlaunch: Vlaunch, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    from tests.serving.engines.tiny import write_llama

    folder = write_llama(tmp_path / "tiny")
    try:
        ran = vlaunch_process(
            "serve", folder, "--name", "real", "--device", "cpu", "--detach", "--json", *FREE
        )
        assert ran.code == 0, ran.err + vlaunch("logs", "real").out
        said = vlaunch("message", "Hello", "--max-tokens", "8", "--temperature", "0", "--json").json
        assert said["model"] == "tiny" and said["answer"]
    finally:
        here.stop("real")
