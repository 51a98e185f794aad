"""From raw chat logs to a training set: one streaming pass, the same bytes however it ran.

    manifest = prepare(["a.json", "b.jsonl.zst"], "train.jsonl", Settings(...), workers=4)

Map: chunks of samples go to worker processes; each becomes one part file in OUT.work (parts.py). Reduce: one
ordered pass over the parts' signatures decides on duplicates, a second writes what is kept, then the manifest, and
the work folder goes. Nothing depends on which worker did what or when, so neither do the bytes. A rerun after a
kill takes up the parts that are there; with a manifest that matches there is nothing left to do.

Sharing out: `shard` (I, N) makes whole files, every N-th, where there are N or more, and else every N-th chunk (for
which each machine reads all of the file). Whoever finds all parts there goes on to the reduce: the last shard to
finish, on any machine that sees the same folder.

Memory: a few chunks per worker, and of the whole corpus the signatures (dedupe.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.chunks import Chunk, read_chunks
from trainer.data.forms import check_output, file_hash
from trainer.data.parts import FileParts
from trainer.data.pool import workforce
from trainer.data.read import file_stem, read_corpus
from trainer.data.steps import FORMAT, Settings, process
from trainer.errors import VlaunchError

if TYPE_CHECKING:
    from trainer.data.manifest import Manifest

WORK_SUFFIX = ".work"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a limit of the shell's


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read: `name` as it was given, its hash, and where its parts are."""

    path: Path
    name: str
    sha256: str
    size: int
    parts: FileParts


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a pass is: `done` of `total` bytes of input, and samples so far."""

    stage: str
    done: int
    total: int
    samples: int


Watcher = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that is asked for. shard: (I, N), this machine's share, I from 0.

    names: what the inputs are called in messages and in the manifest, if not by their paths.
    cache: a folder that other jobs use as well, for what takes long to read (pool.py); None: nothing is kept.
    """

    inputs: tuple[Path, ...]
    output: Path
    settings: Settings
    rejected: Path | None = None
    shard: tuple[int, int] = (0, 1)
    names: tuple[str, ...] = ()
    cache: Path | None = None

    @property
    def manifest(self) -> Path:
        """Beside the output: train.jsonl -> train.manifest.json."""
        return manifest_path(self.output)

    @property
    def work(self) -> Path:
        return self.output.with_name(self.output.name + WORK_SUFFIX)


def manifest_path(output: Path) -> Path:
    return output.with_name(f"{output.name.partition('.')[0] or output.name}.manifest.json")


def prepare(job: Job, workers: int = 1, watch: Watcher = lambda _: None) -> Manifest | None:
    """Makes the output and its manifest; None where other shards have parts still to make.

    Raises DataError for a broken file or a corpus of which nothing is left, VlaunchError for a full disk; the parts
    made so far stay.
    """
    from trainer.data.manifest import finished
    from trainer.data.reduce import reduce_parts

    _check(job)
    inputs = _inputs(job, watch)
    key = _key(*(each.parts.folder.name for each in inputs), job.output.name)
    manifest = finished(job, key)
    if manifest is None:
        try:
            _map(job, inputs, workers, watch)
            manifest = finished(job, key)
            if manifest is None and not all(each.parts.all_there() for each in inputs):
                return None
            manifest = manifest or reduce_parts(job, inputs, key)
        except FileNotFoundError:
            # Shares in one folder: another came to the end a moment earlier, and has cleared the parts away.
            manifest = finished(job, key)
            if manifest is None:
                raise
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _full(job, error) from error
    shutil.rmtree(job.work, ignore_errors=True)
    return manifest


def _full(job: Job, error: OSError) -> VlaunchError:
    return VlaunchError(
        f"{job.output.parent.resolve()}: {(error.strerror or 'no space').lower()}",
        hint="free some space there, or write to another disk, and run the same command again: "
        "the parts made so far are kept",
    )


def _check(job: Job) -> None:
    from trainer.errors import UsageError

    read_corpus(job.inputs)
    check_output(job.output)
    taken = {path.resolve() for path in job.inputs}
    for path in (job.output, job.rejected, job.manifest):
        if path and path.resolve() in taken:
            raise UsageError(f"{path} is an input as well", hint="write to another name")
    if job.output == job.rejected:
        raise UsageError(f"{job.output} cannot be the output and the rejected samples", hint="give two names")


def _inputs(job: Job, watch: Watcher) -> list[Input]:
    total = sum(path.stat().st_size for path in job.inputs) or 1
    code, settings = _code(), json.dumps(_identity(job.settings), sort_keys=True)
    found: list[Input] = []
    passed = 0

    def moved(count: int) -> None:
        nonlocal passed
        passed += count
        watch(Progress("checking", passed, total, 0))

    for path, name in zip(job.inputs, job.names or map(str, job.inputs), strict=True):
        digest = file_hash(path, moved)
        key = _key(code, settings, digest, name, str(bool(job.rejected)))
        found.append(Input(path, name, digest, path.stat().st_size, FileParts(job.work / key)))
    return found


def _identity(settings: Settings) -> dict[str, Any]:
    """Settings as they decide over bytes: with the tokeniser's hash and the template's name."""
    split = settings.split
    names = (split.template, split.counter().name) if split else ()
    return {**settings.as_dict(), "names": names}


def _code() -> str:
    """A hash of this package: parts made by other code are not taken up."""
    digest = hashlib.sha256(str(FORMAT).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:20]


# --- map ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """One chunk to be made a part of."""

    chunk: Chunk
    path: Path
    name: str
    stem: str
    parts: FileParts
    settings: Settings


def make_part(task: Task) -> int:
    """What a worker does. Returns the number of samples."""
    values, where = task.chunk.values(task.path)
    outcome = process(values, where, task.chunk.first, task.name, task.stem, task.settings)
    minhash = None
    if task.settings.dedupe and task.settings.dedupe.near is not None:
        from trainer.data.signatures import minhashes

        minhash = minhashes(outcome.conversations)
    task.parts.write(task.chunk.number, outcome, minhash)
    return len(task.chunk)


def _map(job: Job, inputs: Sequence[Input], workers: int, watch: Watcher) -> None:
    total = sum(each.size for each in inputs) or 1
    if all(each.parts.all_there() for each in inputs):
        return
    with workforce(workers, job.settings, job.cache) as submit:
        running: deque[Callable[[], int]] = deque()
        samples = 0
        for task, at in _tasks(job, inputs):
            if task is not None:
                running.append(submit(make_part, task))
            while len(running) > (2 * workers if workers > 1 else 0):
                samples += running.popleft()()
            watch(Progress("preparing", at, total, samples))
        while running:
            samples += running.popleft()()
            watch(Progress("preparing", total, total, samples))


def _tasks(job: Job, inputs: Sequence[Input]) -> Iterator[tuple[Task | None, int]]:
    """The chunks still to be made, each with the bytes of input read so far; None for one that is not ours."""
    index, count = job.shard
    before = seen = 0
    by_file = len(inputs) >= count
    for place, each in enumerate(inputs):
        if each.parts.all_there() or (by_file and place % count != index):
            before += each.size
            seen += each.parts.complete() or 0
            continue
        at = 0

        def moved(count: int) -> None:
            nonlocal at
            at = count

        number = -1
        for chunk in read_chunks(each.path, moved):
            number = chunk.number
            ours = (by_file or seen % count == index) and not each.parts.has(number)
            seen += 1
            task = (
                Task(chunk, each.path, each.name, file_stem(each.path), each.parts, job.settings)
                if ours
                else None
            )
            yield task, before + at
        each.parts.close(number + 1)
        before += each.size


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
