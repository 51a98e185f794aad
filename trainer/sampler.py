"""Which conversations step k of the run sees: a pure function of (seed, corpus, step).

A position in the corpus is therefore one number. Resuming costs nothing however far the run is, and every
world size sees the same global batches in the same order: processes only divide a batch among themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trainer.packing import Ints, Rows


@dataclass(frozen=True, slots=True)
class Position:
    """What the run has seen before a step, over all epochs."""

    samples: int
    tokens: int


def permutation(count: int, *key: int) -> Ints:
    """A pseudo-random order of range(count), the same on every machine and NumPy version.

    NumPy promises the raw stream of a bit generator, not what Generator makes of it.
    """
    words = np.array(key, dtype=np.uint64)
    digest = hashlib.sha256(words.tobytes()).digest()[:16]
    stream = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.argsort(stream.random_raw(count), kind="stable").astype(np.int64)


class Sampler:
    """Global batches of rows, epoch after epoch; within one epoch every conversation comes exactly once.

    The last batch of an epoch may be smaller: nothing is dropped or repeated to fill it.
    """

    def __init__(self, lengths: Ints, rows: Rows, global_batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.rows = rows
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.steps_per_epoch = -(-len(rows) // global_batch_size)
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def batch(self, step: int) -> list[Ints]:
        """The rows of optimiser step `step` (from 0), each an array of conversation numbers."""
        epoch, index = divmod(step, self.steps_per_epoch)
        conversations, order, _, _ = self._epoch(epoch)
        chosen = order[index * self.global_batch_size : (index + 1) * self.global_batch_size]
        starts = self.rows.starts
        return [conversations[starts[row] : starts[row + 1]] for row in chosen]

    def share(self, step: int, rank: int, world_size: int, per_device: int) -> list[Ints]:
        """Micro-batches of one process: per element, the conversations of up to `per_device` rows.

        All processes get the same number of micro-batches, since each is a collective; one that has run out
        of rows gets an empty array.
        """
        rows = self.batch(step)
        longest = -(-len(rows) // world_size)
        mine = rows[rank::world_size]
        empty = np.empty(0, dtype=np.int64)
        return [
            np.concatenate(mine[at : at + per_device]) if mine[at : at + per_device] else empty
            for at in range(0, longest, per_device)
        ]

    def before(self, step: int) -> Position:
        """Conversations and tokens seen in steps 0..step-1."""
        epoch, index = divmod(step, self.steps_per_epoch)
        _, _, samples, tokens = self._epoch(epoch)
        at = min(index * self.global_batch_size, len(self.rows))
        return Position(
            epoch * len(self.lengths) + int(samples[at]),
            epoch * int(self.lengths.sum()) + int(tokens[at]),
        )

    def total_steps(self, num_train_epochs: float, max_steps: int) -> int:
        """Steps of the whole run; `max_steps` wins where it is not -1."""
        return max_steps if max_steps >= 0 else max(1, round(self.steps_per_epoch * num_train_epochs))

    def _lay_out(self, epoch: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Conversation of each slot, row order, and samples and tokens before each row of that order."""
        shuffled = permutation(len(self.lengths), self.seed, epoch, 0)
        by_length = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
        conversations = by_length[self.rows.slots]
        order = permutation(len(self.rows), self.seed, epoch, 1)
        starts = self.rows.starts
        tokens_before = np.concatenate([[0], np.cumsum(self.lengths[conversations])])
        row_samples = np.diff(starts)
        row_tokens = tokens_before[starts[1:]] - tokens_before[starts[:-1]]
        samples = np.concatenate([[0], np.cumsum(row_samples[order])])
        tokens = np.concatenate([[0], np.cumsum(row_tokens[order])])
        return conversations, order, samples, tokens


def batch_digest(rows: list[Ints]) -> str:
    """Eight hex digits over the conversation numbers of a global batch, in order: proof of what was seen."""
    joined = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    return hashlib.sha256(joined.tobytes()).hexdigest()[:8]
