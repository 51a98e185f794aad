"""`vlaunch doctor` finds what is missing, says how to repair it, and where every setting comes from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.doctor import PACKAGES
from tests.conftest import REPOSITORY, Ran

Vlaunch = Callable[..., Ran]


def checks(ran: Ran, section: str) -> dict[str, Any]:
    return {check["name"]: check for check in ran.json["checks"] if check["section"] == section}


def test_a_good_machine_is_ready_and_the_probe_leaves_nothing(vlaunch: Vlaunch, tmp_path: Path) -> None:
    ran = vlaunch("doctor", "--json", "--store", tmp_path / "a store")
    assert (ran.code, ran.json["ready"], ran.json["version"]) == (0, True, 1)
    assert checks(ran, "store")["create if absent"]["value"] == "honoured"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert vlaunch("doctor").code == 0


def test_a_store_that_cannot_be_written_is_exit_3_with_a_fix(vlaunch: Vlaunch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = vlaunch("doctor", "--json", "--store", tmp_path / "file" / "store")
    (problem,) = (p for p in ran.json["problems"] if p["required"])
    assert ran.code == 3
    assert ran.json["ready"] is False
    assert "Not a directory" in problem["what"]
    assert problem["fix"]
    text = vlaunch("doctor", "--store", tmp_path / "file" / "store")
    assert "Problem: cannot write .probe/" in text.out


def test_a_store_that_is_not_there_yet_in_this_version_is_not_ready(vlaunch: Vlaunch) -> None:
    assert vlaunch("doctor", "--store", "ftp://x").code == 2


def test_settings_are_shown_with_their_sources(vlaunch: Vlaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLAUNCH_INFRA", "local")
    Path("vlaunch.toml").write_text("[runs]\nquiet = true\n")
    rows = vlaunch("doctor", "--json").json["settings"]
    assert {row["source"] for row in rows if row["setting"] == "infra"} == {"VLAUNCH_INFRA"}
    (row,) = (row for row in rows if row["source"] == "./vlaunch.toml")
    assert (row["setting"], row["value"], row["verbs"]) == ("quiet", "true", ["runs", "runs prune"])


def test_everything_wrong_with_the_settings_is_told_at_once(
    vlaunch: Vlaunch, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("vlaunch.toml").write_text("stroe = 's3://x'\n[runs]\njsn = true\n")
    (isolated / "config/vlaunch").mkdir(parents=True)
    (isolated / "config/vlaunch/config.toml").write_text("broken")
    monkeypatch.setenv("VLAUNCH_STROE", "x")
    ran = vlaunch("doctor", "--json")
    told = {problem["what"]: problem["fix"] for problem in ran.json["problems"]}
    assert ran.code == 3
    assert told["unknown setting 'stroe' in ./vlaunch.toml"] == "did you mean store?"
    assert told["unknown setting 'jsn' in [runs] of ./vlaunch.toml"] == "did you mean json?"
    assert told["VLAUNCH_STROE is set, but no verb has such an option"] == "did you mean VLAUNCH_STORE?"
    assert any("config.toml is not valid TOML" in what for what in told)


def test_another_cloud_needs_another_extra(vlaunch: Vlaunch) -> None:
    from importlib.util import find_spec

    ran = vlaunch("doctor", "--json", "--infra", "aws")
    told = [problem["what"] for problem in ran.json["problems"]]
    if find_spec("sky"):
        assert ["goes back to the region" in told[0], "does not run" in told[1]] == [True, True]
        assert ran.code == 0
    else:
        assert told[0] == "skypilot is not installed" and ran.code == 3


def test_the_plugin_is_installed_by_a_flag(vlaunch: Vlaunch, isolated: Path) -> None:
    ran = vlaunch("doctor", "--install-plugin")

    assert ran.code == 0 and "launcher.spot.strategy.Plugin" in ran.err
    assert "launcher.spot.strategy.Plugin" in (isolated / ".sky/plugins.yaml").read_text()


def test_the_packages_that_are_looked_for_are_those_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, names in PACKAGES.items():
        assert {re.split(r"[^\w-]", wanted)[0] for wanted in extras[extra]} == set(names)


def test_constraints_pin_every_direct_dependency_and_no_local_path() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *(n for e in ("train", "data", "dev", "sky") for n in extras[e])]
    assert {re.split(r"[^\w-]", name)[0].lower() for name in direct} <= pins
    assert not [line for line in lines if "/" in line.partition("#")[0] or "@" in line]
