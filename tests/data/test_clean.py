"""Cleaning one sample: what is converted, what is cut, and each filter with what it must not touch."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.conversation import Conversation, Turn
from trainer.data.clean import NOTES, REASONS, Cleaned, CleanSettings, Rejection, clean, clean_settings, judge
from trainer.data.filters import _FENCED, DEFAULT_FILTERS, FILTERS, prose, read_phrases
from trainer.errors import ConfigError, DataError

ANSWER = "A good answer of some length."
ONLY = {name: clean_settings(on=[name], off=DEFAULT_FILTERS - {name}) for name in FILTERS}


def sample(*texts: str, roles: tuple[str, ...] = ("human", "gpt")) -> dict[str, Any]:
    return {
        "id": "s",
        "conversations": [{"from": roles[at % len(roles)], "value": text} for at, text in enumerate(texts)],
    }


def turns(result: Cleaned | Rejection) -> list[tuple[str, str]]:
    assert isinstance(result, Cleaned), result
    return [(turn.role, turn.text) for turn in result.conversation.turns]


def reason(result: Cleaned | Rejection) -> str:
    assert isinstance(result, Rejection), result
    assert result.detail
    return result.reason


# --- what is converted ------------------------------------------------------------------------


def test_answers_in_html_are_converted_and_questions_in_html_are_not() -> None:
    cleaned = clean(sample("<p>Why?</p>", "<p>Because <strong>so</strong> it is.</p>"), "x")
    assert turns(cleaned) == [("user", "<p>Why?</p>"), ("assistant", "Because **so** it is.")]
    assert (
        isinstance(cleaned, Cleaned) and cleaned.notes == ("html converted",) and cleaned.form == "sharegpt"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "plain  text\n\n\n\nwith  spaces ",
        "2 * 3_4 \\_ <b> &amp;",
        "```html\n<p>x</p>\n```",
        "3 / 4 of us agree",
    ],
)
def test_answers_in_plain_text_are_left_as_they_are_to_the_byte(answer: str) -> None:
    for data in (sample("A question?", answer), {"instruction": "A question?", "output": answer}):
        assert turns(clean(data, "x")) == [("user", "A question?"), ("assistant", answer)]


def test_conversion_can_be_asked_for_or_forbidden() -> None:
    data = sample("A question, please?", "<p>An answer</p> a &amp; b")
    assert turns(clean(data, "x", clean_settings(html="never")))[1][1] == "<p>An answer</p> a &amp; b"
    entities = sample("A question, please?", "a &amp; b is the answer")
    assert turns(clean(entities, "x", clean_settings(html="always")))[1][1] == "a & b is the answer"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=2, max_size=6))
def test_cleaning_twice_is_cleaning_once(texts: list[str]) -> None:
    once = clean(sample(*texts), "x")
    if isinstance(once, Cleaned):
        messages = [{"role": role, "content": text} for role, text in turns(once)]
        assert turns(clean({"messages": messages}, "x")) == turns(once)


KEYS = st.sampled_from(
    "from value role content conversations messages instruction output id plugins type text".split()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_no_json_value_makes_it_fail(value: Any) -> None:
    result = clean(value, "x")
    assert isinstance(result, Cleaned) or (result.reason in REASONS and result.detail)


TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "from": st.sampled_from(["human", "gpt", "user", "Human", "system", "tool"]),
            "value": st.sampled_from(["", " ", "Why?", "<p></p>", "<p>So.</p>", "half \ud83d", ANSWER]),
        }
    ),
    max_size=5,
)
ALTERNATING = st.lists(st.sampled_from(["", " \n", "<p></p>", "<p>So.</p>", "é", ANSWER]), max_size=6).map(
    lambda texts: sample(*texts)["conversations"]
)


@settings(max_examples=300, deadline=None)
@given(
    said=TURNS | ALTERNATING,
    others=st.dictionaries(
        st.sampled_from(["id", "plugins", "messages", "conversation"]), VALUES, max_size=2
    ),
    openai=st.booleans(),
    off=st.sets(st.sampled_from(["plugin calls", "wrong roles", "empty"])),
)
def test_a_sample_as_nearly_all_are_is_read_as_any_other(
    said: list[dict[str, str]], others: dict[str, Any], openai: bool, off: set[str]
) -> None:
    """A third key in a turn, which says nothing, makes a sample one that is looked at step by step."""
    key, who, what = ("messages", "role", "content") if openai else ("conversations", "from", "value")
    usual = [{who: turn["from"], what: turn["value"]} for turn in said]
    unusual = [{**turn, "note": 1} for turn in usual]
    chosen = clean_settings(off=off)
    assert clean({**others, key: usual}, "x", chosen) == clean({**others, key: unusual}, "x", chosen)


def test_what_stands_beside_a_usual_conversation_still_counts() -> None:
    said = sample("A question of some length?", ANSWER)["conversations"]
    messages = [{"role": "user", "content": "Another question?"}, {"role": "assistant", "content": ANSWER}]
    called = [said[0], {**said[1], "tool_calls": [{"id": "1"}]}]
    assert reason(clean({"conversations": called}, "x")) == "plugin calls"
    assert reason(clean({"conversations": said, "messages": [{"role": "tool"}]}, "x")) == "plugin calls"
    found = clean({"messages": messages, "conversations": None, "conversation": said}, "x")
    assert turns(found) == [("user", said[0]["value"]), ("assistant", ANSWER)]


def test_half_a_character_is_rejected_by_name() -> None:
    assert reason(clean(sample("A question?", "half \ud83d of a pair"), "x")) == "broken characters"


def test_html_nested_too_deep_is_rejected_by_name() -> None:
    assert reason(clean(sample("A question?", "<ul><li>" * 10_000 + "</li></ul>"), "x")) == "html"


# --- the ends and the order -------------------------------------------------------------------


def test_an_answer_to_nothing_and_a_question_without_answer_are_dropped_and_noted() -> None:
    data = {"conversations": sample(ANSWER, "Q1?", ANSWER, "Q2?", roles=("gpt", "human"))["conversations"]}
    cleaned = clean(data, "x")
    assert turns(cleaned) == [("user", "Q1?"), ("assistant", ANSWER)]
    assert isinstance(cleaned, Cleaned)
    assert cleaned.notes == ("leading answer dropped", "trailing question dropped")
    assert set(cleaned.notes) <= set(NOTES)


def test_wrong_roles_are_rejected_or_joined_if_the_filter_is_off() -> None:
    data = sample("Q1?", "Q2?", ANSWER, roles=("human", "human", "gpt"))
    assert reason(clean(data, "x")) == "wrong roles"
    joined = clean(data, "x", clean_settings(off=["wrong roles"]))
    assert turns(joined) == [("user", "Q1?\n\nQ2?"), ("assistant", ANSWER)]
    assert isinstance(joined, Cleaned) and "turns joined" in joined.notes


def test_an_empty_answer_ends_the_conversation_and_the_rounds_before_stay() -> None:
    cleaned = clean(sample("Q1?", ANSWER, "Q2?", '<div class="markdown"></div>', "Q3?", ANSWER), "x")
    assert turns(cleaned) == [("user", "Q1?"), ("assistant", ANSWER)]
    assert reason(clean(sample("Q1?", " \n", "Q2?", ANSWER), "x")) == "empty"


def test_the_id_is_kept_and_a_missing_one_is_given() -> None:
    cleaned = clean(sample("Q?", ANSWER), "x")
    assert isinstance(cleaned, Cleaned) and cleaned.conversation.id == "s"
    cleaned = clean(
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": ANSWER}]}, "x-7"
    )
    assert isinstance(cleaned, Cleaned) and cleaned.conversation.id == "x-7"


# --- the filters ------------------------------------------------------------------------------

FOUND: dict[str, list[dict[str, Any]]] = {
    "plugin calls": [
        {**sample("Q?", ANSWER), "plugins": ["browse"]},
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "tool_calls": [{"id": 1}]}]},
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "tool", "content": "42"}]},
    ],
    "wrong roles": [sample("a", "b", "c", roles=("human", "human", "gpt"))],
    "empty": [sample("", ANSWER)],
    "too short": [sample("Hi", "Hello")],
    "rate limited": [sample("Q?", "<p>Too many requests in 1 hour. Try again later.</p>")],
    "refused": [
        sample("Q?", "I\u2019m sorry, but I can\u2019t help with that."),
        sample("Q?", "As an AI language model, I cannot."),
    ],
    "blocked phrases": [
        sample("Who made you?", "<p>I was trained by OpenAI.</p>"),
        sample("Are you ChatGPT?", ANSWER),
        sample("Q?", "<p><strong>OpenAI</strong> did.</p>"),
        sample("Q?", "See [OpenAI's page](https://a.b/c)."),
    ],
    "repetition": [sample("Q?", "Intro. " + "I will say this again and again, and it will not stop. " * 9)],
    "repeated digits": [sample("Q?", "call 00000000000 now")],
    "broken lists": [
        sample("Q?", "<ol><li>aa</li></ol><p>bb</p><ol><li>cc</li></ol><p>dd</p><ol><li>ee</li></ol>")
    ],
}
NOT_FOUND: dict[str, list[dict[str, Any]]] = {
    "plugin calls": [{**sample("Q?", ANSWER), "plugins": None}, {**sample("Q?", ANSWER), "plugins": []}],
    "wrong roles": [sample("Q?", ANSWER)],
    "empty": [sample("Q?", ANSWER)],
    "too short": [sample("Translate: Hund", "dog")],
    "rate limited": [sample("What does 429 mean?", "It means: too many requests in 1 hour.")],
    "refused": [sample("Q?", "Say: I'm sorry, but I can't come.")],
    "blocked phrases": [
        sample("Q?", "<p>Use</p><pre><code>import openai\nopenai.key = 1</code></pre>"),
        sample("Q?", "<p>Call <code>openai.Edit</code>, see https://openai.com/docs</p>"),
        sample("Q?", '<p>See <a href="https://chatgpt.com/x">this page</a>.</p>'),
        sample("Q?", "The word myopenairfest is one word."),
    ],
    "repetition": [
        sample("Q?", "```\n" + "0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,\n" * 20 + "```"),
        sample("Q?", "-" * 500),
        sample("Q?", "word " * 5 + "and so on, and that is all there is to say about it. " * 3),
    ],
    "repeated digits": [sample("Q?", "`0000000000` and 12345678901234")],
    "broken lists": [
        sample("Q?", "1. a\n2. b\n3. c"),
        sample("Q?", "1. a\n\ntext\n\n1. b"),
        sample("Q?", "1. a\n   1. b\n   1. c\n2. d"),
        sample("Q?", "```\n1. a\n1. b\n1. c\n```"),
    ],
}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_finds_what_it_is_for_and_can_be_off(name: str) -> None:
    for data in FOUND[name]:
        assert reason(clean(data, "x", ONLY[name])) == name
        off = clean(data, "x", clean_settings(off=FILTERS))
        assert isinstance(off, Cleaned) or off.reason != name


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_leaves_alone_what_only_looks_like_it(name: str) -> None:
    for data in NOT_FOUND[name]:
        result = clean(data, "x", ONLY[name])
        assert isinstance(result, Cleaned), result


LINES = st.sampled_from(["1. a", "2. b", "1) c", " 1. d", "12. e", "text 2. f", "```", "~~~ x", "> ```", ""])


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=12))
def test_a_list_is_broken_if_its_items_outside_of_fences_are_three_ones(lines: list[str]) -> None:
    answer = "\n".join(lines)
    items = re.findall(r"^(\d+)[.)] ", _FENCED.sub("\n", answer), re.MULTILINE)
    conversation = Conversation("a", (Turn("user", "Why?"), Turn("assistant", answer)))
    found = judge(conversation, ONLY["broken lists"])
    assert (found is not None) == (len(items) >= 3 and set(items) == {"1"})


def test_every_filter_says_what_it_means_and_every_reason_is_listed() -> None:
    assert set(FOUND) == set(NOT_FOUND) == set(FILTERS)
    assert all(rule.meaning for rule in FILTERS.values())
    assert set(FILTERS) <= set(REASONS)


def test_a_conversation_that_was_read_before_can_be_judged_alone() -> None:
    conversation = Conversation("a", (Turn("user", "Who?"), Turn("assistant", "ChatGPT, by OpenAI.")))
    found = judge(conversation, CleanSettings())
    assert found == Rejection("blocked phrases", "'openai' in turn 2")


def test_prose_is_what_is_neither_code_nor_address_nor_markup() -> None:
    text = "See `a` at https://b.c or [d](https://e.f).\n\n```x\ng\n```\n\n<b>h</b> me@i.jk"
    assert prose(text).split() == ["See", "at", "or", "[d", ".", "h", "me@i.jk"][:6]


# --- settings ---------------------------------------------------------------------------------


def test_settings_travel_to_other_processes_and_into_manifests() -> None:
    chosen = clean_settings(on=["refused"], off=["too short"])
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    written = chosen.as_dict()
    assert "refused" in written["filters"] and "too short" not in written["filters"]
    assert len(written["phrases"]["sha256"]) == 64


def test_an_unknown_filter_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as error:
        clean_settings(off=["repetitions"])
    assert "'repetition'" in str(error.value.hint)
    with pytest.raises(ConfigError):
        clean_settings(on=["refused"], off=["refused"])
    with pytest.raises(ConfigError):
        clean_settings(html="sometimes")


def test_phrases_come_from_a_file_and_a_wrong_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "phrases.toml"
    path.write_text('blocked = ["Acme  Corp"]\n')
    chosen = clean_settings(phrases_file=path)
    assert reason(clean(sample("Q?", "I am from ACME Corp, you know."), "x", chosen)) == "blocked phrases"
    for wrong in ("blocked = 3", 'blcked = ["a"]', "blocked = [", 'blocked = [""]'):
        path.write_text(wrong)
        with pytest.raises(DataError):
            read_phrases(path)


def test_an_instruction_without_text_is_a_reason_by_name() -> None:
    result = clean({"instruction": [], "output": []}, "x")
    assert isinstance(result, Rejection) and result.reason == "empty text" and result.reason in REASONS
