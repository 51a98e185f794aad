"""launcher is the laptop: it decides, writes, hands over and accounts. It never imports torch."""

from __future__ import annotations

DISTRIBUTION = "vlaunch"


def __getattr__(name: str) -> str:
    """`launcher.__version__`, looked up only when asked: importlib.metadata costs 25 ms of CPU."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a checkout that was never installed
        return _checkout_version()


def _checkout_version() -> str:
    import tomllib
    from pathlib import Path

    project = Path(__file__).parent.parent / "pyproject.toml"
    if not project.is_file():
        return "unknown"
    return str(tomllib.loads(project.read_text())["project"]["version"])
