"""runs, status, metrics and cost-report over a real store, as a user calls them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import settings
from tests.launcher.lives import at, write_run
from trainer.artifacts.journal import Journal
from trainer.artifacts.store import open_store

RUN = "tiny-1120"
STEP_KEYS = [
    "step", "loss", "loss_hex", "grad_norm", "grad_norm_hex", "learning_rate", "learning_rate_hex", "tokens",
    "samples", "batch", "attempt",
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with one run in it."""
    uri = f"file://{tmp_path / 'store'}"
    write_run(uri, RUN)
    return uri


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_metrics_json_has_every_step_once_in_order_with_exactly_these_keys(
    vlaunch: Callable[..., Any], store: str
) -> None:
    steps = lines(vlaunch("metrics", RUN, "--store", store, "--json").out)
    assert [step["step"] for step in steps] == list(range(1, 41))
    assert all(list(step) == STEP_KEYS for step in steps)
    assert [step["attempt"] for step in steps] == [1] * 20 + [2] * 20
    assert all(float.fromhex(step[f"{name}_hex"]) == step[name]
               for step in steps for name in ("loss", "grad_norm", "learning_rate"))  # fmt: skip
    assert steps[24]["loss"] == 3.0 + 1 / 25  # not that of the attempt that was cut off
    assert steps[24]["batch"] == "0019"


def test_two_runs_with_the_same_numbers_have_the_same_lines(vlaunch: Callable[..., Any], store: str) -> None:
    write_run(store, "other")
    one, other = (vlaunch("metrics", run, "--store", store, "--json").out for run in (RUN, "other"))
    assert one == other


def test_metrics_eval_has_the_held_out_losses(vlaunch: Callable[..., Any], store: str) -> None:
    evals = lines(vlaunch("metrics", RUN, "--eval", "--json", "--store", store).out)
    assert [(e["step"], e["loss"]) for e in evals] == [(0, 9.0), (20, 3.5), (40, 3.5)]
    assert "HELD-OUT LOSS" in vlaunch("metrics", RUN, "--eval", "--store", store).out


def test_metrics_shows_the_last_steps_and_the_curve(vlaunch: Callable[..., Any], store: str) -> None:
    out = vlaunch("metrics", RUN, "--last", "3", "--store", store).out
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["STEP", "38", "39", "40"]
    assert "an attempt resumed" in out


