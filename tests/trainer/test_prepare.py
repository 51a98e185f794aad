"""A corpus is prepared once, by whoever comes first; a corpus that cannot be learnt from is refused with reasons."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.trainer.boxes import run_box
from tests.trainer.dialogues import FAMILIES
from tests.trainer.networks import llama
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import read_journal
from trainer.artifacts.layout import blob_key
from trainer.artifacts.manifest import put_blob
from trainer.artifacts.store import Store, open_store
from trainer.config import StoredFile, TrainConfig
from trainer.errors import ConfigError, CorruptObject, DataError
from trainer.prepare import Inputs, build, fetch, needs_weights

ANSWERED = {"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs/one"))


@pytest.fixture
def config(tmp_path: Path, store: Store) -> TrainConfig:
    train = write_corpus(tmp_path / "train.jsonl", 40)
    held_out = write_corpus(tmp_path / "held-out.jsonl", 5, seed=1)
    return create_run(store.uri, train, held_out)


def changed(config: TrainConfig, section: str, **values: Any) -> TrainConfig:
    tree = config.model_dump()
    tree[section] |= values
    return TrainConfig.model_validate(tree)


def files(inputs: Inputs) -> dict[str, bytes]:
    """Everything under the folder that holds the prepared inputs."""
    folder = inputs.train.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def corpus_of(*samples: dict[str, Any]) -> str:
    return "".join(json.dumps(sample) + "\n" for sample in samples)


def run_with(
    tmp_path: Path, text: str, name: str = "mine.jsonl", **settings: Any
) -> tuple[Store, TrainConfig]:
    (tmp_path / name).write_text(text)
    run = str(tmp_path / "runs/one")
    return open_store(run), create_run(run, tmp_path / name, **settings)


# --- once -------------------------------------------------------------------------------------


def test_nothing_is_there_before_the_first_attempt(store: Store, config: TrainConfig, tmp_path: Path) -> None:
    assert fetch(store, config, tmp_path / "box") is None


def test_the_second_attempt_fetches_what_the_first_has_built(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    built = build(store, config, tmp_path / "first")
    for file in (*config.data.train, *config.data.eval):
        store.delete(blob_key(file.blob))  # whoever needed the corpus itself would fail
    fetched = fetch(store, config, tmp_path / "second")
    assert fetched is not None and fetched.train != built.train
    assert files(fetched) == files(built)
    assert fetched.report == built.report
    assert fetched.report["train"]["conversations"] == 40 and fetched.report["held-out"]["conversations"] == 5


def test_two_first_attempts_build_the_same_bytes(store: Store, config: TrainConfig, tmp_path: Path) -> None:
    one = build(store, config, tmp_path / "one")
    other = build(store, config, tmp_path / "other")
    assert files(one) == files(other)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("data", {"max_length": 95}),
        ("data", {"template": "alpaca"}),
        ("data", {"eval": ()}),
        ("model", {"vocab_size": 385}),
        ("model", {"vocab_size": None, "base": "org/model", "shape": None}),
    ],
)
def test_what_was_built_for_another_config_is_not_taken(
    store: Store, config: TrainConfig, tmp_path: Path, section: str, values: dict[str, Any]
) -> None:
    build(store, config, tmp_path / "first")
    assert fetch(store, changed(config, section, **values), tmp_path / "second") is None


def test_what_was_built_for_another_corpus_is_not_taken(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    build(store, config, tmp_path / "first")
    (file,) = config.data.train
    other = StoredFile(name=file.name, blob="0" * 64, size=file.size)
    assert fetch(store, changed(config, "data", train=[other]), tmp_path / "second") is None


@pytest.mark.parametrize(
    ("section", "values"),
    [("data", {"packing": False}), ("train", {"seed": 7, "max_steps": 3}), ("parallel", {"processes": 2})],
)
def test_what_has_no_part_in_it_does_not_build_it_again(
    store: Store, config: TrainConfig, tmp_path: Path, section: str, values: dict[str, Any]
) -> None:
    build(store, config, tmp_path / "first")
    assert fetch(store, changed(config, section, **values), tmp_path / "second") is not None


def test_the_name_of_a_file_has_no_part_in_it(store: Store, config: TrainConfig, tmp_path: Path) -> None:
    build(store, config, tmp_path / "first")
    (file,) = config.data.train
    renamed = changed(config, "data", train=[file.model_copy(update={"name": "renamed.jsonl"})])
    assert fetch(store, renamed, tmp_path / "second") is not None


def test_a_damaged_cache_is_built_again(store: Store, config: TrainConfig, tmp_path: Path) -> None:
    built = build(store, config, tmp_path / "first")
    cached = json.loads(next(store.get(entry.key) for entry in store.list("cache/")))
    store.put(blob_key(cached["files"][0]["blob"]), b"damaged")
    assert fetch(store, config, tmp_path / "second") is None
    assert files(build(store, config, tmp_path / "second")) == files(built)


def test_a_damaged_corpus_is_refused(store: Store, config: TrainConfig, tmp_path: Path) -> None:
    (file,) = config.data.train
    store.put(blob_key(file.blob), b"damaged")
    with pytest.raises(CorruptObject, match=file.name):
        build(store, config, tmp_path / "box")


def test_two_files_of_one_name_are_both_read(store: Store, config: TrainConfig, tmp_path: Path) -> None:
    twice = changed(config, "data", train=[*config.data.train, *config.data.eval], eval=())
    names = [file.model_copy(update={"name": "same.jsonl"}) for file in twice.data.train]
    built = build(store, changed(twice, "data", train=names), tmp_path / "box")
    assert built.report["train"]["conversations"] == 45


# --- a base for adapters ----------------------------------------------------------------------


def base_of(inputs: Inputs) -> dict[str, bytes]:
    assert inputs.base is not None
    return {path.name: path.read_bytes() for path in inputs.base.iterdir()}


def test_random_weights_for_adapters_are_drawn_once_and_stored_by_their_hash(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    lora = changed(config, "train", method="lora")
    built = build(store, lora, tmp_path / "first")
    fetched = fetch(store, lora, tmp_path / "second")
    assert fetched is not None and fetched.base != built.base
    assert base_of(fetched) == base_of(built)
    assert set(base_of(built)) == {"config.json", "model.safetensors"}
    stored = {entry.key for entry in store.list("blob/")}
    assert {blob_key(hashlib.sha256(data).hexdigest()) for data in base_of(built).values()} <= stored


def test_every_method_of_adapters_has_the_same_random_weights_and_every_seed_its_own(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    lora = build(store, changed(config, "train", method="lora"), tmp_path / "lora")
    qlora = fetch(store, changed(config, "train", method="qlora"), tmp_path / "qlora")
    assert qlora is not None and base_of(qlora) == base_of(lora)
    assert fetch(store, changed(config, "train", method="lora", seed=7), tmp_path / "other") is None
    assert build(store, config, tmp_path / "full").base is None


def test_an_attempt_that_takes_all_weights_from_a_checkpoint_reads_none_of_the_base(
    tmp_path: Path, isolated: Path
) -> None:
    write_hub(isolated, "a" * 40, is_main=True)
    model = isolated / ".cache/huggingface/hub/models--org--thing/snapshots" / ("a" * 40)
    store = open_store(str(tmp_path / "runs/one"))
    entries = [put_blob(store, path) for path in sorted(model.iterdir()) if path.suffix != ".md"]
    stored = [StoredFile(name=entry.name, blob=entry.blob, size=entry.size) for entry in entries]
    _, config = run_with(
        tmp_path, corpus_of(ANSWERED), model__shape=None, model__vocab_size=None, data__max_length=256,
        model__files=[file.model_dump() for file in stored],
    )  # fmt: skip
    assert build(store, config, tmp_path / "first").base
    assert needs_weights(config, resumes=False) and not needs_weights(config, resumes=True)
    assert needs_weights(changed(config, "train", method="lora"), resumes=True)

    lean = fetch(store, config, tmp_path / "second", weights=False)
    assert lean is not None and lean.base is not None
    assert not list(lean.base.glob("*.safetensors")) and (lean.base / "config.json").is_file()
    whole = fetch(store, config, tmp_path / "second")  # as a node does that finds it must begin afresh
    assert whole is not None and whole.base == lean.base and list(lean.base.glob("*.safetensors"))


def write_hub(home: Path, commit: str, *, is_main: bool, **shape: int) -> None:
    """A model in the cache of Hugging Face's hub, as if it had been fetched."""
    model = home / ".cache/huggingface/hub/models--org--thing"
    folder = model / "snapshots" / commit
    tokeniser = FAMILIES["byte-level"]()
    AutoModelForCausalLM.from_config(llama(vocab_size=len(tokeniser), **shape)).save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    if is_main:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs/main").write_text(commit)


