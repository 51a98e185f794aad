"""A run at W&B: one curve under one id, whichever attempt or computer adds to it.

The server is asked what it has, and gets what comes after that. Where it cannot be asked (no key, no network), a folder
is written that `wandb sync` sends later. wandb does its work in a process of its own; whatever happens to that one
shows here as Unreachable, and another WandbRun goes on.
"""

from __future__ import annotations

import netrc
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from launcher.errors import NotReady, VlaunchError, require_extra
from launcher.runs.runview import RunRecord
from launcher.tracking.following import curve_id, setting
from launcher.tracking.points import Point, facts, summary, without_secrets

if TYPE_CHECKING:
    import wandb

T = TypeVar("T")

PROJECT = "vlaunch"
_SERVER = "https://api.wandb.ai"
# W&B has its own: 90 s for a start, 20 tries of a request. Here a later look is the retry.
_ANSWER_S, _TRIES, _START_S = 15.0, 2, 60.0
# Exit code of an attempt that is to be resumed: W&B shows such a run as preempted.
_TO_BE_RESUMED = 75


class Unreachable(VlaunchError):
    """W&B did not take what it was sent; what it has it will say when it is asked again."""


class WandbRun:
    """The view of a run at W&B, or with `offline` in a folder of files."""

    def __init__(self, record: RunRecord, offline: Path | None = None) -> None:
        """Asks the server, which takes a second or two. Raises NotReady and Unreachable."""
        require_extra("wandb", "wandb", needed_for="a curve at W&B")
        if offline is None:
            refuse_without_key()
        self._folder = tempfile.TemporaryDirectory(prefix="vlaunch-wandb-", ignore_cleanup_errors=True)
        self._told: dict[str, Any] = {}
        self._said: dict[str, Any] = {}
        self._run = reached(lambda: _begin(record, offline or Path(self._folder.name), offline is not None))
        # `step` is the next one: the server's last step plus one, 0 where it has none.
        self.newest = self._run.step - 1

    @property
    def url(self) -> str:
        """Where people look at it; empty for files."""
        return self._run.url or ""

    def add(self, point: Point) -> None:
        row: dict[str, Any] = {**point.values, "_timestamp": point.time}
        if point.says:
            row["event"] = point.says
        reached(lambda: self._run.log(row, step=point.step, commit=True))
        self.newest = point.step

    def tell(self, record: RunRecord, now: datetime) -> None:
        told, said = facts(record), summary(record, now)
        if told != self._told:
            reached(lambda: self._run.config.update(told, allow_val_change=True))  # type: ignore[no-untyped-call]  # wandb is typed in part
            self._told = told
        if said != self._said:
            reached(lambda: self._run.summary.update(said))
            self._said = said

    def close(self, over: bool) -> None:
        """Returns when the server has everything. W&B shows the run as finished, or as preempted."""
        try:
            if over:
                reached(lambda: self._run.finish())
            else:
                reached(self._run.mark_preempting)
                reached(lambda: self._run.finish(exit_code=_TO_BE_RESUMED))
        finally:
            self._folder.cleanup()


def refuse_without_key() -> None:
    """Raises NotReady where W&B cannot be reached from here: no key, or WANDB_MODE says so."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun", "disabled"):
        raise NotReady(f"WANDB_MODE is {mode}", hint="unset it, or write files with --wandb-offline DIR")
    if not (os.environ.get("WANDB_API_KEY") or _key_in_netrc()):
        raise NotReady(
            "there is no key for W&B here",
            hint="set WANDB_API_KEY or run wandb login; --wandb-offline DIR writes files without one",
        )


def project_of(record: RunRecord) -> str:
    return setting(record, "tracking", "project") or os.environ.get("WANDB_PROJECT") or PROJECT


def entity_of(record: RunRecord) -> str | None:
    return setting(record, "tracking", "entity") or os.environ.get("WANDB_ENTITY")


def _key_in_netrc() -> bool:
    """Where `wandb login` puts it."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _SERVER)).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _begin(record: RunRecord, folder: Path, offline: bool) -> wandb.Run:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read on import: it would send its errors to a third party
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    wandb.setup(settings=wandb.Settings(silent=True))  # its login would speak
    # Nothing of this computer: no console, code, packages, hardware or name.
    settings = wandb.Settings(
        console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_machine_info=True,
        x_disable_stats=True, x_save_requirements=False, program="vlaunch", host="vlaunch", quiet=True, silent=True,
        init_timeout=_START_S, x_graphql_timeout_seconds=_ANSWER_S, x_graphql_retry_max=_TRIES,
    )  # fmt: skip
    run = wandb.init(
        mode="offline" if offline else "online",
        project=project_of(record),
        entity=entity_of(record),
        id=curve_id(record.run_id, record.events),
        name=record.run_id,
        dir=str(folder),
        resume=None if offline else "allow",
        config=facts(record),
        allow_val_change=True,
        reinit="create_new",
        settings=settings,
    )
    run.define_metric("eval/loss", summary="min")
    return run


def reached(ask: Callable[[], T]) -> T:
    """What wandb answers. It has a dozen kinds of errors, with nothing in common, for a server or a process of its own
    that is gone; a connection to such a process is given up, so that the next run starts another."""
    try:
        return ask()
    except Exception as error:
        import wandb
        from wandb.errors import AuthenticationError

        said = without_secrets(str(error).strip().partition("\n")[0]) or type(error).__name__
        with suppress(Exception):
            wandb.teardown()
        if isinstance(error, AuthenticationError):
            raise NotReady(f"W&B refuses the key: {said}", hint="set another WANDB_API_KEY") from None
        raise Unreachable(
            f"W&B did not answer: {said}", hint="the same command goes on where it stopped"
        ) from None
