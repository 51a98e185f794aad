"""What a run leaves behind is a Hugging Face folder that anyone can load, and it is the model that was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from tests.trainer.counting import PROMPTS, STEPS, Finished, finish, greedy, trained_model, whole
from trainer.artifacts.journal import read_journal
from trainer.artifacts.layout import EXPORT_MANIFEST
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.store import open_store
from trainer.conversation import Conversation, Turn, get_template
from trainer.encode import Encoder
from trainer.parallel import World, joined

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(tmp_path_factory.mktemp("finished"), by_program=True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with joined(0, 1, f"file://{tmp_path}/rendezvous", threads=1) as one:
        yield one


@pytest.fixture
def tokeniser(finished: Finished) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(finished.export)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def test_the_export_writes_the_tokens_that_the_trained_model_writes(
    finished: Finished, tokeniser: PreTrainedTokenizerFast, world: World, tmp_path: Path
) -> None:
    ours = trained_model(finished, world, tmp_path / "checkpoint")
    theirs = AutoModelForCausalLM.from_pretrained(finished.export)
    template = get_template(finished.config.data.template)
    for prompt in PROMPTS:
        tokens = tokeniser(template.prompt((Turn("user", prompt),)))["input_ids"]
        out = theirs.generate(torch.tensor([tokens]), max_new_tokens=30, do_sample=False)
        written = out[0, len(tokens) :].tolist()
        assert written == greedy(ours, tokens, 30, tokeniser.eos_token_id)
        assert len(set(written)) > 1


@pytest.mark.parametrize(("processes", "bf16"), [(1, False), (2, False), (1, True)])
def test_the_exported_weights_are_those_of_the_last_checkpoint(
    tmp_path: Path, world: World, processes: int, bf16: bool
) -> None:
    done = finish(tmp_path, parallel__processes=processes, train__bf16=bf16)
    dtype = torch.bfloat16 if bf16 else torch.float32
    exported = AutoModelForCausalLM.from_pretrained(done.export, dtype="auto")
    assert exported.dtype == dtype and exported.config.architectures == ["LlamaForCausalLM"]
    trained = whole(trained_model(done, world, tmp_path / "checkpoint"))
    assert whole(exported).keys() == trained.keys()
    for name, weight in whole(exported).items():
        assert torch.equal(weight, trained[name].to(dtype))


def test_the_manifest_lists_every_file_with_its_hash(finished: Finished) -> None:
    manifest = json.loads((finished.run / EXPORT_MANIFEST).read_text())
    listed = {file["name"]: (file["sha256"], file["size"]) for file in manifest["files"]}
    there = {path.name: path for path in finished.export.iterdir()}
    del there[Path(EXPORT_MANIFEST).name]
    assert listed == {name: (hash_file(path), path.stat().st_size) for name, path in there.items()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= listed.keys()
    assert manifest["step"] == STEPS and manifest["template"] == finished.config.data.template


def test_the_export_knows_where_a_text_begins_and_ends(
    finished: Finished, tokeniser: PreTrainedTokenizerFast
) -> None:
    config = json.loads((finished.export / "config.json").read_text())
    generation = GenerationConfig.from_pretrained(finished.export)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[name] == getattr(generation, name) == getattr(tokeniser, name) is not None
    assert tokeniser.eos_token == get_template(finished.config.data.template).end_token
    assert config["use_cache"] is True and config["vocab_size"] == len(tokeniser)
    assert "conversations" not in json.dumps(config)  # our attention is nobody else's business


def test_the_chat_template_of_the_export_prompts_as_it_was_trained(
    finished: Finished, tokeniser: PreTrainedTokenizerFast
) -> None:
    template = get_template(finished.config.data.template)
    for prompt in PROMPTS[:2]:
        asked = Turn("user", prompt)
        told = tokeniser.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        trained = Conversation("x", (asked, Turn("assistant", "answer")))
        (ids, flags), *_ = Encoder(tokeniser, template).encode([trained])
        assert told == ids[flags == 0].tolist() == tokeniser(template.prompt((asked,)))["input_ids"]


def test_the_journal_has_the_reply_of_the_exported_model(finished: Finished) -> None:
    events = {event.kind: event.data for event in read_journal(open_store(str(finished.run)))}
    assert events["sampled"]["prompt"] == finished.config.export.prompt
    assert isinstance(events["sampled"]["reply"], str)
    listed = json.loads((finished.run / EXPORT_MANIFEST).read_text())["files"]
    assert events["exported"]["bytes"] == sum(file["size"] for file in listed)
    assert events["finished"]["steps"] == STEPS
