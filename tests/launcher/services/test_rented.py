"""Services on rented machines, whose tasks run as they are: setup, run, secrets and all; only the cloud is played."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("uvicorn", reason="pip install 'vlaunch[serve]'")
if find_spec("torch") is None or find_spec("transformers") is None:
    pytest.skip("a machine that lacks them would install them", allow_module_level=True)

from launcher.commands.serve import command  # noqa: E402
from launcher.errors import NotReady, RemoteJobFailed  # noqa: E402
from launcher.services import here, rented  # noqa: E402
from launcher.services.model import Model  # noqa: E402
from launcher.services.rented_request import rent  # noqa: E402
from tests.conftest import Ran  # noqa: E402
from tests.launcher.services.rented_machines import LocalMachines  # noqa: E402
from tests.serving.stack import ENGINE, wait_until  # noqa: E402

Vlaunch = Callable[..., Ran]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalMachines]:
    made = LocalMachines(tmp_path / "cloud")
    yield made
    made.stop()


def free_port() -> str:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return str(asked.getsockname()[1])


def described(*more: str) -> rented.Rented:
    """What `vlaunch serve org/scripted ...` would rent."""
    line = ["org/scripted", "--engine", ENGINE, "--infra", "slurm/here", "--device", "cpu", *more]
    params = command.make_context("serve", line).params
    return rent(Model("org/scripted", "scripted"), params).rented


def created(*more: str, secret: str | None = None) -> str:
    description = described("--port", free_port(), "--controller-port", free_port(), *more)
    rented.create(description, secret=secret, keys=None)
    return description.name


def workers(name: str) -> list[dict[str, Any]]:
    """As the API shows them to its operator."""
    url = rented.read(name).port
    request = urllib.request.Request(f"http://127.0.0.1:{url}/admin/workers")
    request.add_header("Authorization", f"Bearer {rented.api_key(here.home(name))}")
    with urllib.request.urlopen(request) as reply:
        found: list[dict[str, Any]] = json.loads(reply.read())["workers"]
    return found


def test_a_service_is_ready_when_its_model_answers_and_gives_everything_back(
    cloud: LocalMachines, vlaunch: Vlaunch
) -> None:
    name = created("--name", "front", "--workers", "2")
    seen = rented.bring_up(name, cloud)

    assert cloud.launched == ["front-controller", "front-worker-0", "front-worker-1"]
    assert (seen.state, seen.problem, set(seen.processes.values())) == ("ready", None, {"RUNNING"})
    assert sorted(one["label"] for one in workers(name)) == ["front-worker-0", "front-worker-1"]
    assert vlaunch("message", "count to 3").out == "1 2 3\n"  # found by itself, with its key
    lines = list(rented.logs(name, cloud, follow=False))
    assert {line.split()[0] for line in lines} == {"controller", "worker-0", "worker-1"}

    assert rented.stop(name, cloud) is True
    assert "drained" in " ".join(rented.logs(name, cloud, follow=False))
    assert rented.view(name, cloud).state == "stopped" and "front-controller" not in cloud.machines
    assert rented.stop(name, cloud) is False


def test_no_secret_is_in_a_task_a_file_that_others_can_read_or_a_command_line(cloud: LocalMachines) -> None:
    name = created("--name", "front")
    rented.bring_up(name, cloud)
    where = here.home(name)
    key, secret = rented.api_key(where), (where / "secret").read_text()
    assert key is not None
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    text = (where / "rented.json").read_text() + json.dumps(
        [machine.task for machine in cloud.machines.values()]
    )
    assert key not in told + text and secret not in told + text
    assert not [path for path in where.iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert yaml.safe_load(rented.read(name).workers[0])["secrets"] == {"VLAUNCH_SERVE_SECRET": None}


@pytest.mark.parametrize("lost", ["front-controller", "front-worker-0"])
def test_a_launch_whose_answer_was_lost_is_not_made_twice(cloud: LocalMachines, lost: str) -> None:
    name = created("--name", "front")
    if lost == "front-worker-0":
        description = rented.read(name)
        task = yaml.safe_load(description.controller or "")
        cloud.launch_machine("front-controller", task, rented._secrets(here.home(name), task))
    cloud.lose_next = True
    with pytest.raises(ConnectionError):
        rented.bring_up(name, cloud)
    again = described("--name", "front", "--port", str(rented.read(name).port),
                      "--controller-port", str(rented.read(name).controller_port))  # fmt: skip
    rented.create(again, secret=None, keys=None)  # the same command, given again
    rented.bring_up(name, cloud)

    assert cloud.launched == ["front-controller", "front-worker-0"]


def test_workers_join_a_service_elsewhere_and_requests_go_on_when_one_is_taken(
    cloud: LocalMachines, vlaunch: Vlaunch
) -> None:
    name = created("--name", "front")
    rented.bring_up(name, cloud)
    where = f"127.0.0.1:{rented.read(name).controller_port}"
    secret = here.home(name) / "secret"
    more = described("--name", "more", "--controller-ip", where, "--secret-file", str(secret))
    assert more.controller is None and yaml.safe_load(more.workers[0])["envs"]["CONTROLLER_IP"] == "127.0.0.1"
    rented.create(more, secret=secret.read_text(), keys=None)
    joined = rented.bring_up("more", cloud)

    assert (joined.url, joined.controller, joined.workers) == (None, where, 1)
    assert len(workers(name)) == 2
    cloud.take("front-worker-0")
    for _ in range(3):
        assert vlaunch("message", "count to 2").out == "1 2\n"
    wait_until(lambda: [one["label"] for one in workers(name)] == ["more-worker-0"])


def test_a_wrong_secret_and_a_worker_that_fails_are_told(cloud: LocalMachines) -> None:
    name = created("--name", "front")
    rented.bring_up(name, cloud)
    where = f"127.0.0.1:{rented.read(name).controller_port}"
    secret = Path("other-secret")
    secret.write_text("x" * 64)
    secret.chmod(0o600)
    wrong = described("--name", "wrong", "--controller-ip", where, "--secret-file", str(secret))
    rented.create(wrong, secret=secret.read_text(), keys=None)
    with pytest.raises(NotReady, match="refuses"):
        rented.bring_up("wrong", cloud)

    broken = created("--name", "broken", "--template", "alpaca", "--num-gpus", "1")
    description = rented.read(broken)
    text = description.workers[0].replace(ENGINE, "tests.serving.scripted:nothing")
    (here.home(broken) / "rented.json").write_text(
        description.model_copy(update={"workers": (text,)}).model_dump_json()
    )
    with pytest.raises(RemoteJobFailed, match="broken-worker-0 is FAILED: exit code 2"):
        rented.bring_up(broken, cloud)
    assert rented.view(broken, cloud).problem == "broken-worker-0: exit code 2"


def test_the_api_and_the_controller_are_started_again_on_their_machine(
    cloud: LocalMachines, vlaunch: Vlaunch
) -> None:
    import os
    import signal

    name = created("--name", "front")
    rented.bring_up(name, cloud)
    group = cloud.machines["front-controller"].process.pid
    told = subprocess.run(["ps", "-eo", "pgid,pid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in told.splitlines() if line.split()[0] == str(group)]
    programs = [int(pid) for _, pid, args in rows if args.startswith("python3")]
    assert len(programs) == 2
    for pid in programs:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: vlaunch("message", "count to 2").code == 0)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("org/m-7b", "--infra", "slurm/here"), 2, "--gpus NAME[:COUNT], or --device cpu"),
        (("org/m-7b", "--infra", "aws", "--infra", "local"), 2, "two services"),
        (("FOLDER", "--infra", "aws"), 2, "cannot read"),
        (("org/m-7b", "--infra", "aws", "--adapter", "a=."), 2, "--adapter"),
        (("org/m-70b", "--infra", "aws", "--gpus", "L4"), 3, "does not fit"),
        (("org/m-7b", "--infra", "aws", "--secret-file", "x"), 2, "--controller-ip"),
        (("org/m-7b", "--infra", "slurm/here", "--spot", "--gpus", "A100"), 2, "no spot"),
        (("org/m-7b", "--infra", "slurm/x", "--infra", "aws", "--gpus", "A100"), 2, "workers of their own"),
        (("org/m-7b", "--infra", "aws", "--engine", "a b"), 2, "plain words"),
        (("org/m-7b", "--infra", "aws", "--template", "vicunna"), 2, "did you mean"),
    ],
)
def test_what_cannot_be_rented_is_one_error(
    vlaunch: Vlaunch, line: tuple[str, ...], code: int, said: str
) -> None:
    folder = Path("a-model")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ran = vlaunch("serve", *(str(folder) if word == "FOLDER" else word for word in line), "--dry-run")
    assert (ran.code, said in ran.err) == (code, True), ran.err


def test_a_dry_run_prints_what_would_be_launched_and_writes_nothing(vlaunch: Vlaunch) -> None:
    line = ("org/model-13b", "--infra", "aws", "--spot", "--workers", "2", "--name", "front", "--dry-run")
    ran = vlaunch("serve", *line)
    assert ran.code == 0, ran.err
    front, *jobs = yaml.safe_load_all(ran.out)
    assert front["name"] == "front-controller" and front["resources"]["use_spot"] is False
    assert [job["name"] for job in jobs] == ["front-worker-0", "front-worker-1"]
    assert all(place["use_spot"] for job in jobs for place in job["resources"]["ordered"])
    assert here.names() == []


def test_the_cheapest_card_that_fits_is_chosen(vlaunch: Vlaunch) -> None:
    def card(*line: str) -> str:
        printed = vlaunch("serve", *line, "--infra", "aws", "--dry-run")
        assert printed.code == 0, printed.err
        *_, job = yaml.safe_load_all(printed.out)
        return str(job["resources"]["ordered"][0]["accelerators"])

    seven, thirteen, packed = card("org/m-7b"), card("org/m-13b"), card("org/m-13b", "--load-4bit")
    assert seven == "L4:1" and thirteen not in ("L4:1", "A10G:1") and packed == "L4:1"
    assert card("org/m-7b", "--gpus", "A100-80GB:8") == "A100-80GB:8"


def test_a_runs_cards_are_chosen_by_the_sizes_of_its_export(isolated: Path) -> None:

    from launcher.services.rented_request import _sizes
    from tests.trainer.runs import create_run, write_corpus
    from trainer.artifacts.layout import export_key
    from trainer.artifacts.store import open_store

    run = (isolated / "store/runs/big").as_uri()
    create_run(run, write_corpus(isolated / "chats.jsonl", 3))
    own = _sizes(Model(run, "big")).shape
    assert own.hidden == 32
    store = open_store(run)
    config = json.loads(store.get("config.json"))
    config["model"] |= {"shape": None, "base": "org/model"}
    store.put("config.json", json.dumps(config).encode())
    shape = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
    store.put(export_key("config.json"), json.dumps(shape).encode())
    seen = _sizes(Model(run, "big"))
    assert (seen.shape.hidden, seen.assumed) == (8192, None)
