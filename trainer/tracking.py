"""Progress told to people and kept for `vlaunch metrics`, off the training path.

Records gather in memory; a thread of its own puts them into the store every few seconds. A store that is away
or full costs nothing but freshness: what could not be sent stays and goes with the next try.
"""

from __future__ import annotations

import logging
import threading

from trainer.artifacts.metrics import EvalRecord, MetricsWriter, StepRecord
from trainer.errors import StoreError

log = logging.getLogger("trainer")


class Tracker:
    """Step and held-out records of one attempt, on its first process."""

    def __init__(self, writer: MetricsWriter, total_steps: int, interval_s: float) -> None:
        self._writer = writer
        self._total_steps = total_steps
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._unsaid: list[StepRecord] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self, record: StepRecord) -> None:
        self._writer.add(record)
        with self._lock:
            self._unsaid.append(record)

    def held_out(self, record: EvalRecord) -> None:
        self._writer.add(record)
        log.info("held-out loss %.4f at step %d", record.loss, record.step)

    def cut(self) -> None:
        """A checkpoint is taken here: what follows goes into a segment of its own, since it may be lost."""
        self._writer.cut()

    def flush(self) -> None:
        """Put everything recorded so far into the store. Raises StoreError if it cannot."""
        self._writer.flush()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._try()

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._try()

    def _try(self) -> None:
        self._say()
        try:
            self.flush()
        except (StoreError, OSError) as error:
            log.debug("metrics stay here for now: %s", error)

    def _say(self) -> None:
        with self._lock:
            records, self._unsaid = self._unsaid, []
        if not records:
            return
        last = records[-1]
        rate = len(records) / max(sum(record.step_s for record in records), 1e-9)
        log.info(
            "step %d/%d  loss %.4f  rate %.2e  %.2f steps/s", last.step, self._total_steps, last.loss,
            last.learning_rate, rate,
        )  # fmt: skip
