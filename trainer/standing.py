"""How the held-out loss stands: the best step so far, and whether it is time to stop.

Nothing of it is saved: a resumed attempt derives it from the metrics that are in the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch.distributed as dist

from trainer.artifacts.metrics import EvalRecord, read_metrics
from trainer.artifacts.store import Store
from trainer.config import TrainConfig
from trainer.parallel import World


class Standing:
    """The held-out losses of a run, in order of steps.

    A loss counts as better only where it is lower, without a margin, as in transformers' EarlyStoppingCallback
    with its default threshold of 0. A NaN is never better.
    """

    def __init__(self, patience: int = 0, measured: Iterable[EvalRecord] = ()) -> None:
        """`patience`: losses in a row without a better one after which it is time to stop; 0 is never."""
        self._patience = patience
        self._last_step = -1
        self._worse = 0
        self.best_step: int | None = None
        self.best_loss = math.inf
        for record in sorted(measured, key=lambda record: record.step):
            self.add(record.step, record.loss)

    def add(self, step: int, loss: float) -> bool:
        """Whether this loss is the best so far. A step that was measured before a resume counts once."""
        if step <= self._last_step:
            return False
        self._last_step = step
        better = loss < self.best_loss
        if better:
            self.best_step, self.best_loss = step, loss
        self._worse = 0 if better else self._worse + 1
        return better

    @property
    def over(self) -> bool:
        """Whether the loss has not become better for as long as the patience lasts."""
        return 0 < self._patience <= self._worse


def resumed_standing(config: TrainConfig, store: Store, steps: int, world: World) -> Standing:
    """The standing after `steps` optimiser steps, the same on every process; a collective.

    Costs the first process one read of all metrics, and nothing where neither early stopping nor the best
    checkpoint is asked for.
    """
    patience = config.train.early_stopping_patience
    if not steps or not (patience or config.checkpoint.keep_best):
        return Standing(patience)
    box: list[list[EvalRecord] | None] = [None]
    if world.leads:
        box = [[record for record in read_metrics(store)[1] if record.step <= steps]]
    dist.broadcast_object_list(box, src=0, group=world.commit_group)
    return Standing(patience, box[0] or ())
