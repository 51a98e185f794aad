"""The ranks of this machine: one process per GPU, forked once torch is imported, ended all together.

Forking once for all of them makes a resumed step come seconds earlier than torchrun does (docs/decisions/003).
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.endings import Report, failure
from trainer.errors import Preempted, VlaunchError
from trainer.preemption import SIGNALS

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.rank import Brief

log = logging.getLogger("trainer")

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_FAILED = 1
_CALM = (0, Preempted.exit_code)


def import_for_ranks(config: TrainConfig) -> None:
    """The heavy imports, once for all processes. Raises what `rank.preload` does."""
    # All of it stays, so nobody looks through it for garbage: a fifth of the time, and more in each process.
    gc.disable()
    try:
        import transformers.models.llama.modeling_llama  # noqa: F401

        from trainer.rank import preload

        preload(config)
    finally:
        gc.freeze()
        gc.enable()


class Processes:
    """The ranks `first` to `first + count - 1`."""

    def __init__(self, brief: Brief, first: int, count: int, cut_ties: Callable[[], None]) -> None:
        """`cut_ties` is called in each child: what belongs to the parent alone is closed there."""
        context = multiprocessing.get_context("fork")
        self._workdir = brief.workdir
        self._all: list[BaseProcess] = [
            context.Process(
                target=_forked,
                args=(brief, first + local, local, os.getpid(), cut_ties),
                name=f"rank {first + local}",
            )
            for local in range(count)
        ]
        self._alive: list[BaseProcess] = []
        self._dead: list[BaseProcess] = []
        self._killed = False

    def fork(self) -> None:
        """Start them. SIGNALS must be blocked: each child opens up to them when it has its own handlers."""
        for process in self._all:
            process.start()
            self._alive.append(process)

    @property
    def alive(self) -> bool:
        return bool(self._alive)

    @property
    def sentinels(self) -> list[int]:
        """Readable as soon as a process is gone."""
        return [process.sentinel for process in self._alive]

    @property
    def in_trouble(self) -> bool:
        """Whether one has failed by itself: its peers would hang. 75 is agreed on by all of them."""
        return bool(self._dead)

    def signal(self, number: int) -> None:
        for process in self._alive:
            if process.pid and process.is_alive():
                os.kill(process.pid, number)

    def kill(self) -> None:
        self._killed = True
        for process in self._alive:
            process.kill()

    def reap(self) -> None:
        """Take note of those that are gone."""
        gone = [process for process in self._alive if not process.is_alive()]
        self._alive = [process for process in self._alive if process not in gone]
        # Whoever had ended before the killing began has ended by itself.
        self._dead += [p for p in gone if p.exitcode not in _CALM and not (self._killed and p.exitcode == -9)]

    def report(self) -> Report:
        """What became of them, when all are gone: the words of the one that failed first, else how one died."""
        codes = {process.exitcode for process in self._all}
        if codes == {0}:
            return Report("finished")
        if codes <= set(_CALM):
            return Report(
                "preempted",
                Preempted.exit_code,
                "told to leave this machine",
                "start the same command again elsewhere",
            )
        if not self._dead:
            return Report("halted", Preempted.exit_code, "ended by another node")
        told = [json.loads(path.read_text()) for path in self._workdir.glob("failure-*.json")]
        first = min(told, key=lambda failure: (not failure["certain"], failure["time"]), default=None)
        killed = next((process for process in self._dead if process.exitcode in _CERTAIN_DEATHS), None)
        if first is not None and (first["certain"] or killed is None):
            return Report("failed", first["exit_code"], first["error"], first["hint"], first["certain"])
        return _death(killed or self._dead[0])


# Killed from outside, mostly for want of memory, or by a fault of its own. SIGABRT is not among them: that is how
# nccl ends a process whose peer has died.
_CERTAIN_DEATHS = tuple(-number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL))


def _death(process: BaseProcess) -> Report:
    code = process.exitcode or 0
    cause = signal.Signals(-code).name if code < 0 else f"code {code}"
    return Report(
        "failed",
        _FAILED,
        f"{process.name} died ({cause})",
        "SIGKILL usually means that memory ran out",
        certain=code in _CERTAIN_DEATHS,
    )


def _forked(brief: Brief, rank: int, local: int, parent: int, cut_ties: Callable[[], None]) -> None:
    """A process of its own from here on: ends with the exit code of what happened."""
    if sys.platform == "linux":  # no process outlives its supervisor
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(_FAILED)
    cut_ties()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
    from trainer.preemption import Notice
    from trainer.rank import run_rank

    notice = Notice(brief.board)
    notice.listen()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ["LOCAL_RANK"] = str(local)
    if brief.rendezvous.startswith(
        "tcp:"
    ):  # torch's store is the supervisor's of the head; no rank opens another
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    code = 0
    try:
        run_rank(brief, rank, notice)
    except Preempted as error:
        log.info(error.message)
        code = error.exit_code
    except BaseException as error:
        code = _tell_failure(brief.workdir / f"failure-{rank}.json", error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell_failure(path: Path, error: BaseException) -> int:
    """Leave word for the supervisor; returns the exit code."""
    if not isinstance(error, VlaunchError):
        traceback.print_exc()
    told = failure(error, certain=not _may_be_an_echo(error))
    path.with_suffix(".part").write_text(json.dumps(asdict(told) | {"time": time.time()}))
    path.with_suffix(".part").rename(path)
    return told.exit_code


def _may_be_an_echo(error: BaseException) -> bool:
    """Whether it only says that a connection to a peer broke: the peer's own death is the news then.

    torch raises DistError and its kinds where its store or nccl fails, and a RuntimeError that names the line of
    gloo's source where gloo does.
    """
    if isinstance(error, VlaunchError) or not isinstance(error, RuntimeError):
        return False
    return type(error).__name__.startswith("Dist") or any(word in str(error) for word in ("gloo", "NCCL"))
