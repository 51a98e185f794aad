"""First-fit-decreasing, a vector operation per length, is the textbook's, one conversation at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.packing import Ints, Rows, first_fit_decreasing, one_per_row

CAPACITY = 64


def textbook(lengths: list[int], capacity: int) -> list[list[int]]:
    """The lengths in each row: each, longest first, into the first row with room."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row in rows if sum(row) + length <= capacity), None)
        if row is None:
            rows.append(row := [])
        row.append(length)
    return rows


def contents(packed: Rows, lengths: list[int]) -> list[list[int]]:
    """The lengths in each row, in the order in which they lie there."""
    descending = sorted(lengths, reverse=True)
    return [
        [descending[slot] for slot in packed.slots[start:end]]
        for start, end in zip(packed.starts[:-1], packed.starts[1:], strict=True)
    ]


def sharegpt_like(count: int, longest: int, seed: int) -> Ints:
    """Tokens per conversation: lognormal around 600, cut at `longest` (facts/training.md section 4)."""
    drawn = np.random.default_rng(seed).lognormal(np.log(600), 0.9, count)
    return np.clip(drawn, 1, longest).astype(np.int64)


many_lengths = st.lists(st.integers(1, CAPACITY), max_size=80)
# Few distinct lengths: many conversations are placed by one operation.
few_lengths = st.lists(st.sampled_from([1, 7, 16, 21, 22, 32, 33, 63, 64]), max_size=80)


@given(many_lengths | few_lengths)
@settings(deadline=None)
def test_rows_are_those_of_the_textbook(lengths: list[int]) -> None:
    packed = first_fit_decreasing(np.array(lengths, dtype=np.int64), CAPACITY)
    assert contents(packed, lengths) == textbook(lengths, CAPACITY)


@given(many_lengths)
@settings(deadline=None)
def test_every_slot_lies_in_exactly_one_row_and_no_row_overflows(lengths: list[int]) -> None:
    packed = first_fit_decreasing(np.array(lengths, dtype=np.int64), CAPACITY)
    assert sorted(packed.slots) == list(range(len(lengths)))
    assert all(0 < sum(row) <= CAPACITY for row in contents(packed, lengths))
    assert len(packed) == len(contents(packed, lengths))


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_real_corpus_shape_are_full_to_a_thousandth(seed: int) -> None:
    lengths = sharegpt_like(20_000, 2048, seed)
    packed = first_fit_decreasing(lengths, 2048)
    assert lengths.sum() / (len(packed) * 2048) > 0.999


def test_order_of_the_corpus_does_not_change_the_rows() -> None:
    lengths = sharegpt_like(500, 2048, seed=1)
    one, other = first_fit_decreasing(lengths, 2048), first_fit_decreasing(lengths[::-1], 2048)
    assert np.array_equal(one.slots, other.slots) and np.array_equal(one.starts, other.starts)


@pytest.mark.parametrize("length", [0, -1, CAPACITY + 1])
def test_a_length_that_fits_no_row_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"1..{CAPACITY}"):
        first_fit_decreasing(np.array([3, length]), CAPACITY)


def test_without_packing_every_conversation_has_a_row_of_its_own() -> None:
    packed = one_per_row(3)
    assert len(packed) == 3
    assert packed.slots.tolist() == [0, 1, 2] and packed.starts.tolist() == [0, 1, 2, 3]
