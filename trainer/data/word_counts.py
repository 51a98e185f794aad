"""Tokens of the words of many texts, all words at once: a hash table in numpy, with the words themselves as its keys.

    words = WordCounts(tokeniser, cuts, vocabulary)
    words.count(["A text.", " another"])        tokens of each. The texts divide (Cuts.divides)

A word is the bytes from one cut to the next (tokeniser_file.py says where cuts are). Of 780 words of a conversation
all but a dozen have at most 15 bytes: with their length they fill two numbers of 64 bits, and numpy cuts and looks up
thousands of them in a third of the time that str.split and a dictionary take. Longer words are in a dictionary. A word
that is not known is encoded with others, once, and remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from operator import sub
from typing import TYPE_CHECKING, Any

from trainer.data.tokeniser_file import BLANK, Cuts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SLOT_BITS = 20  # of the table: 20 bytes for each of a million, filled to two fifths at most
_REMEMBERED = 400_000  # then all are forgotten, so memory has an end
_SHORT = 15  # bytes of a word in the table; the sixteenth is its length
# Bytes of a word to remember: a longer one (a paragraph of Chinese has no blank) hardly comes again.
_LONGEST = 64
_BATCH = 1 << 17  # characters looked at at once: their arrays stay in a core's cache
_TOGETHER = 64  # new words in one string
# What tokens begin with that begin with a wall: SentencePiece's and byte-level BPE's blank and line end.
_MARKS = {" ": (BLANK, "\u0120"), "\n": ("\n", "\u010a", "<0x0A>")}
# The last bytes, as a number, of each blank beyond ASCII. No cut is made behind one.
_BLANKS = [
    int.from_bytes(chr(code).encode()[-3:], "big")
    for code in (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
]


# A place where any text that divides may be cut.
_CUT = re.compile(r"\S(?= )")


class WordCounts:
    """Counts and remembers. vocabulary: the tokeniser's, token -> id."""

    def __init__(self, tokeniser: Any, cuts: Cuts, vocabulary: Mapping[str, int]) -> None:
        import numpy as np

        self._tokeniser = tokeniser
        self._cuts = cuts
        self._table = _Table()
        self._long: dict[bytes, int] = {}
        shared = () if cuts.bare else vocabulary.items()  # a bare model is asked for each word
        self._begins = {
            ord(wall): frozenset(number for token, number in shared if token.startswith(_MARKS[wall]))
            for wall in cuts.wall or ""
        }
        self._last = np.zeros(256, bool)
        self._last[[blank & 255 for blank in _BLANKS]] = True
        # The bytes of a number that belong to a word of so many bytes, in its first and in its second eight.
        kept = [(1 << 8 * length) - 1 for length in range(9)]
        self._first = np.array([kept[min(length, 8)] for length in range(_SHORT + 1)], np.uint64)
        self._second = np.array([kept[max(length - 8, 0)] for length in range(_SHORT + 1)], np.uint64)

    def count(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text. Cost: some 8 ns a byte; memory does not grow with a text."""
        totals: list[int] = []
        batch: list[str] = []
        owners: list[int] = []
        size = 0
        for owner, text in enumerate(texts):
            totals.append(0)
            for stretch in _stretches(text):
                batch.append(stretch)
                owners.append(owner)
                size += len(stretch)
                if size >= _BATCH:
                    self._add(totals, owners, batch)
                    batch, owners, size = [], [], 0
        if batch:
            self._add(totals, owners, batch)
        return totals

    def _add(self, totals: list[int], owners: list[int], texts: list[str]) -> None:
        """The tokens of texts, none of them empty, to the totals of their owners."""
        import numpy as np

        self._make_room()
        encoded = [text.encode() for text in texts]
        blob = b"".join((*encoded, bytes(16)))
        begins = np.cumsum([0, *map(len, encoded)])
        starts = self._starts(blob, begins)
        counts = self._counts(blob, starts, np.append(starts[1:], begins[-1]))
        running = np.concatenate(([0], np.cumsum(counts)))
        for owner, count in zip(
            owners, np.diff(running[np.searchsorted(starts, begins)]).tolist(), strict=True
        ):
            totals[owner] += count

    def _starts(self, blob: bytes, begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where words begin: at walls behind a visible character, and where texts begin."""
        import numpy as np

        each = np.frombuffer(blob, np.uint8)[: begins[-1]]
        cut = np.zeros(len(each), bool)
        for wall in self._begins:
            cut |= each == wall
        cut[1:] &= each[:-1] > ord(" ")
        # Walls behind what may be the last byte of a blank beyond ASCII.
        beyond = np.flatnonzero(cut[1:] & (each[:-1] > 127)) + 1
        beyond = beyond[self._last[each[beyond - 1]]]
        two = each[beyond - 2].astype(np.uint32) << 8 | each[beyond - 1]
        three = each[beyond - 3].astype(np.uint32) << 16 | two
        cut[beyond[np.isin(three, _BLANKS) | np.isin(two, _BLANKS)]] = False
        cut[begins[:-1]] = True
        return np.flatnonzero(cut)

    def _counts(self, blob: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each word."""
        import numpy as np

        lengths = ends - starts
        short = lengths <= _SHORT
        width = np.minimum(lengths, _SHORT)
        # Every 8 bytes as one number, at every byte: no copy, whatever the alignment.
        eights = np.ndarray((len(blob) - 7,), dtype="<u8", buffer=blob, strides=(1,))
        first = eights[starts] & self._first[width]
        second = eights[starts + 8] & self._second[width] | lengths.astype(np.uint64) << np.uint64(56)
        counts = self._table.find(first, second)
        unknown = np.flatnonzero((counts < 0) | ~short).tolist()
        if not unknown:
            return counts
        words = [
            blob[start:end]
            for start, end in zip(starts[unknown].tolist(), ends[unknown].tolist(), strict=True)
        ]
        known = self._learn([word for word in dict.fromkeys(words) if word not in self._long])
        counts[unknown] = [known[word] if word in known else self._long[word] for word in words]
        at = [place for word, place in dict(zip(words, unknown, strict=True)).items() if len(word) <= _SHORT]
        self._table.add(first[at], second[at], counts[at])
        self._long.update({word: n for word, n in known.items() if _SHORT < len(word) <= _LONGEST})
        return counts

    def _learn(self, words: Iterable[bytes]) -> dict[bytes, int]:
        """Tokens of each word.

        SentencePiece's model may be asked itself. Of other tokenisers' words, most are a wall and visible characters.
        Many of these in one string cost half of what they cost one by one, and each wall begins a token there, so how
        many tokens each word has is seen from the whole.
        """
        if self._cuts.bare:
            tokenize = self._tokeniser.model.tokenize
            return {word: len(tokenize(word.decode().replace(" ", BLANK))) for word in words}
        alike: dict[int, list[bytes]] = {wall: [] for wall in self._begins}
        groups: list[list[bytes]] = []
        for word in words:
            if word[0] in alike and word.split() == [word[1:]]:
                alike[word[0]].append(word)
            else:
                groups.append([word])
        for several in alike.values():
            groups += [several[at : at + _TOGETHER] for at in range(0, len(several), _TOGETHER)]
        texts = [b"".join(group).decode() for group in groups]
        encoded = self._tokeniser.encode_batch_fast(texts, add_special_tokens=False)
        counts: dict[bytes, int] = {}
        for group, text, encoding in zip(groups, texts, encoded, strict=True):
            counts.update(zip(group, self._shares(group, text, encoding.ids), strict=True))
        return counts

    def _shares(self, words: list[bytes], text: str, ids: list[int]) -> list[int]:
        """Of the tokens of a text, how many are each word's."""
        if len(words) == 1:
            return [len(ids)]
        begins = list(compress(range(len(ids)), map(self._begins[words[0][0]].__contains__, ids)))
        # Each word begins with one of these. There are more where a blank came from nowhere, as NFKC makes them.
        if len(begins) == len(words) and self._cuts.divides(text):
            return list(map(sub, [*begins[1:], len(ids)], begins))
        return [len(self._tokeniser.encode(word.decode(), add_special_tokens=False)) for word in words]

    def _make_room(self) -> None:
        if self._table.size > _REMEMBERED:
            self._table = _Table()
        if len(self._long) > _REMEMBERED // 8:
            self._long.clear()


def _stretches(text: str) -> Iterator[str]:
    """The text, cut where it is longer than a batch."""
    at = 0
    while len(text) - at > _BATCH and (cut := _CUT.search(text, at + _BATCH)):
        yield text[at : cut.end()]
        at = cut.end()
    if at < len(text):
        yield text[at:] if at else text


class _Table:
    """Numbers by keys of two others, open addressing. A number that is not there is -1."""

    def __init__(self) -> None:
        import numpy as np

        self.size = 0
        self._first, self._second = (np.zeros(1 << _SLOT_BITS, np.uint64) for _ in range(2))
        self._values = np.full(1 << _SLOT_BITS, -1, np.int32)

    def find(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The number of each key, or -1."""
        import numpy as np

        slots = _slots(first, second)
        found = self._values[slots].astype(np.int64)
        other = np.flatnonzero(
            (found >= 0) & ((self._first[slots] != first) | (self._second[slots] != second))
        )
        while other.size:  # another key is there: what is looked for may be behind it
            slots[other] = (slots[other] + 1) & ((1 << _SLOT_BITS) - 1)
            there = slots[other]
            found[other] = self._values[there]
            same = (self._first[there] == first[other]) & (self._second[there] == second[other])
            other = other[(found[other] >= 0) & ~same]
        return found

    def add(self, first: NDArray[np.uint64], second: NDArray[np.uint64], values: NDArray[np.int64]) -> None:
        """Keys that are not there, each once."""
        import numpy as np

        slots = _slots(first, second)
        left = np.arange(len(slots))
        while left.size:
            there, which = np.unique(slots[left], return_index=True)
            free = self._values[there] < 0
            there, which = there[free], which[free]
            placed = left[which]
            self._first[there], self._second[there] = first[placed], second[placed]
            self._values[there] = values[placed]
            left = np.delete(left, which)
            slots[left] = (slots[left] + 1) & ((1 << _SLOT_BITS) - 1)
        self.size += len(slots)


def _slots(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a key should be. The multipliers are splitmix64's."""
    import numpy as np

    mixed = first * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed += second
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
