"""Prints docs/recipes.md from the configuration itself, so that the page cannot disagree with the program.

    .venv/bin/python docs/recipes.py > docs/recipes.md

`make docs` fails while the committed page is another one.
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from trainer.config import DERIVED, OLD_NAMES, Method, Section, TrainConfig, field_paths
from trainer.recipes import RECIPES, get_recipe

HEAD = """\
# Recipes and configuration

<!-- made by docs/recipes.py: change trainer/config.py or trainer/recipes.py, then run it again -->

A recipe is a function that returns a configuration: one frozen tree of sections. It is written once to
`config.json` of a run, and every attempt reads it from there.

- `--size` and `--method` choose the recipe. `--model` takes the numbers of size 7 and another base model.
- `--set key=value` sets any field, for example `--set train.learning_rate=1e-5`. The section may be left out
  where only one section has the field: `--set learning_rate=1e-5`. Values are read as JSON, then as text.
- `--max-steps`, `--epochs`, `--max-length`, `--strategy` and `--load-8bit` set the field of that meaning. They
  win over `--set`. `--epochs` without `--max-steps` also sets `train.max_steps=-1`. `--preempt-every` sets
  `checkpoint.mtbf_s`, unless `--set` does.
- An unknown key is refused with the nearest known one.
- A run keeps its configuration. The same `--name` with another configuration is refused with the difference.
- This version trains `--method full` with `--strategy fsdp`. The other recipes can be planned, not trained yet.
"""
_BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


def page() -> str:
    """The whole page."""
    tables = [f"### {name}\n\n{_fields(name, section)}" for name, section in _sections().items()]
    return "\n".join([HEAD, _recipes(), "## Fields\n", *tables, _old_names()])


def _sections() -> dict[str, type[Section]]:
    annotations = {name: info.annotation for name, info in TrainConfig.model_fields.items()}
    return {name: a for name, a in annotations.items() if isinstance(a, type) and issubclass(a, Section)}


def _fields(name: str, section: type[Section]) -> str:
    described = field_paths()
    rows = [
        (f"`{name}.{leaf}`", _shown(info.default), _allowed(info), described[f"{name}.{leaf}"])
        for leaf, info in section.model_fields.items()
    ]
    return _table(("field", "default", "allowed", "meaning, unit, reason of the default"), rows)


def _recipes() -> str:
    """One column per recipe, one row per field that a recipe changes."""
    made = {f"{size}, {method}": get_recipe(size, method) for size in RECIPES for method in get_args(Method)}
    made = {name: recipe for name, recipe in made.items() if not name.startswith("tiny") or "full" in name}
    flat = {name: _flat(recipe.config.model_dump(mode="json")) for name, recipe in made.items()}
    plain = _flat(TrainConfig().model_dump(mode="json"))
    keys = [key for key in plain if key != "recipe" and any(one[key] != plain[key] for one in flat.values())]
    rows = [(f"`{key}`", *(_shown(one[key]) for one in flat.values())) for key in keys]
    rows.insert(0, ("machine", *(recipe.accelerator or "CPU" for recipe in made.values())))
    sources = [f"- {name}: {recipe.source}." for name, recipe in made.items()]
    return "\n".join(
        ["## The recipes\n", _table(("", *made), rows), "Where the numbers come from:\n", *sources, ""]
    )


def _old_names() -> str:
    rows = [(f"`{old}`", f"`{new}`") for old, new in OLD_NAMES.items()]
    derived = [f"`{name}` cannot be set: {why}." for name, why in DERIVED.items()]
    text = "Older spellings are accepted with a note:\n"
    return "\n".join(["## Old names\n", text, _table(("written", "means"), rows), *derived]) + "\n"


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    sections = {name: value for name, value in tree.items() if isinstance(value, dict)}
    return {f"{name}.{leaf}": value for name, section in sections.items() for leaf, value in section.items()}


def _allowed(info: FieldInfo) -> str:
    annotations = (info.annotation, *get_args(info.annotation))
    choices = [choice for a in annotations if get_origin(a) is Literal for choice in get_args(a)]
    if len(choices) > 1:
        return ", ".join(f"`{choice}`" for choice in choices)
    found = [(word, getattr(rule, name, None)) for rule in info.metadata for name, word in _BOUNDS.items()]
    return " ".join(f"{word} {bound}" for word, bound in found if bound is not None)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


if __name__ == "__main__":
    print(page(), end="")
