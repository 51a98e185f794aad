"""What an attempt needs on this machine's disk: tokeniser, corpus, base weights, and the checkpoint to go on from.

It comes over the network in threads, while torch is imported. The head decides where the attempt resumes, and makes
what nobody has made yet; the other nodes fetch the same bytes, what is most likely needed before the head has said so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainer.artifacts.fencing import Lease
from trainer.artifacts.journal import Journal
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.sources import Sources
from trainer.artifacts.store import Store
from trainer.config import TrainConfig
from trainer.errors import StoreError
from trainer.gang import Head, Member
from trainer.processes import import_for_ranks
from trainer.resuming import Resuming

if TYPE_CHECKING:
    from trainer.prepare import Inputs

log = logging.getLogger("trainer")


@dataclass(frozen=True, slots=True)
class Fetching:
    """Of one attempt, into `workdir`. Both ways return its inputs, and the checkpoint it goes on from, if any."""

    config: TrainConfig
    lease: Lease
    journal: Journal
    sources: Sources
    workdir: Path
    mark: Callable[[str], None]
    """Hears the name of each part of the start when it is over."""

    def lead(self, head: Head) -> tuple[Inputs, Manifest | None]:
        """When all is here, it is settled where the attempt resumes."""
        from trainer.prepare import build, fetch, with_weights

        own = self.sources.own
        with _Pool() as pool:
            fetched = pool.submit(fetch, own, self.config, self.workdir)
            restored = pool.submit(self._resuming().newest)
            self._import()
            resumed = restored.result()
            inputs = fetched.result()
        if inputs is None:
            log.info("preparing tokeniser and corpus")
            inputs = build(own, self.config, self.workdir)
        elif resumed is None:
            inputs = with_weights(own, self.config, self.workdir, inputs)
        self.mark("fetch")
        head.gather()
        self.lease.start(resumed.step if resumed else 0, resumed.key if resumed else None)
        head.brief(resumed.key if resumed else None, bool(self.lease.reusable))
        return inputs, resumed

    def follow(self, member: Member) -> tuple[Inputs, Manifest | None]:
        """The same bytes as the head's."""
        from trainer.prepare import fetch, with_weights

        own, resuming = cast(Store, _Untouched(self.sources.own)), self._resuming()
        with _Pool() as pool:
            fetched = pool.submit(fetch, own, self.config, self.workdir)
            guessed = pool.submit(resuming.guess)
            self._import()
            key, reusable = member.started()
            likely = guessed.result()
            inputs = fetched.result()
        resumed = None
        if key is not None:
            resumed = likely if likely and likely.key == key else resuming.told(key)
            self.lease.reusable = resumed.files if reusable else ()
        if inputs is None:  # the head has built them by now
            inputs = fetch(own, self.config, self.workdir)
        if inputs is None:
            raise StoreError(
                f"{own.uri} does not show this node the corpus that the head has prepared",
                hint="every node must see the same store: give a bucket, or a folder that all of them share",
            )
        if resumed is None:
            inputs = with_weights(own, self.config, self.workdir, inputs)
        self.mark("fetch")
        return inputs, resumed

    def _resuming(self) -> Resuming:
        return Resuming(self.lease, self.journal, self.sources, self.workdir / "checkpoint")

    def _import(self) -> None:
        """While the network is busy."""
        import_for_ranks(self.config)
        self.mark("import")


class _Untouched:
    """A store in which a node that does not lead deletes nothing: what it finds damaged, the head makes anew."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete(self, key: str) -> None:
        pass


class _Pool(ThreadPoolExecutor):
    """Two threads beside the imports. Where one thing fails, nobody waits for the others."""

    def __init__(self) -> None:
        super().__init__(2)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.shutdown(wait=kind is None, cancel_futures=True)
