"""Requests for the planner's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.planning.catalog import Catalog
from launcher.planning.plan import Plan, TrainRequest, make_plan
from launcher.values import Gpus, Infra
from trainer.config import Method, override
from trainer.recipes import get_recipe

PRICES = Path(__file__).parent / "catalog"
CLOUDS = (Infra("aws"), Infra("gcp"))


def request(
    size: str = "13", method: Method = "full", *settings: str, gpus: str | None = None, **fields: Any
) -> TrainRequest:
    """`settings` are key=value, as with --set."""
    recipe = get_recipe(size, method)
    pairs = [(text.partition("=")[0], text.partition("=")[2]) for text in settings]
    config, _ = override(recipe.config, pairs)
    asked = {"store": "s3://bucket/runs", "infra": CLOUDS, "named": tuple(key for key, _ in pairs), **fields}
    return TrainRequest("a-run", recipe, config, gpus=Gpus.parse(gpus) if gpus else None, **asked)


def plan(*args: Any, prices: str = "v8", **fields: Any) -> Plan:
    return make_plan(request(*args, **fields), Catalog(PRICES / prices))
