"""Saving without standing still, and coming back to the very same numbers.

A save has three parts. The training thread copies the state (the stall). A background thread writes it to the
local disk through DCP as safetensors, hashes the files and sends them to the store. When every process has
sent its files, the first one commits the manifest: only then does the checkpoint exist.

DCP runs on a process group of its own, and so does the agreement to commit; neither may share the group that
training uses. Nothing here unpickles: shards are safetensors, everything else is JSON.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from trainer.artifacts.fencing import Lease, collect_garbage, newest_epoch
from trainer.artifacts.journal import Journal
from trainer.artifacts.manifest import FileEntry, Manifest, put_blob
from trainer.artifacts.store import Store
from trainer.config import ASSUMED_STALL_S, CheckpointSection
from trainer.errors import Fenced, StoreError, VlaunchError
from trainer.nodes import region
from trainer.parallel import Sharded, World
from trainer.sampler import Position

log = logging.getLogger("trainer")

# How long a corpus or a cache may lie in the store before something names it.
_SHARED_GRACE_S = 3600.0


def random_state(world: World) -> dict[str, Tensor]:
    """This process's random streams, as tensors."""
    state = {f"rng.cpu.{world.rank}": torch.get_rng_state()}
    if world.device.type == "cuda":
        state[f"rng.cuda.{world.rank}"] = torch.cuda.get_rng_state(world.device)
    return state


def restore(directory: Path, manifest: Manifest, sharded: Sharded, world: World, seed: int) -> bool:
    """Load a verified checkpoint into a sharded model of any world size.

    Returns:
        Whether the continuation is bit-exact. With another number of processes or threads, or on another kind of
        device, sums are formed in another order, and the random state is drawn anew from (seed, step, rank).
    """
    exact = (manifest.world_size, manifest.machine) == (world.size, world.machine)
    streams = random_state(world) if exact else {}

    def read(tensors: dict[str, Tensor]) -> None:
        reader = HuggingFaceStorageReader(str(directory))
        dcp.load(tensors | streams, storage_reader=reader, process_group=world.save_group)

    sharded.load(read, manifest.step, manifest.world_size)
    if exact:
        torch.set_rng_state(streams[f"rng.cpu.{world.rank}"])
        if world.device.type == "cuda":
            torch.cuda.set_rng_state(streams[f"rng.cuda.{world.rank}"], world.device)
    else:
        seed_process(seed, manifest.step, world.rank)
    return exact


