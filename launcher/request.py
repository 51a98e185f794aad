"""The command line of `train` and `plan` becomes a request.

A recipe first; over it a DeepSpeed file, then --set, then the options that name a field.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.launch import Launch, MarketSettings
from launcher.planning.plan import Plan, TrainRequest
from launcher.spot.trace import load_trace
from launcher.train_options import Asked
from launcher.values import Gpus
from trainer.config import Method, TrainConfig, override, parse_config, resolve_key
from trainer.conversation import get_template
from trainer.methods import refuse_impossible
from trainer.recipes import Recipe, get_recipe
from trainer.zero_config import read_zero_config


def make_request(asked: Asked) -> tuple[TrainRequest, list[str]]:
    """The request, and notes about old spellings.

    Raises:
        ConfigError: an unknown size or field, or an impossible value, with the nearest name.
        UsageError: options that contradict each other.
    """
    recipe = recipe_of(asked)
    zero = read_zero_config(Path(asked.deepspeed)) if asked.deepspeed is not None else None
    config, notes = override(recipe.config, [*(zero.settings() if zero else []), *_settings(asked)])
    if zero is not None:
        if config.parallel.strategy != "deepspeed":
            raise UsageError(
                "--deepspeed FILE is for the deepspeed strategy, not fsdp",
                hint="leave --strategy out, or the file",
            )
        notes += [*zero.notes, *zero.check(config, _processes(asked, recipe, config))]
    refuse_impossible(config)
    get_template(config.data.template)  # a name that does not exist is refused before anything starts
    traces = [load_trace(Path(path)) for path in asked.spot_trace]
    return (
        TrainRequest(
            name=asked.name or _fresh_name(config),
            recipe=recipe,
            config=config,
            store=asked.store,
            infra=asked.infra,
            spot=asked.spot,
            gpus=asked.gpus,
            num_nodes=asked.num_nodes,
            zones=tuple((trace.zone, trace.region) for trace in traces),
            cores=os.cpu_count() or 1,
            base_shape=_local_shape(config),
            named=_named_fields(asked),
            max_cost_usd=asked.max_cost,
            deadline_s=float(asked.deadline) if asked.deadline is not None else None,
        ),
        notes,
    )


def make_launch(asked: Asked, plan: Plan) -> Launch:
    """What the cloud is told."""
    every = asked.preempt_every
    return Launch(
        cloud="local" if plan.notional else "sky",
        candidates=plan.candidates,
        market=MarketSettings(
            preempt_every_s=float(every.every) if every else None,
            jitter_s=float(every.jitter) if every else 0.0,
            traces=tuple(str(Path(path).resolve()) for path in asked.spot_trace),
            time_scale=asked.time_scale,
        ),
        notice_s=float(asked.notice),
        max_cost_usd=asked.max_cost,
        deadline_s=float(asked.deadline) if asked.deadline is not None else None,
    )


def recipe_of(asked: Asked) -> Recipe:
    """The starting point that was asked for, before any field is set.

    Raises:
        ConfigError: an unknown size, with the nearest one.
        UsageError: options that contradict each other.
    """
    if asked.size and asked.model:
        raise UsageError("--size and --model both name a model", hint="--model takes a base of any size")
    if (asked.preempt_every or asked.spot_trace) and not asked.spot:
        raise UsageError("on-demand machines are not taken away", hint="add --spot, or drop the spot market")
    if asked.preempt_every and asked.spot_trace:
        raise UsageError(
            "--preempt-every and --spot-trace are two different markets", hint="give one of them"
        )
    method: Method = asked.method  # type: ignore[assignment]  # click.Choice has checked it
    if {infra.cloud for infra in asked.infra} > {"local"}:
        raise UsageError(
            "this machine and a cloud cannot share one run", hint="give --infra local or clouds, not both"
        )
    if asked.infra[0].cloud == "local" and (asked.gpus or asked.num_nodes > 1):
        raise UsageError(
            "this machine has the GPUs it has, and is one",
            hint="--gpus and --num-nodes are for clouds: --infra aws",
        )
    if asked.model is None:
        return get_recipe(asked.size or "tiny", method)
    base = get_recipe("7", method)
    tree = base.config.model_dump(mode="json")
    tree["model"] = {"base": asked.model}
    tree["recipe"] = f"{Path(asked.model).name}-{method}"
    return Recipe(parse_config(tree), base.accelerator, f"the 7B recipe on {asked.model}")


def _processes(asked: Asked, recipe: Recipe, config: TrainConfig) -> int | None:
    """Of all machines together, where that is known before they are there."""
    if config.parallel.processes is not None:
        return config.parallel.processes * asked.num_nodes
    if asked.infra[0].cloud == "local":
        return None
    gpus = asked.gpus or (Gpus.parse(recipe.accelerator) if recipe.accelerator else None)
    return gpus.number * asked.num_nodes if gpus else None


def _settings(asked: Asked) -> list[tuple[str, str]]:
    """--set first, so that an option of its own wins over it where both are given."""
    settings = [(field.key, field.value) for field in asked.set_fields]
    named = {
        "train.max_steps": asked.max_steps,
        "train.num_train_epochs": asked.epochs,
        "data.max_length": asked.max_length,
        "train.auto_batch": "true" if asked.auto_batch else None,
        "parallel.strategy": asked.strategy,
        "lora.load_8bit": "true" if asked.load_8bit else None,
    }
    settings += [(key, str(value)) for key, value in named.items() if value is not None]
    if asked.epochs is not None and asked.max_steps is None:
        settings.append(("train.max_steps", "-1"))
    if asked.preempt_every and not any(field.key.endswith("mtbf_s") for field in asked.set_fields):
        settings.append(("checkpoint.mtbf_s", str(float(asked.preempt_every.every))))
    return settings


def _named_fields(asked: Asked) -> tuple[str, ...]:
    """Fields of the configuration that were set by name, dotted."""
    return tuple(dict.fromkeys(resolve_key(key)[0] for key, _ in _settings(asked)))


def _fresh_name(config: TrainConfig) -> str:
    """Like tiny-1120-230501: recipe, day and second, so that names sort by time."""
    recipe = re.sub(r"[^a-z0-9]+", "-", config.recipe.lower())[:20].strip("-")
    return f"{recipe or 'run'}-{time.strftime('%m%d-%H%M%S')}"


def _local_shape(config: TrainConfig) -> dict[str, Any] | None:
    """What a base model in a folder says of itself."""
    if config.model.base is None or not Path(config.model.base).is_dir():
        return None
    path = Path(config.model.base) / "config.json"
    try:
        shape: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", hint="a base model is a Hugging Face folder"
        ) from None
    return shape
