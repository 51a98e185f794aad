"""A line of another program becomes this program's own: options given to vlaunch win over it.

`vlaunch train OPTIONS -- torchrun ...`: line.py says what the line means, this module fits that to the
options and the machine, and shows the one vlaunch command that means the same, to be copied.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from launcher.command import Option
from launcher.foreign.flags import Setting
from launcher.foreign.line import Line, translate
from launcher.output import say
from launcher.request import recipe_of
from launcher.train_options import Asked
from launcher.values import Gpus, KeyValue
from trainer.config import TrainConfig, override, resolve_key
from trainer.zero_config import read_zero_config

# Options that are fields of the configuration.
_FIELDS = {
    "max_steps": ("train.max_steps",),
    "epochs": ("train.num_train_epochs", "train.max_steps"),
    "max_length": ("data.max_length",),
    "load_8bit": ("lora.load_8bit",),
    "auto_batch": ("train.auto_batch",),
    "strategy": ("parallel.strategy",),
}


def asked_for(ctx: click.Context, given: Mapping[str, Any]) -> Asked:
    """The options, with the line after `--` taken over where there is one; says what became of it."""
    asked = Asked(**given)
    if not asked.line:
        return asked
    said = _said(ctx, asked)
    line = translate(asked.line, said)
    merged, notes = merge(asked, line, said, visible_gpus)
    for note in (*line.notes, *notes):
        say(f"note: {note}")
    say("the same in vlaunch's own words:")
    say(shell_text(f"vlaunch {ctx.info_name}", own_words(ctx, merged)))
    return merged


def merge(
    asked: Asked, line: Line, said: Collection[str], gpus_here: Callable[[], int]
) -> tuple[Asked, list[str]]:
    """The options with the line's where they say nothing, and notes. `gpus_here`: GPUs of this machine."""
    strategy = _strategy(asked)
    if strategy == "deepspeed" or "deepspeed" in said:
        said = {*said, "parallel.offload"}  # the line's is of its --fsdp
    fresh: dict[str, Any] = {
        "model": None if "size" in said else line.model,
        "data": line.data,
        "eval_data": line.eval_data,
        "method": line.method,
        "name": line.name,
        "num_nodes": line.nodes,
        "deepspeed": None if strategy == "fsdp" else line.deepspeed,
    }
    merged = replace(
        asked, line=(), **{name: value for name, value in fresh.items() if name not in said and value}
    )
    notes = [f"{name} gives way to vlaunch's own" for name in _overruled(line, merged, said)]
    merged, machine = _on_machine(merged, line, gpus_here)
    rows = Setting("train.global_batch_size", str(line.rows * machine * line.nodes), "")
    notes.append(
        f"{rows.key} is vlaunch's own"
        if rows.key in said
        else f"a global batch of {rows.value} rows: {line.rows} x {machine} processes x {line.nodes} machines"
    )
    settings = [*line.settings, rows]
    if line.processes is not None and merged.gpus is None:
        settings.append(Setting("parallel.processes", str(machine), "--nproc_per_node"))
    kept = _needed(settings, merged, said)
    return replace(merged, set_fields=(*kept, *asked.set_fields)), notes


def own_words(ctx: click.Context, asked: Asked) -> list[list[str]]:
    """The options that say what was asked, each with its value, without those that are at their default."""
    words: list[list[str]] = []
    names = {field.name for field in fields(Asked)}
    for param in ctx.command.params:
        if not isinstance(param, Option) or param.name not in names:
            continue
        default = param.default() if callable(param.default) else param.default
        value = getattr(asked, str(param.name))
        if value == param.type_cast_value(ctx, default):
            continue
        if isinstance(value, bool):
            words.append([(param.opts if value else param.secondary_opts)[0]])
        else:
            each = value if param.multiple else [value]
            words += [[max(param.opts, key=len), str(item)] for item in each]
    return words


def shell_text(command: str, words: Sequence[Sequence[str]]) -> str:
    """A command over several lines, as a shell reads it."""
    return " \\\n".join([f"  {command}", *(f"    {shlex.join(option)}" for option in words)])


def visible_gpus() -> int:
    """GPUs that a program started here would see; 0 without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(text.startswith("GPU ") for text in listed.stdout.splitlines())


def _said(ctx: click.Context, asked: Asked) -> set[str]:
    """Options and fields that vlaunch was told, by whatever way an option has."""
    options = {
        str(param.name)
        for param in ctx.command.params
        if ctx.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT
    }
    said = options | {resolve_key(field.key)[0] for field in asked.set_fields}
    return said.union(*(keys for name, keys in _FIELDS.items() if name in options))


def _strategy(asked: Asked) -> str | None:
    """The one that vlaunch was told."""
    told = [field.value for field in asked.set_fields if resolve_key(field.key)[0] == "parallel.strategy"]
    return asked.strategy or (told[-1] if told else None)


def _overruled(line: Line, merged: Asked, said: Collection[str]) -> list[str]:
    """Flags of the line that vlaunch's own options stand in for."""
    facts = {
        "--model_name_or_path": (line.model, merged.model),
        "--data_path": (line.data, merged.data),
        "--eval_data_path": (line.eval_data, merged.eval_data),
        "--deepspeed": (line.deepspeed, merged.deepspeed),
        "--output_dir": (line.name, merged.name),
    }
    flags = [flag for flag, (theirs, used) in facts.items() if theirs and theirs != used]
    return flags + [setting.flag for setting in line.settings if setting.flag and setting.key in said]


def _on_machine(asked: Asked, line: Line, gpus_here: Callable[[], int]) -> tuple[Asked, int]:
    """Processes on one machine; on a cloud they are GPUs, of the recipe's kind where no other is given."""
    if asked.infra[0].cloud == "local":
        return asked, line.processes or gpus_here() or 1
    card = asked.gpus or (Gpus.parse(found) if (found := recipe_of(asked).accelerator) else None)
    if card is None:
        return asked, line.processes or 1
    if asked.gpus is None and line.processes is not None:
        asked = replace(asked, gpus=Gpus(card.name, line.processes))
    return asked, line.processes or card.number


def _needed(settings: Sequence[Setting], asked: Asked, said: Collection[str]) -> list[KeyValue]:
    """The settings that neither the recipe has already nor vlaunch itself was told."""
    base: TrainConfig = recipe_of(asked).config
    from_file: set[str] = set()
    if asked.deepspeed is not None:
        zero = read_zero_config(Path(asked.deepspeed)).settings()
        base, _ = override(base, zero)
        from_file = {key for key, _ in zero}
    needed = []
    for key, value, flag in settings:
        # What the DeepSpeed file says is worth more than what the line leaves out.
        if key in said or (not flag and key in from_file):
            continue
        if _field(override(TrainConfig(), [(key, value)])[0], key) != _field(base, key):
            needed.append(KeyValue(key, value))
    return needed


def _field(config: TrainConfig, key: str) -> object:
    section, leaf = key.split(".")
    return getattr(getattr(config, section), leaf)
