"""Conversations to token ids and flags that say which of them are learnt.

A conversation is encoded as the one string that the model will be prompted with, so training and serving tokenise
alike; which tokens count is read off the segments of the rendered template, never off the rendered text.

Most texts are the sum of their words (trainer/data/tokeniser_file.py says when), and words repeat: their tokens are
looked up. Whatever does not divide so is given to the tokeniser whole. Both give the same tokens.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.conversation import ChatTemplate, Conversation, Segment
from trainer.data.tokeniser_file import NONCHARACTER, Cuts, hidden, without_prefix
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encoded = tuple[NDArray[np.uint32], NDArray[np.uint8]]

# Words remembered, about 200 bytes each; all are forgotten when there are more, so memory has an end.
_REMEMBERED = 150_000
# In characters: a longer word (a paragraph of Chinese has no blank) hardly comes again.
_LONGEST_WORD = 32


class Encoder:
    """Conversations to (token ids, trained flags).

    Special tokens bear secret names here, and only the template writes those: text that spells a special
    token stays text, tokenised as its neighbours would have it. Where an answer begins in the middle of a
    token, the conversation is encoded anew in pieces that begin with each answer.

    vocabulary: one more than the largest id there can be.
    """

    def __init__(self, tokeniser: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self.vocabulary = 1 + max(tokeniser.backend_tokenizer.get_vocab().values())
        tree, self._secret, self._fast = under_secret_names(tokeniser.backend_tokenizer)
        bare, self._cuts = without_prefix(tree)
        self._template = template
        self._bos = [tokeniser.bos_token_id] if begins_with_bos(tokeniser) else []
        # LLaMA's tokenisers put a space before what they are given; within a text it must not be there.
        adds_space = "".join(self._fast.encode("a", add_special_tokens=False).tokens) != "a"
        self._before = NONCHARACTER if adds_space else ""
        parts = ("normalizer", "pre_tokenizer")
        same = all(bare[part] == tree[part] for part in parts)
        self._words = _Words(self._fast if same else Tokenizer.from_str(json.dumps(bare)), self._cuts)
        self._special = {
            name: _packed(self._fast.encode(new, add_special_tokens=False).ids)
            for name, new in self._secret.items()
        }

    def encode(self, conversations: list[Conversation]) -> Iterator[Encoded]:
        """Yields, per conversation, ids (L,) and flags (L,), 1 where the loss counts; the first is never 1."""
        rendered = [self._template.render(conversation) for conversation in conversations]
        found = [self._by_words(segments) for segments in rendered]
        rest = [segments for segments, encoded in zip(rendered, found, strict=True) if encoded is None]
        whole = iter(self._whole(rest))
        for encoded in found:
            ids, flags = encoded or next(whole)
            ids = np.concatenate([np.array(self._bos, dtype=np.uint32), ids])
            flags = np.concatenate([np.zeros(len(self._bos), dtype=np.uint8), flags])
            flags[:1] = 0  # nothing comes before the first token that could predict it
            yield ids, flags

    def _by_words(self, segments: list[Segment]) -> Encoded | None:
        """None where the text does not divide into words, or an answer begins in the middle of a token."""
        ids: list[bytes] = []
        flags: list[bytes] = []
        run: list[Segment] = []
        first = True
        for segment in (*segments, None):
            if segment is not None and not segment.special:
                run.append(segment)
                continue
            if run:
                parts = self._words.run(run, first)
                if parts is None:
                    return None
                for each, part in zip(run, parts, strict=True):
                    ids.append(part)
                    flags.append(_flags_of(each, part))
            if segment is not None:
                ids.append(self._special[segment.text])
                flags.append(_flags_of(segment, ids[-1]))
            run, first = [], False
        return np.frombuffer(b"".join(ids), dtype=np.uint32), np.frombuffer(b"".join(flags), dtype=np.uint8)

    def _whole(self, rendered: list[list[Segment]]) -> Iterator[Encoded]:
        """Each conversation as one string, its special tokens under their secret names."""
        rendered = [[self._secretly(segment) for segment in segments] for segments in rendered]
        texts = ["".join(segment.text for segment in segments) for segments in rendered]
        encodings = self._fast.encode_batch(texts, add_special_tokens=False)
        for segments, text, encoding in zip(rendered, texts, encodings, strict=True):
            borders = _borders(segments)
            flags = _flags(borders, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
            if flags is None:
                yield self._answer_by_answer(text, borders)
            else:
                yield np.array(encoding.ids, dtype=np.uint32), flags

    def _secretly(self, segment: Segment) -> Segment:
        return Segment(self._secret[segment.text], segment.trained) if segment.special else segment

    def _answer_by_answer(self, text: str, borders: list[int]) -> Encoded:
        """The text encoded in pieces, each from one answer's begin to the next's."""
        ids: list[int] = []
        flags: list[int] = []
        cuts = [0, *borders[::2], len(text)]
        for number, (start, end) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            before = self._before if number else ""
            piece = self._fast.encode(before + text[start:end], add_special_tokens=False)
            for token, (first, _) in zip(piece.ids, piece.offsets, strict=True):
                if first >= len(before):
                    ids.append(token)
                    flags.append(bisect_right(borders, start + first - len(before)) % 2)
        return np.array(ids, dtype=np.uint32), np.array(flags, dtype=np.uint8)


class _Words(dict[str, bytes]):
    """The token ids of words, as the bytes of uint32; a word that is met for the first time is encoded."""

    def __init__(self, tokeniser: Any, cuts: Cuts) -> None:
        super().__init__()
        self._tokeniser = tokeniser
        self._cuts = cuts

    def __missing__(self, word: str) -> bytes:
        ids = _packed(self._tokeniser.encode(word, add_special_tokens=False).ids)
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[word] = ids
        return ids

    def run(self, segments: list[Segment], first: bool) -> list[bytes] | None:
        """Ids of each segment of a run, which is what stands between two special tokens.

        None: the run does not divide into words, or a token reaches from one segment into the next.
        """
        if len(segments) > 2:  # as no template has it
            return None
        texts = [self._cuts.prefixed(segments[0].text, first), *(segment.text for segment in segments[1:])]
        if len(texts) == 2 and not self._cuts.between(*texts):
            return self._across(*texts)
        parts: list[bytes] = []
        for text in texts:
            if not self._cuts.divides(text):
                return None
            parts.append(self._ids(self._cuts.words(text)))
        return parts

    def _across(self, left: str, right: str) -> list[bytes] | None:
        """Where the border lies within a word, as after a line end, that word is encoded with it in sight."""
        if not self._cuts.divides(left + right):
            return None
        words = self._cuts.words(left + right)
        ends = list(accumulate(map(len, words)))
        at = bisect_right(ends, len(left))  # of the word with the first character of `right`
        begin = ends[at - 1] if at else 0
        if begin == len(left):
            return [self._ids(words[:at]), self._ids(words[at:])]
        edge = len(left) - begin
        across = self._tokeniser.encode(words[at], add_special_tokens=False)
        if any(start < edge < end for start, end in across.offsets):
            return None
        count = sum(start < edge for start, _ in across.offsets)
        head, tail = _packed(across.ids[:count]), _packed(across.ids[count:])
        return [self._ids(words[:at]) + head, tail + self._ids(words[at + 1 :])]

    def _ids(self, words: list[str]) -> bytes:
        return b"".join(map(self.__getitem__, words))


def begins_with_bos(tokeniser: PreTrainedTokenizerFast) -> bool:
    """Whether the tokeniser puts its BOS token before a text by itself: LLaMA's does, GPT-2's only has one."""
    return tokeniser.bos_token_id is not None and tokeniser("a")["input_ids"][0] == tokeniser.bos_token_id


def under_secret_names(tokeniser: Tokenizer) -> tuple[dict[str, Any], dict[str, str], Tokenizer]:
    """A copy whose special tokens nobody can spell: as a tree of JSON, their names there, and itself.

    Costs about 1 s for 128,000 tokens. Raises ConfigError where the copy's ids would differ.
    """
    tree, secret = hidden(json.loads(tokeniser.to_str()))
    copy = Tokenizer.from_str(json.dumps(tree))
    wrong = [name for name, new in secret.items() if copy.token_to_id(new) != tokeniser.token_to_id(name)]
    if wrong:
        raise ConfigError(f"the tokeniser gives {wrong[0]} a number out of order, which is not supported")
    return tree, secret, copy


def _packed(ids: list[int]) -> bytes:
    return array("I", ids).tobytes()


def _flags_of(segment: Segment, ids: bytes) -> bytes:
    return (b"\1" if segment.trained else b"\0") * (len(ids) // 4)


def _borders(segments: list[Segment]) -> list[int]:
    """Characters at which trained text begins, ends, begins, ..."""
    borders: list[int] = []
    at = 0
    for segment in segments:
        if segment.trained != (len(borders) % 2 == 1):
            borders.append(at)
        at += len(segment.text)
    return borders


def _flags(borders: list[int], spans: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Which tokens begin in trained text; None where a token reaches across the border of an answer."""
    edges = np.array(borders, dtype=np.int64)
    starts, ends = spans[:, 0], spans[:, 1]
    begun = np.searchsorted(edges, starts, "right")
    if np.any((begun != np.searchsorted(edges, ends, "left")) & (starts < ends)):
        return None
    return (begun % 2).astype(np.uint8)
