"""A bar with rate and time left, on a terminal only, and only for what takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.output import animated, console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from trainer.data.pipeline import Progress

_PATIENCE_S = 1.0
_BETWEEN_S = 0.1


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Yields what to tell the pipeline's progress to."""
    if not animated():
        yield lambda _: None
        return
    shown = _Shown()
    try:
        yield shown.update
    finally:
        shown.close()


class _Shown:
    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.bar: Bar | None = None
        self.tasks: dict[str, int] = {}

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.began < _PATIENCE_S or now - self.last < _BETWEEN_S:
            return
        self.last = now
        if self.bar is None:
            self.bar = self._open()
        if progress.stage not in self.tasks:
            self.tasks[progress.stage] = self.bar.add_task(progress.stage, total=progress.total, rate="")
        seconds = max(now - self.began, 1e-9)
        rate = f"{progress.samples / seconds:,.0f} conversations/s" if progress.samples else ""
        task = self.bar.tasks[self.tasks[progress.stage]].id
        self.bar.update(task, completed=progress.done, total=progress.total, rate=rate)

    def _open(self) -> Bar:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=console(), transient=True)
        bar.start()
        return bar

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
