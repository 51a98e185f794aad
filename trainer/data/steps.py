"""A chunk of samples -> what is kept of it, as bytes, and an account of every sample (a worker's whole job).

Pure but for the caches of the tools: the same samples and settings give the same bytes in any process. The steps
run per conversation, cheapest drop first: read and clean, contamination, language, then signatures and split.
Duplicates are found later, from the signatures, by who sees all chunks (pipeline.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trainer.conversation import Conversation
from trainer.data.forms import FORMS, encoder
from trainer.data.json_stream import Unreadable
from trainer.data.samples import Refused, read_sample
from trainer.data.split import SplitSettings, Splitter

if TYPE_CHECKING:
    from trainer.data.clean import CleanSettings
    from trainer.data.contamination import Questions
    from trainer.data.language import Language, LanguageRule

FORMAT = 1  # of what a chunk becomes; part of the key of unfinished work


@dataclass(frozen=True, slots=True)
class DedupeSettings:
    """near: least share of text in common for a near duplicate; None: only what is the same word for word."""

    near: float | None = 0.85

    def as_dict(self) -> dict[str, Any]:
        return {"near": self.near}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is done to a corpus; None leaves a step out. Everything here is part of the manifest."""

    clean: CleanSettings | None = None
    questions: Questions | None = None
    language: LanguageRule | None = None
    detect_language: bool = False  # count languages though none is dropped
    dedupe: DedupeSettings | None = None
    split: SplitSettings | None = None
    form: str = "sharegpt"
    keep_rejected: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest and for the key of unfinished work."""
        language = self.language
        rule = language and {"keep": language.keep, "skip": language.skip, "threshold": language.threshold}
        return {
            "clean": self.clean and self.clean.as_dict(),
            "contamination": self.questions and self.questions.as_dict(),
            "language": rule or ({} if self.detect_language else None),
            "dedupe": self.dedupe and self.dedupe.as_dict(),
            "split": self.split and self.split.as_dict(),
            "form": self.form,
        }


@dataclass(slots=True)
class Kept:
    """One conversation that came through: its lines, and what the reduce needs to know of it."""

    id: str
    lines: list[bytes]
    characters: int
    language: str = ""
    tokens: int = 0
    chain: Sequence[int] = ()
    rounds: int = 0
    overlong: int = 0
    shortened: int = 0
    dropped: Sequence[bytes] = ()  # rejected lines of rounds too long
    dropped_rounds: int = 0


@dataclass(slots=True)
class Account:
    """Counts of a chunk, or of any sum of chunks. drops: "step: reason" -> samples; first: where each was first."""

    samples: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, other: Account) -> None:
        self.samples += other.samples
        self.forms.update(other.forms)
        self.drops.update(other.drops)
        self.notes.update(other.notes)
        for key, place in other.first.items():
            self.first.setdefault(key, place)


@dataclass(slots=True)
class Outcome:
    """What became of a chunk."""

    account: Account
    kept: list[Kept]
    conversations: list[Conversation]  # of `kept`, unsplit, for the signatures
    rejected: list[bytes]


def process(
    values: Sequence[Any], where: Callable[[int], str], first: int, path: str, stem: str, settings: Settings
) -> Outcome:
    """values: neighbours in the file `path`, the first of them its `first`-th; where: index -> its place there.

    Raises nothing for bad data.
    """
    done = Outcome(Account(), [], [], [])
    encode = encoder()
    read = [
        _through(value, f"{stem}-{first + index}", settings, done.account)
        for index, value in enumerate(values)
    ]
    for index, (value, found) in enumerate(zip(values, _by_language(read, settings), strict=True)):
        done.account.samples += 1
        if not isinstance(found, Drop):
            language, conversation = found
            text = sum([len(turn.text) for turn in conversation.turns])
            done.kept.append(Kept(conversation.id, [], text, language))
            done.conversations.append(conversation)
            continue
        key = f"{found.step}: {found.reason}"
        done.account.drops[key] += 1
        if key not in done.account.first:
            done.account.first[key] = f"{path}: {where(index)}: {found.detail}"
        if settings.keep_rejected:
            place = {"file": path, "where": where(index)}
            sample = None if isinstance(value, Unreadable) else value
            done.rejected.append(rejected_line(encode, found, place, sample))
    _finish(done, settings)
    return done


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a sample is left out, and by which step."""

    step: str
    reason: str
    detail: str


