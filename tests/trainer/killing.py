"""Lives of a training run that end by SIGKILL at chosen instants, for the exact-resume tests.

Each life is a process group of its own, as on a spot machine. Lives are forked from a server that has imported
torch, so that a hundred of them fit into a test; everything after the import is the real box program.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.artifacts.store import Entry, LeavesTraces, Store, open_store
from trainer.errors import StoreError

_LIVES = multiprocessing.get_context("forkserver")
_LIVES.set_forkserver_preload(
    [
        "trainer.rank",
        "transformers.models.llama.modeling_llama",
        "peft",
        "tests.trainer.with_deepspeed",
        __name__,
    ]
)

SMALL_PARTS = "VLAUNCH_TEST_PART"
"""In a life's environment: bytes of a part of a file in a bucket."""

# A life that is neither killed nor finished by then hangs: the test fails instead of waiting for ever.
LONGEST_LIFE_S = 600.0  # beyond it a life hangs; a machine with other work may be ten times slower than alone


@dataclass(frozen=True)
class Death:
    """When a life ends.

    before / after: at the `nth` write to the store whose key starts with `key`.
    refused: that write fails, and the machine lives on; with a `rank`, only in that process.
    frozen: all of the machine is stopped just before that write, until somebody wakes it up (`thaw`).
    staging: while the `nth` checkpoint is being written to the local disk.
    later: `seconds` after the first step of this life is in the journal.
    never: it is left to finish.
    """

    when: str
    key: str = ""
    nth: int = 1
    seconds: float = 0.0
    rank: int | None = None

    def __str__(self) -> str:
        what = {"later": f"{self.seconds:.3f} s", "staging": "", "never": ""}.get(self.when, self.key)
        return f"{self.when} {what} #{self.nth}"


_AT_A_WRITE = ("before", "after", "refused", "frozen")


def die() -> None:
    """SIGKILL to the whole machine: supervisor and all of its processes."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


class FatalStore:
    """A store in which a chosen write is the last thing that the machine does."""

    def __init__(self, inner: Store, death: Death) -> None:
        self._inner, self._death = inner, death
        self._left = death.nth
        self._lock = threading.Lock()
        self.uri = inner.uri

    def put_new(self, key: str, data: bytes) -> bool:
        return bool(self._fatal(key, lambda: self._inner.put_new(key, data)))

    def put(self, key: str, data: bytes) -> None:
        self._fatal(key, lambda: self._inner.put(key, data))

    def put_file(self, key: str, path: Path) -> None:
        self._fatal(key, lambda: self._inner.put_file(key, path))

    def get(self, key: str) -> bytes:
        return self._inner.get(key)

    def get_file(self, key: str, path: Path) -> None:
        self._inner.get_file(key, path)

    def size(self, key: str) -> int | None:
        return self._inner.size(key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Entry]:
        return self._inner.list(prefix, start_after=start_after)

    def children(self, prefix: str = "") -> list[str]:  # type: ignore[valid-type]
        return self._inner.children(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def sweep(self, older_than_s: float) -> int:
        return self._inner.sweep(older_than_s) if isinstance(self._inner, LeavesTraces) else 0

    def _fatal(self, key: str, write: Callable[[], object]) -> object:
        here = self._death.rank is None or os.environ.get("LOCAL_RANK") == str(self._death.rank)
        chosen = self._death.when in _AT_A_WRITE and here and key.startswith(self._death.key)
        if chosen:
            with self._lock:
                self._left -= 1
                chosen = self._left == 0
        if chosen and self._death.when == "before":
            die()
        if chosen and self._death.when == "refused":
            raise StoreError("the store does not want this")
        if chosen and self._death.when == "frozen":
            os.killpg(os.getpgrp(), signal.SIGSTOP)
        done = write()
        if chosen and self._death.when == "after":
            die()
        return done


def begin(
    run: str,
    workdir: Path,
    death: Death,
    *,
    forget_random_state: bool = False,
    environment: Mapping[str, str] | None = None,
) -> multiprocessing.process.BaseProcess:
    """Start a life and let it run beside the test. Its output goes to `workdir`.log."""
    arguments = (run, workdir, death, forget_random_state, dict(environment or {}))
    process = _LIVES.Process(target=_life, args=arguments)
    process.start()
    return process


def live(
    run: str,
    workdir: Path,
    death: Death,
    *,
    forget_random_state: bool = False,
    environment: Mapping[str, str] | None = None,
) -> bool:
    """One life. Returns whether it was killed (or else finished)."""
    process = begin(run, workdir, death, forget_random_state=forget_random_state, environment=environment)
    process.join(LONGEST_LIFE_S)
    if process.is_alive():
        kill_group(process.pid)
        raise AssertionError(f"a life ({death}) hung; its output is in {workdir}.log")
    if process.exitcode not in (0, -signal.SIGKILL):
        raise AssertionError(
            f"a life ({death}) ended with {process.exitcode}:\n{_log(workdir).read_text()[-3000:]}"
        )
    return process.exitcode != 0


def wait_until_frozen(process: multiprocessing.process.BaseProcess, workdir: Path) -> None:
    """Until every process of a life stands still: a rank stops itself, and the kernel stops the others."""
    deadline = time.monotonic() + LONGEST_LIFE_S
    while not (members := _states(process.pid)) or set(members) != {"T"}:
        assert time.monotonic() < deadline, f"nothing froze; its output is in {_log(workdir)}"
        assert process.is_alive(), _log(workdir).read_text()[-3000:]
        time.sleep(0.01)


def thaw(process: multiprocessing.process.BaseProcess) -> None:
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGCONT)


def _states(group: int | None) -> list[str]:
    """The kernel's letters for what the processes of a group do; zombies are left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(fields[0])
    return found


