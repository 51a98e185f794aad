"""A DeepSpeed JSON configuration in our words: every key is honoured, translated, or refused by name.

People who come from FastChat or transformers have such a file (`--deepspeed FILE`). The trainer makes its own
DeepSpeed configuration from `parallel.*`; what the file says besides goes into `parallel.deepspeed`, under it.
"auto" means what it means to transformers: the value of the training argument, here of the field. A number that
the file repeats must be the number that the run has: transformers refuses such a file too. The rule of each key
is in zero_keys.py. Light: the laptop reads the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import Offload, TrainConfig
from trainer.errors import ConfigError, UsageError
from trainer.zero_keys import ACCUMULATION, FROM_HIDDEN_SIZE, PER_DEVICE, TOP, Expected, Reading


@dataclass(frozen=True, slots=True)
class ZeroConfig:
    """What a file means."""

    source: str
    """The file, for messages."""
    stage: Literal[2, 3]
    offload: Offload
    bf16: bool | None
    """None where the file leaves it to the run."""
    schedule: Literal["constant", "linear"] | None
    """The train.lr_scheduler_type that a `scheduler` block amounts to."""
    extra: dict[str, Any]
    """DeepSpeed keys to be merged under the trainer's own, block by block; see `fill_auto`."""
    expected: tuple[Expected, ...]
    notes: tuple[str, ...]

    def settings(self) -> list[tuple[str, str]]:
        """As `key=value` pairs for trainer.config.override."""
        settings = [
            ("parallel.strategy", "deepspeed"),
            ("parallel.zero_stage", str(self.stage)),
            ("parallel.offload", json.dumps(self.offload)),
            ("parallel.deepspeed", json.dumps(self.extra)),
        ]
        if self.bf16 is not None:
            settings.append(("train.bf16", json.dumps(self.bf16)))
        if self.schedule is not None:
            settings.append(("train.lr_scheduler_type", self.schedule))
        return settings

    def check(self, config: TrainConfig, processes: int | None) -> list[str]:
        """Compare what the file repeats with the run it is used for. `processes`: of all nodes, if known.

        Returns notes.

        Raises:
            ConfigError: all values that differ, each with both sides.
        """
        notes: list[str] = []
        wrong: list[str] = []
        for key, value, field in self.expected:
            if config.train.auto_batch and key in PER_DEVICE:
                continue  # found on the machine
            if field == ACCUMULATION:
                _check_accumulation(int(value), config, processes, notes, wrong)
                continue
            section, leaf = field.split(".")
            ours = getattr(getattr(config, section), leaf)
            if not _same(value, ours):
                wrong.append(f"{key} is {_shown(value)}, {field} is {_shown(ours)}")
        if wrong:
            raise ConfigError(
                f"{self.source} does not fit the rest: {'; '.join(wrong)}",
                hint='write "auto" in the file, or --set the field to the same value',
            )
        return notes


def read_zero_config(path: Path) -> ZeroConfig:
    """What a DeepSpeed JSON file means.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is no JSON object; or all keys and values that cannot be honoured, by name.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the DeepSpeed configuration {path}: {getattr(error, 'strerror', None) or error}",
            hint="--deepspeed names a JSON file",
        ) from None
    twice: list[str] = []
    try:
        raw = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, twice))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict) or twice:
        what = f"says {', '.join(twice)} twice" if twice else f"is a {type(raw).__name__}, not an object"
        hint = 'a DeepSpeed configuration is {"zero_optimization": {"stage": 2}, ...}'
        raise ConfigError(f"{path} {what}", hint=hint)
    return parse_zero_config(raw, str(path))


def parse_zero_config(raw: Mapping[str, Any], source: str) -> ZeroConfig:
    """The same of an object that has been read; `source` is its name in messages."""
    reading = Reading()
    reading.block("", raw, TOP)
    if "zero_optimization" not in raw:
        reading.refuse("zero_optimization", "it is missing: vlaunch shards with its stages 2 and 3")
    offload = reading.offload()
    if reading.problems:
        raise ConfigError(
            "\n  ".join([f"{source} has what vlaunch cannot do as it is said:", *reading.problems]),
            hint="change or take out each of them; docs/recipes.md lists the fields of a run",
        )
    if "gradient_clipping" not in raw:
        reading.note("gradient_clipping is not in it: gradients are clipped at train.max_grad_norm")
    return ZeroConfig(
        source=source,
        stage=3 if reading.stage == 3 else 2,
        offload=offload,
        bf16=reading.bf16,
        schedule=reading.schedule,
        extra=reading.extra,
        expected=tuple(reading.expected),
        notes=tuple(f"{source}: {note}" for note in reading.notes),
    )


def fill_auto(extra: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    """`parallel.deepspeed` with the "auto" values that depend on the model, as transformers fills them."""
    filled: dict[str, Any] = json.loads(json.dumps(extra))
    zero = filled.get("zero_optimization", {})
    for key, size in FROM_HIDDEN_SIZE.items():
        if zero.get(key) == "auto":
            zero[key] = size(hidden_size)
    return filled


def _check_accumulation(
    steps: int, config: TrainConfig, processes: int | None, notes: list[str], wrong: list[str]
) -> None:
    """Accumulation follows from the global batch here, so it fits one number of processes only."""
    micro, whole = config.train.per_device_train_batch_size, config.train.global_batch_size
    fits, rest = divmod(whole, micro * steps)
    if rest or not fits or processes not in (None, fits):
        many = f"{processes} processes" if processes else "any number of processes"
        wrong.append(
            f"{ACCUMULATION} is {steps}, which with rows of {micro} on {many} is no global batch of {whole}"
        )
    elif processes is None:
        notes.append(f"{ACCUMULATION} {steps} of the DeepSpeed file holds on {fits} processes")


def _once(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    """An object whose keys are all different; json would silently take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice += sorted({name for name in names if names.count(name) > 1})
    return found


def _same(value: float | bool | str, ours: object) -> bool:
    if isinstance(value, bool | str) or isinstance(ours, bool | str):
        return value == ours
    return isinstance(ours, int | float) and math.isclose(value, ours, rel_tol=1e-12)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
