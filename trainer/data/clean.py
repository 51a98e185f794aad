"""One raw sample -> a clean Conversation, or the reason why it is left out (pure).

    clean(sample, "corpus-17")     Cleaned(conversation, form, notes) or Rejection(reason, detail)

Answers that are a chat page's HTML become Markdown (html.py); questions are a person's own text and
stay as they are, to the byte, as do answers that are plain text. Then the filters: a table of small
functions, each on or off, each of which says what it found. A filter that is off lets through;
what no training could use (no turns, no answer, unknown roles) is refused whatever the settings.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trainer.conversation import ASSISTANT, SYSTEM, USER, Conversation, Turn
from trainer.data import samples
from trainer.data.html import HtmlRejected, looks_like_html, to_markdown
from trainer.data.samples import Refused, read_turns, sample_id
from trainer.errors import ConfigError, DataError, nearest

# FastChat's clean_sharegpt drops conversations with fewer characters in all.
MIN_CHARACTERS = 16
# The end or the middle of an answer, found this often in it, is a model (or a person) in a loop.
_LOOP_CHARACTERS, _LOOP_TIMES = 48, 6
_HTML_MODES = ("auto", "always", "never")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a conversation is left out: `reason` is a key of REASONS, `detail` what was found where."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A conversation that may stay. notes: keys of NOTES, each at most once: what was done to it."""

    conversation: Conversation
    form: str  # sharegpt, openai, alpaca
    notes: tuple[str, ...]


NOTES = {
    "html converted": "answers were HTML and became Markdown",
    "leading answer dropped": "the first turn was an answer to nothing",
    "trailing question dropped": "the last turn was a question without an answer",
    "cut at an empty turn": "a turn without text and all that followed were dropped",
    "turns joined": "neighbouring turns of one role became one (the filter `wrong roles` is off)",
}


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
def _shipped_phrases() -> Phrases:
    return read_phrases()


@dataclass(frozen=True, slots=True)
class CleanSettings:
    """What to do. filters: names of FILTERS that are on. html: auto, always or never."""

    filters: frozenset[str] = field(default_factory=lambda: _default_filters())
    html: str = "auto"
    min_characters: int = MIN_CHARACTERS
    phrases: Phrases = field(default_factory=_shipped_phrases)

    def as_dict(self) -> dict[str, Any]:
        """For a manifest: the same settings give the same bytes."""
        return {
            "filters": [name for name in FILTERS if name in self.filters],
            "html": self.html,
            "min_characters": self.min_characters,
            "phrases": self.phrases.as_dict(),
        }


def clean_settings(
    on: Iterable[str] = (),
    off: Iterable[str] = (),
    *,
    html: str = "auto",
    min_characters: int = MIN_CHARACTERS,
    phrases_file: Path | None = None,
) -> CleanSettings:
    """The defaults with some filters on or off. Raises ConfigError for a name that is none."""
    on, off = set(on), set(off)
    for name in sorted(on | off):
        if name not in FILTERS:
            close = nearest(name, FILTERS)
            hint = "the filters are " + ", ".join(FILTERS)
            raise ConfigError(
                f"there is no filter {name!r}",
                hint=f"did you mean {close!r}? {hint}" if close else hint,
            )
    if html not in _HTML_MODES:
        raise ConfigError(f"html cannot be {html!r}", hint="it is one of " + ", ".join(_HTML_MODES))
    if on & off:
        raise ConfigError(f"the filter {min(on & off)!r} cannot be both on and off")
    phrases = read_phrases(phrases_file) if phrases_file else _shipped_phrases()
    return CleanSettings((DEFAULT_FILTERS | on) - off, html, min_characters, phrases)


# --- one sample -------------------------------------------------------------------------------


def clean(sample: Any, default_id: str, settings: CleanSettings | None = None) -> Cleaned | Rejection:
    """The clean conversation of one parsed sample of any form, or why there is none. Never raises for data."""
    settings = settings or _default_settings()
    try:
        calls = _plugin_calls(sample) if "plugin calls" in settings.filters else None
        if calls:
            return Rejection("plugin calls", calls)
        form, turns = read_turns(sample)
        notes: list[str] = []
        turns = _ends_dropped(turns, notes)
        turns = _in_order(turns, notes, strict="wrong roles" in settings.filters)
        turns = _converted(turns, settings.html, notes)
        if "empty" in settings.filters:
            turns = _cut_at_empty(turns, notes)
        for turn in turns:
            if not turn.text.isascii():
                turn.text.encode()
    except Refused as refusal:
        return Rejection(refusal.reason, refusal.detail)
    except HtmlRejected as rejected:
        return Rejection("html", rejected.detail)
    except UnicodeEncodeError:
        return Rejection("broken characters", f"in the text of a {turn.role} turn")
    conversation = Conversation(sample_id(sample, default_id), tuple(turns))
    rejected_by = judge(conversation, settings)
    return rejected_by or Cleaned(conversation, form, tuple(notes))


def judge(conversation: Conversation, settings: CleanSettings) -> Rejection | None:
    """The first filter that is on and finds something, in the order of FILTERS."""
    look = Look(conversation, settings)
    for name, rule in FILTERS.items():
        if rule.check is not None and name in settings.filters:
            detail = rule.check(look)
            if detail is not None:
                return Rejection(name, detail)
    return None


