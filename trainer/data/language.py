"""Which language a conversation is in, by py3langid, and which languages a corpus keeps.

    detect(conversations)                         [Language("ko", 0.99), ...]
    language_rule("en,zh").judge(language)        None, or the Rejection

Judged is prose: code, addresses and markup are taken out first, because code is English words in
any language. py3langid is asked among our twelve languages only, over the first 128 characters of
prose; tests/benchmarks/language.py has the accuracies and speeds of the alternatives. What has too
few letters, or no clear winner, as a text in a thirteenth language, is "unknown", and unknown is
kept unless it is named in `skip`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.conversation import ASSISTANT, USER, Conversation
from trainer.data.clean import Rejection
from trainer.data.filters import prose
from trainer.data.language_model import Model, load
from trainer.errors import ConfigError

# The seeds' codes (FastChat's --keep-lang and --skip-lang take the same ISO 639-1 codes).
CODES = ("en", "es", "fr", "de", "it", "ja", "ko", "zh", "ar", "ru", "pt", "nl")
UNKNOWN = "unknown"
# 100 to 2,000 give the same answers on the labelled set of tests/benchmarks/language.py.
JUDGED_CHARACTERS = 128
_LOOKED_AT = 6_000  # characters of a turn: a block of code may fill its beginning
_FEWEST_LETTERS = 2
DEFAULT_THRESHOLD = 0.5

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_BLANKED = bytes(code if chr(code).isalpha() else 32 for code in range(256))  # of ASCII


@dataclass(frozen=True, slots=True)
class Language:
    """code: one of CODES or "unknown". confidence: 0 to 1, its share among the twelve, even for short texts."""

    code: str
    confidence: float


NO_LANGUAGE = Language(UNKNOWN, 0.0)


def detect(conversations: Sequence[Conversation]) -> list[Language]:
    """The language of each: of its questions and answers by turns, the same share of each.

    Many at once cost less than one by one.
    """
    return _judge([_sample_of(conversation) for conversation in conversations])


def detect_text(text: str) -> Language:
    """The language of one text."""
    return _judge([_sample((text,), JUDGED_CHARACTERS)])[0]


def _sample_of(conversation: Conversation) -> str:
    half = JUDGED_CHARACTERS // 2
    questions = _sample((turn.text for turn in conversation.turns if turn.role == USER), half)
    answers = _sample((turn.text for turn in conversation.turns if turn.role == ASSISTANT), half)
    return f"{questions} {answers}"


def _sample(texts: Iterable[str], most: int) -> str:
    """The first words of the prose in these texts, without digits and punctuation marks."""
    parts: list[str] = []
    size = 0
    for text in texts:
        words = _words(_beginning(text, most), most - size)
        if words:
            parts.append(words)
            size += len(words) + 1
        if size >= most:
            break
    return " ".join(parts)


def _beginning(text: str, most: int) -> str:
    """Prose enough for `most` letters, if it is near."""
    near = prose(text[: 3 * most])
    return near if len(near) > 2 * most or len(text) <= 3 * most else prose(text[:_LOOKED_AT])


def _words(text: str, most: int) -> str:
    """The first `most` characters of its words."""
    found = _letters(text[: 2 * most])
    if len(found) < most and len(text) > 2 * most:
        found = _letters(text)
    return found[:most].strip()


def _letters(text: str) -> str:
    """A blank for each run of what is no letter; one less at the end does not count."""
    if not text.isascii():
        return _NOT_LETTERS.sub(" ", text)
    blanked = text.encode().translate(_BLANKED)
    words = " ".join(blanked.decode().split())
    return f" {words}" if blanked[:1] == b" " else words


def _judge(samples: Sequence[str]) -> list[Language]:
    """Of words, as `_sample` gives them."""
    judged = [at for at, words in enumerate(samples) if _has_letters(words)]
    found = [NO_LANGUAGE] * len(samples)
    for at, (code, share) in zip(judged, detector().classify([samples[at] for at in judged]), strict=True):
        found[at] = Language(code, round(share, 4))
    return found


def _has_letters(words: str) -> bool:
    return words[:_FEWEST_LETTERS].isalpha() or sum(map(str.isalpha, words[:40])) >= _FEWEST_LETTERS


_detector: Model | None = None


def detector(cache: Path | None = None) -> Model:
    """Loaded by the first call: once per process, or once for all that are forked later. cache: as of `load`."""
    global _detector
    if _detector is None:
        _detector = load(CODES, cache)
    return _detector


# --- what is kept -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LanguageRule:
    """Which languages stay. Less sure than the threshold is "unknown", which stays unless `skip` names it."""

    keep: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    threshold: float = DEFAULT_THRESHOLD

    def settled(self, language: Language) -> str:
        """The code that counts: "unknown" under the threshold."""
        return language.code if language.confidence >= self.threshold else UNKNOWN

    def judge(self, language: Language) -> Rejection | None:
        code = self.settled(language)
        wanted = code == UNKNOWN or not self.keep or code in self.keep
        if wanted and code not in self.skip:
            return None
        return Rejection("language", f"{code} {language.confidence:.2f}")


def language_rule(
    keep: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> LanguageRule:
    """A rule from "en,zh" or a list of codes. Raises ConfigError for a code that is none."""
    kept, skipped = _read_codes(keep, "keep"), _read_codes(skip, "skip")
    if UNKNOWN in kept:
        raise ConfigError("unknown is kept anyway", hint="name it in skip to drop what has no clear language")
    if kept and set(skipped) - {UNKNOWN}:
        raise ConfigError(
            "keep and skip cannot both name languages", hint="what keep does not name is dropped"
        )
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"the threshold {threshold} is not between 0 and 1")
    return LanguageRule(kept, skipped, threshold)


def _read_codes(given: str | Iterable[str] | None, what: str) -> tuple[str, ...]:
    parts = given.split(",") if isinstance(given, str) else list(given or ())
    codes = [part.strip().lower() for part in parts if part.strip()]
    for code in codes:
        if code not in CODES and code != UNKNOWN:
            known = ", ".join(CODES) + f" and, in skip, {UNKNOWN}"
            raise ConfigError(f"{what}: there is no language code {code!r} here", hint=f"known are {known}")
    return tuple(dict.fromkeys(codes))
