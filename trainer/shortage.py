"""Memory that runs out: recognised, told in one message, and provoked only in processes that are thrown away.

Running out leaves FSDP's and DeepSpeed's bookkeeping in the middle of a pass, and peers in a collective that never
ends. A process that only finds out whether something fits needs no recovery from that: it is started for it and ends.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

import torch

from trainer.errors import NotReady, VlaunchError
from trainer.fitting import Case, out_of_memory
from trainer.memory import gib

Result = TypeVar("Result")

# The exit code of a trial whose memory ran out; SIGKILL means the same: so the kernel ends what fills its memory.
_RAN_OUT = 77


class Forks(NamedTuple):
    """What a process with threads and connections needs to fork: by default it has none."""

    still: Callable[[], AbstractContextManager[object]] = nullcontext
    """Held while forking: no thread is in the middle of anything."""
    cut_ties: Callable[[], None] = lambda: None
    """Called in each child: what belongs to the parent alone is closed there."""


class RanOut(Exception):
    """Memory ran out in a process that was started to find that out."""


# torch's CPU allocator (alloc_cpu.cpp), and C++'s own where libraries beneath torch ask for memory.
_ON_A_CPU = ("DefaultCPUAllocator", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU torch has a class for it; on a CPU it is a RuntimeError that says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ON_A_CPU)


def used_bytes(device: torch.device) -> int:
    """The most that this process has taken: tensors on a card, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def told_if_memory_runs_out(case: Callable[[], Case], device: torch.device, when: str) -> Iterator[None]:
    """Turn running out of memory into one NotReady: measured peak, the estimate's terms, what would fit.

    Args:
        case: asked only then.
        when: e.g. "while training".
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        used, asked = used_bytes(device), _asked(str(error))
        error.__traceback__ = None  # its frames hold the tensors that fill the memory
        gc.collect()
        raise _told(case, when, used, asked) from None


def _told(case: Callable[[], Case], when: str, used: int, asked: str) -> NotReady:
    try:
        return out_of_memory(case(), when, used, asked)
    except VlaunchError as error:  # a family whose memory is not estimated
        more = f" when {asked} more were asked for" if asked else ""
        return NotReady(
            f"out of memory {when}: {gib(used)} were in use{more} ({error.message})",
            hint="fewer rows in a forward pass: --set train.per_device_train_batch_size=1",
        )


@contextmanager
def ends_if_memory_runs_out() -> Iterator[None]:
    """In a trial: leave at once. On the way out through the other contexts a collective might wait for ever."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            os._exit(_RAN_OUT)
        raise


def in_trials(work: Callable[[int], Result], count: int, forks: Forks | None = None) -> list[Result]:
    """`work(0)` to `work(count - 1)`, each in a forked process; all are gone afterwards, also after an error.

    Results come back through pipes of our own, pickled.

    Raises:
        RanOut: memory ran out in one of them.
        VlaunchError: what one of them raised.
    """
    context = multiprocessing.get_context("fork")
    forks = forks or Forks()
    processes: list[Any] = []
    ears: list[Connection] = []
    try:
        for number in range(count):
            ear, mouth = context.Pipe(duplex=False)
            ears.append(ear)
            arguments = (work, number, mouth, forks.cut_ties)
            process = context.Process(target=_work, args=arguments, name=f"trial {number}")
            with forks.still():
                process.start()
            mouth.close()
            processes.append(process)
        return _collect(ears, processes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for ear in ears:
            ear.close()


def _collect(ears: list[Connection], processes: list[Any]) -> list[Any]:
    results: dict[int, Any] = {}
    waiting: dict[Any, int] = dict(zip(ears, range(len(ears)), strict=True))
    while waiting:
        for ear in wait(list(waiting)):
            number = waiting.pop(ear)
            try:
                failure, results[number] = ears[number].recv()
            except EOFError:
                processes[number].join()
                failure = _death(processes[number])
            if failure is not None:
                raise failure
    return [results[number] for number in range(len(ears))]


def _death(process: Any) -> Exception:
    """Of a process that has said nothing."""
    if process.exitcode in (_RAN_OUT, -signal.SIGKILL):
        return RanOut()
    return VlaunchError(f"{process.name} died (code {process.exitcode})")


def _work(work: Callable[[int], Any], number: int, mouth: Connection, cut_ties: Callable[[], None]) -> None:
    """In the new process: tell the outcome, and end."""
    cut_ties()
    for which in (signal.SIGTERM, signal.SIGINT):  # its parent's handlers are about its parent's processes
        signal.signal(which, signal.SIG_DFL)
    try:
        with ends_if_memory_runs_out():
            mouth.send((None, work(number)))
    except VlaunchError as error:
        mouth.send((_plain(error), None))
    except Exception:
        mouth.send((VlaunchError(traceback.format_exc().strip()), None))
    mouth.close()


def _plain(error: VlaunchError) -> VlaunchError:
    """The same as a class that pickles: by its message alone."""
    plain = VlaunchError(error.message)
    plain.hint, plain.exit_code = error.hint, error.exit_code
    return plain


def _asked(message: str) -> str:
    """What the allocator could not give, in its own words: "606.00 MiB" on a GPU, a number of bytes on a CPU."""
    for before, after in (("Tried to allocate ", ". "), ("you tried to allocate ", " bytes")):
        if before in message:
            amount = message.partition(before)[2].partition(after)[0]
            return gib(int(amount)) if amount.isdigit() else amount
    return ""
