"""What is remembered of a conversation to find its duplicates: hashes of a few hundred bytes, never its text.

    chains    one 64-bit hash per round, of everything up to its end: a conversation whose last hash is among
              another's chain is the beginning of that other one, word for word (or all of it)
    minhash   128 minima over the 16-byte windows of the text: the share of equal ones estimates the share of
              windows that two texts have in common (Broder 1997; rensa's RMinHash)

Of the windows, one in eight is taken, chosen by a hash of its first half and so the same in both texts: an eighth of
the work, and the estimate stays unbiased. Bytes rather than words, so Chinese and code are treated alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.conversation import Conversation
from trainer.errors import NotReady

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERMUTATIONS = 128
_SEED = 1
_WINDOW = 16
_TAKEN_BITS = 61  # a window counts if the hash of its first half is below 2**61: one in eight
_FEWEST = 8  # windows taken; with fewer the estimate says nothing, and only exact duplicates are found


def chain_hashes(conversation: Conversation) -> list[int]:
    """The hash at the end of each round (each answer), in order."""
    running = hashlib.blake2b(digest_size=8)
    found = []
    for turn in conversation.turns:
        running.update(f"{turn.role} {len(turn.text)}\0{turn.text}".encode())
        if turn.role == "assistant":
            found.append(int.from_bytes(running.copy().digest(), "little"))
    return found


def text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def minhashes(conversations: Sequence[Conversation]) -> NDArray[np.uint32]:
    """(conversations, PERMUTATIONS), a row of zeros for a text too short to compare."""
    import numpy as np

    texts = ["\n".join(turn.text for turn in each.turns).encode() for each in conversations]
    rows = np.zeros((len(texts), PERMUTATIONS), dtype=np.uint32)
    hashes, offsets = _windows(texts)
    counts = np.diff(offsets)
    if hashes.size:
        matrix = _rensa().digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, _SEED)
        rows[:] = np.array(matrix.to_rows(), dtype=np.uint32)
    rows[counts < _FEWEST] = 0
    return rows


def _windows(texts: list[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(hashes of the windows taken, where each text's begin and the end)."""
    import numpy as np

    joined = b"".join(texts)
    ends = np.cumsum([len(text) for text in texts])
    if len(joined) < _WINDOW:
        return np.zeros(0, np.uint64), np.zeros(len(texts) + 1, np.uint64)
    # Every 8 bytes as one number, at every byte: no copy, whatever the alignment.
    eights = np.ndarray((len(joined) - 7,), dtype="<u8", buffer=joined, strides=(1,))
    first = eights[:-8] * np.uint64(0x9E3779B97F4A7C15)
    at = np.flatnonzero(first < np.uint64(1 << _TAKEN_BITS))
    # A window that reaches into the next text is none: of each text those before its last 15 bytes.
    edges = np.stack([ends - _WINDOW + 1, ends], axis=1).ravel()
    runs = np.diff(np.searchsorted(at, np.maximum.accumulate(np.maximum(edges, 0))), prepend=0)
    at = at[np.repeat(np.tile([True, False], len(texts)), runs)]
    mixed = first.take(at)
    mixed ^= mixed >> np.uint64(29)
    mixed += eights[at + 8]
    mixed *= np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's multipliers
    mixed ^= mixed >> np.uint64(32)
    return mixed, np.concatenate([[0], np.cumsum(runs[::2])]).astype(np.uint64)


def _rensa() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise NotReady("finding near duplicates needs rensa", hint="pip install 'vlaunch[data]'") from error
    return rensa.RMinHash
