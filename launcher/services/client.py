"""From the options of `chat` and `message` to an API and a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.services import anywhere, here
from serving.client import Api, key_from_environment
from serving.protocol import API_PORT
from serving.signing import read_private


def open_api(given: Mapping[str, Any]) -> Api:
    """The API that was named, else the newest service of ours that is ready, with its key."""
    key = read_private(Path(given["api_key_file"])).split() if given["api_key_file"] else None
    key_text = key[0] if key else key_from_environment()
    if given["url"]:
        return Api(given["url"], key_text, given["timeout"])
    for name in reversed(sorted(here.names(), key=lambda name: here.home(name).stat().st_mtime)):
        if url := anywhere.ready_url(name):
            return Api(url, key_text or anywhere.key(name), given["timeout"])
    return Api(f"http://127.0.0.1:{API_PORT}", key_text, given["timeout"])


def sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("max_tokens", "temperature") if given[name] is not None}
