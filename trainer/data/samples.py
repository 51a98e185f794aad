"""One sample of a corpus -> one Conversation, or the reason why it cannot be used (pure).

Three forms are known by the key that holds their text:

    conversations: [{from, value}]        "sharegpt"
    messages:      [{role, content}]      "openai"; content may be a list of text parts
    instruction, input, output            "alpaca"

The first two are mixed freely in the wild (role/content under `conversations`), so either
spelling of a turn is read under either key.
"""

from __future__ import annotations

import re
from typing import Any

from trainer.conversation import ASSISTANT, SYSTEM, USER, Conversation, Turn

# Names seen in ShareGPT dumps and in the APIs' own logs -> our three roles.
ROLE_NAMES = {
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "assistant": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "system": SYSTEM,
    "developer": SYSTEM,  # OpenAI's newer word for the same thing
}

# Every reason for which a sample is refused, and what it means.
REASONS = {
    "not an object": "the sample is not a JSON object",
    "unknown format": "it has none of the keys conversations, messages, instruction",
    "bad turns": "the turns are not a list of objects with a role and a text",
    "unknown role": "a turn's role is none of " + ", ".join(ROLE_NAMES),
    "not text": "a turn's text is missing, a number, an image or a tool call",
    "broken characters": "a text holds half of a surrogate pair, which is no character",
    "wrong role order": "the turns are not: at most one system turn first, then user and assistant in turn",
    "no answer": "no user turn is followed by an answer",
    "empty text": "the instruction or every answer has no text",
}

_SURROGATE = re.compile("[\ud800-\udfff]")


class Refused(Exception):
    """This sample cannot be used: `reason` is a key of REASONS, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def read_sample(sample: Any, default_id: str) -> tuple[Conversation, str, bool]:
    """(conversation, name of its form, whether a trailing user turn was dropped). Raises Refused."""
    form, turns = read_turns(sample)
    _check_order(turns)
    trimmed = turns[-1].role == USER
    if trimmed:
        turns = turns[:-1]
    answers = [turn.text for turn in turns if turn.role == ASSISTANT]
    if not answers:
        raise Refused("no answer", "there is no assistant turn")
    if not any(answer.strip() for answer in answers):
        raise Refused("empty text", f"{len(answers)} empty answer(s)")
    for turn in turns:
        if not turn.text.isascii() and _SURROGATE.search(turn.text):
            raise Refused("broken characters", f"in the text of a {turn.role} turn")
    return Conversation(sample_id(sample, default_id), tuple(turns)), form, trimmed


def sample_id(sample: dict[str, Any], default_id: str) -> str:
    """The id that the sample gives, else the default."""
    given = sample.get("id")
    name = str(given) if isinstance(given, (str, int)) and given != "" else default_id
    return name if name.isascii() else _SURROGATE.sub("?", name)


def usual_turns(sample: Any) -> tuple[str, list[Turn]] | None:
    """What `read_turns` says of a sample as nearly all are, in one pass; None where more has to be looked at.

    Usual is one list of turns of two keys each, no system turn, question and answer in turn and none of them blank,
    the last an answer: nothing in its shape could be refused, and nothing is to be dropped or joined.
    """
    if not isinstance(sample, dict) or "plugins" in sample or "conversation" in sample:
        return None
    said, form, who, what = sample.get("conversations"), "sharegpt", "from", "value"
    if said is None:
        said, form, who, what = sample.get("messages"), "openai", "role", "content"
    elif "messages" in sample:
        return None
    if not isinstance(said, list):
        return None
    turns = []
    expected, other = USER, ASSISTANT
    for item in said:
        if not isinstance(item, dict) or len(item) != 2:
            return None
        role, text = item.get(who), item.get(what)
        if not isinstance(role, str) or ROLE_NAMES.get(role) != expected:
            return None
        if not isinstance(text, str) or not text or text.isspace():
            return None
        turns.append(Turn(expected, text))
        expected, other = other, expected
    return (form, turns) if turns and expected == USER else None


def read_turns(sample: Any) -> tuple[str, list[Turn]]:
    """(name of the form, at least one turn as it stands). Raises Refused; the order is not judged."""
    if not isinstance(sample, dict):
        raise Refused("not an object", f"found {_shown(sample)}")
    # Parquet gives every column, so a key that is there but None counts as absent.
    for key, form in (("conversations", "sharegpt"), ("conversation", "sharegpt"), ("messages", "openai")):
        if sample.get(key) is not None:
            return form, _read_turns(sample[key])
    if sample.get("instruction") is not None:
        return "alpaca", _read_alpaca(sample)
    found = ", ".join(sorted(map(str, sample))[:6]) or "no keys"
    raise Refused("unknown format", f"found {found}")


def _read_turns(value: Any) -> list[Turn]:
    if not isinstance(value, list):
        raise Refused("bad turns", f"found {_shown(value)} instead of a list")
    turns = []
    for item in value:
        if not isinstance(item, dict):
            raise Refused("bad turns", f"a turn is {_shown(item)}")
        # A key that is there decides: {"role": "user", "from": null} is a Parquet row.
        role = item.get("from") if item.get("from") is not None else item.get("role")
        text = item.get("value") if item.get("value") is not None else item.get("content")
        if not isinstance(role, str):
            raise Refused("bad turns", f"a turn has no role, only {', '.join(map(str, item)) or 'nothing'}")
        known = ROLE_NAMES.get(role.strip().lower())
        if known is None:
            raise Refused("unknown role", f"found {role[:40]!r}")
        turns.append(Turn(known, _read_text(text)))
    if not turns:
        raise Refused("no answer", "there are no turns")
    return turns


def _read_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise Refused("not text", f"found {_shown(value)}")
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            raise Refused("not text", f"a part of type {kind!r}" if kind else f"a part is {_shown(part)}")
        texts.append(text)
    return "".join(texts)


def _read_alpaca(sample: dict[str, Any]) -> list[Turn]:
    instruction, output = _read_text(sample["instruction"]), _read_text(sample.get("output"))
    more = sample.get("input")
    # Alpaca's `input` is the material of the instruction: one user turn, as its own prompt joins them.
    question = f"{instruction}\n\n{_read_text(more)}" if more else instruction
    if not question.strip():
        raise Refused("empty text", "the instruction is empty")
    return [Turn(USER, question), Turn(ASSISTANT, output)]


def _check_order(turns: list[Turn]) -> None:
    rest = turns[1:] if turns[0].role == SYSTEM else turns
    if not rest:
        raise Refused("no answer", "there is only a system turn")
    for index, turn in enumerate(rest):
        expected = ASSISTANT if index % 2 else USER
        if turn.role != expected:
            place = index + 1 + len(turns) - len(rest)
            raise Refused("wrong role order", f"turn {place} is {turn.role}, expected {expected}")


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")
