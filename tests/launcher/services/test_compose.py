"""`vlaunch compose`: what it writes, what it leaves alone, and that every service of the file runs as the file says."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Ran
from tests.launcher.services.composed import Machine, read_env, read_services
from tests.serving.stack import wait_until
from tests.trainer.runs import write_corpus

Vlaunch = Callable[..., Ran]
PROGRAMS = {"controller", "api", "worker", "worker-cpu"}
SMALL = "--max-steps 2 --set max_new_tokens=0 --set threads=1"


@pytest.fixture
def compose(vlaunch: Vlaunch) -> Callable[..., dict[str, str]]:
    """Runs the verb; what became of each file, by its name."""

    def run(*more: object) -> dict[str, str]:
        ran = vlaunch("compose", *more, "--json")
        assert ran.code == 0, ran.err
        return {Path(file["path"]).name.partition("-0.")[0]: file["what"] for file in ran.json["files"]}

    return run


def test_it_writes_what_is_missing_and_nothing_twice(compose: Callable[..., dict[str, str]]) -> None:
    first = compose()
    assert set(first.values()) == {"written"}
    assert {".env", "Dockerfile", "docker-compose.yml", "vlaunch", "service", "api-keys"} <= set(first)
    before = {path: path.stat().st_mtime_ns for path in Path("compose").rglob("*") if path.is_file()}
    assert set(compose().values()) == {"as it was"}
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_edited_file_stays_and_is_told_of_until_somebody_says_force(vlaunch: Vlaunch) -> None:
    vlaunch("compose")
    file = Path("compose/docker-compose.yml")
    mine = file.read_text().replace("30m", "31m")
    file.write_text(mine)
    again = vlaunch("compose")
    assert "docker-compose.yml was edited, so kept; --force" in again.err and file.read_text() == mine
    forced = vlaunch("compose", "--force")
    assert "edited, written over" in forced.err and "31m" not in file.read_text()
    assert "note" not in vlaunch("compose").err


def test_a_file_of_an_older_version_is_brought_up_to_date(compose: Callable[..., dict[str, str]]) -> None:
    from launcher.services import compose as module

    compose()
    older = "# of another time\n"
    file = Path("compose/Dockerfile")
    file.write_text(module._HEAD.format(digest=module._digest(older)) + older)
    Path("compose/vlaunch-0.0.1-py3-none-any.whl").touch()
    done = compose()
    assert (done["Dockerfile"], done["vlaunch"]) == ("updated", "updated")
    assert len(list(Path("compose").glob("*.whl"))) == 1


def test_of_env_only_the_lines_change_that_an_option_asks_for(compose: Callable[..., dict[str, str]]) -> None:
    compose()
    file = Path("compose/.env")
    mine = file.read_text().replace("MODEL_NAMES=vicuna", "MODEL_NAMES=mine # so")
    mine = mine.replace("#MODEL_MAX_LENGTH=", "MODEL_MAX_LENGTH=512 #")
    mine = mine.replace("VOTES_DIR=./votes\n", "")
    file.write_text(mine + "HF_TOKEN=mine-alone\n")
    compose("--num-gpus", "2", "--load-8bit", "--port", "9000", "--force")
    now = file.read_text()
    assert {"GPU_NUM=2", "WORKER_OPTIONS=--load-8bit", "API_PORT=9000", "VOTES_DIR=./votes"} <= set(
        now.split("\n")
    )
    kept = [
        line for line in mine.splitlines() if not line.startswith(("GPU_NUM", "WORKER_OPTIONS", "API_PORT"))
    ]
    assert [line for line in kept if line not in now.splitlines()] == []
    assert now.count("MODEL_MAX_LENGTH=") == 1 and "HF_TOKEN=mine-alone\n" in now


def test_secrets_are_made_once_and_lie_in_files_of_their_owner_alone(vlaunch: Vlaunch) -> None:
    vlaunch("compose")
    secrets = {name: Path("compose/secrets", name).read_text() for name in ("service", "api-keys")}
    said = vlaunch("compose", "--force", "--json")
    assert secrets == {name: Path("compose/secrets", name).read_text() for name in secrets}
    others = [path for path in Path("compose").rglob("*") if path.is_file() and path.parent.name != "secrets"]
    values = [text.split()[0].encode() for text in secrets.values()]
    assert not [path for path in others for value in values if value in path.read_bytes()]
    assert not [value for value in values if value.decode() in said.out + said.err]
    private = ("compose/.env", "compose/secrets", "compose/secrets/service", "compose/secrets/api-keys")
    assert [stat.S_IMODE(Path(path).stat().st_mode) & 0o077 for path in private] == [0] * 4
    Path("compose/secrets/service").chmod(0o644)
    refused = vlaunch("compose")
    assert refused.code == 2 and "chmod 600" in refused.err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("--load-8bit", "--load-4bit"), 2, "exclude each other"),
        (("./nowhere",), 2, "no folder, no run"),
        (("--model-name", "it's"), 2, "no quotes"),
        (("--to", "taken/compose"), 3, "cannot be written"),
        (("--device", "tpu"), 2, "tpu"),
    ],
)
def test_what_cannot_be_is_one_error(vlaunch: Vlaunch, line: tuple[str, ...], code: int, said: str) -> None:
    Path("taken").touch()
    ran = vlaunch("compose", *line)
    assert (ran.code, said in ran.err) == (code, True), ran.err


def test_a_folder_here_is_mounted_and_an_id_is_fetched(vlaunch: Vlaunch) -> None:
    folder = Path("some where/a-model")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    vlaunch("compose", folder)
    here = read_env(Path("compose/.env"))
    assert (here["MODEL_DIR"], here["MODEL_PATH"], here["MODEL_NAMES"]) == (
        str(folder.parent.absolute()), "/model/a-model", "a-model",
    )  # fmt: skip
    vlaunch("compose", "org/model", "--to", "other")
    there = read_env(Path("other/.env"))
    assert (there["MODEL_DIR"], there["MODEL_PATH"], there["MODEL_NAMES"]) == (
        "./model",
        "org/model",
        "org/model",
    )


def test_no_container_is_root_or_may_become_it_and_nothing_listens_beyond_this_machine(
    vlaunch: Vlaunch,
) -> None:
    vlaunch("compose")
    for name, service in read_services(Path("compose")).items():
        given = service.given
        assert not given["user"].startswith("0"), name
        assert given["cap_drop"] == ["ALL"] and given["security_opt"] == ["no-new-privileges:true"]
        assert given["read_only"] and "privileged" not in given
        assert all(port.startswith("127.0.0.1:") for port in given.get("ports", ())), name
        assert bool(given.get("healthcheck")) == (name in PROGRAMS)
    dockerfile = Path("compose/Dockerfile").read_text()
    assert dockerfile.index("USER 1000:1000") > dockerfile.rindex("RUN") and ":latest" not in dockerfile
    assert all("--constraint" in line for line in dockerfile.splitlines() if line.startswith("RUN pip"))


def test_the_knobs_of_the_documents_have_their_sizes(vlaunch: Vlaunch) -> None:
    vlaunch("compose")
    services = read_services(Path("compose"))
    knobs = ("NPROC_PER_NODE", "PER_DEVICE_TRAIN_BATCH_SIZE", "PER_DEVICE_EVAL_BATCH_SIZE", "NUM_TRAIN_EPOCHS",
             "LEARNING_RATE", "MODEL_MAX_LENGTH", "LORA_R")  # fmt: skip
    sizes = {name: [services[name].environment[knob] for knob in knobs] for name in ("train", "train-qlora")}
    assert sizes == {
        "train": ["4", "2", "2", "3", "2e-5", "2048", "8"],
        "train-qlora": ["1", "1", "1", "3", "2e-5", "1024", "8"],
    }


def _has_compose() -> bool:
    return bool(shutil.which("docker")) and subprocess.run(
        ["docker", "compose", "version"], capture_output=True
    ).returncode == 0  # fmt: skip


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
def test_docker_reads_the_file_as_these_tests_do(vlaunch: Vlaunch) -> None:
    vlaunch("compose", "--load-8bit", "--model-name", "a model")
    done = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--format", "json"],
        cwd="compose", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["services"]
    ours = read_services(Path("compose"))
    assert set(theirs) == set(ours)
    for name, service in ours.items():
        docker = theirs[name]
        assert [word.replace("$$", "$") for word in docker["command"]] == service.command, name
        known = {key: value for key, value in (docker.get("environment") or {}).items() if value is not None}
        assert known == service.environment, name
        assert {
            v["target"]: Path(v["source"]) for v in docker.get("volumes", ())
        }.items() <= service.volumes.items()
        assert [
            w.replace("$$", "$") for w in docker.get("healthcheck", {}).get("test", [])
        ] == service.health, name


@pytest.fixture
def machine(vlaunch: Vlaunch, tmp_path: Path) -> Iterator[Machine]:
    """A deployment of a tiny model, on this machine instead of in containers."""
    pytest.importorskip("transformers")
    from tests.serving.engines.tiny import write_llama

    vlaunch("compose", write_llama(tmp_path / "models/tiny"), "--device", "cpu")
    write_corpus(Path("compose/dataset/chats.jsonl"), 40)
    env = Path("compose/.env")
    env.write_text(
        env.read_text().replace("example.json", "chats.jsonl").replace("TRAIN_OPTIONS=", f"TRAIN_OPTIONS='{SMALL}'")
        + "NPROC_PER_NODE=1\nMODEL_MAX_LENGTH=400\n"
    )  # fmt: skip
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = Machine(Path("compose").absolute(), scratch)
    yield made
    made.stop()


def ask(machine: Machine, text: str, key: str | None) -> Any:
    body = {"model": "trained", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{machine.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        return json.loads(reply.read())


def test_every_service_runs_as_the_file_says_and_a_trained_model_answers_a_chat(machine: Machine) -> None:
    """Trains with both training services, serves what came out, asks it through the API with the key."""
    for name in ("train", "train-qlora"):
        env = machine.folder / ".env"
        env.write_text(env.read_text().replace("MODEL_OUTPUT=/output/vicuna", f"MODEL_OUTPUT=/output/{name}"))
        trained = machine.start(name)
        assert trained.wait() == 0, machine.log(name).read_text()
        assert (machine.folder / f"output/runs/{name}/export/manifest.json").is_file()
        env.write_text(env.read_text().replace(f"MODEL_OUTPUT=/output/{name}", "MODEL_OUTPUT=/output/vicuna"))
    env.write_text(
        env.read_text()
        .replace("MODEL_PATH=/model/tiny", "MODEL_PATH=/output/runs/train")
        .replace("=tiny", "=trained")
    )
    programs = {name: machine.start(name) for name in ("controller", "api", "worker-cpu")}
    for name, process in programs.items():
        # A worker imports torch: seconds, on a loaded machine many.
        wait_until(lambda n=name, p=process: machine.healthy(n) or p.poll() is not None, 120)  # type: ignore[misc]
        assert machine.healthy(name), machine.log(name).read_text()

    key = (machine.folder / "secrets/api-keys").read_text().split()[0]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(machine, "hello", None)
    answer = ask(machine, "hello", key)
    with urllib.request.urlopen(machine.url) as page:
        assert b"<html" in page.read()

    assert answer["model"] == "trained" and answer["usage"]["completion_tokens"] > 0
    for name in ("worker-cpu", "api", "controller"):
        programs[name].send_signal(signal.SIGTERM)
        assert programs[name].wait() == 0, name


def test_the_worker_for_gpus_says_so_where_there_is_none(machine: Machine) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    env = machine.folder / ".env"
    env.write_text(env.read_text().replace("COMPOSE_PROFILES=cpu", "COMPOSE_PROFILES=gpu"))
    worker = machine.start("worker")
    assert worker.wait() == 3
    assert "torch sees 0" in machine.log("worker").read_text()


def test_the_yaml_has_no_value_that_env_should_have(vlaunch: Vlaunch) -> None:
    """Each variable of the file is told of in .env, and each that .env sets is used."""
    vlaunch("compose")
    import re

    text = Path("compose/docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", re.sub(r"(?m)^\s*#.*$", "", text)))
    told = set(re.findall(r"(?m)^#?([A-Z_]+)=", Path("compose/.env").read_text()))
    assert used == told - {"COMPOSE_PROFILES"}
    assert yaml.safe_load(text)["name"] == "vlaunch"
