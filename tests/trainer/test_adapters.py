"""Adapters train on a base that nothing changes, are all that a checkpoint holds, and load with PEFT."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.trainer.counting import PROMPTS, Finished, finish, greedy, trained_model, whole
from tests.trainer.killing import Death
from tests.trainer.networks import llama
from trainer import adapters, attention, quantize
from trainer.artifacts.layout import EXPORT_MANIFEST
from trainer.artifacts.manifest import fetch_verified, hash_file
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests
from trainer.config import LoraSection, TrainConfig
from trainer.conversation import Turn, get_template
from trainer.errors import ConfigError, NotReady
from trainer.fsdp import FullyShardedModel
from trainer.model import build, skeleton, weights
from trainer.parallel import World, joined
from trainer.prepare import fetch_all
from trainer.rank import preload

KINDS = ("lora", "lora-8bit", "qlora")
STEPS = 24
every_kind = pytest.mark.parametrize("kind", KINDS)

torch.set_num_threads(1)


def of_kind(kind: str) -> dict[str, Any]:
    return {"train__method": "qlora" if kind == "qlora" else "lora", "lora__load_8bit": kind == "lora-8bit"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A small model that has learnt to count up."""
    return finish(tmp_path_factory.mktemp("base"))


def count_down(
    folder: Path, base: Finished, kind: str, killed: tuple[Death, ...] = (), **settings: Any
) -> Finished:
    """A run of two processes that teaches the base to count down."""
    chosen: dict[str, Any] = {
        "model__base": str(base.export), "model__shape": None, "model__vocab_size": None,
        "lora__target_modules": "all-linear", "train__max_steps": STEPS, "train__eval_steps": STEPS,
        "parallel__processes": 2, "checkpoint__save_steps": 4,
    }  # fmt: skip
    return finish(folder, down=True, killed=killed, **(chosen | of_kind(kind) | settings))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, base: Finished) -> Callable[[str], Finished]:
    """By kind of base, one such run that nobody disturbs."""
    done: dict[str, Finished] = {}

    def of(kind: str) -> Finished:
        if kind not in done:
            done[kind] = count_down(tmp_path_factory.mktemp(kind), base, kind)
        return done[kind]

    return of


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with joined(0, 1, f"file://{tmp_path}/rendezvous", threads=1) as one:
        yield one


@pytest.fixture
def tokeniser(base: Finished) -> Any:
    return AutoTokenizer.from_pretrained(base.export)


def config_of(kind: str = "lora", **lora: Any) -> TrainConfig:
    train = {"method": "qlora" if kind == "qlora" else "lora", "bf16": False}
    tree = {"train": train, "lora": {"load_8bit": kind == "lora-8bit"} | lora, "data": {"max_length": 96}}
    return TrainConfig.model_validate(tree)


def adapted_skeleton(**lora: Any) -> PreTrainedModel:
    model = skeleton(llama())
    adapters.adapt(model, LoraSection(**lora))
    return model


def frozen(base: Finished, kind: str) -> PreTrainedModel:
    """The base as a user would load it for adapters that were trained on it in that form."""
    if kind == "lora":
        return AutoModelForCausalLM.from_pretrained(base.export, attn_implementation=attention.register())
    shape = AutoConfig.from_pretrained(base.export)
    return quantize.load(base.export, shape, kind, torch.float32, torch.device("cpu"))


def numbers(done: Finished) -> list[tuple[int, str, str, str]]:
    steps = read_metrics(open_store(str(done.run)))[0]
    return [(step.step, step.loss.hex(), step.grad_norm.hex(), step.batch) for step in steps]


def exported(done: Finished) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(done.export.iterdir())}


def adapted_layers(model: nn.Module) -> set[str]:
    return {name.partition(".lora_")[0] for name, _ in model.named_parameters() if adapters.is_adapter(name)}


# --- on a model -------------------------------------------------------------------------------


def test_all_linear_adapts_every_linear_layer_but_the_head() -> None:
    linear = {name for name, module in skeleton(llama()).named_modules() if isinstance(module, nn.Linear)}
    assert adapted_layers(adapted_skeleton(target_modules="all-linear")) == linear - {"lm_head"}


