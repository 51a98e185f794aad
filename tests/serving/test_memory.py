"""Whether a model answers on a card: the documents' own experience."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.memory import Answering, Bits, key_value_bytes, room_for_tokens, serving_terms
from trainer.hardware import CARDS, GIB
from trainer.shape import LLAMA_7B, LLAMA_13B, Shape


def total(shape: Shape, bits: Bits = 16, cards: int = 1, tokens: int = 2048) -> float:
    """GiB on the fullest card."""
    return sum(term.bytes for term in serving_terms(shape, Answering(bits, cards, tokens))) / GIB


def card(name: str) -> float:
    return CARDS[name].memory_bytes / GIB


def test_13b_in_16_bit_does_not_fit_a_4090_and_in_8_bit_it_does() -> None:
    """Document 001: out of memory on one RTX 4090 with 24 GB until --load-8bit."""
    assert total(LLAMA_13B) > card("RTX4090") > total(LLAMA_13B, bits=8)


def test_13b_in_16_bit_fits_28_gb() -> None:
    """Documents 000 and 001: 28 GB for Vicuna-13B."""
    assert 24 < total(LLAMA_13B) < 28


def test_7b_in_16_bit_fits_14_to_16_gb() -> None:
    """Document 000: 14 GB for Vicuna-7B; a T4 says 16 and has 14.6. On 14 a conversation has to be shorter."""
    assert total(LLAMA_7B) < card("T4")
    assert total(LLAMA_7B, tokens=1024) < 14


def test_eight_bit_is_about_half_as_document_001_says() -> None:
    assert 0.5 < total(LLAMA_13B, bits=8) / total(LLAMA_13B) < 0.62
    assert total(LLAMA_13B, bits=4) < total(LLAMA_13B, bits=8)


def test_two_cards_share_the_weights_and_the_cache() -> None:
    assert total(LLAMA_13B, cards=2) < 0.6 * total(LLAMA_13B)


def test_keys_and_values_of_a_token_are_those_of_the_published_models() -> None:
    """Half a megabyte for LLaMA-7B; a quarter of that with 8 of 32 heads grouped, as in Llama 3."""
    assert key_value_bytes(LLAMA_7B) == 512 * 1024
    assert key_value_bytes(Shape(4096, 14336, 32, 32, 8, 128, 128256)) == 128 * 1024


@given(
    bits=st.sampled_from([16, 8, 4]),
    cards=st.sampled_from([1, 2, 4]),
    gib=st.integers(1, 160),
    shape=st.sampled_from([LLAMA_7B, LLAMA_13B]),
)
def test_the_room_is_the_most_tokens_that_fit(bits: Bits, cards: int, gib: int, shape: Shape) -> None:
    room = room_for_tokens(shape, Answering(bits, cards), gib * GIB)
    if room:
        assert total(shape, bits, cards, room) <= gib + 1e-6
    assert total(shape, bits, cards, room + 100) > gib


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_term_is_named_once_and_has_a_reason(bits: Bits) -> None:
    terms = serving_terms(LLAMA_7B, Answering(bits))
    assert len({term.name for term in terms}) == len(terms)
    assert all(term.bytes > 0 and term.why for term in terms)
