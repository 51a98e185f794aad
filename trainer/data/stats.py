"""Counts of a corpus: how much there is, how long the conversations are, what was refused (pure).

One pass over the corpus; memory is one number per distinct conversation length.
Words are what stands between blanks. That says little for Chinese or Japanese, so characters are
counted too; tokens where a tokeniser is given, languages where they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from trainer.conversation import ASSISTANT, Conversation
from trainer.data.read import Corpus, FileReport

_AT_ONCE = 128  # conversations whose languages are judged together
_BARS = " ▏▎▍▌▋▊▉█"


@dataclass(slots=True)
class Counts:
    """Sums over conversations. answer_words: of the assistant turns, the part that is learnt from."""

    conversations: int = 0
    turns: int = 0
    words: int = 0
    answer_words: int = 0
    characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # words of a conversation -> conversations
    token_lengths: Counter[int] = field(default_factory=Counter)  # empty where no tokeniser was given
    languages: Counter[str] = field(default_factory=Counter)  # code -> conversations

    def add(self, conversation: Conversation, tokens: int | None = None, language: str = "") -> None:
        words = 0
        for turn in conversation.turns:
            count = len(turn.text.split())
            words += count
            self.answer_words += count if turn.role == ASSISTANT else 0
            self.characters += len(turn.text)
        self.conversations += 1
        self.turns += len(conversation.turns)
        self.words += words
        self.lengths[words] += 1
        if tokens is not None:
            self.token_lengths[tokens] += 1
        if language:
            self.languages[language] += 1

    def percentile(self, share: float) -> int:
        """The length in words that this share of the conversations does not exceed; 0 if there are none."""
        wanted = share * self.conversations
        passed = 0
        for length in sorted(self.lengths):
            passed += self.lengths[length]
            if passed >= wanted:
                return length
        return 0

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for --json."""
        return {
            "conversations": self.conversations,
            "turns": self.turns,
            "words": self.words,
            "answer_words": self.answer_words,
            "characters": self.characters,
            "median_words": self.percentile(0.5),
            "p95_words": self.percentile(0.95),
            "longest_words": max(self.lengths, default=0),
            **self._tokens(),
        }

    def _tokens(self) -> dict[str, int]:
        lengths = self.token_lengths
        if not lengths:
            return {}
        return {
            "tokens": sum(size * count for size, count in lengths.items()),
            "longest_tokens": max(lengths),
        }


@dataclass(frozen=True, slots=True)
class FileStats:
    """One file: what the reader says of it, and the counts of what could be used."""

    report: FileReport
    counts: Counts


@dataclass(frozen=True, slots=True)
class Bucket:
    """Conversations of `low` to `high` words, both included."""

    low: int
    high: int
    conversations: int


@dataclass(frozen=True, slots=True)
class CorpusStats:
    """Every file of a corpus, and all together."""

    files: tuple[FileStats, ...]
    total: Counts

    @property
    def refused(self) -> dict[str, int]:
        """Reason -> samples, over all files, the most frequent first."""
        reasons: Counter[str] = Counter()
        for file in self.files:
            reasons.update(file.report.refused)
        return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))

    @property
    def trimmed(self) -> int:
        return sum(file.report.trimmed for file in self.files)


def corpus_stats(
    corpus: Corpus, *, tokens: Callable[[Conversation], int] | None = None, languages: bool = False
) -> CorpusStats:
    """Reads the whole corpus. tokens: counts those of a conversation. Raises DataError as reading does."""
    total = Counts()
    by_file: dict[int, Counts] = {}
    for report, conversation, language in _with_language(corpus.by_file(), languages):
        size = tokens(conversation) if tokens else None
        by_file.setdefault(id(report), Counts()).add(conversation, size, language)
        total.add(conversation, size, language)
    files = tuple(FileStats(report, by_file.get(id(report), Counts())) for report in corpus.files)
    return CorpusStats(files, total)


def _with_language(
    found: Iterator[tuple[FileReport, Conversation]], wanted: bool
) -> Iterator[tuple[FileReport, Conversation, str]]:
    """Each with its language, or with "" where none is wanted."""
    if not wanted:
        yield from ((report, conversation, "") for report, conversation in found)
        return
    from trainer.data.language import detect

    while batch := list(islice(found, _AT_ONCE)):
        languages = detect([conversation for _, conversation in batch])
        yield from ((*each, language.code) for each, language in zip(batch, languages, strict=True))


def histogram(lengths: Counter[int]) -> list[Bucket]:
    """Lengths in buckets that double: 0-15, 16-31, 32-63, ... from the shortest to the longest in use."""
    buckets: Counter[int] = Counter()
    for length, count in lengths.items():
        buckets[max(length.bit_length(), 4)] += count
    if not buckets:
        return []
    return [
        Bucket(0 if bits == 4 else 1 << (bits - 1), (1 << bits) - 1, buckets[bits])
        for bits in range(min(buckets), max(buckets) + 1)
    ]


def bar(value: int, most: int, width: int) -> str:
    """A bar of at most `width` characters, exact to an eighth of one; never empty for what is not zero."""
    eighths = round(value * width * 8 / most) if most else 0
    if value and not eighths:
        eighths = 1
    return "█" * (eighths // 8) + _BARS[eighths % 8].strip()
