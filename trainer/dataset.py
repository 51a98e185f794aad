"""The tokenised corpus as memory-mapped arrays, and the tensors of one forward pass.

On disk (written by tokenize.py): tokens.bin (uint16 or uint32), trained.bin (uint8), ends.bin (int64: tokens, and
trained tokens, up to the end of each conversation). Only the last is read at the start: of the others a process reads
the pages of the conversations it is asked for, so memory does not grow with their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.packing import Ints

TOKENS, TRAINED, ENDS = "tokens.bin", "trained.bin", "ends.bin"


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: conversations laid end to end.

    input_ids: (1, T) int64. position_ids: (1, T) int64, from 0 in each conversation.
    predictors: (N,) int64, positions whose next token is learnt. targets: (N,) int64, those next tokens.
    boundaries: where each conversation begins, then T.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    boundaries: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.predictors.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.boundaries,
        )


class TokenisedCorpus:
    """Conversations by number.

    lengths: (n,) tokens of each. trained_counts: (n,) tokens of each whose loss counts.
    """

    def __init__(self, directory: Path) -> None:
        ends = np.fromfile(directory / ENDS, dtype=np.int64).reshape(-1, 2).T
        counts = np.diff(ends, prepend=0)
        self.lengths: Ints = counts[0]
        self.trained_counts: Ints = counts[1]
        self._ends: Ints = ends[0]
        self._starts: Ints = ends[0] - counts[0]
        total = int(self.lengths.sum())
        self._tokens: NDArray[np.unsignedinteger] = _mapped(directory / TOKENS, total)
        self._trained: NDArray[np.uint8] = _mapped(directory / TRAINED, total)

    def __len__(self) -> int:
        return len(self._ends)

    def tokens_of(self, conversation: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
        """Token ids (L,), of 2 or 4 bytes, and trained flags (L,) of one conversation."""
        span = slice(int(self._starts[conversation]), int(self._ends[conversation]))
        return self._tokens[span], self._trained[span]

    def batch(self, conversations: Ints) -> Batch:
        """The forward pass over these conversations; over none, one token that nothing is learnt from."""
        if not len(conversations):
            one = torch.zeros((1, 1), dtype=torch.int64)
            none = torch.empty(0, dtype=torch.int64)
            return Batch(one, one, none, none, (0, 1))
        pieces = [self.tokens_of(int(number)) for number in conversations]
        tokens = np.concatenate([piece[0] for piece in pieces]).astype(np.int64)
        trained = np.concatenate([piece[1] for piece in pieces]).astype(bool)
        lengths = [len(piece[0]) for piece in pieces]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        learnt = np.flatnonzero(trained)
        return Batch(
            torch.from_numpy(tokens)[None],
            torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            torch.from_numpy(learnt - 1),
            torch.from_numpy(tokens[learnt]),
            tuple(int(start) for start in starts),
        )


def token_type(vocabulary: int) -> type[np.unsignedinteger]:
    """What tokens are stored as: two bytes are enough for the vocabularies of LLaMA-2 and Mistral."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def _mapped(path: Path, count: int) -> NDArray[Any]:
    """The array of `count` numbers that a file is; its size says how many bytes each has. An empty one cannot be
    mapped."""
    if not count:
        return np.empty(0, dtype=np.uint8)
    return np.memmap(path, f"u{path.stat().st_size // count}", "r", shape=(count,))
