"""The trained model in Hugging Face layout: what `from_pretrained` loads, complete or not there at all.

All weights become a model folder. Adapters become a PEFT folder; a base that nobody else has lies beside them.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from trainer import adapters
from trainer.artifacts.layout import EXPORT_MANIFEST, export_key
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.store import Store
from trainer.conversation import ChatTemplate, Turn
from trainer.parallel import Sharded, World

# Progress bars are for terminals; this is a log.
transformers_logging.disable_progress_bar()


# The folder of a base that is exported with its adapters.
BASE = "base"


@dataclass(frozen=True, slots=True)
class Base:
    """What adapters were put on."""

    folder: Path
    name: str
    """What adapter_config.json calls it: a Hugging Face id, or a folder."""
    revision: str | None
    """The commit, for a Hugging Face id."""
    beside: bool
    """Nobody else has it: it is exported too."""


def export(
    sharded: Sharded,
    tokeniser: PreTrainedTokenizerFast,
    directory: Path,
    world: World,
    dtype: torch.dtype,
    base: Base | None = None,
) -> None:
    """Write what was trained to `directory` on the first process: the whole model, or adapters of `base`; a collective.

    Costs one full copy of the trained weights, in `dtype`, in the first process's host memory.
    """
    trained = sharded.gathered(dtype)
    if not world.leads:
        return
    shutil.rmtree(directory, ignore_errors=True)
    if base is None:
        _save_model(sharded.model, trained, directory)
    else:
        adapters.save(sharded.model, trained, directory, base.name, base.revision)
        _generation(sharded.model.config).save_pretrained(directory)
        if base.beside:
            shutil.copytree(base.folder, directory / BASE)
    tokeniser.save_pretrained(directory)


def _save_model(model: PreTrainedModel, state: dict[str, Tensor], directory: Path) -> None:
    shape = copy.deepcopy(model.config)
    shape.use_cache = True
    with torch.device("meta"):  # a model of this type, since what is saved says that it has its model's
        shell = AutoModelForCausalLM.from_config(shape, dtype=next(iter(state.values())).dtype)
    shell.generation_config = _generation(shape)
    shell.save_pretrained(directory, state_dict=state)


def _generation(shape: PreTrainedConfig) -> GenerationConfig:
    """Where a reply begins and ends, by the tokeniser that was trained with."""
    return GenerationConfig(
        bos_token_id=shape.bos_token_id, eos_token_id=shape.eos_token_id, pad_token_id=shape.pad_token_id
    )


def publish(store: Store, directory: Path, facts: dict[str, Any]) -> int:
    """Put the files under export/, their manifest last. Returns the bytes.

    Putting the same file twice is harmless: every attempt that gets here exports the same weights.
    """
    files: list[dict[str, Any]] = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        store.put_file(export_key(name), path)
        files.append({"name": name, "sha256": hash_file(path), "size": path.stat().st_size})
    listing = json.dumps({"version": 1, "files": files, **facts}, indent=1, sort_keys=True)
    store.put(EXPORT_MANIFEST, listing.encode())
    return sum(int(file["size"]) for file in files)


def answer(
    directory: Path, template: ChatTemplate, prompt: str, max_new_tokens: int, base: Path | None = None
) -> str:
    """One greedy reply of what was exported, loaded as any user would load it: a model, or adapters of `base`."""
    model: Any = AutoModelForCausalLM.from_pretrained(base or directory)
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, directory, torch_device="cpu")
        model.generation_config = GenerationConfig.from_pretrained(directory)
    tokeniser = AutoTokenizer.from_pretrained(directory)
    text = template.prompt((Turn("user", prompt),))
    tokens = tokeniser(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**tokens, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokeniser.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
