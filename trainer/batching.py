"""How many rows one forward pass holds: `train.auto_batch`.

Not the first batch decides but the largest of the run, so a try is made with rows as full as any epoch's: `Fullest`.
Tries run in processes of their own, before the training processes start (shortage.py says why). Each is predicted from
those before it, memory being linear in the rows, so that running out is the exception.

The number is found once for a kind of machine and kept in the store, created if absent: a later attempt on that kind
takes it and continues bit for bit, and of two machines that search at once one finds for both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainer import kernels
from trainer.artifacts.layout import cache_key
from trainer.artifacts.store import Store
from trainer.config import TrainConfig
from trainer.dataset import Batch
from trainer.errors import MissingKey
from trainer.fitting import Case, out_of_memory
from trainer.hardware import Hardware
from trainer.memory import gib
from trainer.packing import Ints, Rows
from trainer.parallel import Sharded
from trainer.shortage import Forks, RanOut, in_trials, used_bytes

log = logging.getLogger("trainer")

# Share of the memory that a try may take: the rest is for the holes that a run of days makes, whose rows come in other
# orders than a try's. Assumed.
_SAFE = 0.95


@dataclass(frozen=True, slots=True)
class Fullest:
    """The fullest rows of a corpus, in any epoch.

    An epoch decides which conversation of a given length takes a slot, so a row's tokens are always the same and its
    trained tokens at most those of the most trained conversations of these lengths.
    """

    lengths: tuple[Ints, ...]
    """Of the conversations of each row; the row with the most tokens first."""
    trained: Ints
    """(rows,) the most trained tokens that a row can have, descending; not row by row with `lengths`."""

    @classmethod
    def of(cls, lengths: Ints, trained_counts: Ints, rows: Rows) -> Fullest:
        """
        Args:
            lengths, trained_counts: (n,) of each conversation, as TokenisedCorpus has them.
        """
        descending = np.sort(lengths)[::-1]
        most = np.zeros(int(descending[0]) + 1, dtype=np.int64)  # by length
        np.maximum.at(most, lengths, trained_counts)
        of_slot = descending[rows.slots]
        row_tokens = np.add.reduceat(of_slot, rows.starts[:-1])
        row_trained = np.add.reduceat(most[of_slot], rows.starts[:-1])
        order = np.argsort(-row_tokens, kind="stable")
        return cls(
            tuple(of_slot[rows.starts[row] : rows.starts[row + 1]] for row in order),
            np.sort(row_trained)[::-1],
        )

    def counts(self, rows: int) -> tuple[int, int]:
        """(tokens, trained tokens) that no micro-batch of so many rows exceeds."""
        tokens = sum(int(lengths.sum()) for lengths in self.lengths[:rows])
        return tokens, min(int(self.trained[:rows].sum()), tokens - 1)

    def batch(self, rows: int) -> Batch:
        """A forward pass of that size. What its tokens say is of no importance."""
        tokens, trained = self.counts(rows)
        lengths = np.concatenate(self.lengths[:rows])
        return Batch(
            torch.zeros((1, tokens), dtype=torch.int64),
            torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            torch.arange(trained),
            torch.zeros(trained, dtype=torch.int64),
            (0, *(int(end) for end in np.cumsum(lengths))),
        )

    def within(self, config: TrainConfig) -> tuple[int, int]:
        """`counts` for a config whose rows are shorter than those of the corpus: `Case.fullest`."""
        rows = config.train.per_device_train_batch_size
        tokens, trained = self.counts(rows)
        return min(tokens, rows * config.data.max_length), min(trained, rows * config.data.max_length)


class Peak(NamedTuple):
    """What a process has taken at most, and all that it could have taken; bytes."""

    used: int
    free: int


def rehearse(
    sharded: Sharded, loss_of: Callable[[nn.Module, Batch], Tensor], batch: Batch, processes: int
) -> Peak:
    """Two backward passes of `batch`, the second on top of the gradients of the first, and no optimiser step.

    The model is of no use afterwards. A collective.

    Args:
        processes: that share this machine's memory, where it is a CPU's.

    Raises:
        torch.OutOfMemoryError, RuntimeError, MemoryError: memory has run out; `is_out_of_memory` tells.
    """
    device = batch.input_ids.device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        free = kernels.resident_bytes() + kernels.free_host_bytes() // processes
    sharded.model.train()
    for last in (False, True):
        sharded.backward(loss_of(sharded.model, batch), last=last)
    return Peak(used_bytes(device), free)


def settle_rows(
    config: TrainConfig,
    store: Store,
    processes: int,
    rows: int,
    trial: Callable[[TrainConfig, int, int], Peak],
    case: Callable[[TrainConfig, Hardware], Case],
    forks: Forks | None = None,
) -> TrainConfig:
    """The config with as many rows in a forward pass as this kind of machine holds. The global batch stays.

    Starts no CUDA in this process, which may fork further ones afterwards. A search costs some starts of all processes
    (three or four), a later attempt on such a machine one start of an empty one.

    Args:
        processes: of the run on this machine.
        rows: the most that a process has in a step.
        trial: (config, process, number of the try) -> what the fullest rows take; run in a process of its own.
        case: the run on this machine, for the message where not even one row fits.

    Raises:
        NotReady: not even one row fits.
    """
    hardware = in_trials(lambda _: kernels.detect(processes), 1, forks)[0]
    kept = _Kept(store, f"{hardware.count} x {hardware.name}")
    found = kept.read()
    if found is None:
        tries: list[int] = []

        def try_rows(count: int) -> Peak | None:
            tries.append(count)
            wanted, number = _with_rows(config, count), len(tries)
            return _try(lambda rank: trial(wanted, rank, number), processes, count, forks)

        best = largest(rows, try_rows)
        if best is None:
            whole = case(_with_rows(config, 1), hardware)
            raise out_of_memory(whole, "with a single row in a forward pass", hardware.memory_bytes, "")
        found = kept.write(best)
    batch = config.train.global_batch_size
    log.info("%d rows in a forward pass on %s; the global batch stays %d", found, hardware.name, batch)
    return _with_rows(config, found)


def largest(rows: int, try_rows: Callable[[int], Peak | None]) -> int | None:
    """The most rows in a forward pass that fit, of those that make a difference; None if one row does not.

    `rows` of a process make ceil(rows / m) passes of m rows: of all m with the same number of passes the smallest
    does, since it needs the least memory. Tried are one row, the next useful number, and then the largest of which a
    line through the measured peaks predicts that it fits; never one of which it predicts the opposite.
    """
    useful = sorted({math.ceil(rows / passes) for passes in range(1, rows + 1)})
    peaks: dict[int, Peak] = {}
    low, high = -1, len(useful)
    while low + 1 < high:
        index = _predicted(useful, peaks, low, high)
        if index is None:
            break
        peak = try_rows(useful[index])
        if peak is not None and peak.used <= _SAFE * peak.free:
            low, peaks[useful[index]] = index, peak
        else:
            high = index
    return useful[low] if low >= 0 else None


def _predicted(useful: list[int], peaks: dict[int, Peak], low: int, high: int) -> int | None:
    """The index to try next, above `low` and below `high`; None if nothing above `low` is expected to fit."""
    if len(peaks) < 2:
        return low + 1
    (few, less), (many, more) = sorted(peaks.items())[-2:]
    slope = max(1.0, (more.used - less.used) / (many - few))
    room = _SAFE * more.free - more.used
    fitting = [index for index in range(low + 1, high) if (useful[index] - many) * slope <= room]
    return fitting[-1] if fitting else None


def _try(work: Callable[[int], Peak], processes: int, rows: int, forks: Forks | None) -> Peak | None:
    """The fullest process; None where memory ran out in one."""
    try:
        peak = max(in_trials(work, processes, forks), key=lambda peak: peak.used / max(1, peak.free))
    except RanOut:
        log.info("tried %d rows in a forward pass: memory ran out", rows)
        return None
    log.info("tried %d rows in a forward pass: %s of %s", rows, gib(peak.used), gib(peak.free))
    return peak


class _Kept:
    """The number found for a kind of machine: one small object of the run, created if absent."""

    def __init__(self, store: Store, machine: str) -> None:
        self._store, self._machine = store, machine
        self._key = cache_key(f"rows-{hashlib.sha256(machine.encode()).hexdigest()[:16]}")

    def read(self) -> int | None:
        try:
            return int(json.loads(self._store.get(self._key))["rows"])
        except MissingKey:
            return None

    def write(self, rows: int) -> int:
        """What is there afterwards: another machine's number, if that came first."""
        self._store.put_new(self._key, json.dumps({"rows": rows, "machine": self._machine}).encode())
        return self.read() or rows


def _with_rows(config: TrainConfig, rows: int) -> TrainConfig:
    train = config.train.model_copy(update={"per_device_train_batch_size": rows})
    return config.model_copy(update={"train": train})
