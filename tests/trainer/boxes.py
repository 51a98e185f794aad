"""The box program as a machine runs it: `python -m trainer --run URI`, a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run_box(run: str | Path, workdir: Path) -> subprocess.CompletedProcess[str]:
    """One attempt, to its end; the caller looks at the exit code."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "trainer", "--run", str(run), "--workdir", str(workdir)],
        env=environment | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "VLAUNCH_CLOUD": "none"},
        capture_output=True,
        text=True,
        timeout=300,
    )
