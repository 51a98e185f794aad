"""A service by its name, wherever it runs: on this computer (here.py) or on rented machines (rented.py)."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.clouds.base import open_machines
from launcher.services import here, rented
from launcher.services.here import ServiceView
from serving.service import read_state

find = here.find


def view(name: str) -> ServiceView:
    return rented.view(name, open_machines()) if rented.is_rented(name) else here.view(name)


def stop(name: str) -> bool:
    """False: it was not running."""
    return rented.stop(name, open_machines()) if rented.is_rented(name) else here.stop(name)


def logs(name: str, *, follow: bool) -> Iterator[str]:
    if rented.is_rented(name):
        return rented.logs(name, open_machines(), follow=follow)
    return here.logs(name, follow=follow)


def key(name: str) -> str | None:
    """Of its API; None where it needs none."""
    return rented.api_key(here.home(name)) if rented.is_rented(name) else here.key(name)


def ready_url(name: str) -> str | None:
    """Of its API if it is ready, as far as this computer knows: no cloud is asked."""
    if rented.is_rented(name):
        state = read_state(here.home(name)) or {}
        return state.get("url") if state.get("state") == "ready" else None
    seen = here.view(name)
    return seen.url if seen.state == "ready" else None