def rejected_line(encode: Callable[[Any], bytes], drop: Drop, place: dict[str, Any], sample: Any) -> bytes:
    """A line of the rejected file: everything needed to judge the drop, and the sample as it was."""
    entry = {"step": drop.step, "reason": drop.reason, "detail": drop.detail, **place, "sample": sample}
    try:
        return encode(entry) + b"\n"
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # half a surrogate, a date of Parquet, a number of 100 digits
        import json

        try:
            return json.dumps(entry, default=str).encode("ascii") + b"\n"
        except (ValueError, RecursionError):
            return encode({**entry, "detail": "the sample cannot be written as JSON", "sample": None}) + b"\n"


def _through(value: Any, name: str, settings: Settings, account: Account) -> Conversation | Drop:
    if isinstance(value, Unreadable):
        return Drop("read", value.reason, value.detail)
    if settings.clean is not None:
        from trainer.data.clean import Rejection, clean

        cleaned = clean(value, name, settings.clean)
        if isinstance(cleaned, Rejection):
            return Drop(_step_of(cleaned.reason), cleaned.reason, cleaned.detail)
        conversation = cleaned.conversation
        account.forms[cleaned.form] += 1
        for note in cleaned.notes:
            account.notes[note] += 1
    else:
        try:
            conversation, form, trimmed = read_sample(value, name)
        except Refused as refusal:
            return Drop("read", refusal.reason, refusal.detail)
        account.forms[form] += 1
        if trimmed:
            account.notes["trailing question dropped"] += 1
    if settings.questions is not None and (detail := settings.questions.found_in(conversation)):
        return Drop("contamination", "evaluation question", detail)
    return conversation


def _by_language(
    found: Sequence[Conversation | Drop], settings: Settings
) -> Iterator[tuple[str, Conversation] | Drop]:
    """What was found, each conversation with its language, or dropped because of it."""
    languages: Iterator[Language] | None = None
    if settings.language is not None or settings.detect_language:
        from trainer.data.language import detect

        languages = iter(detect([each for each in found if not isinstance(each, Drop)]))
    for each in found:
        if isinstance(each, Drop):
            yield each
        elif languages is None:
            yield "", each
        else:
            language = next(languages)
            rule = settings.language
            verdict = rule and rule.judge(language)
            yield Drop("language", verdict.reason, verdict.detail) if verdict else (language.code, each)


@lru_cache(maxsize=1)
def _filters() -> frozenset[str]:
    from trainer.data.filters import FILTERS

    return frozenset(FILTERS)


@lru_cache(maxsize=256)
def _step_of(reason: str) -> str:
    """clean() reads, converts and filters in one call; its reasons tell which of them it was."""
    from trainer.data.samples import REASONS

    return "read" if reason in REASONS else "filter" if reason in _filters() else "clean"


def _finish(done: Outcome, settings: Settings) -> None:
    encode, shape = encoder(), FORMS[settings.form]
    splitter = _splitter(settings.split) if settings.split else None
    cuts = splitter.split_all(done.conversations) if splitter else [None] * len(done.kept)
    if settings.dedupe:
        from trainer.data.signatures import chain_hashes

        for kept, conversation in zip(done.kept, done.conversations, strict=True):
            kept.chain = chain_hashes(conversation)
    for kept, conversation, cut in zip(done.kept, done.conversations, cuts, strict=True):
        parts = [conversation]
        if splitter and cut:
            parts, kept.tokens = cut.parts, sum(cut.tokens)
            kept.overlong, kept.shortened = cut.overlong, cut.shortened
            kept.dropped_rounds = len(cut.dropped)
            if settings.keep_rejected:
                drop = Drop("split", "round too long", f"longer than {splitter.settings.max_length} tokens")
                kept.dropped = [
                    rejected_line(encode, drop, {"id": one.id}, FORMS["sharegpt"](one)) for one in cut.dropped
                ]
        kept.rounds = [turn.role for turn in conversation.turns].count("assistant")
        kept.lines = [encode(shape(part)) + b"\n" for part in parts]


@lru_cache(maxsize=2)
def _splitter(settings: SplitSettings) -> Splitter:
    return Splitter(settings)
