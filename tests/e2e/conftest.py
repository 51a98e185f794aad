"""The rig, up once for all end-to-end tests, and gone after the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.slurm.rig import Rig, rig_up, why_not


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    reason = why_not()
    if reason:
        pytest.skip(f"SkyPilot on two Slurm clusters: {reason}")
    # Not pytest's own folders: machines run as other users, who may not enter those.
    with rig_up(Path("/tmp/vlaunch-rig")) as up:
        yield up
