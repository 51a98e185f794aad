"""Everything that is missing is told at once, each with its fix, before anything is written or paid."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from launcher.errors import NotReady, Problem, StoreError
from launcher.planning.catalog import Catalog
from launcher.planning.plan import TrainRequest, make_plan
from launcher.preflight import preflight, refuse
from launcher.values import Infra
from tests.launcher.planned import PRICES, request

CREDENTIALS = Problem("aws: credentials have expired", "aws sso login")
NO_CONDITION = Problem("s3://bucket ignores If-None-Match", "another endpoint")


def clouds(asked: Sequence[str]) -> list[Problem]:
    assert asked == ["aws", "gcp"]
    return [CREDENTIALS]


def store(uri: str) -> list[Problem]:
    assert uri == "s3://bucket/runs"
    return [NO_CONDITION]


def look(asked: TrainRequest, *files: Path, **checks: object) -> list[Problem]:
    plan = make_plan(asked, Catalog(PRICES / "v8"))
    found = preflight(asked, plan, files, **checks)  # type: ignore[arg-type]
    return [problem for problem in found if "SkyPilot" not in problem.what]


def test_all_problems_are_told_at_once_in_the_order_to_mend_them(tmp_path: Path) -> None:
    base = tmp_path / "llama-13b"
    base.mkdir()
    (base / "pytorch_model.bin").touch()
    asked = request("13", "full", f"model.base={base}", gpus="A100-80GB:2", max_cost_usd=1.0)
    found = look(asked, tmp_path / "none.jsonl", check_store=store, check_clouds=clouds)
    said = [problem.what for problem in found]
    assert len(said) == 6
    assert said[0] == f"there is no file {tmp_path / 'none.jsonl'}"
    assert said[1] == f"{base} has no config.json and no *.safetensors"
    assert "does not fit 2 x A100-80GB" in said[2] and "--max-cost 1" in said[3]
    assert found[4:] == [NO_CONDITION, CREDENTIALS]
    assert all(problem.fix for problem in found)


def test_a_check_that_fails_is_a_problem_and_hides_no_other() -> None:
    def unreachable(_: str) -> list[Problem]:
        raise StoreError("s3://bucket cannot be reached", hint="look at the network")

    found = look(request("13"), check_store=unreachable, check_clouds=clouds)
    assert found == [Problem("s3://bucket cannot be reached", "look at the network"), CREDENTIALS]


def test_a_store_on_this_machine_is_told_and_not_asked_for() -> None:
    found = look(request("13", store="file:///tmp/store"), check_store=store, check_clouds=clouds)
    assert [problem.what for problem in found] == [
        "the store file:///tmp/store is on this machine",
        CREDENTIALS.what,
    ]


def test_a_run_on_this_machine_asks_no_cloud() -> None:
    def never(_: Sequence[str]) -> list[Problem]:
        raise AssertionError("asked")

    assert look(request("tiny", infra=(Infra("local"),)), check_clouds=never) == []


@pytest.mark.skipif(find_spec("sky") is not None, reason="SkyPilot is installed here")
def test_without_skypilot_a_cloud_needs_the_extra_by_its_exact_command() -> None:
    asked = request("13")
    found = preflight(asked, make_plan(asked, Catalog(PRICES / "v8")), [])
    assert found == [Problem("clouds need SkyPilot, which is not installed", "pip install 'vlaunch[sky]'")]


def test_one_problem_is_one_sentence_and_several_are_a_list_with_exit_code_3() -> None:
    refuse([])
    with pytest.raises(NotReady, match="credentials have expired") as one:
        refuse([CREDENTIALS])
    assert one.value.hint == "aws sso login"
    with pytest.raises(NotReady) as both:
        refuse([NO_CONDITION, CREDENTIALS])
    assert both.value.message.startswith("2 things are missing")
    assert both.value.hint == "1. another endpoint\n  2. aws sso login"
    assert both.value.exit_code == 3
