"""Whether SkyPilot's server on this machine has our recovery strategy, and how it gets it.

SkyPilot loads plugins that ~/.sky/plugins.yaml names when its server starts. Light: --dry-run asks, without sky.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import NotReady

PLUGIN = "launcher.spot.strategy.Plugin"
STRATEGY = "VLAUNCH"
# The best of SkyPilot's own: it keeps to the order of the places that the task gives.
STOCK_STRATEGY = "FAILOVER"


class PluginState(Enum):
    """What is known of the server that will run the job."""

    INSTALLED = "named in plugins.yaml"
    MISSING = "not named in plugins.yaml"
    REMOTE = "the server is on another machine, whose plugins its administrator installs"


def plugin_state() -> PluginState:
    """Raises NotReady for a plugins.yaml that is none."""
    if _remote_server():
        return PluginState.REMOTE
    named = [entry.get("class") for entry in _read(plugins_file()).get("plugins") or []]
    return PluginState.INSTALLED if PLUGIN in named else PluginState.MISSING


def strategy() -> str:
    """The recovery strategy that a task can ask of the server."""
    return STRATEGY if plugin_state() is PluginState.INSTALLED else STOCK_STRATEGY


def install_plugin() -> bool:
    """Name our plugin in plugins.yaml beside those that are there; False if it was named already.

    Raises:
        NotReady: the server is on another machine, or the file cannot be written.
    """
    state = plugin_state()
    if state is PluginState.REMOTE:
        raise NotReady(
            "SkyPilot's server is on another machine: its plugins are installed there",
            hint=f"its administrator adds `- class: {PLUGIN}` to ~/.sky/plugins.yaml and restarts it",
        )
    if state is PluginState.INSTALLED:
        return False
    path = plugins_file()
    config = _read(path)
    config["plugins"] = [*(config.get("plugins") or []), {"class": PLUGIN}]
    arriving = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arriving.write_text(yaml.safe_dump(config, sort_keys=False))
        arriving.replace(path)
    except OSError as error:
        raise NotReady(f"{path} cannot be written: {error.strerror}") from None
    return True


def plugins_file() -> Path:
    """Where SkyPilot 0.14 looks: sky/server/plugins.py."""
    return Path(os.environ.get("SKYPILOT_SERVER_PLUGINS_CONFIG") or "~/.sky/plugins.yaml").expanduser()


def _remote_server() -> bool:
    """As SkyPilot decides it: the variable, then api_server.endpoint of its configuration."""
    if os.environ.get("SKYPILOT_API_SERVER_ENDPOINT"):
        return True
    config = _read(Path(os.environ.get("SKYPILOT_GLOBAL_CONFIG") or "~/.sky/config.yaml").expanduser())
    return bool((config.get("api_server") or {}).get("endpoint"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise NotReady(f"{path} cannot be read: {error}", hint="correct it, or delete it") from None
    if not isinstance(found, dict):
        raise NotReady(f"{path} is no mapping", hint="correct it, or delete it")
    return found
