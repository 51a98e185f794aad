"""Worker processes that die with their parent and never outlive an error.

Forked, so that settings and imported tools are there at once; forked before any thread is started.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.errors import VlaunchError

if TYPE_CHECKING:
    from trainer.data.steps import Settings

Submit = Callable[..., Callable[[], Any]]


@contextmanager
def workforce(workers: int, settings: Settings) -> Iterator[Submit]:
    """Yields submit(function, argument) -> a function that waits for the result. One worker: this process."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the workers are the parallelism
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if workers == 1:

        def now(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
            result = function(argument)
            return lambda: result

        yield now
        return
    _import_tools(settings)
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(),))
    pool.submit(int).result()  # all are started now, before a progress bar has a thread

    def submit(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
        with _explained():
            future = pool.submit(function, argument)

        def result() -> Any:
            with _explained():
                return future.result()

        return result

    try:
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise VlaunchError(
            "a worker process was killed, probably for want of memory",
            hint="the parts made so far are kept: run the same command again with fewer --workers",
        ) from error


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer

    def watch() -> None:
        # A killed parent closes no queue: its other children hold the same pipe open.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _import_tools(settings: Settings) -> None:
    """What every worker needs is imported once, and shared."""
    import numpy  # noqa: F401
    import orjson  # noqa: F401

    if settings.clean:
        import trainer.data.clean  # noqa: F401
    if settings.dedupe:
        import trainer.data.signatures  # noqa: F401
    if settings.language or settings.detect_language:
        from trainer.data.language import detector

        detector()
    if settings.split:
        settings.split.counter()