def begin_box(run: str, workdir: Path, environment: dict[str, str]) -> multiprocessing.process.BaseProcess:
    """`python -m trainer` from its first line to its exit code, in an environment; its output goes to `workdir`.log."""
    process = _LIVES.Process(target=_box, args=(run, workdir, environment))
    process.start()
    return process


def _box(run: str, workdir: Path, environment: dict[str, str]) -> None:
    _alone(workdir)
    os.environ.update(environment)
    from trainer.__main__ import main

    code = main(["--run", run, "--workdir", str(workdir)])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _life(
    run: str, workdir: Path, death: Death, forget_random_state: bool, environment: dict[str, str]
) -> None:
    _alone(workdir)
    os.environ.update(environment)
    from trainer.__main__ import start_logging
    from trainer.supervisor import Attempt

    start_logging()
    if forget_random_state:
        _forget_random_state()
    store = open_store(run)
    if environment.get(SMALL_PARTS):  # so that even the files of these models go in several parts
        store = type(store)(run, part=int(environment[SMALL_PARTS]))  # type: ignore[call-arg]
    if death.when == "later":
        threading.Thread(target=_die_later, args=(run, death.seconds), daemon=True).start()
    if death.when == "staging":
        threading.Thread(target=_die_in_staging, args=(workdir, death.nth), daemon=True).start()
    Attempt(FatalStore(store, death), workdir).run()
    sys.stdout.flush()


def _alone(workdir: Path) -> None:
    """A process group and a log of its own."""
    os.setsid()
    log = os.open(_log(workdir), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _die_in_staging(workdir: Path, nth: int) -> None:
    """The nth folder of a checkpoint has appeared: its files are being written at this very moment."""
    seen: set[str] = set()
    while True:
        seen |= {path.name for path in workdir.glob("*/stage/step-*")}
        if len(seen) >= nth:
            die()
        time.sleep(0.0005)


def _forget_random_state() -> None:
    """The negative control: restore everything but the random streams."""
    import torch

    import trainer.rank as rank

    restore = rank.restore

    def without_random_state(*args: object, **named: object) -> bool:
        before = torch.get_rng_state()
        exact = restore(*args, **named)  # type: ignore[arg-type]
        torch.set_rng_state(before)
        return exact

    rank.restore = without_random_state  # type: ignore[assignment]


def _die_later(run: str, seconds: float) -> None:
    """A while after training has begun: wherever the life then is."""
    store = open_store(run)
    known = {entry.key for entry in store.list("journal/")}
    while not any(
        entry.key.endswith("-training.json") for entry in store.list("journal/") if entry.key not in known
    ):
        time.sleep(0.001)
    time.sleep(seconds)
    die()


def kill_group(pid: int | None) -> None:
    try:
        os.killpg(pid or 0, signal.SIGKILL) if pid else None
    except ProcessLookupError:
        pass


def _log(workdir: Path) -> Path:
    return workdir.with_suffix(".log")
