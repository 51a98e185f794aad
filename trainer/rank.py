"""One process of an attempt: join the others, build, restore, train, export.

Forked by the supervisor after it has imported torch, so that eight processes pay for that once.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from transformers import PreTrainedTokenizerFast

from trainer import export as exporting
from trainer import kernels, methods
from trainer import model as building
from trainer.artifacts.fencing import Lease
from trainer.artifacts.journal import Journal
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.metrics import EvalRecord, MetricsWriter, StepRecord
from trainer.artifacts.sources import Sources
from trainer.artifacts.store import Store
from trainer.artifacts.validity import valid_manifests
from trainer.batching import Fullest, Peak, rehearse
from trainer.cadence import Cadence, measured_mtbf_s
from trainer.checkpoint import Checkpointer, restore, seed_process
from trainer.choices import Choices, choose
from trainer.config import TrainConfig
from trainer.conversation import get_template
from trainer.dataset import TokenisedCorpus
from trainer.errors import Preempted, StoreError
from trainer.fitting import Case, forecast
from trainer.hardware import Hardware
from trainer.loop import Job, summed_loss, train
from trainer.packing import Rows, first_fit_decreasing, one_per_row
from trainer.parallel import Sharded, Source, World, joined, spread
from trainer.preemption import Board, Notice
from trainer.prepare import Inputs, fetch_all
from trainer.replication import Replication
from trainer.sampler import Sampler
from trainer.shape import Shape, head_dim
from trainer.shortage import ends_if_memory_runs_out, told_if_memory_runs_out
from trainer.standing import resumed_standing
from trainer.tracking import Tracker

log = logging.getLogger("trainer")

# How long the end of a run waits for a store that is away, and between two tries.
_PATIENCE_S, _PAUSE_S = 900.0, 5.0


@dataclass(frozen=True, slots=True)
class Brief:
    """What the supervisor hands to each process."""

    config: TrainConfig
    store: Store
    sources: Sources
    """The store and its replicas."""
    lease: Lease
    journal: Journal
    attempt: int
    inputs: Inputs
    checkpoint: Path
    resumed: Manifest | None
    workdir: Path
    world_size: int
    threads: int
    rendezvous: str
    clock: dict[str, float]
    """Seconds that each part of the start has taken so far, by name."""
    board: Board | None = None
    """What the cloud says about this machine, for all processes of it."""


def preload(config: TrainConfig) -> None:
    """Import what the config's method needs, once for all processes, before they are forked.

    Not where there is a GPU: bitsandbytes asks for its capability as it is imported (cuda_specs.py), and peft imports
    bitsandbytes (helpers.py); that starts CUDA, which a forked process cannot use. There each process imports both.

    Raises:
        ConfigError: no library can do what the config asks for.
        NotReady: a package that the method needs is not installed.
    """
    methods.refuse_impossible(config)
    methods.require_packages(config)
    if not torch.cuda.device_count():
        # transformers imports deepspeed, where it is installed, to save a model: it would warn of the missing GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if config.parallel.strategy == "deepspeed":
        from trainer import zero, zero_engine  # noqa: F401

        zero_engine.load()
    else:
        import trainer.fsdp  # noqa: F401

    if config.train.method == "full" or torch.cuda.device_count():  # counted without starting CUDA
        return
    import peft  # noqa: F401
    import transformers.integrations.bitsandbytes  # noqa: F401


def run_rank(brief: Brief, rank: int, notice: Notice) -> None:
    """The life of one process.

    Raises:
        Preempted: the machine is going; the newest durable checkpoint is where the next attempt starts.
        Fenced: a newer attempt owns the run.
    """
    kernels.let_segments_grow()
    with joined(rank, brief.world_size, brief.rendezvous, brief.threads) as world:
        tokeniser = PreTrainedTokenizerFast.from_pretrained(brief.inputs.tokeniser)
        hardware = kernels.detect(_on_this_machine(brief))
        brief, choices = _chosen(brief, tokeniser, hardware)
        case = partial(memory_case, brief, hardware)
        if world.leads and hardware.kind == "cuda":
            kernels.tell(hardware, choices)
            log.info("%s", forecast(case))
        told = partial(told_if_memory_runs_out, case, world.device)
        with told("before the first step"):
            job, start, observer = _set_up(brief, world, notice, tokeniser, choices)
        try:
            with told("while training"):
                ending, step = train(job, start)
            if ending == "preempted":
                _depart(brief, job, step)
            _make_durable(brief, job, step)
            taken = _take_best(brief, job, step)
            _finish(brief, job, tokeniser, step, taken)
        finally:
            observer.close()
            job.checkpointer.close()


def try_rows(brief: Brief, rank: int) -> Peak:
    """What the fullest rows take of this machine, in a trial (shortage.py) that leaves where memory runs out."""
    os.environ["LOCAL_RANK"] = str(rank)
    kernels.let_segments_grow()
    with joined(rank, brief.world_size, brief.rendezvous, brief.threads) as world, ends_if_memory_runs_out():
        tokeniser = PreTrainedTokenizerFast.from_pretrained(brief.inputs.tokeniser)
        brief, choices = _chosen(brief, tokeniser, kernels.detect(brief.world_size))
        sharded = _build(brief, world, tokeniser, choices)
        sharded.fill(None if brief.config.train.method == "full" else _weights(brief, sharded))
        batch = _fullest(brief).batch(brief.config.train.per_device_train_batch_size)
        return rehearse(sharded, summed_loss, batch.to(world.device), world.size)


def memory_case(brief: Brief, hardware: Hardware) -> Case:
    """This run on this machine, as far as memory goes."""
    tokeniser = PreTrainedTokenizerFast.from_pretrained(brief.inputs.tokeniser)
    shape = Shape.of(building.model_config(brief.config, tokeniser, brief.inputs.base).to_dict())
    return Case(brief.config, hardware, shape, brief.world_size, _fullest(brief).within, kernels.installed())


def _chosen(brief: Brief, tokeniser: PreTrainedTokenizerFast, hardware: Hardware) -> tuple[Brief, Choices]:
    """How this machine computes, and the brief with the number format that it has."""
    fields = building.model_config(brief.config, tokeniser, brief.inputs.base).to_dict()
    dropout = fields.get("attention_dropout") or 0.0
    choices = choose(hardware, brief.config, kernels.installed(), head_dim(fields), dropout)
    kernels.prepare(choices)
    return replace(brief, config=kernels.as_chosen(brief.config, choices)), choices


def _on_this_machine(brief: Brief) -> int:
    """Processes of the run on this machine."""
    return brief.world_size // int(os.environ.get("SKYPILOT_NUM_NODES", "1"))


def _rows(brief: Brief, corpus: TokenisedCorpus) -> Rows:
    data = brief.config.data
    return first_fit_decreasing(corpus.lengths, data.max_length) if data.packing else one_per_row(len(corpus))


def _fullest(brief: Brief) -> Fullest:
    corpus = TokenisedCorpus(brief.inputs.train)
    return Fullest.of(corpus.lengths, corpus.trained_counts, _rows(brief, corpus))


def _set_up(
    brief: Brief, world: World, notice: Notice, tokeniser: PreTrainedTokenizerFast, choices: Choices
) -> tuple[Job, int, RankObserver]:
    config, train_config = brief.config, brief.config.train
    clock = Stopwatch(brief.clock)
    corpus = TokenisedCorpus(brief.inputs.train)
    held_out = TokenisedCorpus(brief.inputs.held_out) if brief.inputs.held_out else None
    rows = _rows(brief, corpus)
    sampler = Sampler(corpus.lengths, rows, train_config.global_batch_size, train_config.seed)
    clock.mark("data")
    sharded = _build(brief, world, tokeniser, choices)
    clock.mark("build")
    start = _fill(brief, world, sharded)
    clock.mark("load")
    total = sampler.total_steps(train_config.num_train_epochs, train_config.max_steps)
    observer = RankObserver(brief, world, total, start, clock)
    limit = config.checkpoint.upload_limit_mb_per_s
    checkpointer = Checkpointer(
        world, brief.lease, brief.journal, Replication(world, brief.sources, config, brief.journal),
        _cadence(brief, world), limit and limit * 1e6 / _on_this_machine(brief), brief.workdir / "stage",
        brief.resumed, observer.flush,
    )  # fmt: skip
    standing = resumed_standing(config, brief.store, start, world)
    checkpointer.best_step = standing.best_step
    job = Job(
        train_config, config.checkpoint, sharded, corpus, held_out, sampler, total, world, checkpointer,
        notice, observer, standing, brief.attempt, brief.lease.epoch,
    )  # fmt: skip
    return job, start, observer


def _cadence(brief: Brief, world: World) -> Cadence:
    """The first process decides when to save, so it alone looks at how long earlier machines have lasted."""
    settings = brief.config.checkpoint
    mtbf_s = settings.mtbf_s
    if world.leads:
        try:
            mtbf_s = measured_mtbf_s(brief.store, brief.attempt, settings.mtbf_s)
        except StoreError as error:
            log.debug("earlier attempts are not looked at: %s", error)
    return Cadence(settings, shares_cores=world.device.type == "cpu", mtbf_s=mtbf_s)


def _build(brief: Brief, world: World, tokeniser: PreTrainedTokenizerFast, choices: Choices) -> Sharded:
    """The sharded network, without weights yet."""
    model = building.build(brief.config, tokeniser, brief.inputs.base, world.device)
    if brief.config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kernels.equip(model, choices)
    return spread(model, brief.config, world)


def _fill(brief: Brief, world: World, sharded: Sharded) -> int:
    """Weights, moments and random state. Returns the steps already taken."""
    seed = brief.config.train.seed
    if brief.resumed is None:
        sharded.fill(_weights(brief, sharded))
        seed_process(seed, 0, world.rank)
        return 0
    # A checkpoint holds what is trained: under adapters the frozen weights come from the base each time.
    sharded.fill(None if brief.config.train.method == "full" else _weights(brief, sharded))
    exact = restore(brief.checkpoint, brief.resumed, sharded, world, seed)
    if not exact and world.leads:
        log.warning(
            "resumed %d processes as %d: the same samples in the same order, not bit-exact",
            brief.resumed.world_size, world.size,
        )  # fmt: skip
    return brief.resumed.step


def _weights(brief: Brief, sharded: Sharded) -> Source:
    return building.weights(brief.config, brief.inputs.base, sharded.model)


def _adapted(brief: Brief) -> exporting.Base | None:
    """What adapters were put on; None where all weights were trained."""
    model, folder = brief.config.model, brief.inputs.base
    if brief.config.train.method == "full" or folder is None:
        return None
    named = model.base or model.origin
    commit = brief.inputs.report.get("base_commit")
    # No address of the store: an export has the same bytes wherever its run is kept.
    return exporting.Base(folder, named or exporting.BASE, commit, beside=named is None)


def _depart(brief: Brief, job: Job, step: int) -> NoReturn:
    durable = job.checkpointer.durable_step
    if job.world.leads:
        brief.journal.record("preempted", step=step, durable_step=durable, lost_steps=step - durable)
    raise Preempted(f"left at step {step}; durable at step {durable}")


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
                _depart(brief, job, step)
            if over:
                raise StoreError(
                    f"training is done, but its last step could not be stored for {_PATIENCE_S:.0f} s"
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


def _finish(brief: Brief, job: Job, tokeniser: PreTrainedTokenizerFast, steps: int, taken: int) -> None:
    """Export, show one reply, and say that the run is over."""
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


class Stopwatch:
    """Names and seconds of the parts of a start, for `training` in the journal."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


