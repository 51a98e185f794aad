"""The workspace of a project at W&B: what matters of runs on machines that are taken away, without a click."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, Any

from launcher.errors import require_extra
from launcher.tracking.wandb_run import PROJECT, reached, refuse_without_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "vlaunch"
# Section -> titles of its charts -> what they show over steps.
SECTIONS: dict[str, dict[str, list[str]]] = {
    "Learning": {
        "Loss": ["train/loss"],
        "Held-out loss": ["eval/loss"],
        "Gradient norm": ["train/grad_norm"],
        "Learning rate": ["train/learning_rate"],
    },
    "Throughput": {"Tokens per second": ["speed/tokens_per_s"], "Seconds per step": ["speed/step_s"]},
    "Dollars": {
        "Dollars so far": ["run/dollars"],
        "Dollars per hour": ["run/usd_per_hour"],
        "Machine hours": ["run/machine_hours"],
    },
    "Attempts": {
        "Goodput": ["run/goodput"],
        "Attempt": ["run/attempt"],
        "Preemptions": ["run/preemptions"],
        "Seconds lost and restarting": ["resume/lost_s", "resume/restart_s"],
        "Checkpoints: standing still, sending": ["checkpoint/stall_s", "checkpoint/upload_s"],
    },
}


def project() -> str:
    return os.environ.get("WANDB_PROJECT") or PROJECT


def spec(entity: str) -> dict[str, Any]:
    """The workspace as JSON, as the server would get it. Touches no network."""
    dumped: dict[str, Any] = (
        _workspace(entity)._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    )
    return dumped


def create() -> str:
    """Make it at the server; its address. Raises NotReady without a key, Unreachable."""
    refuse_without_key()
    with contextlib.redirect_stderr(io.StringIO()):  # it speaks
        return reached(_saved)


def _saved() -> str:
    import wandb

    workspace = _workspace(os.environ.get("WANDB_ENTITY") or str(wandb.Api().default_entity))
    workspace.save()  # type: ignore[no-untyped-call]  # wandb is typed in part
    return str(workspace.url)


def _workspace(entity: str) -> Workspace:
    require_extra("wandb", "wandb", "wandb_workspaces", needed_for="a workspace at W&B")
    import wandb_workspaces.workspaces as workspaces
    from wandb_workspaces.reports.v2.interface import LinePlot

    sections = [
        workspaces.Section(
            name=name,
            panels=[LinePlot(title=title, x="Step", y=list(shown)) for title, shown in charts.items()],
            is_open=True,
        )
        for name, charts in SECTIONS.items()
    ]
    return workspaces.Workspace(entity=entity, project=project(), name=NAME, sections=sections)
