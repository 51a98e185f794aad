"""vlaunch's plugin in SkyPilot's server: named beside others, found again, and asked for only where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.errors import NotReady
from launcher.spot.plugin import PLUGIN, PluginState, install_plugin, plugin_state, strategy
from tests.conftest import Ran


def test_the_plugin_is_named_once_beside_those_of_others(isolated: Path) -> None:
    path = isolated / ".sky/plugins.yaml"
    path.parent.mkdir()
    path.write_text("controller_wheel_path: /wheels\nplugins:\n- class: theirs.Plugin\n")

    assert install_plugin() and not install_plugin()

    found = yaml.safe_load(path.read_text())
    assert found["controller_wheel_path"] == "/wheels"
    assert [entry["class"] for entry in found["plugins"]] == ["theirs.Plugin", PLUGIN]


def test_a_task_asks_for_our_recovery_only_where_the_server_has_it() -> None:
    assert (plugin_state(), strategy()) == (PluginState.MISSING, "FAILOVER")
    install_plugin()
    assert (plugin_state(), strategy()) == (PluginState.INSTALLED, "VLAUNCH")


@pytest.mark.parametrize("how", ["variable", "configuration"])
def test_a_server_elsewhere_is_not_ours_to_change(
    how: str, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "https://sky.example")
    else:
        (isolated / ".sky").mkdir()
        (isolated / ".sky/config.yaml").write_text("api_server: {endpoint: https://sky.example}\n")

    assert (plugin_state(), strategy()) == (PluginState.REMOTE, "FAILOVER")
    with pytest.raises(NotReady, match="on another machine"):
        install_plugin()


def test_a_broken_file_of_plugins_is_one_sentence(vlaunch: Callable[..., Ran], isolated: Path) -> None:
    (isolated / ".sky").mkdir()
    (isolated / ".sky/plugins.yaml").write_text("plugins: [")

    done = vlaunch("train", "--size", "7", "--infra", "aws", "--store", "s3://b1b/x", "--dry-run")

    assert done.code == 3 and "plugins.yaml cannot be read" in done.err and "Traceback" not in done.err