class RankObserver:
    """The loop's ear: tracker and journal on the first process, nothing on the others."""

    def __init__(self, brief: Brief, world: World, total_steps: int, start: int, clock: Stopwatch) -> None:
        self._journal = brief.journal
        self._clock: Stopwatch | None = clock
        self._tracker: Tracker | None = None
        if world.leads:
            writer = MetricsWriter(brief.store, brief.lease.epoch, brief.attempt, start)
            self._tracker = Tracker(writer, total_steps, brief.config.train.logging_seconds)

    def step(self, record: StepRecord) -> None:
        if self._tracker is None:
            return
        self._tracker.step(record)
        if self._clock is not None:
            self._clock.mark("first_step")
            self._journal.record("training", step=record.step, seconds=self._clock.seconds)
            self._clock = None

    def held_out(self, record: EvalRecord) -> None:
        if self._tracker is not None:
            self._tracker.held_out(record)

    def noticed(self, step: int, source: str, left_s: float, save_s: float) -> None:
        told = {} if math.isinf(left_s) else {"left_s": round(left_s, 3), "save_s": round(save_s, 3)}
        source = source or "another process"  # a signal has not come to this one yet, or this machine stays
        log.warning("told to leave this machine (%s); %d steps done", source, step)
        self._journal.record("notice", step=step, source=source, **told)

    def warned(self, step: int, source: str) -> None:
        log.warning("%s; %d steps done", source, step)
        self._journal.record("warning", step=step, source=source)

    def cut(self) -> None:
        if self._tracker is not None:
            self._tracker.cut()

    def flush(self) -> None:
        if self._tracker is not None:
            self._tracker.flush()

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
