"""What keeps a conversation out: a table of small functions, each on or off, each of which says what it found (pure).

A check sees the text as a reader does (`prose`): code, addresses and markup say nothing about an answer's quality.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from trainer.conversation import ASSISTANT, SYSTEM, Conversation
from trainer.errors import DataError

# FastChat's clean_sharegpt drops conversations with fewer characters in all.
MIN_CHARACTERS = 16
# The end or the middle of an answer, found this often in it, is a model (or a person) in a loop.
_LOOP_CHARACTERS, _LOOP_TIMES = 48, 6


@dataclass(frozen=True, slots=True)
class Phrases:
    """Phrases in lower case; phrases.toml says how each list is used."""

    blocked: tuple[str, ...]
    rate_limited: tuple[str, ...]
    refused: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        everything = "\n".join((*self.blocked, "", *self.rate_limited, "", *self.refused))
        counts = {name: len(getattr(self, name)) for name in self.__slots__}
        return {**counts, "sha256": hashlib.sha256(everything.encode()).hexdigest()}


def read_phrases(path: Path | None = None) -> Phrases:
    """The lists of a file, or those shipped. Raises DataError."""
    shipped = path is None
    path = path or Path(__file__).with_name("phrases.toml")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"the phrases in {path} cannot be read: {error}") from error
    names = Phrases.__slots__
    unknown = sorted(set(given) - set(names))
    lists = {name: given.get(name, []) for name in names}
    bad = [name for name, value in lists.items() if not _is_text_list(value)]
    if unknown or bad:
        what = f"has no list {unknown[0]!r}" if unknown else f"{bad[0]} must be a list of texts"
        raise DataError(f"the phrases in {path}: {what}", hint="the lists are " + ", ".join(names))
    assert not shipped or all(lists.values())
    return Phrases(**{name: tuple(" ".join(text.lower().split()) for text in lists[name]) for name in names})


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)


@cache
def shipped_phrases() -> Phrases:
    return read_phrases()


_FENCED = re.compile(
    r"^([ >\t]*)(`{3,}|~{3,})[^\n]*\n.*?(?:^[ >\t]*\2[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:[^`]|(?!\1(?!`))`)*?(?<!`)\1(?!`)")
_ADDRESS = re.compile(
    r"\b(?:https?://|ftp://|www\.)[^\s<>)\]]+|\b[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8}|\]\([^()\s]*\)"
)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


def prose(text: str) -> str:
    """What a reader sees as prose: without code, addresses, link targets and tags."""
    if "```" in text or "~~~" in text:
        text = _FENCED.sub("\n", text)
    if "`" in text:
        text = _CODE_SPAN.sub(" ", text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if "://" in text or "www." in text or "@" in text or "](" in text:
        text = _ADDRESS.sub(" ", text)
    return text


class Look:
    """A conversation as the filters see it; what several need is made once."""

    def __init__(self, conversation: Conversation, phrases: Phrases, min_characters: int) -> None:
        self.turns = conversation.turns
        self.phrases = phrases
        self.min_characters = min_characters
        self.answers = [turn.text for turn in conversation.turns if turn.role == ASSISTANT]

    @cached_property
    def everything(self) -> str:
        return "\n".join([turn.text for turn in self.turns])

    @cached_property
    def lowered(self) -> str:
        return self.everything.lower()


def _too_short(look: Look) -> str | None:
    characters = 0
    for turn in look.turns:
        characters += len(turn.text) if turn.role != SYSTEM else 0
        if characters >= look.min_characters:
            return None
    return f"{characters} characters"


def _rate_limited(look: Look) -> str | None:
    return _begins(look, look.phrases.rate_limited)


def _refused(look: Look) -> str | None:
    return _begins(look, look.phrases.refused)


def _begins(look: Look, phrases: tuple[str, ...]) -> str | None:
    for number, answer in enumerate(look.answers, 1):
        start = answer[:120].lstrip("> *_#\n").lower().replace("\u2019", "'")
        if start.startswith(phrases):
            found = next(phrase for phrase in phrases if start.startswith(phrase))
            return f"answer {number} begins with {found!r}"
    return None


def _blocked(look: Look) -> str | None:
    lowered = look.lowered
    for phrase in look.phrases.blocked:
        if phrase in lowered:
            whole = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")
            for number, turn in enumerate(look.turns, 1):
                if phrase in (text := turn.text.lower()) and whole.search(prose(text)):
                    return f"{phrase!r} in turn {number}"
    return None


def _repetition(look: Look) -> str | None:
    for number, answer in enumerate(look.answers, 1):
        if len(answer) < _LOOP_CHARACTERS * _LOOP_TIMES:
            continue
        for end in (len(answer), len(answer) // 2):
            piece = answer[end - _LOOP_CHARACTERS : end]
            if answer.count(piece) < _LOOP_TIMES:
                continue
            text = prose(answer)  # rows of zeros in code and lines of a table are no loop
            times = text.count(piece)
            if times >= _LOOP_TIMES and sum(map(str.isalnum, piece)) * 2 > len(piece):
                return f"answer {number} says {' '.join(piece.split())[:30]!r} {times} times"
    return None


_DIGITS = tuple(digit * 9 for digit in "0123456789")


def _repeated_digits(look: Look) -> str | None:
    everything = look.everything
    for run in _DIGITS:
        if run in everything:
            for number, turn in enumerate(look.turns, 1):
                if run in turn.text and run in prose(turn.text):
                    return f"a row of {run[0]}s in turn {number}"
    return None


_NUMBERED = re.compile(r"^(\d{1,9})[.)] ", re.MULTILINE)


def _broken_lists(look: Look) -> str | None:
    for number, answer in enumerate(look.answers, 1):
        # Of three items at least two begin behind a line end; most text has no two such lines.
        first = answer.find("\n1")
        if first < 0 or answer.find("\n1", first + 2) < 0:
            continue
        # A 2 before the first fence is one outside fences: the usual list, told without a regular expression.
        head = answer.partition("```")[0].partition("~~~")[0]
        if "\n2. " in head:
            continue
        items = _NUMBERED.findall(_FENCED.sub("\n", answer) if len(head) < len(answer) else answer)
        if len(items) >= 3 and set(items) == {"1"}:
            return f"answer {number} has {len(items)} numbered items, each of them 1"
    return None


@dataclass(frozen=True, slots=True)
class Filter:
    """check: what is wrong, None if nothing; None where `clean` itself sees to it while it reads the turns."""

    check: Callable[[Look], str | None] | None
    default: bool
    meaning: str


# In the order in which they run; a conversation is counted under the first that finds something.
FILTERS: dict[str, Filter] = {
    "plugin calls": Filter(
        None, True, "it used plugins, tools or functions, whose calls are not in the text"
    ),
    "wrong roles": Filter(None, True, "questions and answers do not take turns (off: neighbours are joined)"),
    "empty": Filter(
        None, True, "the first question or answer has no text; later ones only end the conversation"
    ),
    "too short": Filter(_too_short, True, f"fewer than {MIN_CHARACTERS} characters in all"),
    "rate limited": Filter(_rate_limited, True, "an answer is the service's message that it did not answer"),
    "refused": Filter(_refused, False, "an answer begins as a refusal"),
    "blocked phrases": Filter(_blocked, True, "prose, not code or an address, holds a blocked phrase"),
    "repetition": Filter(_repetition, True, f"an answer says the same {_LOOP_TIMES} times or more"),
    "repeated digits": Filter(_repeated_digits, False, "a row of nine or more of one digit outside code"),
    "broken lists": Filter(
        _broken_lists, True, "a numbered list of three or more items that are all number 1"
    ),
}


@cache
def checks(on: frozenset[str]) -> tuple[tuple[str, Callable[[Look], str | None]], ...]:
    """Of the filters of these names, those that look at a conversation, in their order."""
    return tuple((name, rule.check) for name, rule in FILTERS.items() if name in on and rule.check)


DEFAULT_FILTERS = frozenset(name for name, rule in FILTERS.items() if rule.default)
