"""What is served is what was exported: a run, a folder, an adapter with its base; in fewer bits where asked for."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from serving.engine import Refused, Sampling
from serving.engines import EngineOptions, open_engine
from serving.engines.hf import HfEngine
from serving.engines.loading import ModelOptions, load
from serving.engines.source import locate
from tests.serving.engines.tiny import (
    collect,
    continued,
    load_reference,
    prompts,
    with_engine,
    write_adapter,
    write_llama,
)
from trainer.artifacts.store import open_store
from trainer.conversation import Turn, get_template
from trainer.errors import ConfigError, CorruptObject, NotReady
from trainer.export import publish
from trainer.tokenize import carry_template

GREEDY = Sampling(temperature=0.0, max_tokens=12, logprobs=0)
ASKED = prompts(8, 300, longest=40)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


def greedily(folder: Path | str, **options: Any) -> list[list[bytes]]:
    async def work(engine: HfEngine) -> list[list[bytes]]:
        return [
            made.said for made in await asyncio.gather(*(collect(engine, prompt, GREEDY) for prompt in ASKED))
        ]

    return with_engine(Path(folder) if "://" not in str(folder) else folder, work, **options)  # type: ignore[arg-type]


def by_generate(model: Any, tokeniser: PreTrainedTokenizerFast) -> list[list[bytes]]:
    from serving.engines.text import Vocabulary

    vocabulary = Vocabulary(tokeniser.backend_tokenizer)
    return [[vocabulary.bytes(token) for token in continued(model, prompt, 12)] for prompt in ASKED]


def published(folder: Path, run: Path) -> str:
    """A run with this export, as the trainer leaves it; its URI."""
    publish(open_store(str(run)), folder, {"template": "vicuna_v1.1"})
    return run.as_uri()


def test_a_run_is_served_from_its_store_and_fetched_once(llama: Path, tmp_path: Path) -> None:
    uri = published(llama, tmp_path / "runs/first")
    assert greedily(uri, cache=tmp_path / "cache") == by_generate(*load_reference(llama))
    (fetched,) = (tmp_path / "cache").iterdir()
    shutil.rmtree(tmp_path / "runs/first/export")
    with pytest.raises(NotReady, match="no exported model"):
        locate(uri, tmp_path / "cache")
    assert (fetched / "model.safetensors").is_file()
    assert (
        locate(str(llama), tmp_path).template is None
        and locate(str(fetched), tmp_path).template == "vicuna_v1.1"
    )


def test_a_damaged_export_is_not_served(llama: Path, tmp_path: Path) -> None:
    uri = published(llama, tmp_path / "run")
    with (tmp_path / "run/export/config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(CorruptObject, match="config.json"):
        locate(uri, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_exported_adapter_is_served_on_the_base_beside_it(llama: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", llama, seed=3)
    shutil.copytree(llama, folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama / name, folder / name)
    model, tokeniser = load_reference(llama)
    assert greedily(folder) == by_generate(PeftModel.from_pretrained(model, folder), tokeniser)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_weights_in_fewer_bits_answer_as_transformers_does_with_them(llama: Path, bits: Any) -> None:
    """Alone: LLM.int8() looks at all rows of a batch for outliers, so there company may show in the last digits."""
    said = {"8bit": BitsAndBytesConfig(load_in_8bit=True)}.get(bits) or BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=said, dtype=torch.float32)
    expected = continued(model, ASKED[1], 8)

    async def work(engine: HfEngine) -> list[bytes]:
        return (await collect(engine, ASKED[1], Sampling(temperature=0, max_tokens=8, logprobs=0))).said

    from serving.engines.text import Vocabulary

    vocabulary = Vocabulary(load_reference(llama)[1].backend_tokenizer)
    assert with_engine(llama, work, load_in=bits) == [vocabulary.bytes(token) for token in expected]


def test_bfloat16_is_served_as_stored(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(llama).bfloat16().save_pretrained(tmp_path / "half")
    loaded = load(ModelOptions(str(tmp_path / "half")))
    assert loaded.model.dtype == torch.bfloat16
    made = greedily(tmp_path / "half")
    assert all(made)


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_other_families_are_served_as_generate_serves_them(llama: Path, tmp_path: Path, family: str) -> None:
    """Learnt positions, and a window that is shorter than the prompts."""
    tokeniser = load_reference(llama)[1]
    torch.manual_seed(1)
    shape = {"vocab_size": len(tokeniser), "initializer_range": 0.3, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        shape |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    else:
        shape |= {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        shape |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "sliding_window": 8}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    model.save_pretrained(tmp_path)
    tokeniser.save_pretrained(tmp_path)
    assert greedily(tmp_path) == by_generate(model.eval(), tokeniser)


def test_a_model_that_attends_otherwise_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    tokeniser = load_reference(llama)[1]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": len(tokeniser), "num_key_value_heads": 1, "head_dim": 16}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **shape)).save_pretrained(tmp_path)
    tokeniser.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot serve Gemma2ForCausalLM"):
        greedily(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "no LoRA adapter"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "replaces whole layers"),
        ({"peft_type": "LORA"}, "no adapter_model.safetensors"),
        (None, "no readable adapter_config.json"),
    ],
)
def test_adapters_that_cannot_be_shared_are_refused(
    llama: Path, tmp_path: Path, config: Any, said: str
) -> None:
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=said):
        greedily(llama, adapters={"other": tmp_path})


@pytest.mark.parametrize(
    ("model", "said"), [("/no/such/folder", "no model folder"), ("EMPTY", "holds no model")]
)
def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path, model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        locate(str(tmp_path) if model == "EMPTY" else model, tmp_path)


def test_a_dialogue_has_the_tokens_of_training_and_spelled_special_tokens_stay_text(llama: Path) -> None:
    tokeniser = load_reference(llama)[1]
    template = get_template("vicuna_v1.1")
    said = "What does </s> do, <s>?"

    async def work(engine: HfEngine) -> None:
        plain = engine.encode_chat([{"role": "user", "content": "Hello"}])
        assert plain == tokeniser(template.prompt((Turn("user", "Hello"),)))["input_ids"]
        ids = engine.encode_chat(
            [
                {"role": "user", "content": said},
                {"role": "assistant", "content": "It ends."},
                {"role": "user", "content": "And then?"},
            ]
        )
        assert ids.count(1) == 1 and ids.count(2) == 1  # the text's begin, and the end of the first answer
        assert said in tokeniser.decode(ids)
        assert 2 not in engine.encode("</s>") and 2 in engine.encode("</s>", special=True)
        assert engine.encode("a")[0] == tokeniser.bos_token_id
        with pytest.raises(Refused, match="the turns must be"):
            engine.encode_chat([{"role": "</s>", "content": "Hello"}])
        with pytest.raises(Refused, match="the turns must be"):
            engine.encode_chat([{"role": "assistant", "content": "Hello"}])
        with pytest.raises(Refused, match="tools"):
            engine.encode_chat([{"role": "user", "content": "Hello"}], tools=[{"type": "function"}])

    with_engine(llama, work)


def test_a_model_without_a_template_takes_one_by_name_or_refuses_dialogues(
    llama: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()

    async def refused(engine: HfEngine) -> None:
        with pytest.raises(Refused, match="no chat template"):
            engine.encode_chat([{"role": "user", "content": "Hello"}])

    async def taken(engine: HfEngine) -> str:
        return load_reference(llama)[1].decode(engine.encode_chat([{"role": "user", "content": "Hello"}]))

    with_engine(bare, refused)
    assert "### Instruction:\nHello" in with_engine(bare, taken, template="alpaca")


def test_a_run_is_served_in_the_template_it_was_trained_with_unless_its_operator_names_another(
    llama: Path, tmp_path: Path
) -> None:
    trained = shutil.copytree(llama, tmp_path / "trained")
    tokeniser = load_reference(trained)[1]
    carry_template(tokeniser, get_template("alpaca"), 512)
    tokeniser.save_pretrained(trained)
    run = tmp_path / "runs/first"
    publish(open_store(run.as_uri()), trained, {"template": "alpaca"})

    def asked(template: str | None) -> str:
        async def work() -> str:
            options = EngineOptions(str(run), "first", device="cpu", template=template)
            engine = await open_engine("hf", options)
            try:
                return tokeniser.decode(engine.encode_chat([{"role": "user", "content": "Hello"}]))
            finally:
                await engine.close()

        return asyncio.run(work())

    assert "### Instruction:\nHello" in asked(None)
    assert "USER: Hello ASSISTANT:" in asked("vicuna_v1.1")
