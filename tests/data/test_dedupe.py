"""Duplicates: exact, contained and near ones go, the longest stays, whatever the order and the workers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import corpora
from trainer.conversation import Conversation, Turn
from trainer.data.dedupe import REASONS, Decisions, decide
from trainer.data.pipeline import Job, prepare
from trainer.data.signatures import PERMUTATIONS, chain_hashes, minhashes
from trainer.data.steps import DedupeSettings, Settings


def talk(*texts: str, system: str = "") -> Conversation:
    roles = ("user", "assistant")
    turns = [Turn(roles[index % 2], text) for index, text in enumerate(texts)]
    return Conversation("c", (*([Turn("system", system)] if system else []), *turns))


def decided(conversations: list[Conversation], near: float | None = 0.85) -> Decisions:
    chains = [chain_hashes(each) for each in conversations]
    return decide(
        np.array([sum(len(turn.text) for turn in each.turns) for each in conversations], np.uint64),
        np.array([len(chain) for chain in chains], np.uint32),
        np.array([value for chain in chains for value in chain], np.uint64),
        None if near is None else minhashes(conversations),
        near or 1.0,
    )


def reasons(conversations: list[Conversation], near: float | None = 0.85) -> list[str]:
    return [REASONS[reason] for reason in decided(conversations, near).reason]


def prose(seed: int, words: int = 300) -> list[str]:
    dice = random.Random(seed)
    known = ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 9))) for _ in range(400)]
    return dice.choices(known, k=words)


def test_of_the_same_words_the_first_stays() -> None:
    assert reasons([talk("q", "a"), talk("r", "b"), talk("q", "a")]) == ["", "", "duplicate"]


def test_the_beginning_of_a_longer_conversation_goes_wherever_it_stands() -> None:
    short, long = talk("q", "a"), talk("q", "a", "more", "b")
    assert reasons([short, long]) == ["part of another", ""]
    assert reasons([long, short]) == ["", "part of another"]


def test_the_same_opening_with_another_end_is_no_duplicate() -> None:
    """FastChat drops a conversation for its first two messages: "Hi" / "Hello! How can I help?" is everyone's."""
    assert reasons([talk("Hi", "Hello!", "x", "y"), talk("Hi", "Hello!", "z", "w")]) == ["", ""]


def test_another_system_turn_is_another_conversation() -> None:
    assert reasons([talk("q", "a"), talk("q", "a", system="Be brief.")]) == ["", ""]


def test_turns_are_not_one_text() -> None:
    assert reasons([talk("ab", "c"), talk("a", "bc")]) == ["", ""]


@pytest.mark.parametrize("longer_first", [True, False])
def test_of_near_duplicates_the_longest_stays(longer_first: bool) -> None:
    words = prose(1)
    long, short = talk("q", " ".join([*words, "one", "two"])), talk("q", " ".join(words))
    pair = [long, short] if longer_first else [short, long]
    assert reasons(pair) == (["", "near duplicate"] if longer_first else ["near duplicate", ""])
    assert reasons(pair, None) == ["", ""]


def test_a_few_changed_words_are_near_and_half_of_them_are_not() -> None:
    words = prose(2)
    few, half = list(words), list(words)
    for place in range(0, 300, 60):
        few[place] = "CHANGED"
    for place in range(0, 300, 2):
        half[place] = "CHANGED"
    found = reasons([talk("q", " ".join(words)), talk("q", " ".join(few)), talk("q", " ".join(half))])
    assert found.count("near duplicate") == 1 and found[2] == ""


def test_near_duplicates_without_blanks_are_found() -> None:
    dice = random.Random(4)
    text = "".join(chr(dice.randrange(0x4E00, 0x9000)) for _ in range(600))
    assert reasons([talk("问", text), talk("问", text[:-3])]) == ["", "near duplicate"]


def test_short_texts_are_compared_word_for_word_only() -> None:
    assert reasons([talk("Hi", "Hello there."), talk("Hi", "Hello there!")]) == ["", ""]


def test_a_hundred_unlike_conversations_all_stay() -> None:
    assert set(reasons([talk(f"q{n}", " ".join(prose(n))) for n in range(100)])) == {""}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_what_stays_does_not_depend_on_the_order(seeds: list[int], dice: random.Random) -> None:
    """Texts of distinct lengths: with equal ones the first stays, and which is first is the order's matter."""
    made = [talk("q", " ".join(prose(seed, 60 + place))) for place, seed in enumerate(seeds)]
    shuffled = list(made)
    dice.shuffle(shuffled)

    def stay(conversations: list[Conversation]) -> set[Conversation]:
        return {c for c, r in zip(conversations, reasons(conversations), strict=True) if not r}

    assert stay(made) == stay(shuffled)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_every_loser_gave_way_to_one_at_least_as_long_that_stays(seeds: list[int]) -> None:
    made = [talk("q", " ".join(prose(seed, 40 + 40 * (place % 3)))) for place, seed in enumerate(seeds)]
    found = decided(made)
    for loser in np.flatnonzero(found.reason).tolist():
        winner = found.winner[loser]
        assert len(made[winner].turns[1].text) >= len(made[loser].turns[1].text)
        assert found.reason[winner] == 0


def test_the_estimate_is_close_to_the_share_in_common() -> None:
    words = prose(7, 2000)
    rows = minhashes([talk("q", " ".join(words)), talk("q", " ".join(words[:1500] + prose(8, 500)))])
    assert rows.shape == (2, PERMUTATIONS)
    assert abs(float(np.mean(rows[0] == rows[1])) - 1500 / 2500) < 0.15  # 3 sigma of 128 draws


def test_a_signature_does_not_depend_on_its_neighbours() -> None:
    first, second = talk("q", " ".join(prose(1))), talk("r", " ".join(prose(2)))
    assert np.array_equal(minhashes([first, second])[1], minhashes([second])[0])


def test_duplicates_are_found_across_files_and_kept_as_rejected(tmp_path: Path) -> None:
    samples = corpora.raw_samples(60, seed=3)
    inputs = (
        corpora.write_json(tmp_path / "a.json", samples),
        corpora.write_lines(tmp_path / "b.jsonl", samples),
    )
    settings = Settings(dedupe=DedupeSettings(), keep_rejected=True)
    manifest = prepare(Job(inputs, tmp_path / "o.jsonl", settings, tmp_path / "r.jsonl"), 2)
    assert manifest is not None
    step = next(step for step in manifest["steps"] if step["step"] == "dedupe")
    assert step["out"] <= step["in"] // 2
    twice = [entry for entry in corpora.read_lines(tmp_path / "r.jsonl") if entry["step"] == "dedupe"]
    assert len(twice) == step["in"] - step["out"]
