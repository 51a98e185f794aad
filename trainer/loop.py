"""The training loop, top to bottom.

One pass of `train` is one optimiser step: forward and backward over this process's micro-batches, clip, step,
one small all-reduce that tells every process the loss and what to do next, then (rarely) a held-out loss and a
save. Between two steps no partial gradient exists, so a step boundary is the only state ever saved.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import nn

from trainer.artifacts.metrics import EvalRecord, StepRecord
from trainer.checkpoint import Checkpointer
from trainer.config import CheckpointSection, TrainSection
from trainer.dataset import Batch, TokenisedCorpus
from trainer.loss import summed_cross_entropy
from trainer.optim import learning_rate
from trainer.parallel import Sharded, World
from trainer.preemption import Notice
from trainer.sampler import Sampler, batch_digest
from trainer.standing import Standing

Ending = Literal["finished", "preempted"]


class Observer(Protocol):
    """Whom the first process tells of its progress; nothing here may slow the loop down."""

    def step(self, record: StepRecord) -> None: ...
    def held_out(self, record: EvalRecord) -> None: ...
    def noticed(self, step: int, source: str, left_s: float, save_s: float) -> None: ...
    def warned(self, step: int, source: str) -> None: ...
    def cut(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process needs to train."""

    train: TrainSection
    checkpoint: CheckpointSection
    sharded: Sharded
    corpus: TokenisedCorpus
    held_out: TokenisedCorpus | None
    sampler: Sampler
    total_steps: int
    world: World
    checkpointer: Checkpointer
    notice: Notice
    observer: Observer
    standing: Standing
    attempt: int
    epoch: int


def train(job: Job, start: int) -> tuple[Ending, int]:
    """Optimiser steps `start`..total-1. Returns how it ended and the number of steps then taken."""
    job.sharded.model.train()
    if start == 0 or _held_out_due(job, start):  # a notice may have come before it was measured
        _measure_held_out(job, start)
    for step in range(start, job.total_steps):
        if job.standing.over:
            return "finished", step
        began = time.monotonic()
        loss, norm = _optimise(job, step)
        done = step + 1
        last = done == job.total_steps
        saver = job.checkpointer
        loss, noticed, busy, due = job.world.agree(
            loss, float(job.notice.given), float(saver.busy), float(_save_due(job, done))
        )
        saver.raise_if_fenced()
        _tell(job, step, loss, norm, time.monotonic() - began)
        if noticed and not last:
            _leave(job, done)
            return "preempted", done
        best = (last or _held_out_due(job, done)) and _measure_held_out(job, done)
        if best and job.checkpoint.keep_best:
            _save(job, done, best=True)  # not skipped where another save is under way: it waits for that one
        elif due and busy:
            saver.skip(done)
        elif due and not last:
            _save(job, done)
    return "finished", job.total_steps


def held_out_loss(sharded: Sharded, corpus: TokenisedCorpus, limit: int, world: World, rows: int) -> float:
    """Mean loss per trained token over the first `limit` conversations, dropout off; draws no random number."""
    count = min(limit, len(corpus))
    total = float(corpus.trained_counts[:count].sum())
    mine = np.arange(world.rank, count, world.size)
    width = max(1, rows)
    steps = math.ceil(math.ceil(count / world.size) / width)
    sharded.model.eval()
    summed = 0.0
    with torch.no_grad():
        for index in range(steps):
            batch = corpus.batch(mine[index * width : (index + 1) * width]).to(world.device)
            summed += float(summed_loss(sharded.model, batch))
    sharded.settle()
    sharded.model.train()
    return world.agree(summed)[0] / total


def _optimise(job: Job, step: int) -> tuple[float, float]:
    """One optimiser step. Returns this process's share of the loss, and the gradient norm of all."""
    train, world = job.train, job.world
    rows = job.sampler.batch(step)
    # Every trained token of the global batch weighs the same, whichever process or micro-batch it falls into.
    weight = 1.0 / float(sum(job.corpus.trained_counts[row].sum() for row in rows))
    micro_batches = job.sampler.share(step, world.rank, world.size, train.per_device_train_batch_size)
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for index, conversations in enumerate(micro_batches):
        batch = job.corpus.batch(conversations).to(world.device)
        loss = summed_loss(job.sharded.model, batch) * weight
        job.sharded.backward(loss, last=index == len(micro_batches) - 1)
        total += loss.detach()
    norm = job.sharded.step(learning_rate(train, step, job.total_steps))
    return float(total), norm


def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the trained tokens; logits are computed for those positions alone."""
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        boundaries=batch.boundaries,
        logits_to_keep=batch.predictors if len(batch.predictors) else 1,
        use_cache=False,
    )
    logits = output.logits.flatten(0, 1)
    return summed_cross_entropy(logits, batch.targets) if len(batch.targets) else logits.sum() * 0.0


def _tell(job: Job, step: int, loss: float, norm: float, seconds: float) -> None:
    if not job.world.leads:
        return
    for news in job.notice.warnings():
        job.observer.warned(step + 1, news.source)
    seen = job.sampler.before(step + 1)
    job.observer.step(
        StepRecord(
            step=step + 1,
            loss=loss,
            grad_norm=norm,
            learning_rate=learning_rate(job.train, step, job.total_steps),
            tokens=seen.tokens,
            samples=seen.samples,
            batch=batch_digest(job.sampler.batch(step)),
            attempt=job.attempt,
            epoch=job.epoch,
            time=time.time(),
            step_s=seconds,
            durable_step=job.checkpointer.durable_step,
            durable_age_s=job.checkpointer.durable_age_s,
        )
    )


def _held_out_due(job: Job, step: int) -> bool:
    return job.train.eval_strategy == "steps" and step % job.train.eval_steps == 0


def _measure_held_out(job: Job, step: int) -> bool:
    """Whether the held-out loss is lower than ever before."""
    if job.held_out is None or not len(job.held_out):
        return False
    loss = held_out_loss(
        job.sharded,
        job.held_out,
        job.train.max_eval_samples,
        job.world,
        job.train.per_device_train_batch_size,
    )
    if job.world.leads:
        job.observer.held_out(EvalRecord(step=step, loss=loss, time=time.time()))
    return job.standing.add(step, loss)


def _save_due(job: Job, step: int) -> bool:
    """By the cadence, which the first process keeps; or because this machine may be taken: each knows of its own."""
    warned = job.checkpoint.on_notice and job.notice.save_soon
    return warned or (job.world.leads and job.checkpointer.due(step))


def _save(job: Job, step: int, *, best: bool = False) -> None:
    job.observer.cut()
    job.notice.save_soon = False
    job.checkpointer.save(step, job.sampler.before(step), job.sharded, best=best)


def _leave(job: Job, step: int) -> None:
    """The machine is going: let the save under way land, then save this very step if there is time for it."""
    saver, notice = job.checkpointer, job.notice
    saver.hurry()
    if job.world.leads:
        job.observer.noticed(step, notice.source, notice.left_s, saver.cadence.takes_s)
    saver.wait()
    worth_it = job.checkpoint.on_notice and saver.durable_step < step
    # Of several machines each knows its own end: all must have the time.
    wanted, late = job.world.agree(
        float(job.world.leads and worth_it), float(saver.cadence.takes_s >= notice.left_s)
    )
    if wanted and not late:
        _save(job, step)
        saver.wait()
