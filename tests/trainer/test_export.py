"""What a run leaves behind is a Hugging Face folder that anyone can load, and it is the model that was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.trainer.boxes import run_box
from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run
from trainer.artifacts.fencing import valid_manifests
from trainer.artifacts.journal import read_journal
from trainer.artifacts.layout import EXPORT_MANIFEST
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.store import open_store
from trainer.checkpoint import restore
from trainer.config import TrainConfig
from trainer.conversation import Conversation, Turn, get_template
from trainer.fsdp import FullyShardedModel
from trainer.model import model_config, skeleton
from trainer.parallel import World, joined
from trainer.prepare import fetch_all
from trainer.tokenize import Encoder

STEPS = 80
NUMBERS = "one two three four five six seven eight nine ten".split()
PROMPTS = ("Count from three.", "Count from nine.", "What does </s> do?")

torch.set_num_threads(1)


@dataclass(frozen=True)
class Finished:
    """A run of a few steps, enough for replies of more than one word."""

    config: TrainConfig
    run: Path
    box: Path

    @property
    def export(self) -> Path:
        return self.run / "export"


def write_counting(path: Path) -> Path:
    """A corpus from which even a small model learns within seconds what comes next."""
    samples = []
    for first in range(10):
        counted = " ".join((NUMBERS * 3)[first : first + 12])
        samples.append({"instruction": f"Count from {NUMBERS[first]}.", "output": counted})
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples * 5))
    return path


def finish(folder: Path, *, by_program: bool, processes: int = 1, bf16: bool = False) -> Finished:
    corpus = write_counting(folder / "train.jsonl")
    run = folder / "runs/short"
    config = create_run(
        str(run), corpus, train__max_steps=STEPS, train__learning_rate=1e-2, train__bf16=bf16,
        parallel__processes=processes, checkpoint__save_steps=1000, export__max_new_tokens=5 if by_program else 0,
    )  # fmt: skip
    if by_program:
        done = run_box(run, folder / "box")
        assert done.returncode == 0, done.stderr
    else:
        live(str(run), folder / "box", Death("never"))
    return Finished(config, run, folder / "box")


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


def trained_model(done: Finished, world: World, folder: Path) -> PreTrainedModel:
    """The trainer's own model, from the last checkpoint."""
    store = open_store(str(done.run))
    manifest = valid_manifests(store)[0]
    assert manifest.step == STEPS
    fetch_all(store, list(manifest.files), folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(next(done.box.glob("*-e*")) / "inputs/tokeniser")
    model = skeleton(model_config(done.config, tokens, None))
    sharded = FullyShardedModel(model, done.config, world)
    sharded.fill(None)
    restore(folder, manifest, sharded, world, seed=0)
    return model.eval()


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def greedy(model: PreTrainedModel, tokens: list[int], count: int, end: int) -> list[int]:
    """The next tokens, each the likeliest, by the trainer's forward pass."""
    written: list[int] = []
    while len(written) < count and end not in written:
        row = torch.tensor([[*tokens, *written]])
        logits = model(input_ids=row, position_ids=torch.arange(row.shape[1])[None], use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
    return written


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
        print(written)
        assert len(set(written)) > 1


@pytest.mark.parametrize(("processes", "bf16"), [(1, False), (2, False), (1, True)])
def test_the_exported_weights_are_those_of_the_last_checkpoint(
    tmp_path: Path, world: World, processes: int, bf16: bool
) -> None:
    done = finish(tmp_path, by_program=False, processes=processes, bf16=bf16)
    dtype = torch.bfloat16 if bf16 else torch.float32
    exported = AutoModelForCausalLM.from_pretrained(done.export, dtype="auto")
    assert exported.dtype == dtype and exported.config.architectures == ["LlamaForCausalLM"]
    trained = weights(trained_model(done, world, tmp_path / "checkpoint"))
    assert weights(exported).keys() == trained.keys()
    for name, weight in weights(exported).items():
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
