"""`train` and `plan` before anything starts: what they decide, and what they refuse with one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.clouds.local import LocalCloud
from launcher.render import run_uri
from tests.conftest import Ran
from tests.trainer.runs import write_corpus
from trainer.artifacts.journal import Journal
from trainer.artifacts.layout import CONFIG, TASK
from trainer.artifacts.store import open_store

Vlaunch = Callable[..., Ran]


def refused(ran: Ran, code: int, *words: str) -> None:
    """One sentence, perhaps a hint, the exit code, and no traceback."""
    assert ran.code == code, ran.err
    for word in words:
        assert word in ran.err
    assert ran.err.count("Error: ") == 1 and "Traceback" not in ran.err and ran.out == ""


def nothing_written(folder: Path) -> bool:
    return not folder.exists() or not any(folder.rglob("*"))


def test_dry_run_prints_a_task_and_writes_nothing(vlaunch: Vlaunch, tmp_path: Path) -> None:
    done = vlaunch(
        "train", "--size", "13", "--spot", "--infra", "aws", "--store", tmp_path / "s", "--dry-run"
    )

    task = yaml.safe_load(done.out)
    assert done.code == 0
    assert all(place["use_spot"] for place in task["resources"]["ordered"])
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert {place["accelerators"] for place in task["resources"]["ordered"]} == {"A100-80GB:8"}
    assert task["envs"]["VLAUNCH_RUN"].startswith((tmp_path / "s").as_uri() + "/runs/13-full-")
    assert "spot" in done.err
    assert nothing_written(tmp_path / "s")


def test_what_dry_run_prints_is_what_is_stored(vlaunch: Vlaunch, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "chats.jsonl", 20)
    asked = ["--size", "tiny", "--name", "same", "--data", corpus, "--store", tmp_path / "s"]
    printed = vlaunch("train", *asked, "--dry-run").out
    # A step that takes no machine: the run fails at once for want of one, after it has been written.
    store = open_store(run_uri((tmp_path / "s").as_uri(), "same"))
    LocalCloud().home(store.uri).parent.mkdir(parents=True)
    LocalCloud().home(store.uri).write_text("in the way")

    vlaunch("train", *asked)

    assert store.get(TASK).decode() == printed


def test_plan_says_hours_dollars_and_places_as_json(vlaunch: Vlaunch) -> None:
    plan = vlaunch("plan", "--size", "13", "--spot", "--infra", "aws", "--json").json

    assert plan["recipe"] == "13-full" and plan["accelerator"] == "A100-80GB:8"
    assert 0 < plan["usd"]["spot"] < plan["usd"]["on_demand"]
    assert plan["hours"] > 1 and plan["checkpoint_every_s"] > 10
    assert [place["usd_per_hour"] for place in plan["candidates"]] == sorted(
        place["usd_per_hour"] for place in plan["candidates"]
    )


def test_a_local_plan_is_notional(vlaunch: Vlaunch) -> None:
    plan = vlaunch("plan", "--size", "tiny", "--spot", "--json").json

    assert plan["notional"] is True
    assert len({place["region"] for place in plan["candidates"]}) >= 2


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--size", "tinny"], 2, ["no recipe of size 'tinny'", "did you mean tiny?"]),
        (["--sise", "tiny"], 2, ["--sise", "--size"]),
        (["--set", "lerning_rate=1"], 2, ["lerning_rate", "did you mean train.learning_rate?"]),
        (["--set", "learning_rate=fast"], 2, ["train.learning_rate", "'fast'"]),
        (["--set", "gradient_accumulation_steps=8"], 2, ["global_batch_size"]),
        (["--size", "7"], 2, ["--data FILE"]),
        (
            ["--size", "13", "--gpus", "A100-90GB:8", "--infra", "aws"],
            2,
            ["A100-90GB:8", "did you mean A100-80GB:8?"],
        ),
        (["--infra", "awz"], 2, ["awz", "aws"]),
        (["--preempt-every", "40s"], 2, ["on-demand machines are not taken away", "--spot"]),
        (["--spot", "--spot-trace", "no-such.json"], 2, ["no-such.json"]),
        (["--data", "no-such.jsonl"], 2, ["there is no file no-such.jsonl"]),
        (["--name", "Not A Name"], 2, ["cannot be the name of a run"]),
        (
            ["--method", "lora", "--set", "parallel.offload=optimizer"],
            2,
            ["FSDP2 keeps", "parallel.offload=all"],
        ),
        (["--infra", "slurm/us-east", "--spot"], 2, ["slurm has no spot machines", "--on-demand"]),
        (["--store", "s3://bucket/x"], 3, ["s3://bucket/x"]),
    ],
)
def test_bad_input_is_refused_with_what_to_write_instead(
    vlaunch: Vlaunch, tmp_path: Path, given: list[str], code: int, words: list[str]
) -> None:
    store = [] if "--store" in given else ["--store", str(tmp_path / "s")]

    refused(vlaunch("train", *given, *store), code, *words)

    assert nothing_written(tmp_path / "s")


def test_broken_json_is_refused_with_file_line_and_column(vlaunch: Vlaunch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[{"id": "1", "conversations": [\n  {"from": "human" "value": "hi"}]}]\n')

    refused(
        vlaunch("train", "--data", broken, "--store", tmp_path / "s"), 2, str(broken), "line 2", "column 20"
    )
    assert nothing_written(tmp_path / "s")


def test_a_corpus_without_an_answer_is_refused_with_counts_and_reasons(
    vlaunch: Vlaunch, tmp_path: Path
) -> None:
    lonely = tmp_path / "lonely.jsonl"
    lonely.write_text(json.dumps({"conversations": [{"from": "human", "value": "anyone?"}]}) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")

    refused(vlaunch("train", "--data", lonely, "--store", tmp_path / "s"), 2, "1", "no assistant turn")
    refused(vlaunch("train", "--data", empty, "--store", tmp_path / "s"), 2, "empty")
    assert nothing_written(tmp_path / "s")


def test_a_name_with_another_config_is_refused_with_the_difference(vlaunch: Vlaunch, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "chats.jsonl", 20)
    asked = ["--size", "tiny", "--name", "mine", "--data", corpus, "--store", tmp_path / "s"]
    store = open_store(run_uri((tmp_path / "s").as_uri(), "mine"))
    LocalCloud().home(store.uri).parent.mkdir(parents=True)
    LocalCloud().home(store.uri).write_text("in the way")
    vlaunch("train", *asked)
    config = store.get(CONFIG)

    changed = vlaunch("train", *asked, "--set", "learning_rate=0.5")

    refused(changed, 2, "run mine exists with another configuration", "train.learning_rate: ", "-> 0.5")
    assert store.get(CONFIG) == config


def test_a_deepspeed_file_is_taken_with_notes_and_implies_its_strategy(vlaunch: Vlaunch) -> None:
    Path("ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "steps_per_print": 10}))

    done = vlaunch("plan", "--deepspeed", "ds.json", "--auto-batch")

    assert done.code == 0
    assert "note: ds.json: steps_per_print: every step is recorded" in done.err


@pytest.mark.parametrize(
    ("written", "options", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, ["--strategy", "fsdp"], ["deepspeed strategy, not fsdp"]),
        ({"zero_optimization": {"stage": 3}}, ["--set", "strategy=fsdp"], ["deepspeed strategy, not fsdp"]),
        ({"zero_optimization": {"stage": 1}, "fp16": {"enabled": True}}, [], ["stage: 1", "fp16.enabled"]),
        (
            {"zero_optimization": {"stage": 2}, "train_batch_size": 8},
            [],
            ["is 8, train.global_batch_size is 4"],
        ),
        (None, [], ["ds.json", "No such file"]),
    ],
)
def test_a_deepspeed_file_that_does_not_fit_is_refused_with_what_to_change(
    vlaunch: Vlaunch, written: dict[str, object] | None, options: list[str], words: list[str]
) -> None:
    if written is not None:
        Path("ds.json").write_text(json.dumps(written))

    refused(vlaunch("train", "--deepspeed", "ds.json", *options), 2, *words)


def test_old_spellings_are_taken_with_a_note(vlaunch: Vlaunch) -> None:
    done = vlaunch(
        "plan", "--size", "tiny", "--set", "evaluation_strategy=no", "--set", "model_max_length=256"
    )

    assert done.code == 0
    assert "evaluation_strategy is train.eval_strategy here" in done.err
    assert "model_max_length is data.max_length here" in done.err


def test_a_read_only_store_is_refused_before_anything_starts(vlaunch: Vlaunch, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "chats.jsonl", 20)
    taken = tmp_path / "a-file"
    taken.write_text("not a folder")

    done = vlaunch("train", "--data", corpus, "--store", taken / "below")

    assert done.code == 3 and str(taken) in done.err and "Traceback" not in done.err


def test_a_finished_run_is_told_of_and_not_started_again(vlaunch: Vlaunch, tmp_path: Path) -> None:
    store = open_store(run_uri((tmp_path / "s").as_uri(), "done"))
    journal = Journal(store, 1, "launcher")
    journal.record("requested", cloud="local", region="r", usd_per_hour=1.0)
    Journal(store, 1, "box").record("finished", steps=3)
    journal.record("ended", reason="finished", exit_code=0)

    done = vlaunch("resume", "done", "--store", tmp_path / "s")

    assert done.code == 0 and "finished already" in done.err
    assert not LocalCloud().alive(store.uri)


def test_a_plan_reads_the_corpus_it_is_given_and_says_when_it_assumes_one(
    vlaunch: Vlaunch, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "chats.jsonl", 20)

    assumed = vlaunch("plan", "--size", "13", "--json").json["corpus"]
    counted = vlaunch("plan", "--size", "13", "--data", corpus, "--json").json["corpus"]

    assert assumed["assumed"] is True and counted["assumed"] is False
    assert counted["tokens"] < 10_000
    refused(vlaunch("plan", "--data", tmp_path / "none.jsonl"), 2, "there is no file")


def test_a_base_model_in_a_folder_is_planned_by_its_own_shape(vlaunch: Vlaunch, tmp_path: Path) -> None:
    base = tmp_path / "my_model.v1"
    base.mkdir()
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 1000}
    (base / "config.json").write_text(json.dumps(shape))

    plan = vlaunch("plan", "--model", base, "--json").json

    assert plan["parameters"] < 1e6
    assert plan["name"].startswith("my-model-v1-full-")


def test_a_cloud_task_without_gpus_asks_for_cpus_and_a_store_that_it_can_reach(
    vlaunch: Vlaunch, tmp_path: Path
) -> None:
    done = vlaunch("train", "--size", "tiny", "--infra", "aws", "--store", tmp_path, "--dry-run")

    assert "is on this machine: give --store s3://" in done.err
    places = yaml.safe_load(done.out)["resources"]["ordered"]
    assert {"infra": "aws/us-east-2", "use_spot": False, "cpus": "2+"} in places
    refused(vlaunch("train", "--infra", "local", "--infra", "aws"), 2, "cannot share one run")
