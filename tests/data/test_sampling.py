"""Choosing conversations: the same choice every time, and the parts of one never on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import corpora
from trainer.data.contamination import SHINGLE, read_questions
from trainer.data.read import read_corpus
from trainer.data.sampling import sample, split_train_test
from trainer.data.split import origin
from trainer.errors import DataError, UsageError


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """300 conversations in one to four parts, some as kept copies of one id."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    made = []
    for number in range(300):
        name = f"c{number}" if number % 10 else f"c{number + 1}#2"
        count = number % 4
        names = [f"{name}-part{part}" for part in range(1, count + 1)] or [name]
        made += [{"id": each, "conversations": turns} for each in names]
    return corpora.write_lines(tmp_path / "parts.jsonl", made)


@pytest.mark.parametrize("seed", range(5))
def test_parts_and_copies_of_one_conversation_are_on_one_side(tmp_path: Path, parts: Path, seed: int) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    sides = split_train_test([parts], train, test, 0.2, seed)
    origins = [{origin(c.id).partition("#")[0] for c in read_corpus([path])} for path in (train, test)]
    assert not origins[0] & origins[1]
    total = len(list(read_corpus([parts])))
    assert (sides.train + sides.test, sides.train) == (total, len(list(read_corpus([train]))))
    assert 0.1 < sides.test / total < 0.3


def test_another_seed_holds_others_out_and_the_same_one_the_same(tmp_path: Path, parts: Path) -> None:
    sides = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split_train_test(
            [parts], tmp_path / f"{name}.train.jsonl", tmp_path / f"{name}.test.jsonl", 0.2, seed
        )
        sides.append((tmp_path / f"{name}.test.jsonl").read_bytes())
    assert sides[0] == sides[1] != sides[2]


def test_an_empty_side_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = corpora.write_lines(tmp_path / "in.jsonl", corpora.raw_samples(3))
    with pytest.raises(DataError, match="leave the test side empty"):
        split_train_test([path], tmp_path / "train.jsonl", tmp_path / "test.jsonl", 0.0001, 0)
    assert [each.name for each in tmp_path.iterdir()] == ["in.jsonl"]


def test_one_name_for_both_sides_is_refused(tmp_path: Path, parts: Path) -> None:
    with pytest.raises(UsageError, match="both sides"):
        split_train_test([parts], tmp_path / "x.jsonl", tmp_path / "x.jsonl", 0.5, 0)


@pytest.mark.parametrize("count", [1, 50, 10_000])
def test_a_sample_has_that_many_in_corpus_order(tmp_path: Path, parts: Path, count: int) -> None:
    everything = [c.id for c in read_corpus([parts])]
    assert sample([parts], tmp_path / "s.jsonl", count, 7) == min(count, len(everything))
    chosen = [c.id for c in read_corpus([tmp_path / "s.jsonl"])]
    assert len(chosen) == min(count, len(everything))
    left = iter(everything)
    assert all(name in left for name in chosen)


# --- evaluation questions ------------------------------------------------------------------------------------

QUESTION = "Describe five key principles in evaluating an argument in analytical writing for a wide audience"


def test_questions_are_read_from_every_form(tmp_path: Path) -> None:
    bench = corpora.write_lines(
        tmp_path / "mt.jsonl", [{"question_id": 1, "turns": [QUESTION, "Rewrite it."]}]
    )
    plain = tmp_path / "plain.txt"
    plain.write_text(f"{QUESTION}\n\nWhat is love?\n")
    listed = corpora.write_json(tmp_path / "list.json", [{"id": "v", "text": QUESTION}, QUESTION])
    assert [read_questions([path]).count for path in (bench, plain, listed)] == [2, 2, 2]
    assert read_questions([bench, plain]).digest != read_questions([plain]).digest
    with pytest.raises(DataError, match="hold no question"):
        read_questions([corpora.write_json(tmp_path / "empty.json", [])])


@settings(deadline=None, max_examples=30)
@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_question_is_found_inside_any_text_but_not_from_nine_words_of_it(
    tmp_path_factory: pytest.TempPathFactory, before: str, after: str
) -> None:
    from trainer.conversation import Conversation, Turn

    path = tmp_path_factory.mktemp("q") / "q.txt"
    path.write_text(QUESTION)
    questions = read_questions([path])
    inside = Conversation(
        "c", (Turn("user", f"{before} {QUESTION.upper()}, {after}"), Turn("assistant", "a"))
    )
    assert "question q.txt:1" in questions.found_in(inside)
    some = " ".join(QUESTION.split()[: SHINGLE - 1])
    assert not questions.found_in(
        Conversation("c", (Turn("user", f"zzz {some} zzz"), Turn("assistant", "a")))
    )


def test_a_short_question_counts_as_a_whole_turn_only(tmp_path: Path) -> None:
    from trainer.conversation import Conversation, Turn

    (tmp_path / "q.txt").write_text("What is love?")
    questions = read_questions([tmp_path / "q.txt"])
    whole = Conversation("c", (Turn("user", "what is LOVE"), Turn("assistant", "a")))
    part = Conversation("c", (Turn("user", "what is love in the time of cholera"), Turn("assistant", "a")))
    assert questions.found_in(whole) and not questions.found_in(part)