def test_named_layers_are_adapted_and_nothing_else_is_trained() -> None:
    model = adapted_skeleton(target_modules=("q_proj", "layers.1.mlp.down_proj"))
    assert adapted_layers(model) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    }
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == adapters.is_adapter(name)


@pytest.mark.parametrize(
    ("target", "meant"),
    [("q_porj", "q_proj"), ("downproj", "down_proj"), ("lm_head", None), ("norm", None)],
)
def test_a_target_that_is_no_linear_layer_is_refused_with_the_nearest(target: str, meant: str | None) -> None:
    with pytest.raises(ConfigError, match=f"no linear layer '{target}'") as caught:
        adapted_skeleton(target_modules=("v_proj", target))
    hint = caught.value.hint or ""
    assert "they have down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in hint
    assert (f"did you mean {meant}?" in hint) if meant else ("did you mean" not in hint)


def test_adapters_keep_32_bits_on_a_base_of_16() -> None:
    model = skeleton(llama(), torch.bfloat16)
    adapters.adapt(model, LoraSection())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if adapters.is_adapter(name) else torch.bfloat16)


# --- at the beginning -------------------------------------------------------------------------


def test_an_adapter_begins_the_same_whoever_asks_for_it_and_in_whatever_order() -> None:
    model = adapted_skeleton(target_modules="all-linear")
    names = sorted(name for name, _ in model.named_parameters() if adapters.is_adapter(name))
    source, again = (adapters.beginning(model, None, seed=3) for _ in range(2))
    first = {name: source(name) for name in names}
    torch.manual_seed(99)
    assert all(torch.equal(first[name], again(name)) for name in reversed(names))
    a = [first[name] for name in names if ".lora_A." in name]
    assert len({weight.sum().item() for weight in a}) == len(a)
    assert not torch.equal(first[names[0]], adapters.beginning(model, None, seed=4)(names[0]))


def test_an_adapter_begins_as_peft_has_it() -> None:
    model = adapted_skeleton(r=16, target_modules=("down_proj",))
    source = adapters.beginning(model, None, seed=1)
    name = "model.layers.0.mlp.down_proj.lora_{}.default.weight"
    a, bound = source(name.format("A")), 1 / math.sqrt(64)
    assert a.shape == (16, 64) and a.dtype == torch.float32
    assert 0.95 * bound < a.abs().max() <= bound and abs(a.mean()) < 0.1 * bound
    assert not source(name.format("B")).any()


@every_kind
def test_adapters_change_nothing_at_the_beginning(
    base: Finished, world: World, tokeniser: Any, kind: str
) -> None:
    config = config_of(kind, target_modules="all-linear")
    model = build(config, tokeniser, base.export, world.device)
    sharded = FullyShardedModel(model, config, world)
    sharded.fill(weights(config, base.export, model))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours = model.eval()(input_ids=tokens, use_cache=False).logits
        theirs = frozen(base, kind)(input_ids=tokens, use_cache=False).logits
    assert torch.equal(ours, theirs)


# --- in a run ---------------------------------------------------------------------------------


@every_kind
def test_the_held_out_loss_falls(adapted: Callable[[str], Finished], kind: str) -> None:
    first, last = read_metrics(open_store(str(adapted(kind).run)))[1]
    assert (first.step, last.step) == (0, STEPS)
    assert last.loss < 0.4 * first.loss


@every_kind
def test_a_checkpoint_holds_adapters_and_their_moments_alone(
    adapted: Callable[[str], Finished], base: Finished, tmp_path: Path, kind: str
) -> None:
    store = open_store(str(adapted(kind).run))
    manifest = valid_manifests(store)[0]
    held: dict[str, int] = {}
    for path in fetch_all(partial(fetch_verified, store), list(manifest.files), tmp_path):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                held[name] = held.get(name, 0) + file.get_tensor(name).numel()
    done = adapted(kind)
    model = skeleton(AutoConfig.from_pretrained(base.export))
    adapters.adapt(model, done.config.lora)
    expected = {
        f"{part}.{name}": parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for part in ("model", "exp_avg", "exp_avg_sq")
    }
    random = {name for name in held if name.startswith("rng.")}
    assert random == {"rng.cpu.0", "rng.cpu.1"}
    assert {name: count for name, count in held.items() if name not in random} == expected


