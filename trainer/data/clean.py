"""One raw sample -> a clean Conversation, or the reason why it is left out (pure).

    clean(sample, "corpus-17")     Cleaned(conversation, form, notes) or Rejection(reason, detail)

Answers that are a chat page's HTML become Markdown (html.py); questions are a person's own text and stay as they are,
to the byte, as do answers that are plain text. Then the filters (filters.py). A filter that is off lets through; what
no training could use (no turns, no answer, unknown roles) is refused whatever the settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trainer.conversation import ASSISTANT, SYSTEM, USER, Conversation, Turn
from trainer.data import samples
from trainer.data.filters import (
    DEFAULT_FILTERS,
    FILTERS,
    MIN_CHARACTERS,
    Look,
    Phrases,
    checks,
    read_phrases,
    shipped_phrases,
)
from trainer.data.html import HtmlRejected, looks_like_html, to_markdown
from trainer.data.samples import Refused, read_turns, sample_id, usual_turns
from trainer.errors import ConfigError, nearest

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
class CleanSettings:
    """What to do. filters: names of FILTERS that are on. html: auto, always or never."""

    filters: frozenset[str] = field(default_factory=lambda: DEFAULT_FILTERS)
    html: str = "auto"
    min_characters: int = MIN_CHARACTERS
    phrases: Phrases = field(default_factory=shipped_phrases)

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
    phrases = read_phrases(phrases_file) if phrases_file else shipped_phrases()
    return CleanSettings((DEFAULT_FILTERS | on) - off, html, min_characters, phrases)


# --- one sample -------------------------------------------------------------------------------


def clean(sample: Any, default_id: str, settings: CleanSettings | None = None) -> Cleaned | Rejection:
    """The clean conversation of one parsed sample of any form, or why there is none. Never raises for data."""
    settings = settings or _default_settings()
    notes: list[str] = []
    try:
        if usual := usual_turns(sample):
            form, turns = usual
        else:
            if "plugin calls" in settings.filters and (calls := _plugin_calls(sample)):
                return Rejection("plugin calls", calls)
            form, turns = read_turns(sample)
            turns = _ends_dropped(turns, notes)
            turns = _in_order(turns, notes, strict="wrong roles" in settings.filters)
        turns = _converted(turns, settings.html, notes)
        if "empty" in settings.filters and (notes or not usual):  # of a usual one, what HTML became
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
    wanted = checks(settings.filters)
    if not wanted:
        return None
    look = Look(conversation, settings.phrases, settings.min_characters)
    for name, check in wanted:
        if (detail := check(look)) is not None:
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


REASONS: dict[str, str] = {
    **{name: meaning for name, meaning in samples.REASONS.items() if name != "wrong role order"},
    "html": "an answer's HTML is too large or nested too deep",
    **{name: rule.meaning for name, rule in FILTERS.items()},
}