def test_metrics_png_is_a_png(vlaunch: Callable[..., Any], store: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = vlaunch("metrics", RUN, "--png", tmp_path / "loss.png", "--store", store)
    assert made.code == 0, made.err
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_png_without_matplotlib_names_the_pip_command(
    vlaunch: Callable[..., Any], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    made = vlaunch("metrics", RUN, "--png", tmp_path / "loss.png", "--store", store)
    assert made.code == 3
    assert "matplotlib" in made.err and "pip install 'vlaunch[data]'" in made.err
    assert not (tmp_path / "loss.png").exists()


def test_status_tells_where_a_run_is(vlaunch: Callable[..., Any], store: str) -> None:
    seen = vlaunch("status", "--store", store, "--json").json
    assert seen["version"] == 1
    told = {name: seen[name] for name in ("run", "state", "step", "max_steps", "durable_step", "attempt")}
    assert told == {
        "run": RUN,
        "state": "finished",
        "step": 40,
        "max_steps": 40,
        "durable_step": 40,
        "attempt": 2,
    }
    assert (seen["preemptions"], seen["failovers"], seen["region"]) == (1, 1, "aws/eu-west-1")
    assert seen["usd"] == pytest.approx((45 + 36) / 10_000)
    text = vlaunch("status", RUN, "--store", store).out
    assert "finished" in text and "40 of 40" in text and "1 to another region" in text


def test_status_without_a_name_means_the_newest_run(vlaunch: Callable[..., Any], store: str) -> None:
    Journal(open_store(f"{store}/runs/a-later-one"), 0, "launcher", now=lambda: at(500)).record("created")
    assert vlaunch("status", "--store", store, "--json").json["run"] == "a-later-one"
    assert [run["run"] for run in vlaunch("runs", "--store", store, "--json").json["runs"]] == [
        RUN,
        "a-later-one",
    ]


def test_runs_lists_what_the_store_has(vlaunch: Callable[..., Any], store: str) -> None:
    out = vlaunch("runs", "--store", store).out
    assert out.splitlines()[0].split()[:3] == ["RUN", "STATE", "STEP"]
    assert RUN in out and "finished" in out


def test_a_damaged_run_does_not_hide_the_others(vlaunch: Callable[..., Any], store: str) -> None:
    write_run(store, "other")
    broken = open_store(f"{store}/runs/other")
    broken.put(next(broken.list("journal/")).key, b"{")
    seen = vlaunch("runs", "--store", store, "--json")
    assert [run["run"] for run in seen.json["runs"]] == [RUN]
    assert [run["run"] for run in seen.json["unreadable"]] == ["other"]
    assert "other cannot be read" in seen.err


def test_runs_of_an_empty_store_is_no_error(vlaunch: Callable[..., Any], tmp_path: Path) -> None:
    assert vlaunch("runs", "--store", tmp_path / "none").code == 0
    assert vlaunch("runs", "--store", tmp_path / "none", "--json").json["runs"] == []


@pytest.mark.parametrize("verb", ["status", "metrics", "cost-report"])
def test_an_unknown_run_is_answered_with_the_nearest_names(
    vlaunch: Callable[..., Any], store: str, verb: str
) -> None:
    answer = vlaunch(verb, "tiny-1210", "--store", store)
    assert answer.code == 2
    assert "no run named 'tiny-1210'" in answer.err and f"did you mean {RUN}?" in answer.err


def test_a_unique_beginning_is_enough_and_a_shared_one_is_refused(
    vlaunch: Callable[..., Any], store: str
) -> None:
    assert vlaunch("status", "ti", "--store", store, "--json").json["run"] == RUN
    write_run(store, "tiny-1121")
    assert vlaunch("status", "tiny-1121", "--store", store).code == 0
    refused = vlaunch("status", "ti", "--store", store)
    assert refused.code == 2 and "tiny-1120, tiny-1121" in refused.err


def test_cost_report_adds_up(vlaunch: Callable[..., Any], store: str) -> None:
    bill = vlaunch("cost-report", RUN, "--store", store, "--json").json
    (run,) = bill["runs"]
    assert [attempt["attempt"] for attempt in run["attempts"]] == [1, 2]
    assert {name: part["s"] for name, part in run["parts"].items()} == {
        "restart": 20.0,
        "useful": 20.0 + 25.0,
        "lost": 15.0,
        "idle": 1.0,
    }
    assert run["billed_s"] == 81 and run["usd"] == pytest.approx(0.0081)
    assert bill["total"]["total"] == run["total"]
    assert [region["region"] for region in run["regions"]] == ["aws/us-east-1", "aws/eu-west-1"]


def test_cost_report_prints_a_row_per_attempt_and_region_and_the_total(
    vlaunch: Callable[..., Any], store: str
) -> None:
    out = vlaunch("cost-report", "--store", store).out
    for words in (
        "in aws/us-east-1",
        "in aws/eu-west-1",
        "preempted",
        "finished",
        "on-demand would have been",
    ):
        assert words in out
    write_run(store, "other")
    several = vlaunch("cost-report", "--store", store).out
    assert several.splitlines()[0].split()[0] == "RUN" and "2 runs: $0.016 spot" in several
    both = vlaunch("cost-report", "other", RUN, "--store", store).out
    assert both.count("in aws/us-east-1") == 2


def test_cost_report_writes_files(vlaunch: Callable[..., Any], store: str, tmp_path: Path) -> None:
    page, sheet = tmp_path / "bill.html", tmp_path / "bill.csv"
    assert vlaunch("cost-report", RUN, "--store", store, "--html", page, "--csv", sheet).code == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    assert [(row["attempt"], row["ended"], row["useful_s"]) for row in rows] == [
        ("1", "preempted", "20.0"),
        ("2", "finished", "25.0"),
    ]


def test_everything_is_known_without_the_laptops_state(vlaunch: Callable[..., Any], store: str) -> None:
    def known() -> list[Any]:
        return [
            vlaunch("cost-report", RUN, "--store", store, "--json").json["runs"][0]["parts"],
            vlaunch("metrics", RUN, "--store", store, "--json").out,
            vlaunch("status", RUN, "--store", store, "--json").json["state"],
            [run["step"] for run in vlaunch("runs", "--store", store, "--json").json["runs"]],
        ]

    settings.state_dir().mkdir(parents=True)
    (settings.state_dir() / "tiny-1120.json").write_text("{}")
    before = known()
    shutil.rmtree(settings.state_dir())
    assert known() == before
    assert not settings.state_dir().exists()


@pytest.mark.parametrize("verb", ["cost-report", "runs", "status", "metrics"])
def test_help_pays_for_no_heavy_module(verb: str) -> None:
    code = (
        "import sys; from launcher.cli import main; main([sys.argv[1], '--help']);"
        "print({'torch','transformers','sky','pydantic','yaml','rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
