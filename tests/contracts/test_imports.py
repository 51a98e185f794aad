"""Who may import whom (docs/architecture.md), held by import-linter and by what is loaded in fact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LIGHT: list[str] = next(one for one in CONTRACTS if one["id"] == "light")["source_modules"]
DOORS = {"launcher.clouds.sky_api", "launcher.spot.strategy"}  # the two that may import SkyPilot
HEAVY = {"torch", "transformers", "sky"}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def modules(name: str) -> list[str]:
    """All modules at and below a dotted name, from the files."""
    path = REPOSITORY.joinpath(*name.split("."))
    if not path.is_dir():
        return [name]
    files = (file.relative_to(REPOSITORY).with_suffix("") for file in sorted(path.rglob("*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files]


def test_every_import_contract_is_kept() -> None:
    done = lint(REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("trainer/loop.py", "import launcher.cli"),
        ("trainer/loop.py", "import serving"),
        ("serving/worker.py", "import launcher.cli"),
        ("task_templates/load.py", "import trainer.errors"),
        ("launcher/plan.py", "import sky"),
        ("launcher/plan.py", "def later():\n    import torch.nn"),
        ("launcher/plan.py", "import trainer.loop"),  # which imports torch
        ("trainer/data/read.py", "import transformers"),
        ("trainer/artifacts/local.py", "import trainer.loop"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(tmp_path: Path, module: str, line: str) -> None:
    """The contracts themselves, against a small tree of the same shape in which one import is wrong."""
    for name in {*LIGHT, "trainer", "serving"}:
        package = tmp_path.joinpath(*name.split("."))
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
    (tmp_path / "launcher/cli.py").touch()
    (tmp_path / "trainer/loop.py").write_text("import torch\n")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    assert lint(tmp_path).returncode == 0
    with (tmp_path / module).open("a") as file:
        file.write(line + "\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_light_modules_load_nothing_heavy_when_they_are_imported() -> None:
    light = [module for name in LIGHT for module in modules(name) if module not in DOORS]
    light.remove("launcher.__main__")
    code = f"import importlib, sys\nfor name in {light}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
