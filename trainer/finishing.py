"""The end of a run: its last step made durable, the best weights taken, the export, one reply.

Every process comes here after its last step; so does, for its leave, one whose machine goes.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, NoReturn

import torch
from transformers import PreTrainedTokenizerFast

from trainer import export as exporting
from trainer.artifacts.validity import valid_manifests
from trainer.checkpoint import restore
from trainer.conversation import get_template
from trainer.errors import Preempted, StoreError
from trainer.loop import Job
from trainer.prepare import fetch_all

if TYPE_CHECKING:
    from trainer.rank import Brief

log = logging.getLogger("trainer")

# How long the end of a run waits for a store that is away, and between two tries.
_PATIENCE_S, _PAUSE_S = 900.0, 5.0


def depart(brief: Brief, job: Job, step: int) -> NoReturn:
    """Leave a machine that goes, saying what is durable and what is lost."""
    durable = job.checkpointer.durable_step
    if job.world.leads:
        brief.journal.record("preempted", step=step, durable_step=durable, lost_steps=step - durable)
    raise Preempted(f"left at step {step}; durable at step {durable}")


def finish(brief: Brief, job: Job, tokeniser: PreTrainedTokenizerFast, steps: int) -> None:
    """Make the last step durable, export, show one reply, and say that the run is over; a collective.

    Raises:
        Preempted: the machine goes before the last step is durable.
        StoreError: the store was away for too long.
    """
    _make_durable(brief, job, steps)
    taken = _take_best(brief, job, steps)
    directory = brief.workdir / "export"
    dtype = torch.bfloat16 if brief.config.train.bf16 else torch.float32
    base = _adapted(brief)
    exporting.export(job.sharded, tokeniser, directory, job.world, dtype, base)
    if not job.world.leads:
        return
    brief.lease.refuse_if_lost()
    facts = {"step": taken, "template": brief.config.data.template, "recipe": brief.config.recipe}
    if base is not None:
        facts["base"] = base.name
    size = exporting.publish(brief.store, directory, facts)
    brief.journal.record("exported", bytes=size)
    wanted = brief.config.export
    if wanted.max_new_tokens:
        template = get_template(brief.config.data.template)
        on = base.folder if base else None
        reply = exporting.answer(directory, template, wanted.prompt, wanted.max_new_tokens, on)
        brief.journal.record("sampled", prompt=wanted.prompt, reply=reply)
    seen = job.sampler.before(steps)
    brief.journal.record("finished", steps=steps, tokens=seen.tokens, samples=seen.samples)
    log.info("finished: %d steps, %d conversations, %d tokens", steps, seen.samples, seen.tokens)


def _make_durable(brief: Brief, job: Job, step: int) -> None:
    """The last step must be in the store before the run may call itself finished."""
    saver = job.checkpointer
    saver.wait()
    deadline = time.monotonic() + _PATIENCE_S
    while saver.durable_step < step:
        job.observer.cut()
        saver.save(step, job.sampler.before(step), job.sharded)
        saver.wait()
        if saver.durable_step < step:
            noticed, over = job.world.agree(
                float(job.notice.given), float(job.world.leads and time.monotonic() > deadline)
            )
            if noticed:
                depart(brief, job, step)
            if over:
                raise StoreError(
                    f"training is done, but its last step could not be stored for {_PATIENCE_S:.0f} s",
                    hint="vlaunch resume repeats what is not durable, when the store works again",
                )
            time.sleep(_PAUSE_S)


def _take_best(brief: Brief, job: Job, step: int) -> int:
    """Where asked for, put the weights with the lowest held-out loss into the model; a collective.

    Returns the step whose weights the model now has.
    """
    best = job.standing.best_step
    if not job.checkpoint.keep_best or best is None or best == step:
        return step
    kept = next((manifest for manifest in valid_manifests(brief.store) if manifest.step == best), None)
    if kept is None:
        log.warning(
            "the held-out loss was lowest at step %d, of which nothing is stored: exporting the last", best
        )
        return step
    if job.world.leads:
        log.info("taking step %d: its held-out loss of %.4f is the lowest", best, job.standing.best_loss)
    folder = brief.workdir / "best"
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # once per machine
        fetch_all(brief.sources.fetch, list(kept.files), folder)
    job.world.agree(0.0)
    restore(folder, kept, job.sharded, job.world, job.train.seed)
    return best


def _adapted(brief: Brief) -> exporting.Base | None:
    """What adapters were put on; None where all weights were trained."""
    model, folder = brief.config.model, brief.inputs.base
    if brief.config.train.method == "full" or folder is None:
        return None
    named = model.base or model.origin
    commit = brief.inputs.report.get("base_commit")
    # No address of the store: an export has the same bytes wherever its run is kept.
    return exporting.Base(folder, named or exporting.BASE, commit, beside=named is None)
