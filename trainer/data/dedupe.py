"""Which conversations are duplicates, decided on signatures alone, the longest of each kind kept.

    duplicate         the same turns, word for word
    part of another   another conversation begins with all of it (the same chat, shared again later)
    near duplicate    an estimated `near` share of its text is in a longer one

The order of preference is total: longer text first, then what came first. So the outcome depends on the input
alone, not on workers. Memory: about 100 bytes per conversation and round; the minhashes stay on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.data.signatures import PERMUTATIONS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REASONS = ("", "duplicate", "part of another", "near duplicate")
_DUPLICATE, _PART, _NEAR = 1, 2, 3
# 16 bands of 8 rows: two texts that share 85 % meet in some band with probability 0.994, those that share
# 50 % with 0.06 (and are then turned away by the estimate).
_BANDS = 16
_ROWS = PERMUTATIONS // _BANDS


@dataclass(frozen=True, slots=True)
class Decisions:
    """Per conversation in input order: reason (an index into REASONS; 0: kept) and the one it gave way to."""

    reason: NDArray[np.uint8]
    winner: NDArray[np.int64]


def decide(
    characters: NDArray[np.uint64],
    rounds: NDArray[np.uint32],
    chains: NDArray[np.uint64],
    minhash: NDArray[np.uint32] | None,
    near: float,
) -> Decisions:
    """characters, rounds: (N,); chains: (sum of rounds,); minhash: (N, PERMUTATIONS), on disk, or None: exact only."""
    import numpy as np

    count = len(characters)
    reason, winner = np.zeros(count, np.uint8), np.full(count, -1, np.int64)
    if not count:
        return Decisions(reason, winner)
    rank = np.empty(count, np.int64)
    rank[np.lexsort((np.arange(count), -characters.astype(np.int64)))] = np.arange(count)
    _exact(reason, winner, rank, rounds, chains)
    if minhash is not None:
        _near(reason, winner, rank, minhash, near)
    return Decisions(reason, winner)


def _exact(
    reason: NDArray[np.uint8],
    winner: NDArray[np.int64],
    rank: NDArray[np.int64],
    rounds: NDArray[np.uint32],
    chains: NDArray[np.uint64],
) -> None:
    import numpy as np

    owner = np.repeat(np.arange(len(rounds)), rounds)
    order = np.lexsort((rank[owner], chains))  # by hash, the best owner first
    hashes, first = np.unique(chains[order], return_index=True)
    best = owner[order][first]
    # A conversation's whole is the last of its chain; one without an answer has no chain and no duplicate.
    answered = np.flatnonzero(rounds)
    last = np.cumsum(rounds, dtype=np.int64)[answered] - 1
    wins = best[np.searchsorted(hashes, chains[last])]
    lost = wins != answered
    winner[answered[lost]] = wins[lost]
    same = rounds[wins[lost]] == rounds[answered[lost]]
    reason[answered[lost]] = np.where(same, _DUPLICATE, _PART)


def _near(
    reason: NDArray[np.uint8],
    winner: NDArray[np.int64],
    rank: NDArray[np.int64],
    minhash: NDArray[np.uint32],
    near: float,
) -> None:
    import numpy as np

    alive = np.flatnonzero(reason == 0)
    alive = alive[np.argsort(rank[alive])]  # the best first, so position is rank
    pairs: list[NDArray[np.int64]] = []
    for band in range(_BANDS):
        keys = _band_keys(minhash, alive, band)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
        heads = np.maximum.accumulate(
            np.where(np.r_[True, ordered[1:] != ordered[:-1]], np.arange(len(order)), 0)
        )
        # Each with the best of its group and with its neighbour in it: linear, however large a group is.
        for partner in (heads[same], same - 1):
            pairs.append(np.stack([order[same], order[partner]], axis=1))
    if not pairs:
        return
    found = np.unique(np.concatenate(pairs), axis=0)  # sorted by the worse one's rank
    for worse, better in found.tolist():
        loser, keeper = alive[worse], alive[better]
        if reason[loser] or reason[keeper]:
            continue
        if float(np.mean(minhash[loser] == minhash[keeper])) >= near:
            reason[loser], winner[loser] = _NEAR, keeper


def _band_keys(minhash: NDArray[np.uint32], rows: NDArray[np.int64], band: int) -> NDArray[np.uint64]:
    """One number per conversation, equal where the band's rows are; 0 for a text too short to compare."""
    import numpy as np

    keys = np.zeros(len(rows), np.uint64)
    for start in range(0, len(rows), 65536):  # bounded, the rest stays on disk
        part = minhash[rows[start : start + 65536], band * _ROWS : (band + 1) * _ROWS]
        mixed = np.zeros(len(part), np.uint64)
        for column in range(_ROWS):
            mixed = (mixed ^ part[:, column]) * np.uint64(0x100000001B3)  # FNV's prime
            mixed ^= mixed >> np.uint64(31)
        keys[start : start + 65536] = np.where(part.any(axis=1), mixed | np.uint64(1), 0)
    return keys
