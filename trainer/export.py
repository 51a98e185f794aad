"""The trained model in Hugging Face layout: what `from_pretrained` loads, complete or not there at all."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from trainer.artifacts.layout import EXPORT_MANIFEST, export_key
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.store import Store
from trainer.conversation import ChatTemplate, Turn
from trainer.parallel import Sharded, World

# Progress bars are for terminals; this is a log.
transformers_logging.disable_progress_bar()


def export(
    sharded: Sharded, tokeniser: PreTrainedTokenizerFast, directory: Path, world: World, dtype: torch.dtype
) -> None:
    """Write the whole model to `directory` on the first process; a collective.

    Costs one full copy, in `dtype`, in the first process's host memory.
    """
    state = sharded.gathered(dtype)
    if not world.leads:
        return
    shutil.rmtree(directory, ignore_errors=True)
    shape = copy.deepcopy(sharded.model.config)
    shape.use_cache = True
    with torch.device("meta"):  # a model of this type, since what is saved says that it has its model's
        shell = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    shell.generation_config = GenerationConfig(
        bos_token_id=shape.bos_token_id,
        eos_token_id=shape.eos_token_id,
        pad_token_id=shape.pad_token_id,
    )
    shell.save_pretrained(directory, state_dict=state)
    tokeniser.save_pretrained(directory)


def publish(store: Store, directory: Path, facts: dict[str, Any]) -> int:
    """Put the files under export/, their manifest last. Returns the bytes.

    Putting the same file twice is harmless: every attempt that gets here exports the same weights.
    """
    files: list[dict[str, Any]] = []
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        store.put_file(export_key(path.name), path)
        files.append({"name": path.name, "sha256": hash_file(path), "size": path.stat().st_size})
    listing = json.dumps({"version": 1, "files": files, **facts}, indent=1, sort_keys=True)
    store.put(EXPORT_MANIFEST, listing.encode())
    return sum(int(file["size"]) for file in files)


def answer(directory: Path, template: ChatTemplate, prompt: str, max_new_tokens: int) -> str:
    """One greedy reply of the exported model, loaded as any user would load it."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    tokeniser = AutoTokenizer.from_pretrained(directory)
    text = template.prompt((Turn("user", prompt),))
    tokens = tokeniser(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**tokens, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokeniser.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