@every_kind
def test_training_leaves_the_frozen_base_as_it_was(
    base: Finished, world: World, tokeniser: Any, kind: str
) -> None:
    config = config_of(kind, target_modules="all-linear")
    model = build(config, tokeniser, base.export, world.device)
    sharded = FullyShardedModel(model, config, world)
    sharded.fill(weights(config, base.export, model))
    before = {name: weight.clone() for name, weight in whole(model).items()}
    tokens = torch.arange(20)[None]
    for step in range(3):
        with torch.no_grad():
            model.eval()(input_ids=tokens, use_cache=False)  # as the held-out loss is measured
        sharded.settle()
        model.train()
        sharded.backward(model(input_ids=tokens, use_cache=False).logits.square().mean(), last=True)
        assert sharded.step(0.0 if step == 0 else 1e-2) > 0
    after = whole(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if adapters.is_adapter(name)}


@every_kind
def test_a_killed_run_equals_the_undisturbed_one(
    adapted: Callable[[str], Finished], base: Finished, tmp_path: Path, kind: str
) -> None:
    killed = count_down(tmp_path, base, kind, (Death("after", "manifest/", nth=2),))
    assert numbers(killed) == numbers(adapted(kind))
    assert exported(killed) == exported(adapted(kind))


# --- exported ---------------------------------------------------------------------------------


@every_kind
def test_peft_loads_the_export_and_writes_the_tokens_of_the_trained_model(
    adapted: Callable[[str], Finished],
    base: Finished,
    world: World,
    tokeniser: Any,
    tmp_path: Path,
    kind: str,
) -> None:
    done = adapted(kind)
    ours = trained_model(done, world, tmp_path, base.export)
    theirs = PeftModel.from_pretrained(frozen(base, kind), done.export).eval()
    template = get_template(done.config.data.template)
    for prompt in PROMPTS:
        tokens = tokeniser(template.prompt((Turn("user", prompt),)))["input_ids"]
        written = greedy(theirs, tokens, 20, tokeniser.eos_token_id)
        assert written == greedy(ours, tokens, 20, tokeniser.eos_token_id)
        assert len(set(written)) > 1


def test_the_export_is_adapters_that_name_their_base(
    adapted: Callable[[str], Finished], base: Finished
) -> None:
    done = adapted("lora")
    config = json.loads((done.export / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.export)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0.05)
    listed = json.loads((done.run / EXPORT_MANIFEST).read_text())
    assert listed["base"] == str(base.export)
    names = {file["name"] for file in listed["files"]}
    assert {
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
    } < names
    assert "model.safetensors" not in names


def test_adapters_of_random_weights_are_exported_with_them(tmp_path: Path) -> None:
    done = finish(tmp_path, by_program=True, train__method="lora", train__max_steps=4)
    assert "adapters on random weights learn little" in done.said
    listed = json.loads((done.run / EXPORT_MANIFEST).read_text())
    there = {
        path.relative_to(done.export).as_posix(): path for path in done.export.rglob("*") if path.is_file()
    }
    del there[Path(EXPORT_MANIFEST).name]
    assert {file["name"]: file["sha256"] for file in listed["files"]} == {
        name: hash_file(path) for name, path in there.items()
    }
    assert {"base/config.json", "base/model.safetensors"} < there.keys()
    assert json.loads(there["adapter_config.json"].read_text())["base_model_name_or_path"] == "base"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(done.export / "base"), done.export)


# --- not installed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "package"), [("lora", "peft"), ("lora-8bit", "bitsandbytes"), ("qlora", "bitsandbytes")]
)
def test_a_missing_package_is_said_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say that there is no such module
    with pytest.raises(NotReady, match=f"{kind} needs {package}") as caught:
        preload(config_of(kind))
    assert caught.value.hint == "pip install 'vlaunch[train]'"
