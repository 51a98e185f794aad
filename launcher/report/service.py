"""What `status` says of a service."""

from __future__ import annotations

from launcher.services.here import ServiceView


def service_text(seen: ServiceView) -> str:
    """A line per fact."""
    rows = [
        ("service", seen.name),
        ("state", seen.state),
        ("problem", seen.problem),
        ("model", seen.model),
        ("API", f"{seen.url}/v1" if seen.url else None),
        ("page", f"{seen.url}/" if seen.url else None),
        ("controller", seen.controller),
        ("restarts", seen.restarts),
        ("processes", ", ".join(f"{name} {pid or 'waits'}" for name, pid in sorted(seen.processes.items()))),
    ]
    return "".join(f"{name:<10} {value}\n" for name, value in rows if value not in (None, ""))
