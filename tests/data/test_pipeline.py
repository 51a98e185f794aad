"""The whole pass: the same bytes however it ran, and an account of every sample."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data import corpora
from tests.data.jobs import whole_settings
from trainer.data.containers import inspect_file, read_samples
from trainer.data.contamination import read_questions
from trainer.data.forms import file_hash
from trainer.data.language import language_rule
from trainer.data.pipeline import Job, Progress, prepare
from trainer.data.read import read_corpus
from trainer.data.steps import DedupeSettings, Settings
from trainer.errors import DataError, UsageError


def run(
    folder: Path, *inputs: Path, settings: Settings | None = None, workers: int = 1, to: str = "out.jsonl"
) -> Any:
    job = Job(inputs, folder / to, settings or whole_settings(), folder / "rejected.jsonl")
    return prepare(replace(job, rejected=job.rejected if job.settings.keep_rejected else None), workers)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.write_json(tmp_path_factory.mktemp("raw") / "chats.json", corpora.raw_samples(700))


def test_one_two_and_four_workers_write_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    files: list[dict[str, bytes]] = []
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        run(folder, raw, workers=workers)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1] == files[2]
    assert set(files[0]) == {"out.jsonl", "rejected.jsonl", "out.manifest.json"}


def test_json_zstd_lines_gzip_and_parquet_give_the_same_bytes(tmp_path: Path) -> None:
    samples = [s for s in corpora.raw_samples(400) if isinstance(s["conversations"][0]["value"], str)]
    inputs = [
        corpora.write_json(tmp_path / "chats.json", samples),
        corpora.write_lines(tmp_path / "chats.jsonl.zst", samples),
        corpora.write_lines(tmp_path / "chats.jsonl.gz", samples),
        corpora.write_parquet(tmp_path / "chats.parquet", samples),
    ]
    outputs = []
    for number, path in enumerate(inputs):
        run(tmp_path, path, to=f"{number}.jsonl")
        outputs.append((tmp_path / f"{number}.jsonl").read_bytes())
    assert len(outputs[0]) > 100_000
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]


@pytest.mark.parametrize("name", ["o.json", "o.jsonl.gz", "o.jsonl.zst", "o.json.zst", "o.parquet"])
def test_every_container_that_is_written_reads_back_the_same(tmp_path: Path, raw: Path, name: str) -> None:
    settings = Settings()
    run(tmp_path, raw, settings=settings, to="plain.jsonl")
    manifest = run(tmp_path, raw, settings=settings, to=name)
    assert list(read_corpus([tmp_path / name])) == list(read_corpus([tmp_path / "plain.jsonl"]))
    assert manifest["output"]["sha256"] == file_hash(tmp_path / name)


@pytest.mark.parametrize("form", ["sharegpt", "openai"])
def test_every_form_reads_back_the_same(tmp_path: Path, raw: Path, form: str) -> None:
    run(tmp_path, raw, settings=Settings(form=form), to="o.jsonl")
    reports = read_corpus([tmp_path / "o.jsonl"])
    conversations = [conversation.turns for conversation in reports]
    assert reports.files[0].forms == {form: len(conversations)}
    assert conversations == [conversation.turns for conversation in read_corpus([raw])]


def test_every_sample_is_written_or_rejected_with_its_reason(tmp_path: Path, raw: Path) -> None:
    manifest = run(tmp_path, raw)
    steps = {step["step"]: step for step in manifest["steps"]}
    order = list(steps)
    for left, right in zip(order, order[1:], strict=False):
        assert steps[left]["out"] == steps[right]["in"]
    for step in manifest["steps"][:-1]:
        assert step["in"] - step["out"] == sum(step["reasons"].values())
    assert steps["read"]["in"] == 700
    assert steps["dedupe"]["reasons"]["duplicate"] > 5 and steps["dedupe"]["reasons"]["part of another"] > 5
    rejected = corpora.read_lines(tmp_path / "rejected.jsonl")
    counted = {(s["step"], reason): n for s in manifest["steps"] for reason, n in s["reasons"].items()}
    found = {
        key: sum((r["step"], r["reason"]) == key for r in rejected if r["step"] != "dedupe")
        for key in counted
    }
    assert {k: v for k, v in counted.items() if k[0] != "dedupe"} == {
        k: v for k, v in found.items() if k[0] != "dedupe"
    }
    assert len(rejected) == manifest["rejected"]["samples"]
    assert all(entry["sample"] and entry["detail"] for entry in rejected)
    kept = {r["detail"].split("'")[1] for r in rejected if r["step"] == "dedupe"}
    written = {sample["id"].split("-part")[0] for sample in corpora.read_lines(tmp_path / "out.jsonl")}
    assert kept <= written


def test_the_manifest_says_what_a_run_was_trained_on(tmp_path: Path, raw: Path) -> None:
    import hashlib

    manifest = run(tmp_path, raw)
    assert manifest["rejected"]["sha256"] == file_hash(tmp_path / "rejected.jsonl")
    assert manifest == json.loads((tmp_path / "out.manifest.json").read_bytes())
    output = (tmp_path / "out.jsonl").read_bytes()
    assert manifest["output"]["sha256"] == hashlib.sha256(output).hexdigest()
    assert manifest["output"]["samples"] == output.count(b"\n")
    assert manifest["inputs"][0]["sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert manifest["template"] == "vicuna_v1.1" and manifest["tokens_exact"] is False
    assert manifest["settings"]["split"] == {"max_length": 400, "overlong": "keep"}
    assert {"python", "vlaunch", "rensa"} <= set(manifest["software"])


def test_ids_in_the_output_are_unique_though_they_were_doubled_or_missing(tmp_path: Path, raw: Path) -> None:
    manifest = run(tmp_path, raw)
    ids = [sample["id"] for sample in corpora.read_lines(tmp_path / "out.jsonl")]
    assert len(set(ids)) == len(ids)
    assert manifest["notes"]["doubled id made unique"] > 5
    assert any("#2" in name for name in ids)
    assert any(name.startswith("chats-") for name in ids)


def test_languages_are_dropped_as_asked_and_counted(tmp_path: Path) -> None:
    path = corpora.write_lines(tmp_path / "in.jsonl", corpora.raw_samples(60))
    manifest = run(tmp_path, path, settings=replace(whole_settings(), language=language_rule(None, "es")))
    steps = {step["step"]: step for step in manifest["steps"]}
    assert steps["language"]["reasons"]["language"] > 3
    assert "es" not in manifest["languages"] and manifest["languages"]["en"] > 20


def test_conversations_with_evaluation_questions_are_left_out(tmp_path: Path) -> None:
    samples = corpora.raw_samples(30)
    question = "Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences"
    samples[3] = {"id": "leak", "conversations": [
        {"from": "human", "value": f"please do this:\n{question.upper()}!!"}, {"from": "gpt", "value": "<p>Aloha</p>"},
    ]}  # fmt: skip
    asked = corpora.write_lines(
        tmp_path / "q.jsonl", [{"question_id": 81, "turns": [question, "Rewrite it."]}]
    )
    path = corpora.write_lines(tmp_path / "in.jsonl", samples)
    manifest = run(tmp_path, path, settings=replace(whole_settings(), questions=read_questions([asked])))
    step = next(step for step in manifest["steps"] if step["step"] == "contamination")
    assert step["reasons"] == {"evaluation question": 1} and step["in"] - step["out"] == 1
    entry = next(r for r in corpora.read_lines(tmp_path / "rejected.jsonl") if r["step"] == "contamination")
    assert "question 81" in entry["detail"]
    assert "leak" not in (tmp_path / "out.jsonl").read_text()


def test_plain_conversations_and_alpaca_go_through_unchanged_in_text(tmp_path: Path) -> None:
    chats = [
        {"id": f"identity_{n}", "conversations": [
            {"from": "human", "value": f"Who are you? Number {n}\n\n    if (a<b && c>d) _x_ vector<int>"},
            {"from": "gpt", "value": f"I am *Vicuna* {n}, a snake_case model. 2 * 3 < 7 & more.\n\n\n```\ncode\n```"},
        ]} for n in range(20)
    ]  # fmt: skip
    alpaca = [
        {
            "instruction": f"Give {n} tips for staying healthy.",
            "input": "",
            "output": f"1. Eat {n} apples.\n2. Sleep.",
        }
        for n in range(20)
    ]
    inputs = [
        corpora.write_json(tmp_path / "dummy.json", chats),
        corpora.write_json(tmp_path / "alpaca.json", alpaca),
    ]
    settings = replace(whole_settings(2048), dedupe=DedupeSettings(None))
    manifest = run(tmp_path, *inputs, settings=settings)
    assert [each["forms"] for each in manifest["inputs"]] == [{"sharegpt": 20}, {"alpaca": 20}]
    assert [c.turns for c in read_corpus([tmp_path / "out.jsonl"])] == [c.turns for c in read_corpus(inputs)]


def test_an_input_is_never_written_over(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(UsageError, match="an input as well"):
        prepare(Job((raw,), raw, whole_settings()))


def test_a_name_that_says_no_container_is_refused_before_any_work(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(UsageError, match="does not say what to write"):
        run(tmp_path, raw, to="out.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    path = corpora.write_lines(tmp_path / "bad.jsonl", [{"x": 1}, {"y": 1}, []])
    with pytest.raises(DataError) as caught:
        run(tmp_path, path)
    assert (
        "nothing is left of 3 sample(s)" in caught.value.message and "unknown format" in caught.value.message
    )
    assert not (tmp_path / "out.jsonl").exists()


def test_progress_goes_forward_to_the_end(tmp_path: Path, raw: Path) -> None:
    seen: list[Progress] = []
    prepare(Job((raw,), tmp_path / "o.jsonl", Settings()), 2, seen.append)
    for stage in ("checking", "preparing"):
        done = [progress.done for progress in seen if progress.stage == stage]
        assert done == sorted(done) and done[-1] == raw.stat().st_size
    assert seen[-1].samples == 700


# --- bad input: a counted rejection or one clear error -----------------------------------------------

GOOD = {
    "conversations": [
        {"from": "human", "value": "Hello, is anyone there?"},
        {"from": "gpt", "value": "Yes, I am."},
    ]
}
LINE = json.dumps(GOOD).encode() + b"\n"
DEEP = b'{"conversations": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("cut.json", b"[" + LINE + b"," + LINE[:40], "line 2, column"),
        ("cut.jsonl", LINE + LINE[:40] + b"\n", "line 2, column"),
        ("latin.jsonl", LINE + LINE.replace(b"Hello", b"H\xe9llo"), "line 2, byte 49: 0xe9"),
        ("deep.jsonl", LINE + DEEP, "line 2: the JSON is nested too deeply"),
        ("zeros.jsonl", LINE + b"\0" * 99 + b"\n", "line 2, column 1"),
        ("nul.jsonl", LINE + LINE.replace(b"Hello", b"He\0lo"), "line 2, column"),
        ("nothing.jsonl", b"", "nothing is left of 0 sample"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_file_is_one_clear_error_with_the_place(
    tmp_path: Path, name: str, data: bytes, said: str, workers: int
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        run(tmp_path, tmp_path / name, workers=workers)
    assert said in caught.value.message and caught.value.hint
    assert not (tmp_path / "out.jsonl").exists()


def test_odd_samples_are_counted_rejections(tmp_path: Path) -> None:
    nested: Any = "x"
    for _ in range(100):
        nested = [nested]
    turns = GOOD["conversations"]
    samples = [
        GOOD,
        {"conversations": [{"from": "moderator", "value": "a"}, turns[1]]},
        {**GOOD, "meta": nested},
        {"conversations": [{"from": "human", "value": "half \ud83d of a pair"}, turns[1]]},
        {"conversations": [{"from": "human", "value": "a NUL \0 stays, it is a character"}, turns[1]]},
        {"conversations": "text"},
        ["list"],
        None,
        7,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {
            "id": {"a": 1},
            **{"conversations": [{"from": "human", "value": "An id that is an object"}, turns[1]]},
        },
    ]
    manifest = run(tmp_path, corpora.write_lines(tmp_path / "odd.jsonl", samples))
    read = next(step for step in manifest["steps"] if step["step"] == "read")
    assert read["in"] == 11 and read["out"] == 3
    assert read["reasons"]["nested too deeply"] == 1 and read["reasons"]["not an object"] == 3
    rejected = corpora.read_lines(tmp_path / "rejected.jsonl")
    assert len(rejected) == 8 and {entry["where"] for entry in rejected} >= {"line 2", "line 3", "line 4"}


def test_a_line_of_200_mb_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(LINE + b'{"conversations": "')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + LINE.replace(b"Hello", b"Howdy"))
    tracemalloc.start()
    manifest = run(tmp_path, path, settings=Settings())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert manifest["steps"][0] == {"step": "read", "in": 3, "out": 2, "reasons": {"too large": 1}}
    assert most < 64 << 20


def test_a_file_without_line_ends_is_refused_at_the_largest_sample(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.write(b'[{"conversations": "' + b"x" * (64 << 20) + b'"}]')
    with pytest.raises(DataError, match="one sample is larger than 16 MiB"):
        run(tmp_path, path)


def test_a_gigabyte_from_a_few_kilobytes_does_not_fill_memory(tmp_path: Path) -> None:
    """A zstd file of one endless line: read, measured, passed over."""
    import zstandard

    path = tmp_path / "bomb.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        file.write(packer.compress(LINE))
        for _ in range(256):
            file.write(packer.compress(b" " * (1 << 20)))
        file.write(packer.flush())
    assert path.stat().st_size < 1 << 20
    found = list(read_samples(path, inspect_file(path), largest=1 << 20))
    assert len(found) == 2 and "too large" in str(found[1].value)
