"""One attempt on this machine: claim, fetch, restore, start the processes, say what became of them.

It claims the run, fetches what the box needs while torch is imported, and starts one process per GPU. The
processes are forked after the import, once for all of them: on two cores a resumed step comes seconds earlier
than through torchrun (docs/decisions/003). A process that dies takes the others with it at once.
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainer.artifacts.fencing import Lease, claim
from trainer.artifacts.journal import Journal
from trainer.artifacts.layout import CONFIG
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.store import Store
from trainer.config import TrainConfig, decode_config
from trainer.errors import (
    CorruptObject,
    Fenced,
    MissingKey,
    Preempted,
    StoreError,
    UsageError,
    VlaunchError,
)
from trainer.preemption import SIGNALS, notice_length_s

if TYPE_CHECKING:
    from trainer.prepare import Inputs
    from trainer.rank import Brief

log = logging.getLogger("trainer")

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_FAILED = 1


class Attempt:
    """One life of the run on this machine."""

    def __init__(self, store: Store, workdir: Path) -> None:
        self._began = time.monotonic() - _age_of_process_s()
        self._workdir = workdir
        self._ranks: list[BaseProcess] = []
        self.store = store
        self.clock: dict[str, float] = {}
        self._damaged = False
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        """Returns when the run is finished, or raises the error whose exit code the box ends with."""
        self._mark("start")
        notice_length_s()  # refused here, where it costs nothing
        config = self._config()
        lease = claim(self.store)
        self.attempt = _attempt(lease.epoch)
        self.journal = Journal(self.store, self.attempt, "box", quiet=True)
        try:
            self._live(config, lease)
        except (Preempted, Fenced):
            raise
        except _Leave:
            raise Preempted("told to leave this machine before there was anything to save") from None
        except Exception as error:
            told = describe(error)
            self.journal.record("failed", **told)
            if isinstance(error, VlaunchError):
                raise
            log.exception("the attempt failed")
            raise VlaunchError(told["error"], hint="the traceback is above, and in vlaunch logs") from error

    def _live(self, config: TrainConfig, lease: Lease) -> None:
        self._make_workdir(lease.epoch)
        self._mark("claim")
        with ThreadPoolExecutor(2) as pool:
            fetched = pool.submit(self._fetch, config)
            restored = pool.submit(self._restore, lease)
            self._import()
            resumed = restored.result()
            ready = fetched.result() or self._build(config)
        self._mark("fetch")
        lease.start(resumed.step if resumed else 0, resumed.key if resumed else None)
        size = config.parallel.processes or _processes()
        self.journal.record(
            "started",
            epoch=lease.epoch,
            resumed_from=resumed.step if resumed else 0,
            world_size=size,
            region=os.environ.get("VLAUNCH_REGION", ""),
            corpus=ready.report,
        )
        log.info(
            "attempt %d: %s", self.attempt, f"resuming after step {resumed.step}" if resumed else "starting"
        )
        self._run_ranks(config, lease, ready, resumed, size)

    def _make_workdir(self, epoch: int) -> None:
        """An empty folder of this attempt's own; those of its forerunners on this disk go."""
        name = self.store.uri.rstrip("/").rpartition("/")[2]
        for old in self._workdir.glob(f"{name}-e[0-9]*"):
            shutil.rmtree(old, ignore_errors=True)
        self._workdir = self._workdir / f"{name}-e{epoch:08d}"
        self._workdir.mkdir(parents=True)

    def _config(self) -> TrainConfig:
        try:
            data = self.store.get(CONFIG)
        except MissingKey:
            raise UsageError(
                f"there is no run at {self.store.uri}",
                hint="the URI ends in runs/NAME; vlaunch runs lists them",
            ) from None
        return decode_config(data, f"{self.store.uri}/{CONFIG}")

    def _fetch(self, config: TrainConfig) -> Inputs | None:
        from trainer.prepare import fetch

        return fetch(self.store, config, self._workdir)

    def _build(self, config: TrainConfig) -> Inputs:
        from trainer.prepare import build

        log.info("preparing tokeniser and corpus")
        return build(self.store, config, self._workdir)

    def _restore(self, lease: Lease) -> Manifest | None:
        """The newest checkpoint whose every byte is right, on this disk; None where none was ever made."""
        restored = self._fetch_newest(lease)
        for key, problem in lease.passed_over:
            self._tell_fallback(key, problem)
        if restored is None and (self._damaged or lease.passed_over):
            raise StoreError(
                f"{self.store.uri}: no checkpoint of this run is whole any more",
                hint="its journal says what is wrong with each; delete manifest/ in the run to begin again",
            )
        return restored

    def _fetch_newest(self, lease: Lease) -> Manifest | None:
        from trainer.prepare import fetch_all

        for manifest in lease.newest():
            try:
                fetch_all(self.store, list(manifest.files), self._workdir / "checkpoint")
                return manifest
            except (CorruptObject, MissingKey) as error:
                self._damaged = True
                self._tell_fallback(manifest.key, error.message)
                shutil.rmtree(self._workdir / "checkpoint", ignore_errors=True)
        return None

    def _tell_fallback(self, key: str, problem: str) -> None:
        log.warning("%s is damaged, using the one before: %s", key, problem)
        self.journal.record("fallback", manifest=key, problem=problem)

    def _import(self) -> None:
        """The heavy imports, once for all processes, while the network is busy with the inputs."""
        import transformers.models.llama.modeling_llama  # noqa: F401

        import trainer.rank  # noqa: F401

        self._mark("import")

    def _run_ranks(
        self, config: TrainConfig, lease: Lease, inputs: Inputs, resumed: Manifest | None, size: int
    ) -> None:
        from trainer.rank import Brief

        brief = Brief(
            config=config,
            store=self.store,
            lease=lease,
            journal=self.journal,
            attempt=self.attempt,
            inputs=inputs,
            checkpoint=self._workdir / "checkpoint",
            resumed=resumed,
            workdir=self._workdir,
            world_size=size,
            threads=config.parallel.threads or max(1, (os.cpu_count() or 1) // size),
            rendezvous=f"file://{self._workdir}/rendezvous",
            clock=self.clock,
        )
        if int(os.environ.get("SKYPILOT_NUM_NODES", "1")) == 1:
            # One machine: what the processes say to each other is never heard outside of it.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        context = multiprocessing.get_context("fork")
        # A signal that comes between a fork and the child's own handler waits for that handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        parent = os.getpid()
        self._ranks = [
            context.Process(target=_forked, args=(brief, rank, parent), name=f"rank {rank}")
            for rank in range(size)
        ]
        for process in self._ranks:
            process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._wait()

    def _wait(self) -> None:
        """Until every process is gone; the first that fails ends the others, within milliseconds."""
        alive = list(self._ranks)
        while alive:
            wait([process.sentinel for process in alive])
            gone = [process for process in alive if not process.is_alive()]
            alive = [process for process in alive if process.is_alive()]
            # 75 is agreed on by all of them: each leaves by itself. Anything else leaves its peers hanging.
            if any(process.exitcode not in (0, Preempted.exit_code) for process in gone):
                for process in alive:
                    process.kill()
        codes = {process.exitcode for process in self._ranks}
        if codes == {0}:
            return
        if codes == {Preempted.exit_code}:
            raise Preempted("told to leave this machine", hint="start the same command again elsewhere")
        raise self._failure()

    def _failure(self) -> VlaunchError:
        """The words of the process that failed first, else how one died."""
        told = [json.loads(path.read_text()) for path in self._workdir.glob("failure-*.json")]
        if told:
            first = min(told, key=lambda failure: failure["time"])
            error = VlaunchError(first["error"], hint=first["hint"])
            error.exit_code = first["exit_code"]
            return error
        dead = next(p for p in self._ranks if p.exitcode not in (0, Preempted.exit_code))
        cause = (
            signal.Signals(-dead.exitcode).name
            if dead.exitcode and dead.exitcode < 0
            else f"code {dead.exitcode}"
        )
        return VlaunchError(f"{dead.name} died ({cause})", hint="SIGKILL usually means that memory ran out")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Pass it on; before there is anything to save, simply go."""
        if not self._ranks:
            raise _Leave
        for process in self._ranks:
            if process.pid and process.is_alive():
                os.kill(process.pid, number)

    def _mark(self, part: str) -> None:
        """Seconds since the mark before; the parts of a start are told in the journal."""
        now = time.monotonic()
        self.clock[part] = round(now - self._began, 3)
        self._began = now


class _Leave(BaseException):
    """Raised by the signal handler. No Exception: an import under way would swallow that."""


def _attempt(epoch: int) -> int:
    """The ordinal that the launcher gave this machine; the claim's where there is no launcher."""
    text = os.environ.get("VLAUNCH_ATTEMPT", "")
    if text and not text.isdigit():
        raise UsageError(f"VLAUNCH_ATTEMPT={text} is no ordinal of an attempt")
    return int(text or epoch)


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the journal and the supervisor read it."""
    return {
        "error": getattr(error, "message", None) or f"{type(error).__name__}: {error}",
        "hint": getattr(error, "hint", None),
        "exit_code": getattr(error, "exit_code", 1),
    }


def _forked(brief: Brief, rank: int, parent: int) -> None:
    """A process of its own from here on: ends with the exit code of what happened."""
    if sys.platform == "linux":  # no process outlives its supervisor
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(_FAILED)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
    from trainer.preemption import Notice
    from trainer.rank import run_rank

    notice = Notice()
    notice.listen()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ["LOCAL_RANK"] = str(rank)
    code = 0
    try:
        run_rank(brief, rank, notice)
    except Preempted as error:
        log.info(error.message)
        code = error.exit_code
    except BaseException as error:
        if not isinstance(error, VlaunchError):
            traceback.print_exc()
        told = describe(error) | {"time": time.time()}
        failure = brief.workdir / f"failure-{rank}.json"
        failure.with_suffix(".part").write_text(json.dumps(told))
        failure.with_suffix(".part").rename(failure)
        code = int(told["exit_code"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _processes() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _age_of_process_s() -> float:
    """Seconds since this process was started, interpreter start-up included; 0 off Linux."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            started = int(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
            return max(0.0, float(uptime.read().split()[0]) - started)
    except OSError:
        return 0.0
