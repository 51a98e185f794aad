"""The wheel that machines install is this very code."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from launcher.wheel import wheel_path, write_wheel
from tests.conftest import REPOSITORY


def test_a_wheel_holds_this_code_and_runs_by_itself(tmp_path: Path) -> None:
    wheel = write_wheel()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    there = tmp_path / "site/task_templates/train.yaml"
    assert there.read_bytes() == (REPOSITORY / "task_templates/train.yaml").read_bytes()
    asked = "import launcher, trainer; print(launcher.__file__, launcher.__version__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", asked],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    where, version = done.stdout.split()
    assert where.startswith(str(tmp_path)) and version == wheel.name.split("-")[1]


def test_a_wheel_is_what_pip_takes_for_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*command, "--target", str(tmp_path / "there"), str(write_wheel())], check=True)

    assert (tmp_path / "there/bin/vlaunch").is_file()


def test_the_same_code_is_the_same_wheel() -> None:
    first = write_wheel()
    data = first.read_bytes()
    first.unlink()

    assert write_wheel() == first == wheel_path() and first.read_bytes() == data