def seed_process(seed: int, step: int, rank: int) -> None:
    """Start this process's random streams at a point no other (step, rank) shares."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # torch takes 63 bits


@dataclass
class Cadence:
    """When the next save is due, from what saves have cost so far.

    Young's first-order optimum (1974): the interval that balances standing still against work lost is
    sqrt(2 * cost of a save * mean time between preemptions). It is kept above twice the time a save takes to become
    durable, so that the writer does not compete with training all the time, and below max_interval_s.
    """

    settings: CheckpointSection
    shares_cores: bool
    stall_s: float = ASSUMED_STALL_S
    save_s: float = 0.0

    @property
    def cost_s(self) -> float:
        """Seconds of training that a save costs. Where training itself runs on the CPU, the background part
        takes the same cores away."""
        return self.stall_s + (self.save_s if self.shares_cores else 0.0)

    @property
    def takes_s(self) -> float:
        """Seconds from the end of a step until it is durable, as the last save took; before the first one, little."""
        return self.stall_s + self.save_s

    @property
    def interval_s(self) -> float:
        optimum = math.sqrt(2.0 * self.cost_s * self.settings.mtbf_s)
        return min(max(optimum, 2.0 * self.save_s), self.settings.max_interval_s)

    def told(self) -> dict[str, float]:
        """For people who watch: seconds from one save to the next, where time decides."""
        return {"next_s": round(self.interval_s, 1)} if self.settings.save_strategy == "auto" else {}

    def due(self, step: int, since_last_s: float) -> bool:
        if self.settings.save_strategy == "steps":
            return step % self.settings.save_steps == 0
        return since_last_s >= self.interval_s


@dataclass(frozen=True, slots=True)
class _Save:
    """One save under way."""

    step: int
    position: Position
    best: bool
    directory: Path
    taken_at: float
    stall_s: float


@dataclass(frozen=True, slots=True)
class _Sent:
    """What one process reports when its files are in the store, or why they are not."""

    entries: tuple[FileEntry, ...]
    problem: str | None


class Checkpointer:
    """Saves of one attempt: at most one under way at a time.

    Every process calls `save` at the same step; `busy`, `durable_step` and `raise_if_fenced` are local and
    immediate. A save that fails (store full, unreachable) is reported and training goes on.
    """

    def __init__(
        self,
        world: World,
        store: Store,
        lease: Lease,
        journal: Journal,
        settings: CheckpointSection,
        stage: Path,
        parent: Manifest | None,
        before_commit: Callable[[], None],
    ) -> None:
        self.cadence = Cadence(settings, shares_cores=world.device.type == "cpu")
        self.durable_step = parent.step if parent else 0
        self.best_step: int | None = None
        """Of the durable checkpoint that is kept however old it becomes; known to the first process."""
        self.last_failed = False
        self._world, self._store, self._lease, self._journal = world, store, lease, journal
        self._stage = stage
        self._parent = parent
        self._settings = settings
        self._before_commit = before_commit
        self._thread: threading.Thread | None = None
        self._fenced: Fenced | None = None
        self._last_begun = time.monotonic()
        on_gpu = world.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,  # the copy is complete before the next step changes the weights
                use_non_blocking_copy=on_gpu,
            )
        )

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def due(self, step: int) -> bool:
        return self.cadence.due(step, time.monotonic() - self._last_begun)

    def save(self, step: int, position: Position, sharded: Sharded, *, best: bool = False) -> None:
        """Begin a save of the state after optimiser step number `step`. Returns after the copy. The newest `best`
        one is kept however old it becomes.

        Schedule, sample order and AdamW's step count are functions of the step and need no saving.
        """
        self.wait()
        began = time.monotonic()
        self._last_begun = began
        taken_at = time.time()
        directory = self._stage / f"step-{step:012d}"
        shutil.rmtree(directory, ignore_errors=True)
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        state = sharded.state() | random_state(self._world)
        written = dcp.async_save(
            state, storage_writer=writer, process_group=self._world.save_group, async_stager=self._stager
        )
        stall_s = time.monotonic() - began
        self.cadence.stall_s = max(stall_s, 1e-3)
        save = _Save(step, position, best, directory, taken_at, stall_s)
        self._thread = threading.Thread(target=self._finish, args=(save, written), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the save under way has become durable or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_if_fenced()

    def raise_if_fenced(self) -> None:
        if self._fenced is not None:
            raise self._fenced

    def close(self) -> None:
        self.wait()
        self._stager.close()

    def _finish(self, save: _Save, written: Any) -> None:
        began = time.monotonic()
        mine = self._send(written, save.directory)
        everyone = self._gather(mine)
        verdict = "failed"
        try:
            if self._world.leads:
                verdict = self._commit(save, everyone, began)
                if save.best and verdict == "durable":
                    self.best_step = save.step
                self._collect()
        except Exception:  # a fault of this program must not end the thread unheard, with the others waiting
            log.exception("the save of step %d failed", save.step)
        verdict = self._tell(verdict)
        self.cadence.save_s = time.monotonic() - began
        self.last_failed = verdict == "failed"
        if verdict == "durable":
            self.durable_step = save.step
        if verdict == "fenced":
            self._fenced = Fenced(
                "a newer attempt has claimed this run", hint="nothing is lost: it continues"
            )
        # Each process clears what it wrote: on several machines every one has a stage of its own.
        for path in self._mine(save.directory):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # the last one to leave removes the folder
            save.directory.rmdir()

    def _send(self, written: Any, directory: Path) -> _Sent:
        """Write this process's shard and put it into the store. Never raises: the others wait for its word."""
        try:
            written.result()
            entries = [
                put_blob(self._store, path, epoch=self._lease.epoch, known=self._lease.reusable)
                for path in self._mine(directory)
            ]
            return _Sent(tuple(entries), None)
        except dcp.CheckpointException as error:
            told, _ = next(iter(error.failures.values()))
            return _Sent((), f"the local disk of this machine: {told}")
        except VlaunchError as error:
            return _Sent((), error.message)
        except Exception as error:
            log.exception("the save failed in a way that this program does not know")
            return _Sent((), f"{type(error).__name__}: {error}")

    def _mine(self, directory: Path) -> list[Path]:
        """This process's files of a save: DCP numbers the shards of rank r from r + 1."""
        return sorted(directory.glob(f"shard-{self._world.rank + 1:05d}-*"))

    def _commit(self, save: _Save, everyone: list[_Sent], began: float) -> str:
        """The commit point, on the first process alone. Returns durable, failed or fenced."""
        problems = [sent.problem for sent in everyone if sent.problem]
        sent_s = time.monotonic() - began
        entries = tuple(entry for sent in everyone for entry in sent.entries)
        manifest = Manifest(
            step=save.step,
            epoch=self._lease.epoch,
            parent=self._parent.key if self._parent else None,
            world_size=self._world.size,
            machine=self._world.machine,
            samples=save.position.samples,
            tokens=save.position.tokens,
            region=region(os.environ),
            store=self._store.uri,
            files=entries,
        )
        try:
            if not problems:
                self._before_commit()
                self._lease.commit(manifest)
        except Fenced:
            self._journal.record("fenced", by=newest_epoch(self._store))
            return "fenced"
        except (StoreError, OSError) as error:
            problems = [str(error)]
        if problems:
            log.warning("nothing is durable since step %d: %s", self.durable_step, problems[0])
            self._journal.record("save_failed", step=save.step, error=problems[0])
            return "failed"
        if self.last_failed:
            log.warning("the store works again: durable at step %d", save.step)
        self._parent = manifest
        self._journal.record(
            "checkpoint",
            step=save.step,
            taken_at=save.taken_at,
            durable_at=time.time(),
            stall_s=round(save.stall_s, 4),
            upload_s=round(sent_s, 4),
            save_s=round(time.monotonic() - began, 4),
            bytes=manifest.size,
            sent_bytes=sum(file.size for file in manifest.files if file.epoch == self._lease.epoch),
            **self.cadence.told(),
        )
        return "durable"

    def _collect(self) -> None:
        """Old checkpoints and what failed saves left go before the next save may begin; a failure here costs only
        space until then."""
        keep = self._settings
        try:
            collect_garbage(
                self._store, self._lease, keep.save_total_limit, keep.keep_every, _SHARED_GRACE_S, self.best_step
            )
        except (VlaunchError, OSError) as error:
            log.debug("old checkpoints stay for now: %s", error)

    def _gather(self, mine: _Sent) -> list[_Sent]:
        if self._world.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self._world.size
        dist.all_gather_object(everyone, mine, group=self._world.commit_group)
        return everyone

    def _tell(self, verdict: str) -> str:
        if self._world.size == 1:
            return verdict
        box: list[Any] = [verdict]
        dist.broadcast_object_list(box, src=0, group=self._world.commit_group)
        return str(box[0])
