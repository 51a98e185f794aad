"""How long a store that fails is asked again, and what its failures are called.

The library of each service would retry by itself: some errors, for some time, in ways that differ. Here is one rule
for all of them, with a budget that a caller can rely on.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one request may take, and how long a store that fails is asked again."""

    connect_s: float = 5.0
    answer_s: float = 20.0  # between two bytes of a reply; boto3 and GCS would wait for 60
    tries: int = 4  # at least so many, however long they took
    budget_s: float = 30.0  # and more of them while the first failure is not longer ago than this
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0


class Kind(Enum):
    """What a failed request means for the one who made it."""

    ABSENT = "there is no such object"
    EXISTS = "there is an object already, and it was to be created"
    CORRUPT = "the bytes do not match the service's own checksum"
    REFUSED = "nobody but the user can change it: credentials, permissions, the bucket"
    FAILED = "anything else"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed request in words."""

    kind: Kind
    said: str
    hint: str | None = None
    again: bool = False  # the same request may succeed in a moment
    most_tries: int | None = None  # of this kind: more do not help
    wait_s: float = 0.0  # what the service asked for
    new_client: bool = False  # the next request reads the credentials again

    @property
    def passes(self) -> bool:
        """However long it has lasted, it may be over in a while."""
        return self.again and self.most_tries is None


class Tries:
    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failed, self._since, self._progress = 0, 0.0, 0
        self._alike: Counter[str] = Counter()

    def pause(self, fault: Fault, progress: int) -> float | None:
        """Seconds until the next try; None if there is to be none."""
        now = time.monotonic()
        if progress != self._progress or not self._failed:
            self._failed, self._since, self._progress = 0, now, progress
            self._alike.clear()
        self._failed += 1
        self._alike[fault.said] += 1
        if not fault.again or (fault.most_tries and self._alike[fault.said] >= fault.most_tries):
            return None
        patience = self._patience
        longest = min(patience.longest_wait_s, patience.first_wait_s * 2.0 ** min(self._failed - 1, 30))
        # Half of it by chance: many ranks fail in the same moment, and must not come back in the same moment.
        pause = max(random.uniform(longest / 2, longest), min(fault.wait_s, patience.longest_wait_s))
        over = now + pause - self._since > patience.budget_s
        return None if self._failed >= patience.tries and over else pause
