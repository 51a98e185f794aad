"""Conversations to parts that fit the context, cut between rounds only, and no round ever lost.

A round is a question and its answer. Rounds are taken greedily: a part ends where the next round would not fit,
and the next part begins with that very round. (FastChat loses it: 1.7 % of all rounds, docs/benchmarks.md.)
Each part repeats the conversation's own system turn. A part's id is the conversation's with "-part1", "-part2";
`origin` undoes it. A round that does not fit by itself is dealt with as `overlong` says, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

from trainer.conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    ChatTemplate,
    Conversation,
    Segment,
    Turn,
    get_template,
)
from trainer.data.token_count import Counter, Piece, open_counter

KEEP, SHORTEN, DROP = "keep", "shorten", "drop"
OVERLONG = {
    KEEP: "a part of its own, longer than the limit (training cuts it there)",
    SHORTEN: "a part of its own, its answer ended after the last sentence or code block that fits",
    DROP: "left out by name, into the rejected samples",
}

_PART = re.compile(r"(?:-part\d+)+\Z")  # parts may have been split again
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(?:.*\n)*? {0,3}\1[`~]*[ \t]*(?=\n|\Z)", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?…]['\")\]*_]*(?=\s)|[。！？]|\n(?=\n)")


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """max_length: tokens of a part, as rendered with `template`. tokeniser: a tokenizer.json; None: an estimate."""

    max_length: int = 2048
    template: str = "vicuna_v1.1"
    tokeniser: str | None = None
    overlong: str = KEEP

    def counter(self) -> Counter:
        return open_counter(self.tokeniser, self.template)

    def as_dict(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "overlong": self.overlong}


@dataclass(slots=True)
class Parts:
    """What became of one conversation. rounds == kept + dropped; an overlong round is kept, shortened or dropped."""

    parts: list[Conversation] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    overlong: int = 0  # kept longer than the limit
    shortened: int = 0
    dropped: list[Conversation] = field(default_factory=list)  # one round each


@dataclass(frozen=True)
class Splitter:
    """Splits with one counter. Cost: each round is counted once, and again where a part begins with it."""

    settings: SplitSettings

    @cached_property
    def counter(self) -> Counter:
        return self.settings.counter()

    @cached_property
    def template(self) -> ChatTemplate:
        return get_template(self.settings.template)

    def count(self, conversation: Conversation) -> int:
        """Tokens of the training text."""
        return self.counter.measure([Piece(self.template.render(conversation), True)])[0]

    def split(self, conversation: Conversation) -> Parts:
        """The parts in order. Raises DataError if the turns are out of order or unanswered."""
        return self.split_all([conversation])[0]

    def split_all(self, conversations: Sequence[Conversation]) -> list[Parts]:
        """As `split`, for many: their words go through the tokeniser together."""
        groups = [self._groups(conversation) for conversation in conversations]
        sizes = iter(self.counter.measure(piece for group in groups for piece in group))
        return [
            self._cut(conversation, group, list(islice(sizes, len(group))))
            for conversation, group in zip(conversations, groups, strict=True)
        ]

    def _groups(self, conversation: Conversation) -> list[Piece]:
        """The rounds where they stand: each ends with its trained end mark, a special token."""
        groups: list[Piece] = []
        group: list[Segment] = []
        for segment in self.template.render(conversation):
            group.append(segment)
            if segment.special and segment.trained:
                groups.append(Piece(group, not groups))
                group = []
        return groups

    def _cut(self, conversation: Conversation, rounds: Sequence[Piece], sizes: Sequence[int]) -> Parts:
        limit = self.settings.max_length
        if sum(sizes) <= limit:
            return Parts([conversation], [sum(sizes)], rounds=len(sizes))
        system = conversation.turns[:1] if conversation.turns[0].role == SYSTEM else ()
        turns = conversation.turns[len(system) :]
        done = Parts(rounds=len(sizes))
        open_part: list[Turn] = []
        used = 0
        for index, size in enumerate(sizes):
            pair = turns[2 * index : 2 * index + 2]
            if open_part and used + size <= limit:
                open_part.extend(pair)
                used += size
                continue
            if open_part:
                _close(done, system, open_part, used)
                open_part = []
            if not index:
                alone = size
            elif self.counter.steady(rounds[0]) and self.counter.steady(rounds[index]):
                alone = size + _more(self, system)
            else:
                alone = self.count(Conversation("", (*system, *pair)))
            if alone <= limit:
                open_part, used = list(pair), alone
            else:
                self._overlong(done, system, pair, alone)
        if open_part:
            _close(done, system, open_part, used)
        _name(done, conversation.id)
        return done

    def _overlong(self, done: Parts, system: Sequence[Turn], pair: Sequence[Turn], size: int) -> None:
        if self.settings.overlong == DROP:
            done.dropped.append(Conversation("", (*system, *pair)))
            return
        if self.settings.overlong == SHORTEN:

            def length(answer: str) -> int:
                return self.count(Conversation("", (*system, pair[0], Turn(pair[1].role, answer))))

            answer = shorten(pair[1].text, lambda text: length(text) <= self.settings.max_length)
            if answer:
                done.shortened += 1
                _close(done, system, [pair[0], Turn(pair[1].role, answer)], length(answer))
                return
        done.overlong += 1
        _close(done, system, list(pair), size)


@lru_cache(maxsize=64)
def _more(splitter: Splitter, system: tuple[Turn, ...]) -> int:
    """Tokens that a steady round has more where it begins a conversation."""
    turns = (Turn(USER, "a"), Turn(ASSISTANT, "a"))
    first, later = splitter.counter.measure(splitter._groups(Conversation("", (*system, *turns, *turns))))
    return first - later


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that ends with a sentence or at a code block's edge and `fits`; "" if none does."""
    ends = _ends(text)
    low, high = 0, len(ends)  # ends[:low] fit
    while low < high:
        middle = (low + high) // 2
        if fits(text[: ends[middle]].rstrip()):
            low = middle + 1
        else:
            high = middle
    return text[: ends[low - 1]].rstrip() if low else ""


def origin(name: str) -> str:
    """The id of the conversation that a part is from: "abc-part2" is from "abc"."""
    return _PART.sub("", name)


def _ends(text: str) -> list[int]:
    """Places where the text may end, ascending, the end itself left out; none inside a fenced code block."""
    ends: set[int] = set()
    at = 0
    for block in _FENCE.finditer(text):
        ends.update(match.end() for match in _SENTENCE.finditer(text, at, block.start()))
        ends.update((block.start(), block.end()))
        at = block.end()
    opened = re.compile(r"^ {0,3}(?:`{3,}|~{3,})", re.MULTILINE).search(text, at)
    stop = opened.start() if opened else len(text)  # a fence that is never closed: nothing in it
    ends.update(match.end() for match in _SENTENCE.finditer(text, at, stop))
    ends.add(stop)
    return sorted(end for end in ends if text[:end].strip() and end < len(text))


def _close(done: Parts, system: Sequence[Turn], turns: Sequence[Turn], tokens: int) -> None:
    done.parts.append(Conversation("", (*system, *turns)))
    done.tokens.append(tokens)


def _name(done: Parts, name: str) -> None:
    """The conversation's id, with the number of the part where it is not the only one."""
    several = len(done.parts) + len(done.dropped) > 1
    names = [f"{name}-part{number}" if several else name for number in range(1, len(done.parts) + 1)]
    done.parts = [Conversation(each, part.turns) for each, part in zip(names, done.parts, strict=True)]
    done.dropped = [Conversation(name, part.turns) for part in done.dropped]
