"""Headless Chromium through chromedriver's own protocol: JSON over HTTP (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serving.stack import wait_until

MISSING = next((name for name in ("chromium", "chromedriver") if shutil.which(name) is None), None)
_WORDS = "headless=new no-sandbox disable-gpu disable-dev-shm-usage window-size=1100,800"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"enter": "\ue007", "shift": "\ue008", "alt": "\ue00a", "escape": "\ue00c"}


class Browser:
    """One window."""

    def __init__(self, port: int, options: dict[str, Any]) -> None:
        self._port = port
        self._session = ""
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._session = f"/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def js(self, script: str, *arguments: Any) -> Any:
        """The value of an expression in the page."""
        return self._call("POST", "/execute/sync", {"script": f"return ({script})", "args": list(arguments)})

    def texts(self, selector: str) -> list[str]:
        return list(self.js("[...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector))

    def wait(self, expression: str) -> None:
        wait_until(lambda: self.js(expression))

    def click(self, selector: str, text: str = "") -> None:
        """The one visible element that matches, with this text."""
        found = self.js(
            "[...document.querySelectorAll(arguments[0])]"
            ".find(e => e.innerText.includes(arguments[1]) && e.offsetParent)",
            selector,
            text,
        )
        assert found, f"there is no {selector} {text}"
        self._call("POST", f"/element/{found[_ELEMENT]}/click", {})

    def type(self, selector: str, text: str) -> None:
        found = self.js("document.querySelector(arguments[0])", selector)
        self._call("POST", f"/element/{found[_ELEMENT]}/value", {"text": text})

    def chord(self, *keys: str) -> None:
        down = [{"type": "keyDown", "value": KEYS.get(key, key)} for key in keys]
        up = [{"type": "keyUp", "value": KEYS.get(key, key)} for key in reversed(keys)]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": [*down, *up]}]})

    def size(self, width: int, height: int) -> None:
        """Of what the page sees, as on a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call(
            "POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        )

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def said(self) -> list[dict[str, Any]]:
        """What the console said since the last look: errors, refusals of the CSP, failed requests."""
        return list(self._call("POST", "/se/log", {"type": "browser"}))

    def close(self) -> None:
        self._call("DELETE", "", None)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            data = json.dumps(body) if method == "POST" else None
            connection.request(method, self._session + path, data, {"content-type": "application/json"})
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{path}: {value['message']}")
        return value


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """A window that sees this machine alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    options = {
        "goog:chromeOptions": {
            "args": [f"--{word}" for word in _WORDS.split()],
            "prefs": {"download.default_directory": str(downloads)},
        },
        "goog:loggingPrefs": {"browser": "ALL"},
    }  # fmt: skip
    window: list[Browser] = []

    def started() -> bool:
        try:
            window.append(Browser(port, options))
        except OSError:
            return False
        return True

    try:
        wait_until(started)
        yield window[0]
    finally:
        if window:
            window[0].close()
        driver.terminate()
        driver.wait()
