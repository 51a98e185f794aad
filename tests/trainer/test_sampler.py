"""What a step sees is a pure function of (seed, corpus, step), however many processes share it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.packing import Ints, first_fit_decreasing, one_per_row
from trainer.sampler import Position, Sampler, batch_digest, permutation

CAPACITY = 50
WORLD_SIZES = (1, 2, 3, 4, 8)


def new_sampler(count: int = 60, batch: int = 4, seed: int = 7, *, packing: bool = True) -> Sampler:
    lengths = np.random.default_rng(count).integers(1, CAPACITY + 1, count)
    rows = first_fit_decreasing(lengths, CAPACITY) if packing else one_per_row(count)
    return Sampler(lengths, rows, batch, seed)


def epoch_of(sampler: Sampler, epoch: int) -> list[list[Ints]]:
    first = epoch * sampler.steps_per_epoch
    return [sampler.batch(step) for step in range(first, first + sampler.steps_per_epoch)]


samplers = st.builds(
    new_sampler,
    count=st.integers(1, 80),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**31 - 1),
    packing=st.booleans(),
)


@given(samplers, st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_an_epoch_has_every_conversation_exactly_once(sampler: Sampler, epoch: int) -> None:
    seen = [int(number) for batch in epoch_of(sampler, epoch) for row in batch for number in row]
    assert sorted(seen) == list(range(len(sampler.lengths)))


@given(samplers, st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_no_row_exceeds_the_length_that_it_was_packed_for(sampler: Sampler, epoch: int) -> None:
    assert all(sampler.lengths[row].sum() <= CAPACITY for batch in epoch_of(sampler, epoch) for row in batch)


def test_a_batch_depends_on_nothing_but_its_step() -> None:
    steps = list(range(40))
    in_order = [batch_digest(new_sampler().batch(step)) for step in steps]
    one = new_sampler()
    assert [batch_digest(one.batch(step)) for step in reversed(steps)] == in_order[::-1]
    assert len(set(in_order)) == len(steps)


def test_seeds_and_epochs_give_other_orders_and_other_rows() -> None:
    def rows(sampler: Sampler, epoch: int) -> set[tuple[int, ...]]:
        return {tuple(sorted(row)) for batch in epoch_of(sampler, epoch) for row in batch if len(row) > 1}

    one, other = new_sampler(200, seed=1), new_sampler(200, seed=2)
    assert rows(one, 0) != rows(one, 1)
    assert rows(one, 0) != rows(other, 0)
    assert batch_digest(one.batch(0)) != batch_digest(one.batch(one.steps_per_epoch))


@given(samplers, st.sampled_from(WORLD_SIZES), st.integers(1, 5), st.integers(0, 40))
@settings(deadline=None)
def test_processes_share_a_batch_without_gap_or_overlap(
    sampler: Sampler, world_size: int, per_device: int, step: int
) -> None:
    shares = [sampler.share(step, rank, world_size, per_device) for rank in range(world_size)]
    seen = [int(number) for share in shares for micro_batch in share for number in micro_batch]
    assert sorted(seen) == sorted(int(number) for row in sampler.batch(step) for number in row)


@given(samplers, st.sampled_from(WORLD_SIZES), st.integers(1, 5), st.integers(0, 40))
@settings(deadline=None)
def test_all_processes_make_equally_many_forward_passes(
    sampler: Sampler, world_size: int, per_device: int, step: int
) -> None:
    shares = [sampler.share(step, rank, world_size, per_device) for rank in range(world_size)]
    most_rows = -(-len(sampler.batch(step)) // world_size)
    assert {len(share) for share in shares} == {-(-most_rows // per_device)}
    tokens = [int(sampler.lengths[micro].sum()) for share in shares for micro in share]
    assert max(tokens) <= per_device * CAPACITY


@given(samplers)
@settings(deadline=None, max_examples=25)
def test_position_is_the_sum_over_all_steps_before(sampler: Sampler) -> None:
    samples = tokens = 0
    for step in range(3 * sampler.steps_per_epoch + 1):
        assert sampler.before(step) == Position(samples, tokens)
        seen = np.concatenate(sampler.batch(step))
        samples += len(seen)
        tokens += int(sampler.lengths[seen].sum())


@pytest.mark.parametrize(
    ("epochs", "max_steps", "total"), [(3.0, -1, 48), (0.5, -1, 8), (0.001, -1, 1), (3.0, 5, 5), (3.0, 0, 0)]
)
def test_epochs_give_the_number_of_steps_unless_it_is_given(
    epochs: float, max_steps: int, total: int
) -> None:
    sampler = new_sampler(64, packing=False)
    assert sampler.steps_per_epoch == 16
    assert sampler.total_steps(epochs, max_steps) == total


def test_a_permutation_is_the_same_with_every_numpy() -> None:
    # Golden: a NumPy that gave other numbers would make a resumed run see other samples.
    assert permutation(10, 42, 0, 0).tolist() == [3, 2, 4, 0, 8, 5, 7, 1, 6, 9]
    assert batch_digest([permutation(100_000, 42, 3, 1)]) == "202e97b5"


def test_permutations_of_other_keys_are_unrelated() -> None:
    keys = list(itertools.product((0, 1, 42), (0, 1), (0, 1)))
    orders = [permutation(1000, *key) for key in keys]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    shared = [int((one == other).sum()) for one, other in itertools.combinations(orders, 2)]
    assert max(shared) < 10  # of two random orders of 1000, one place agrees on average
