"""`plan` as it is typed: the answer, the exit code, and one sentence for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ran
from tests.launcher.planned import PRICES

Vlaunch = Callable[..., Ran]


@pytest.fixture(autouse=True)
def prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLAUNCH_CATALOG", str(PRICES / "v8"))


def refused(ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.err
    for word in words:
        assert word in ran.err
    assert ran.err.count("Error: ") == 1 and "Traceback" not in ran.err and ran.out == ""


def test_a_plan_names_every_term_in_gb_and_every_price_with_its_source(vlaunch: Vlaunch) -> None:
    plan = vlaunch("plan", "--size", "13", "--spot", "--infra", "aws", "--infra", "gcp", "--json").json
    terms = dict(plan["memory_gb"])
    assert plan["fits"] is True and terms.pop("total") == pytest.approx(sum(terms.values()), abs=0.01)
    assert plan["memory"]["card_gb"] == pytest.approx(79.25, abs=0.01)
    assert set(plan["memory"]["why"]) == set(terms)
    assert all("vms.csv, 20" in place["price_source"] for place in plan["candidates"])
    assert plan["usd"]["spot"] == plan["candidates"][0]["usd"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--size", "13", "--gpus", "A100-80GB:2"], "does not fit"),
        (["--size", "13", "--spot", "--infra", "aws", "--max-cost", "100"], "more than --max-cost 100"),
        (["--size", "13", "--spot", "--infra", "aws", "--deadline", "5h"], "longer than --deadline 5h"),
        (["--size", "13", "--gpus", "H200:8", "--infra", "aws"], "no known place in aws has H200:8"),
        (["--serve", "--size", "13", "--gpus", "RTX4090"], "does not fit 1 x RTX4090"),
    ],
)
def test_what_cannot_run_ends_with_3_and_is_answered_all_the_same(
    vlaunch: Vlaunch, given: list[str], what: str
) -> None:
    done = vlaunch("plan", *given, "--json")
    assert done.code == 3
    assert any(what in problem["what"] and problem["fix"] for problem in done.json["problems"])
    told = vlaunch("plan", *given)
    assert told.code == 3 and what in told.out and "Error" not in told.err


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--gpus", "A100-90GB:8"], 2, ["A100-90GB:8", "did you mean A100-80GB:8?"]),
        (["--gpus", "h1000", "--infra", "aws"], 2, ["no accelerator h1000:1", "H100"]),
        (["--infra", "aws/us-east-9"], 2, ["aws has no region 'us-east-9'", "did you mean us-east-2?"]),
        (["--infra", "gcp/moon"], 2, ["gcp has no region 'moon'", "known are asia-southeast1"]),
        (["--infra", "slurm/x", "--spot"], 2, ["slurm has no spot machines", "--on-demand"]),
        (["--infra", "lambda", "--spot"], 2, ["lambda has no spot machines"]),
        (["--infra", "azure"], 3, ["no prices of azure are here", "sky gpus list --infra azure"]),
        (["--catalog", "/nowhere"], 2, ["/nowhere is no catalog"]),
        (["--load-4bit"], 2, ["--load-4bit is for --serve", "--method qlora"]),
        (["--serve", "--load-4bit", "--load-8bit"], 2, ["exclude each other"]),
        (["--serve", "--gpus", "A100-90GB"], 2, ["did you mean A100-80GB:1?"]),
    ],
)
def test_bad_input_is_one_sentence_and_the_nearest_name(
    vlaunch: Vlaunch, given: list[str], code: int, words: list[str]
) -> None:
    refused(vlaunch("plan", "--size", "7", *given), code, *words)


def test_names_of_cards_are_known_in_any_case(vlaunch: Vlaunch) -> None:
    assert (
        vlaunch("plan", "--size", "13", "--gpus", "a100-80gb:8", "--json").json["accelerator"]
        == "A100-80GB:8"
    )


def test_with_gpus_and_without_infra_every_cloud_with_prices_is_looked_at(vlaunch: Vlaunch) -> None:
    everywhere = vlaunch("plan", "--size", "7", "--gpus", "L4", "--method", "qlora", "--json").json
    assert {place["cloud"] for place in everywhere["candidates"]} == {"aws", "gcp"}
    assert vlaunch("plan", "--size", "tiny", "--json").json["candidates"][0]["cloud"] == "local"


def test_the_store_of_this_machine_is_told_before_and_is_no_reason_against_the_plan(vlaunch: Vlaunch) -> None:
    done = vlaunch("plan", "--size", "13", "--infra", "aws", "--json")
    assert done.code == 0 and done.json["problems"] == []
    assert "is on this machine" in done.json["before"][0]["what"]
    shared = vlaunch("plan", "--size", "tiny", "--infra", "slurm/x", "--store", "/mnt/shared", "--json").json
    assert shared["before"] == [] and any("all machines share" in risk for risk in shared["risks"])


def test_a_line_of_the_documents_on_a_p40_is_told_that_it_computes_in_float32(vlaunch: Vlaunch) -> None:
    """Document 001: torchrun ... --bf16 True on a Tesla P40."""
    line = "torchrun --nproc_per_node=1 fastchat/train/train_mem.py --model_name_or_path ../vicuna-7b --bf16 True"
    done = vlaunch("plan", "--gpus", "P40", "--infra", "slurm/x", "--json", "--", *line.split())
    assert done.code == 3 and "does not fit 1 x P40" in done.json["problems"][0]["what"]
    assert any(risk.startswith("float32, not bfloat16: P40 (6.1)") for risk in done.json["risks"])


def test_a_worker_says_what_it_holds_and_what_an_hour_costs(vlaunch: Vlaunch) -> None:
    sixteen = vlaunch("plan", "--serve", "--size", "7", "--gpus", "T4", "--spot", "--json").json
    assert sixteen["fits"] is True and 2048 <= sixteen["room_tokens"] < 4096
    assert sixteen["usd_per_hour"]["spot"] == sixteen["candidates"][0]["usd_per_hour"] < 0.2
    longer = vlaunch("plan", "--serve", "--size", "7", "--gpus", "T4", "--max-length", "4096", "--json")
    assert longer.code == 3 and longer.json["room_tokens"] == sixteen["room_tokens"]
    assert any("--load-8bit" in problem["fix"] for problem in longer.json["problems"])


def test_train_refuses_what_the_plan_refuses_before_it_writes_or_asks(
    vlaunch: Vlaunch, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    dry = vlaunch("train", "--size", "13", "--infra", "aws/us-east-9", "--store", store, "--dry-run")
    refused(dry, 2, "aws has no region 'us-east-9'")
    assert not store.exists()


HEAVY = ("sky", "pandas", "torch", "transformers", "boto3", "rich", "numpy")


@pytest.mark.parametrize("words", [["plan", "--json"], ["train", "--dry-run"]])
def test_a_plan_and_a_dry_run_import_nothing_heavy(words: list[str]) -> None:
    """What keeps them below 0.4 s of CPU; tests/benchmarks/startup.py measures it."""
    line: list[Any] = [*words, "--size", "13", "--spot", "--infra", "aws", "--infra", "gcp"]
    program = (
        "import sys; from launcher.cli import main; code = main(sys.argv[1:]); "
        f"sys.exit(code or ' '.join(sorted(set(sys.modules) & set({HEAVY!r}))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
