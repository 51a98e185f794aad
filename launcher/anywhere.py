"""A service by its name, wherever it runs: on this computer (services.py) or on rented machines (rented.py)."""

from __future__ import annotations

from collections.abc import Iterator

from launcher import rented, services
from launcher.clouds.base import open_machines
from launcher.services import ServiceView
from serving.service import read_state

find = services.find


def view(name: str) -> ServiceView:
    return rented.view(name, open_machines()) if rented.is_rented(name) else services.view(name)


def stop(name: str) -> bool:
    """False: it was not running."""
    return rented.stop(name, open_machines()) if rented.is_rented(name) else services.stop(name)


def logs(name: str, *, follow: bool) -> Iterator[str]:
    if rented.is_rented(name):
        return rented.logs(name, open_machines(), follow=follow)
    return services.logs(name, follow=follow)


def key(name: str) -> str | None:
    """Of its API; None where it needs none."""
    return rented.api_key(services.home(name)) if rented.is_rented(name) else services.key(name)


def ready_url(name: str) -> str | None:
    """Of its API if it is ready, as far as this computer knows: no cloud is asked."""
    if rented.is_rented(name):
        state = read_state(services.home(name)) or {}
        return state.get("url") if state.get("state") == "ready" else None
    seen = services.view(name)
    return seen.url if seen.state == "ready" else None
