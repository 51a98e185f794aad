"""The files of one save on their way to the store, from all processes at once and beside training.

Each process sends its own files on a thread. Meanwhile the processes talk, twice a second at most: how much has been
sent, who is done, who has failed. So one that fails is heard by all within a second or so, and the others stop sending
what nobody will name, instead of waiting for them at a barrier. The talk has a process group of its own.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from trainer.artifacts.layout import UPLOAD
from trainer.artifacts.manifest import FileEntry
from trainer.artifacts.pace import GivenUp, Pace, carried
from trainer.artifacts.store import Store
from trainer.errors import StoreError, VlaunchError
from trainer.parallel import World

log = logging.getLogger("trainer")

# An upload that takes longer than this leaves word in the store, as often.
_TELL_EVERY_S = 5.0
# Between two words of a process that is still sending: short at first, so that a small save is not kept waiting.
_FIRST_ROUND_S, _LONGEST_ROUND_S = 0.01, 0.5


# Puts one file into a store and says what it is called there.
Send = Callable[[Path], FileEntry]


@dataclass(frozen=True, slots=True)
class Sent:
    """What one process reports when its files are in the store, or why they are not."""

    entries: tuple[FileEntry, ...]
    problem: str | None
    called_off: bool = False
    """It stopped because of another process: its problem is only an echo."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of all processes together. `total` is 0 until each has written its files to its disk."""

    sent: int
    total: int


class Upload:
    """One process's part of a save. `together` is called by all of them, on the thread of the save."""

    def __init__(self, world: World, pace: Pace) -> None:
        self._world, self._pace = world, pace
        self._sent = Sent((), "it never began")
        self._size = 0
        self._over = threading.Event()

    def together(
        self, files: Callable[[], list[Path]], send: Send, told: Callable[[Progress], None]
    ) -> list[Sent]:
        """Send this process's `files`, which may have to be waited for; what became of every process's, by rank.

        `told` hears of the progress on every process; it must not wait for anything.
        """
        threading.Thread(target=self._run, args=(files, send), daemon=True).start()
        round_s = _FIRST_ROUND_S
        everyone_over = False
        while not everyone_over:
            self._over.wait(round_s)
            over = self._over.is_set()
            failed = over and self._sent.problem is not None
            sent = min(self._pace.sent, self._size)  # requests may have been repeated
            overs, failures, bytes_sent, total = self._sum(
                over, failed, self._size if over else sent, self._size
            )
            if failures:
                self._pace.stop("another process could not send its files")
            told(Progress(bytes_sent, total))
            everyone_over = overs == self._world.size
            round_s = min(2 * round_s, _LONGEST_ROUND_S)
        return self._gather(self._sent)

    def _run(self, files: Callable[[], list[Path]], send: Send) -> None:
        try:
            self._sent = self._send(files, send)
        finally:
            self._over.set()

    def _send(self, files: Callable[[], list[Path]], send: Send) -> Sent:
        """Never raises: the others wait for its word."""
        try:
            paths = files()
            self._size = sum(path.stat().st_size for path in paths)
            with carried(self._pace):
                return Sent(tuple(send(path) for path in paths), None)
        except dcp.CheckpointException as error:
            said, _ = next(iter(error.failures.values()))
            return Sent((), f"the local disk of this machine: {said}")
        except GivenUp as error:
            return Sent((), error.message, called_off=True)
        except VlaunchError as error:
            return Sent((), error.message)
        except Exception as error:
            log.exception("the save failed in a way that this program does not know")
            return Sent((), f"{type(error).__name__}: {error}")

    def _sum(self, *values: float) -> tuple[int, ...]:
        total = torch.tensor(values, dtype=torch.int64)
        if self._world.size > 1:
            dist.all_reduce(total, group=self._world.commit_group)
        return tuple(int(value) for value in total)

    def _gather(self, mine: Sent) -> list[Sent]:
        if self._world.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self._world.size
        dist.all_gather_object(everyone, mine, group=self._world.commit_group)
        return everyone


def first_problem(everyone: list[Sent]) -> str | None:
    """Why a save failed, in the words of a process that failed by itself; None where all files were sent."""
    failed = [sent for sent in everyone if sent.problem]
    return min(failed, key=lambda sent: sent.called_off).problem if failed else None


class Teller:
    """Leaves word of a long upload in the store, for `vlaunch status`; on a thread of its own, since it may wait."""

    def __init__(self, store: Store, epoch: int, step: int) -> None:
        self._store, self._epoch, self._step = store, epoch, step
        self._began = time.time()
        self._progress = Progress(0, 0)
        self._over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, progress: Progress) -> None:
        self._progress = progress

    def close(self) -> None:
        """What was told last stays there; readers know by the step that it is over."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(_TELL_EVERY_S):
            now = self._progress
            if not now.total:
                continue
            log.info("sending step %d: %.0f of %.0f MB", self._step, now.sent / 1e6, now.total / 1e6)
            word = {"epoch": self._epoch, "step": self._step, "sent": now.sent, "total": now.total}
            times = {"began": self._began, "time": time.time()}
            try:
                self._store.put(UPLOAD, json.dumps(word | times).encode())
            except (StoreError, OSError) as error:
                log.debug("nobody hears how far the upload is: %s", error)
