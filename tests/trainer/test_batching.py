"""The number of rows in a forward pass is found for the fullest rows, once for a kind of machine."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from tests.trainer.networks import sharp
from trainer.artifacts.local import LocalStore
from trainer.artifacts.store import open_store
from trainer.batching import Fullest, Peak, largest, rehearse, settle_rows
from trainer.config import TrainConfig, parse_config
from trainer.errors import NotReady
from trainer.fitting import Case
from trainer.fsdp import FullyShardedModel
from trainer.hardware import GIB, Hardware
from trainer.loop import summed_loss
from trainer.model import skeleton
from trainer.packing import Ints, first_fit_decreasing, one_per_row
from trainer.parallel import joined
from trainer.sampler import Sampler
from trainer.shape import Shape

MANY = settings(max_examples=60, deadline=None)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Ints, Ints, bool]:
    """Lengths, trained tokens of each, and whether rows are packed (into 64 tokens)."""
    lengths = draw(st.lists(st.integers(2, 64), min_size=1, max_size=60))
    trained = [draw(st.integers(1, length - 1)) for length in lengths]
    return np.array(lengths), np.array(trained), draw(st.booleans())


@MANY
@given(corpora(), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_no_micro_batch_of_any_epoch_is_fuller(
    corpus: tuple[Ints, Ints, bool], per_device: int, processes: int, seed: int
) -> None:
    lengths, trained, packed = corpus
    rows = first_fit_decreasing(lengths, 64) if packed else one_per_row(len(lengths))
    fullest = Fullest.of(lengths, trained, rows)
    sampler = Sampler(lengths, rows, 8, seed)
    tokens_at_most, _ = fullest.counts(per_device)
    trained_at_most = int(fullest.trained[:per_device].sum())
    for step in range(3 * sampler.steps_per_epoch):
        for process in range(processes):
            for conversations in sampler.share(step, process, processes, per_device):
                assert lengths[conversations].sum() <= tokens_at_most
                assert trained[conversations].sum() <= trained_at_most


@MANY
@given(corpora(), st.integers(1, 4))
def test_the_fullest_batch_is_a_batch(corpus: tuple[Ints, Ints, bool], count: int) -> None:
    lengths, trained, packed = corpus
    rows = first_fit_decreasing(lengths, 64) if packed else one_per_row(len(lengths))
    fullest = Fullest.of(lengths, trained, rows)
    batch = fullest.batch(count)
    tokens, predicted = fullest.counts(count)
    assert batch.input_ids.shape == batch.position_ids.shape == (1, tokens)
    assert len(batch.predictors) == len(batch.targets) == predicted
    assert batch.boundaries[-1] == tokens and all(np.diff(batch.boundaries) > 0)
    starts = batch.position_ids[0, list(batch.boundaries[:-1])]
    assert not starts.any()


def card(free: int, fixed: int, each: int) -> tuple[Callable[[int], Peak | None], list[int]]:
    """A fake GPU: a pass of n rows takes fixed + n * each."""
    tried: list[int] = []

    def try_rows(rows: int) -> Peak | None:
        tried.append(rows)
        used = fixed + rows * each
        return None if used > free else Peak(used, free)

    return try_rows, tried


@MANY
@given(st.integers(1, 64), st.integers(0, 900), st.integers(1, 200))
def test_the_most_rows_that_fit_are_found_in_a_few_tries_without_running_out(
    rows: int, fixed: int, each: int
) -> None:
    try_rows, tried = card(1000, fixed, each)
    found = largest(rows, try_rows)
    useful = {math.ceil(rows / passes) for passes in range(1, rows + 1)}
    fitting = [count for count in useful if fixed + count * each <= 950]
    assert found == (max(fitting) if fitting else None)
    assert len(tried) <= 4
    # At most one try too many: of the first two nothing is known yet.
    assert sum(fixed + count * each > 950 for count in tried) <= 1


@pytest.mark.parametrize(("rows", "fits_up_to", "found"), [(16, 10, 8), (16, 15, 8), (16, 5, 4), (7, 6, 4)])
def test_of_all_sizes_with_as_many_passes_the_smallest_is_taken(
    rows: int, fits_up_to: int, found: int
) -> None:
    try_rows, _ = card(1000, 0, int(950 / fits_up_to))
    assert largest(rows, try_rows) == found


def test_a_memory_that_is_not_linear_is_searched_all_the_same() -> None:
    limit = 13

    def try_rows(rows: int) -> Peak | None:
        return Peak(100 + rows, 1000) if rows <= limit else None

    found = largest(32, try_rows)
    assert found == 11  # 3 passes; 2 passes would be 16


CONFIG = parse_config({"train": {"global_batch_size": 32, "auto_batch": True}})
SHAPE = Shape(64, 128, 2, 4, 4, 16, 256)


def whole(config: TrainConfig, hardware: Hardware) -> Case:
    return Case(config, hardware, SHAPE, hardware.count)


def ten_rows_fit(config: TrainConfig, process: int, number: int) -> Peak:
    """A fake GPU in a real process; the second process sees a little more."""
    rows = config.train.per_device_train_batch_size
    return Peak(100 * rows + process, 1100)


def store(tmp_path: Path) -> LocalStore:
    opened = open_store(f"file://{tmp_path}/runs/one")
    assert isinstance(opened, LocalStore)
    return opened


def test_the_rows_are_settled_and_the_global_batch_stays(tmp_path: Path) -> None:
    settled = settle_rows(CONFIG, store(tmp_path), 2, 16, ten_rows_fit, whole)
    assert settled.train.per_device_train_batch_size == 8
    assert settled.train.global_batch_size == 32
    assert CONFIG.train.per_device_train_batch_size == 4


def test_a_later_attempt_on_such_a_machine_takes_what_was_found_without_a_try(tmp_path: Path) -> None:
    settle_rows(CONFIG, store(tmp_path), 2, 16, ten_rows_fit, whole)

    def never(config: TrainConfig, process: int, number: int) -> Peak:
        raise AssertionError("tried again")

    again = settle_rows(CONFIG, store(tmp_path), 2, 16, never, whole)
    assert again.train.per_device_train_batch_size == 8


def test_another_number_of_processes_is_another_machine(tmp_path: Path) -> None:
    settle_rows(CONFIG, store(tmp_path), 2, 16, ten_rows_fit, whole)

    def three_fit(config: TrainConfig, process: int, number: int) -> Peak:
        return Peak(300 * config.train.per_device_train_batch_size, 1000)

    alone = settle_rows(CONFIG, store(tmp_path), 1, 32, three_fit, whole)
    assert alone.train.per_device_train_batch_size == 3


def test_of_two_machines_that_search_at_once_the_first_finds_for_both(tmp_path: Path) -> None:
    def other_machine_is_faster(config: TrainConfig, process: int, number: int) -> Peak:
        if number == 1:
            settle_rows(CONFIG, store(tmp_path), 1, 8, lambda *_: Peak(1, 1000), whole)
        return Peak(900, 1000) if config.train.per_device_train_batch_size == 1 else Peak(2000, 1000)

    late = settle_rows(CONFIG, store(tmp_path), 1, 8, other_machine_is_faster, whole)
    assert late.train.per_device_train_batch_size == 8


def test_a_single_row_that_does_not_fit_is_one_message(tmp_path: Path) -> None:
    def nothing_fits(config: TrainConfig, process: int, number: int) -> Peak:
        raise MemoryError

    with pytest.raises(NotReady, match="out of memory with a single row in a forward pass"):
        settle_rows(CONFIG, store(tmp_path), 1, 16, nothing_fits, whole)


def test_real_rows_are_tried_against_a_real_limit(tmp_path: Path) -> None:
    """A vocabulary of 32,000 makes 62 MiB of logits a row of 512 tokens; the limit leaves some 450 MiB."""
    lengths = np.full(16, 512)
    fullest = Fullest.of(lengths, lengths - 1, one_per_row(16))
    config = parse_config(
        {"train": {"bf16": False, "global_batch_size": 16, "gradient_checkpointing": False}}
    )
    shape = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32000
    )

    def trial(wanted: TrainConfig, process: int, number: int) -> Peak:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (450 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with joined(0, 1, f"file://{tmp_path}/rendezvous-{number}-{os.getpid()}", 1) as world:
            sharded = FullyShardedModel(skeleton(shape), wanted, world)
            sharded.fill(None)
            batch = fullest.batch(wanted.train.per_device_train_batch_size)
            return rehearse(sharded, summed_loss, batch, 1)

    settled = settle_rows(config, store(tmp_path), 1, 16, trial, whole)
    assert 1 <= settled.train.per_device_train_batch_size <= 4


def test_a_rehearsal_measures_and_takes_no_step() -> None:
    """On a network without FSDP: `Sharded` is a protocol."""
    model = sharp(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )

    class Plain:
        passes: list[bool] = []

        def __init__(self) -> None:
            self.model = model

        def backward(self, loss: torch.Tensor, *, last: bool) -> None:
            self.passes.append(last)
            loss.backward()

    before = [parameter.clone() for parameter in model.parameters()]
    fullest = Fullest.of(np.array([5, 9]), np.array([2, 3]), one_per_row(2))
    plain = Plain()
    peak = rehearse(plain, summed_loss, fullest.batch(2), 1)  # type: ignore[arg-type]
    assert plain.passes == [False, True]
    assert 0 < peak.used < peak.free < 1 << 50
    assert peak.used > 100 << 20 and peak.free > GIB >> 2
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
