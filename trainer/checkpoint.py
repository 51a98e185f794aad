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
import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from trainer.artifacts.fencing import Lease
from trainer.artifacts.garbage import collect_garbage
from trainer.artifacts.journal import Journal
from trainer.artifacts.manifest import Manifest, put_blob
from trainer.artifacts.pace import Pace
from trainer.artifacts.validity import newest_epoch
from trainer.cadence import Cadence
from trainer.errors import Fenced, StoreError, VlaunchError
from trainer.parallel import Sharded, World
from trainer.replication import Replication
from trainer.sampler import Position
from trainer.uploading import Sent, Teller, Upload, first_problem

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


@dataclass(frozen=True, slots=True)
class _Save:
    """One save under way."""

    step: int
    position: Position
    best: bool
    directory: Path
    taken_at: float
    stall_s: float


class Checkpointer:
    """Saves of one attempt: at most one under way at a time.

    Every process calls `save` at the same step; `busy`, `durable_step` and `raise_if_fenced` are local and
    immediate. A save that fails (store full, unreachable) is reported and training goes on.
    """

    def __init__(
        self,
        world: World,
        lease: Lease,
        journal: Journal,
        replication: Replication,
        cadence: Cadence,
        bytes_per_s: float | None,
        stage: Path,
        parent: Manifest | None,
        before_commit: Callable[[], None],
    ) -> None:
        """`bytes_per_s`: the most that this process sends; None is as much as it can."""
        self.cadence = cadence
        self.durable_step = parent.step if parent else 0
        self.best_step: int | None = None
        """Of the durable checkpoint that is kept however old it becomes; known to the first process."""
        self.last_failed = False
        self._world, self._store, self._lease, self._journal = world, lease.store, lease, journal
        self._replication = replication
        self._durable_count = 0
        self._bytes_per_s = bytes_per_s
        self._stage = stage
        self._parent = parent
        self._durable_at = parent.created.timestamp() if parent else None
        self._skipped = 0
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

    @property
    def durable_age_s(self) -> float | None:
        """Seconds since the newest durable step became durable; None where nothing is."""
        return max(0.0, time.time() - self._durable_at) if self._durable_at is not None else None

    def due(self, step: int) -> bool:
        return self.cadence.due(step, time.monotonic() - self._last_begun)

    def skip(self, step: int) -> None:
        """A save is due while one is under way. By time the next step is as good; by steps it is left out."""
        if self.cadence.settings.save_strategy == "auto":
            return
        self._skipped += 1
        if self._skipped == 1 and self._world.leads:
            log.warning(
                "the store is slower than the saves: step %d is not saved, one is still under way", step
            )

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

    def hurry(self) -> None:
        """The machine goes: from now on nothing but durability is waited for. Called by every process."""
        self._replication.end()

    def raise_if_fenced(self) -> None:
        if self._fenced is not None:
            raise self._fenced

    def close(self) -> None:
        self.wait()
        self._stager.close()

    def _finish(self, save: _Save, written: Any) -> None:
        began = time.monotonic()
        everyone, verdict, kept = [], "failed", None
        try:
            everyone = self._send(save, written)
            verdict, kept = self._verdict(save, everyone, began)
            verdict = self._tell(verdict)
        except RuntimeError as error:  # another process is gone: the supervisor is about to end this one too
            log.warning("the save of step %d was cut short: %s", save.step, str(error).partition("\n")[0])
        self.cadence.save_s = time.monotonic() - began
        self.last_failed = verdict == "failed"
        if verdict == "durable":
            self.durable_step, self._durable_at = save.step, time.time()
            self._replicate(save, everyone, kept)
        if verdict == "fenced":
            self._fenced = Fenced(
                "a newer attempt has claimed this run", hint="nothing is lost: it continues"
            )
        self.cadence.busy_s = time.monotonic() - began
        # Each process clears what it wrote: on several machines every one has a stage of its own.
        for path in self._mine(save.directory):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # the last one to leave removes the folder
            save.directory.rmdir()

    def _send(self, save: _Save, written: Any) -> list[Sent]:
        """What became of every process's files."""
        upload = Upload(self._world, Pace(self._bytes_per_s))
        send = partial(put_blob, self._store, epoch=self._lease.epoch, known=self._lease.reusable)

        def files() -> list[Path]:
            written.result()
            return self._mine(save.directory)

        if not self._world.leads:
            return upload.together(files, send, lambda progress: None)
        with closing(Teller(self._store, self._lease.epoch, save.step)) as teller:
            return upload.together(files, send, teller)

    def _verdict(self, save: _Save, everyone: list[Sent], began: float) -> tuple[str, Collection[str] | None]:
        """The first process's word, and the blobs that are kept. Never raises: the others wait for it."""
        verdict, kept = "failed", None
        try:
            if self._world.leads:
                verdict = self._commit(save, everyone, began)
                if save.best and verdict == "durable":
                    self.best_step = save.step
                kept = self._collect()
        except Exception:  # a fault of this program must not end the thread unheard
            log.exception("the save of step %d failed", save.step)
        return verdict, kept

    def _replicate(self, save: _Save, everyone: list[Sent], kept: Collection[str] | None) -> None:
        """Copies for other regions, while the files are still on this disk. Every process counts alike."""
        self._durable_count += 1
        if self._replication.due(self._durable_count):
            paths = partial(self._mine, save.directory)
            entries = everyone[self._world.rank].entries
            manifest = self._parent if self._world.leads else None
            self._replication.copy(paths, entries, manifest, kept, self._bytes_per_s)

    def _mine(self, directory: Path) -> list[Path]:
        """This process's files of a save: DCP numbers the shards of rank r from r + 1."""
        return sorted(directory.glob(f"shard-{self._world.rank + 1:05d}-*"))

    def _commit(self, save: _Save, everyone: list[Sent], began: float) -> str:
        """The commit point, on the first process alone. Returns durable, failed or fenced."""
        sent_s = time.monotonic() - began
        manifest = self._manifest(save, everyone)
        problem = first_problem(everyone)
        try:
            if not problem:
                self._before_commit()
                self._lease.commit(manifest)
        except Fenced:
            self._journal.record("fenced", by=newest_epoch(self._store))
            return "fenced"
        except (StoreError, OSError) as error:
            problem = str(error)
        if problem:
            log.warning("nothing is durable since step %d: %s", self.durable_step, problem)
            self._journal.record("save_failed", step=save.step, error=problem)
            return "failed"
        if self.last_failed:
            log.warning("the store works again: durable at step %d", save.step)
        self._parent = manifest
        self.cadence.save_s = time.monotonic() - began  # already for what is told of the next one
        self._journal.record(
            "checkpoint",
            step=save.step,
            taken_at=save.taken_at,
            durable_at=time.time(),
            stall_s=round(save.stall_s, 4),
            upload_s=round(sent_s, 4),
            save_s=round(self.cadence.save_s, 4),
            bytes=manifest.size,
            sent_bytes=sum(file.size for file in manifest.files if file.epoch == self._lease.epoch),
            skipped=self._skipped,
            **self.cadence.told(),
        )
        self._skipped = 0
        return "durable"

    def _manifest(self, save: _Save, everyone: list[Sent]) -> Manifest:
        return Manifest(
            step=save.step,
            epoch=self._lease.epoch,
            parent=self._parent.key if self._parent else None,
            world_size=self._world.size,
            machine=self._world.machine,
            samples=save.position.samples,
            tokens=save.position.tokens,
            region=self._replication.own_region,
            store=self._store.uri,
            files=tuple(entry for sent in everyone for entry in sent.entries),
        )

    def _collect(self) -> Collection[str] | None:
        """Old checkpoints and what failed saves left go before the next save may begin. Returns the manifests that
        are left; None where it failed, which costs only space until then."""
        keep = self.cadence.settings
        wanted = (keep.save_total_limit, keep.keep_every, _SHARED_GRACE_S, self.best_step)
        try:
            return collect_garbage(self._store, self._lease, *wanted).kept
        except (VlaunchError, OSError) as error:
            log.debug("old checkpoints stay for now: %s", error)
            return None

    def _tell(self, verdict: str) -> str:
        if self._world.size == 1:
            return verdict
        box: list[Any] = [verdict]
        dist.broadcast_object_list(box, src=0, group=self._world.commit_group)
        return str(box[0])