@cache
def _default_settings() -> CleanSettings:
    return CleanSettings()


def _ends_dropped(turns: list[Turn], notes: list[str]) -> list[Turn]:
    first = 1 if turns[0].role == SYSTEM else 0
    if len(turns) > first and turns[first].role == ASSISTANT:
        turns = turns[:first] + turns[first + 1 :]
        notes.append("leading answer dropped")
    if turns and turns[-1].role == USER:
        turns = turns[:-1]
        notes.append("trailing question dropped")
    if not any(turn.role == ASSISTANT for turn in turns):
        raise Refused("no answer", "no question is followed by an answer")
    return turns


def _in_order(turns: list[Turn], notes: list[str], strict: bool) -> list[Turn]:
    start = 1 if turns[0].role == SYSTEM else 0
    ordered: list[Turn] = turns[:start]
    for place, turn in enumerate(turns[start:], start + 1):
        expected = ASSISTANT if (len(ordered) - start) % 2 else USER
        if turn.role == expected:
            ordered.append(turn)
        elif strict or turn.role == SYSTEM or len(ordered) == start:
            raise Refused("wrong roles", f"turn {place} is {turn.role}, expected {expected}")
        else:
            ordered[-1] = Turn(turn.role, ordered[-1].text + "\n\n" + turn.text)
            notes.extend(() if "turns joined" in notes else ("turns joined",))
    return ordered


def _converted(turns: list[Turn], html: str, notes: list[str]) -> list[Turn]:
    if html == "never":
        return turns
    out = []
    converted = False
    for turn in turns:
        text = turn.text
        # No HTML without a "<": and most text that is not HTML is told by its first character.
        if turn.role == ASSISTANT and (
            html == "always" or (text[:400].find("<") >= 0 and looks_like_html(text))
        ):
            out.append(Turn(ASSISTANT, to_markdown(text)))
            converted = True
        else:
            out.append(turn)
    if converted:
        notes.append("html converted")
    return out


def _cut_at_empty(turns: list[Turn], notes: list[str]) -> list[Turn]:
    start = 1 if turns[0].role == SYSTEM else 0
    for place, turn in enumerate(turns):
        if place >= start and (not turn.text or turn.text.isspace()):
            rounds = (place - start) // 2
            if not rounds:
                raise Refused("empty", f"the first {'question' if turn.role == USER else 'answer'} is empty")
            notes.append("cut at an empty turn")
            return turns[: start + 2 * rounds]
    return turns


def _plugin_calls(sample: Any) -> str | None:
    if not isinstance(sample, dict):
        return None
    if sample.get("plugins"):
        return f"plugins: {str(sample['plugins'])[:60]}"
    turns = sample.get("messages") or sample.get("conversations")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            for key in ("tool_calls", "function_call"):
                if turn.get(key):
                    return f"a turn has {key}"
            role = turn.get("role")
            if isinstance(role, str) and role in ("tool", "function"):
                return f"a turn of the role {role}"
    return None


# --- filters ----------------------------------------------------------------------------------

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

    def __init__(self, conversation: Conversation, settings: CleanSettings) -> None:
        self.turns = conversation.turns
        self.settings = settings
        self.answers = [turn.text for turn in conversation.turns if turn.role == ASSISTANT]
        self.everything = "\n".join([turn.text for turn in conversation.turns])


def _too_short(look: Look) -> str | None:
    characters = sum(len(turn.text) for turn in look.turns if turn.role != SYSTEM)
    return f"{characters} characters" if characters < look.settings.min_characters else None


def _rate_limited(look: Look) -> str | None:
    return _begins(look, look.settings.phrases.rate_limited)


def _refused(look: Look) -> str | None:
    return _begins(look, look.settings.phrases.refused)


def _begins(look: Look, phrases: tuple[str, ...]) -> str | None:
    for number, answer in enumerate(look.answers, 1):
        start = answer[:120].lstrip("> *_#\n").lower().replace("\u2019", "'")
        if start.startswith(phrases):
            found = next(phrase for phrase in phrases if start.startswith(phrase))
            return f"answer {number} begins with {found!r}"
    return None


def _blocked(look: Look) -> str | None:
    lowered = look.everything.lower()
    for phrase in look.settings.phrases.blocked:
        if phrase in lowered:
            whole = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")
            for number, turn in enumerate(look.turns, 1):
                if phrase in turn.text.lower() and whole.search(prose(turn.text.lower())):
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


_NUMBERED = re.compile(r"^( *)(\d{1,9})[.)] ", re.MULTILINE)


def _broken_lists(look: Look) -> str | None:
    for number, answer in enumerate(look.answers, 1):
        if answer.count("\n1. ") + answer.count("\n1) ") < 2:
            continue
        items = [match[2] for match in _NUMBERED.finditer(_FENCED.sub("\n", answer)) if not match[1]]
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


def _default_filters() -> frozenset[str]:
    return frozenset(name for name, rule in FILTERS.items() if rule.default)


DEFAULT_FILTERS = _default_filters()
REASONS: dict[str, str] = {
    **{
        name: meaning
        for name, meaning in samples.REASONS.items()
        if name not in ("wrong role order", "empty text")
    },
    "html": "an answer's HTML is too large or nested too deep",
    **{name: rule.meaning for name, rule in FILTERS.items()},
}
