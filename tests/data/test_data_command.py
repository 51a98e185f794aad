"""`vlaunch data`: every step from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data import corpora

Vlaunch = Callable[..., Any]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return corpora.write_json(tmp_path / "raw.json", corpora.raw_samples(150))


def test_prepare_prints_every_step_and_json_is_the_manifest(
    vlaunch: Vlaunch, tmp_path: Path, raw: Path
) -> None:
    line = ["data", "prepare", raw, "--to", tmp_path / "t.jsonl", "--workers", 2, "--max-length", 300,
            "--rejected", tmp_path / "r.jsonl", "--skip", "es"]  # fmt: skip
    ran = vlaunch(*line)
    assert ran.code == 0
    words = [row.split()[0] for row in ran.out.splitlines() if row and not row.startswith(" ")]
    assert words[:7] == ["STEP", "read", "clean", "filter", "language", "dedupe", "split"]
    assert "read sharegpt; wrote" in ran.err and "about" in ran.out and "estimate" in ran.out
    answer = vlaunch(*line, "--json").json
    assert answer["version"] == 1 and answer["complete"] is True
    assert answer["manifest"] == json.loads((tmp_path / "t.manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("step", "more"),
    [("merge", []), ("clean", []), ("filter", []), ("split", ["--max-length", "300"]), ("dedupe", []),
     ("dedupe", ["--exact"]), ("convert", ["--form", "openai"])],
)  # fmt: skip
def test_each_step_alone_writes_a_corpus(
    vlaunch: Vlaunch, tmp_path: Path, raw: Path, step: str, more: list[str]
) -> None:
    ran = vlaunch("data", step, raw, "--to", tmp_path / "o.jsonl.zst", "--workers", 1, *more, "--json")
    assert ran.code == 0, ran.err
    assert vlaunch("data", "stats", tmp_path / "o.jsonl.zst", "--json").json["total"]["conversations"] > 100


def test_the_steps_one_after_another_give_the_text_of_prepare(
    vlaunch: Vlaunch, tmp_path: Path, raw: Path
) -> None:
    def at(name: str) -> Path:
        return tmp_path / f"{name}.jsonl"

    vlaunch("data", "clean", raw, "--to", at("clean"))
    vlaunch("data", "filter", at("clean"), "--to", at("filter"))
    vlaunch("data", "dedupe", at("filter"), "--to", at("dedupe"))
    vlaunch("data", "split", at("dedupe"), "--to", at("split"), "--max-length", 300)
    vlaunch("data", "prepare", raw, "--to", at("whole"), "--max-length", 300)

    def texts(name: str) -> list[Any]:
        return [sample["conversations"] for sample in corpora.read_lines(at(name))]

    assert texts("split") == texts("whole")


def test_steps_leave_text_alone_that_they_are_not_about(vlaunch: Vlaunch, tmp_path: Path, raw: Path) -> None:
    vlaunch("data", "merge", raw, "--to", tmp_path / "m.jsonl")
    written = {s["id"]: s["conversations"] for s in corpora.read_lines(tmp_path / "m.jsonl")}
    first = json.loads(raw.read_text())[0]
    assert written[first["id"]] == first["conversations"]


def test_sample_and_split_train_test_print_what_they_wrote(
    vlaunch: Vlaunch, tmp_path: Path, raw: Path
) -> None:
    ran = vlaunch("data", "sample", raw, "--to", tmp_path / "few.jsonl", "--count", 5)
    assert (ran.out, ran.err) == (f"{tmp_path / 'few.jsonl'}\n", "5 conversations\n")
    ran = vlaunch(
        "data",
        "split-train-test",
        raw,
        "--to",
        tmp_path / "a.jsonl",
        "--test",
        tmp_path / "b.jsonl",
        "--json",
    )
    assert ran.json["train"]["samples"] > ran.json["test"]["samples"] > 0


def test_stats_counts_tokens_languages_and_the_share_of_drops(
    vlaunch: Vlaunch, tmp_path: Path, raw: Path
) -> None:
    from tests.data.test_split import bytes_level

    bytes_level(None).save(str(tmp_path / "tokenizer.json"))
    vlaunch("data", "prepare", raw, "--to", tmp_path / "t.jsonl")
    line = [
        "data",
        "stats",
        tmp_path / "t.jsonl",
        "--tokeniser",
        tmp_path,
        "--languages",
        "--png",
        tmp_path / "l.png",
    ]
    ran = vlaunch(*line)
    assert ran.code == 0, ran.err
    for word in ("TOKENS", "LANGUAGE", "en", "es", "█", "DROPPED BECAUSE", "part of another", "%"):
        assert word in ran.out
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    answer = vlaunch(*line, "--json").json
    assert answer["total"]["tokens"] > 1000
    assert (
        sum(bucket["conversations"] for bucket in answer["tokens_histogram"])
        == answer["total"]["conversations"]
    )
    assert sum(answer["languages"].values()) == answer["total"]["conversations"]
    assert all(0 < drop["share"] < 1 for drop in answer["drops"])


def test_inspect_marks_exactly_what_is_trained(vlaunch: Vlaunch, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi \x1b[31m"}, {"from": "gpt", "value": "Hello </s>"}]
    path = corpora.write_lines(tmp_path / "c.jsonl", [{"id": "one", "conversations": turns}])
    ran = vlaunch("data", "inspect", path, "--id", "one")
    assert ran.out.endswith("USER: Hi \u241b[31m ASSISTANT:[[ Hello </s></s>]]\n")
    assert "one: 2 turns, about" in ran.err
    answer = vlaunch("data", "inspect", path, "--json", "--template", "chatml").json
    assert [s["text"] for s in answer["segments"] if s["trained"]] == ["Hello </s>", "<|im_end|>"]
    assert vlaunch("data", "inspect", path, "--number", 2).code == 2


@pytest.mark.parametrize("no_colour", [False, True])
def test_inspect_is_green_on_a_terminal_unless_no_color(tmp_path: Path, no_colour: bool) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = corpora.write_lines(tmp_path / "c.jsonl", [{"conversations": turns}])
    shown = on_terminal(["data", "inspect", str(path)], {"NO_COLOR": "1"} if no_colour else {})
    assert ("\x1b[32m Hello" in shown) is not no_colour
    assert ("[[ Hello</s>]]" in shown) is no_colour


def test_what_tells_languages_is_unpacked_once_and_says_the_same_from_the_cache_folder(
    tmp_path: Path, raw: Path
) -> None:
    seen = []
    for number in (1, 2):
        to = tmp_path / f"{number}.jsonl"
        words = ["data", "filter", str(raw), "--to", str(to), "--skip", "es", "--workers", str(number)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        subprocess.run([sys.executable, "-m", "launcher", *words], env=environment, check=True, timeout=60)
        seen.append((to.read_bytes(), (tmp_path / "cache/vlaunch/languages.npz").stat().st_mtime_ns))
    assert seen[0] == seen[1]


def on_terminal(words: list[str], environment: dict[str, str]) -> str:
    """What a program prints when stdout and stderr are a terminal."""
    import pty

    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "launcher", *words],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    assert child.wait() == 0, shown
    os.close(leader)
    return shown.decode()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["split", "raw.json", "--to", "o.jsonl", "--tokeniser", "s3://bucket/llama"],
            "a file of this machine",
        ),
        (["merge", "raw.json", "--to", "s3://bucket/o.jsonl"], "no AWS credentials were found"),
        (["merge", "raw.json", "--to", "o.txt"], "does not say what to write"),
        (["merge", "raw.json", "--to", "o.jsonl", "--shard", "4/4"], "is not I/N"),
        (["filter", "raw.json", "--to", "o.jsonl", "--off", "repitition"], "there is no filter"),
        (["split", "raw.json", "--to", "o.jsonl", "--tokeniser", "nowhere"], "cannot be read"),
        (["split", "raw.json", "--to", "o.jsonl", "--template", "vicuna"], "there is no chat template"),
        (["merge", "nowhere.json", "--to", "o.jsonl"], "there is no file nowhere.json"),
        (["convert", "raw.json", "--to", "o.jsonl", "--form", "alpaca"], "which is all that Alpaca holds"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_a_hint(
    vlaunch: Vlaunch, words: list[str], said: str
) -> None:
    corpora.write_json(Path("raw.json"), corpora.raw_samples(5))
    ran = vlaunch("data", *words)
    assert ran.code in (2, 3) and ran.out == ""
    assert said in ran.err and "Hint: " in ran.err
    assert not Path("o.jsonl").exists()


def test_file_uris_are_paths(vlaunch: Vlaunch, tmp_path: Path, raw: Path) -> None:
    ran = vlaunch("data", "merge", raw.as_uri(), "--to", (tmp_path / "o.jsonl").as_uri())
    assert ran.code == 0 and (tmp_path / "o.jsonl").exists()


def test_shares_wait_for_the_last_one(vlaunch: Vlaunch, tmp_path: Path, raw: Path) -> None:
    line = ["data", "merge", raw, "--to", tmp_path / "o.jsonl", "--json"]
    first = vlaunch(*line, "--shard", "1/2")
    assert first.json["complete"] is False and "wait" in first.err
    assert vlaunch(*line, "--shard", "0/2").json["complete"] is True


def test_the_remote_task_runs_the_same_pipeline_over_its_bucket(vlaunch: Vlaunch, tmp_path: Path) -> None:
    """The script of task_templates/data.yaml itself, on two nodes one after another, with a folder as the bucket."""
    import yaml

    from task_templates import load

    task = yaml.safe_load(load("data"))
    bucket = tmp_path / "bucket"
    (bucket / "raw").mkdir(parents=True)
    for name, samples in (("a", corpora.raw_samples(60)), ("b", corpora.raw_samples(60, seed=2))):
        corpora.write_lines(bucket / "raw" / f"{name}.jsonl.zst", samples)
    (script,) = {task["run"].replace("/bucket", str(bucket))}
    assert set(task["file_mounts"]) == {"/bucket"} and str(bucket) in script
    where = str(Path(sys.executable).parent)
    for rank in ("1", "0"):
        nodes = {"SKYPILOT_NODE_RANK": rank, "SKYPILOT_NUM_NODES": "2", "DATA_OPTIONS": "--max-length 300"}
        environment = {**os.environ, **task["envs"], **nodes, "PATH": f"{where}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    inputs = [bucket / "raw" / f"{name}.jsonl.zst" for name in "ab"]
    vlaunch("data", "prepare", *inputs, "--to", tmp_path / "here.jsonl", "--max-length", 300)
    assert (bucket / "clean/train.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