def test_every_attempt_takes_the_commit_of_a_base_that_the_first_one_took(
    tmp_path: Path, isolated: Path
) -> None:
    first, newer = "a" * 40, "b" * 40
    store, _ = run_with(
        tmp_path, corpus_of(ANSWERED), model__shape=None, model__vocab_size=None, model__base="org/thing",
        train__method="lora", train__max_steps=2, data__max_length=256,
    )  # fmt: skip
    write_hub(isolated, first, is_main=True)
    done = run_box(tmp_path / "runs/one", tmp_path / "box")
    assert done.returncode == 0, done.stderr
    # The newest commit now is one that the checkpoint does not fit.
    write_hub(isolated, newer, is_main=True, hidden_size=64)
    again = run_box(tmp_path / "runs/one", tmp_path / "box")
    assert again.returncode == 0, again.stderr
    config = json.loads(store.get("export/adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/thing", first)


# --- refused ----------------------------------------------------------------------------------


def test_a_corpus_with_nothing_to_learn_is_refused_with_counts_by_file(tmp_path: Path) -> None:
    long = {"conversations": [{"from": "human", "value": "why " * 500}, {"from": "gpt", "value": "So."}]}
    unanswered = {"conversations": [{"from": "human", "value": "Hello?"}]}
    store, config = run_with(tmp_path, corpus_of(long, long, unanswered))
    with pytest.raises(DataError) as caught:
        build(store, config, tmp_path / "box")
    said = caught.value.message
    assert "the train corpus has no token to learn from" in said
    assert "mine.jsonl: 2 x ends before its first answer within max_length, 1 x " in said
    assert caught.value.hint and "--max-length" in caught.value.hint
    assert list(store.list("cache/")) == []


def test_conversations_with_nothing_to_learn_among_others_are_counted(tmp_path: Path) -> None:
    long = {"conversations": [{"from": "human", "value": "why " * 500}, {"from": "gpt", "value": "So."}]}
    store, config = run_with(tmp_path, corpus_of(long, ANSWERED, long))
    built = build(store, config, tmp_path / "box")
    assert built.report["train"]["conversations"] == 1 and built.report["train"]["untrained"] == 2


def test_the_box_says_where_a_corpus_is_broken_and_ends_with_2(tmp_path: Path) -> None:
    text = corpus_of(ANSWERED, ANSWERED) + '{"id": "b", "conversations": [}\n'
    store, config = run_with(tmp_path, text)
    done = run_box(tmp_path / "runs/one", tmp_path / "box")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert re.search(r"mine\.jsonl.*line 3.*column 31", errors[0])
    assert "Traceback" not in done.stdout + done.stderr
    failed = [event.data for event in read_journal(store) if event.kind == "failed"]
    assert len(failed) == 1 and failed[0]["exit_code"] == 2
    assert errors[0] == f"Error: {failed[0]['error']}"


def test_the_box_refuses_a_run_that_does_not_exist(tmp_path: Path) -> None:
    done = run_box(tmp_path / "runs/none", tmp_path / "box")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: there is no run at ")


def test_the_box_says_which_base_model_it_cannot_fetch_and_ends_with_3(tmp_path: Path) -> None:
    run_with(tmp_path, corpus_of(ANSWERED), model__shape=None, model__vocab_size=None, model__base="no/thing")
    done = run_box(tmp_path / "runs/one", tmp_path / "box")  # without a network, as all tests
    assert done.returncode == 3
    assert "Error: the base model no/thing cannot be fetched: " in done.stderr
    assert "HF_TOKEN" in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_model_with_neither_base_nor_vocabulary_is_refused(
    store: Store, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"set model\.vocab_size"):
        build(store, changed(config, "model", vocab_size=None), tmp_path / "box")
