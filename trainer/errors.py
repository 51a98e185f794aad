"""What can go wrong, each with the sentence to say and what to do next.

Light: the laptop raises and catches these too, so nothing here may import torch.

    VlaunchError        exit 1   something failed
    |- UsageError       exit 2   what was asked for cannot be done as asked
    |  |- ConfigError            a field of the configuration is unknown or impossible
    |  `- DataError              a file of the corpus cannot be used
    |- NotReady         exit 3   an extra, a credential, space or a machine is missing
    |  `- RunIsLive              another attempt of the same run is alive
    |- StoreError       exit 1   the store refused, lost or does not have something
    |  |- MissingKey
    |  |- CorruptObject          bytes that do not match their hash
    |  |- StoreAway              it does not answer, or says "later"; asked for long enough already
    |  `- StoreRefused  exit 3   credentials, permissions or the bucket: asking again does not help
    |- Fenced           exit 1   a newer attempt owns the run: this one must stop
    |- RemoteJobFailed  exit 4   the job itself failed where it ran
    |- LimitReached     exit 5   a budget or a deadline ended the run
    |- Preempted        exit 75  the machine is being taken: resume me
    `- Interrupted      exit 130 Ctrl-C
"""

from __future__ import annotations

from collections.abc import Iterable


class VlaunchError(Exception):
    """The root: `message` says what is wrong and where, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(VlaunchError):
    """The request itself cannot be carried out."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration field is unknown, misspelled, impossible or changed."""


class DataError(UsageError):
    """A corpus file is broken, empty or has nothing to learn from."""


class NotReady(VlaunchError):
    """Something that must be there first is not: an extra, a key, space, a machine."""

    exit_code = 3


class RunIsLive(NotReady):
    """Another attempt of this run is alive; two writers are refused."""


class StoreError(VlaunchError):
    """The store did not do what was asked of it; the caller may try again."""


class MissingKey(StoreError):
    """The store has no object under this key."""


class CorruptObject(StoreError):
    """An object's bytes do not match the hash that its manifest gives."""


class StoreAway(StoreError):
    """The store does not answer, or asks for patience. Nothing is wrong with the request: it may work in a while."""


class StoreRefused(StoreError):
    """Credentials, permissions or the bucket are not as they must be; only the user can change that."""

    exit_code = 3


class Fenced(VlaunchError):
    """A newer attempt has claimed the run; nothing this one writes counts any more."""


class RemoteJobFailed(VlaunchError):
    """The job ended with an error on its machine."""

    exit_code = 4


class LimitReached(VlaunchError):
    """The run stopped at its budget or deadline, with its work saved."""

    exit_code = 5


class Preempted(VlaunchError):
    """The machine is being taken away; the run can be resumed."""

    exit_code = 75


class Interrupted(VlaunchError):
    """The user pressed Ctrl-C."""

    exit_code = 130


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `word` was probably meant to be. difflib is imported only for a mistake."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(names), n=1)
    return found[0] if found else None
