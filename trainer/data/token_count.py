"""How many tokens a conversation has when it is trained on: exact with a tokeniser, stated as an estimate without.

    counter = open_counter("models/llama/tokenizer.json", "vicuna_v1.1")
    counter.measure([Piece(template.render(conversation), first=True)])    # as training counts, BOS included

Two facts make exactness cheap. What stands left and right of a special token is tokenised apart, and every template
ends an answer with one, so the rounds of a conversation can be counted one by one. And a text is mostly the sum of its
words (trainer/data/tokeniser_file.py says when), and words repeat. A tokeniser that does not show that is asked for
whole pieces instead: slower, the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from trainer.conversation import ChatTemplate, Segment, get_template
from trainer.data.tokeniser_file import BLANK, LONGEST_WORD, adds_bos, hidden, without_prefix
from trainer.errors import ConfigError, NotReady

# Words remembered, about 100 bytes each; all are forgotten when there are more, so memory has an end.
_REMEMBERED = 400_000
_WAITING = 256  # rare words that wait to be counted together; what waits is not learnt yet
_MET_BITS = 22  # four megabytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Segments of training text to count. first: they begin a conversation; else they follow a special token."""

    segments: Sequence[Segment]
    first: bool


class Counter(Protocol):
    """Counts tokens. `name` goes into the manifest; `exact` says whether the numbers are the tokeniser's."""

    name: str
    exact: bool

    def measure(self, pieces: Iterable[Piece]) -> list[int]:
        """Tokens of each piece. Many at once cost less than one by one."""
        ...


class Estimate:
    """For whoever has no tokeniser at hand: a token per 3 bytes of UTF-8, rounded up, per piece of text.

    LLaMA's tokeniser takes 3.5 to 4.5 bytes per token of English and code, about 3 of Chinese and Korean: this
    errs on the side of too many, so that little is cut at training.
    """

    name = "estimate: 3 bytes per token"
    exact = False

    def measure(self, pieces: Iterable[Piece]) -> list[int]:
        return [self._one(piece) for piece in pieces]

    def _one(self, piece: Piece) -> int:
        ordinary = sum(-(-len(s.text.encode()) // 3) for s in piece.segments if not s.special)
        return int(piece.first) + ordinary + sum(s.special for s in piece.segments)


class ExactCount:
    """The count of one tokeniser (a Hugging Face tokenizer.json) under one template."""

    exact = True

    def __init__(self, path: Path, template: ChatTemplate) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise NotReady("counting tokens needs tokenizers", hint="pip install 'vlaunch[data]'") from error
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes already
        data = _read_tokeniser(path)
        try:
            tree = json.loads(data)
            self._bos = adds_bos(Tokenizer, tree)
            _refuse_without(tree, template)
            bare, self._cuts = without_prefix(hidden(tree)[0])
            self._tokeniser = Tokenizer.from_str(json.dumps(bare))
        except ConfigError:
            raise
        except Exception as error:  # tokenizers raises bare Exception, and its JSON may lack any key
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "give the tokenizer.json of the model, or its folder"
            raise ConfigError(f"{path} is no tokeniser: {said}", hint=hint) from error
        self.name = f"{path} sha256:{hashlib.sha256(data).hexdigest()[:16]}"
        self._wall = self._cuts.wall
        self._known = _Known(self._tokeniser, self._wall or "")

    def measure(self, pieces: Iterable[Piece]) -> list[int]:
        totals: list[int] = []
        rare: dict[int, list[str]] = {}
        waiting = 0
        known = self._known
        known.make_room()
        count = known.__getitem__
        for number, piece in enumerate(pieces):
            words: list[str] = []
            total = self._piece(piece, words)
            totals.append(total + sum(map(count, words)))
            if known.rare:
                rare[number] = known.rare
                waiting += len(known.rare)
                known.rare = []
            if waiting > _WAITING:
                self._add_rare(totals, rare)
                waiting = 0
        self._add_rare(totals, rare)
        return totals

    def _add_rare(self, totals: list[int], rare: dict[int, list[str]]) -> None:
        """Counts the rare words of some pieces, and learns from them."""
        texts = list(map("".join, rare.values()))
        encoded = self._tokeniser.encode_batch_fast(texts, add_special_tokens=False) if texts else ()
        for (number, words), encoding in zip(rare.items(), encoded, strict=True):
            totals[number] += len(encoding)
            self._known.learn(words, encoding.ids)
        rare.clear()

    def _piece(self, piece: Piece, words: list[str]) -> int:
        """Tokens of the piece beside those of the words that it adds to `words`."""
        total = self._bos if piece.first else 0
        first = piece.first
        run: list[Segment] = []
        for segment in piece.segments:
            if not segment.special:
                run.append(segment)
                continue
            total += self._run(run, first, words) + 1
            run, first = [], False
        return total + self._run(run, first, words)

    def _run(self, run: list[Segment], first: bool, words: list[str]) -> int:
        """Ordinary text between two special tokens, which the tokeniser sees as one."""
        if not run:
            return 0
        text = self._cuts.prefixed("".join(segment.text for segment in run), first)
        if len(run) > 1 and self._crosses(run, text):
            # As trainer/encode.py does: the question ends where the answer begins, whatever the tokeniser says.
            alone = self._text(self._cuts.prefixed(run[0].text, first), words)
            return alone + sum(self._text(segment.text, words) for segment in run[1:])
        return self._text(text, words)

    def _text(self, text: str, words: list[str]) -> int:
        found = self._cuts.words(text)
        if found is None:
            return len(self._tokeniser.encode(text, add_special_tokens=False).ids)
        words += found
        return 0

    def _crosses(self, run: list[Segment], text: str) -> bool:
        """Whether a token would reach over the border between a question and its answer."""
        edge = len(text) - sum(len(segment.text) for segment in run)
        for left, right in zip(run, run[1:], strict=False):
            edge += len(left.text)
            if self._cuts.apart(text[max(0, edge - 1) : edge], right.text):
                continue
            ids = self._tokeniser.encode(text, add_special_tokens=False)
            if any(start < edge < end for start, end in ids.offsets):
                return True
        return False


class _Known(dict[str, int]):
    """Tokens of words. Half of all words never come back, so one is learnt the second time it is met; a long one never.

    Until then it counts as nothing here and goes to `rare`: rare words of a piece are encoded in one string, which
    is the sum of its words as every text is, and costs half. Each of them is a blank and visible characters, and each
    blank begins a token, so how many tokens each has is seen from the whole.
    """

    def __init__(self, tokeniser: Any, wall: str) -> None:
        super().__init__()
        self.rare: list[str] = []
        self._tokeniser = tokeniser
        self._wall = wall
        self._met = bytearray(1 << _MET_BITS)  # by hash: a wrong "yes" costs a little memory, never a count
        marks = (BLANK, "\u0120")  # SentencePiece's and byte-level BPE's blank
        self._begins = frozenset(
            number for token, number in tokeniser.get_vocab().items() if token.startswith(marks)
        )

    def __missing__(self, word: str) -> int:
        if word[0] == " " and " " in self._wall and word.split() == [word[1:]]:
            self.rare.append(word)
            return 0
        count = len(self._tokeniser.encode(word, add_special_tokens=False))
        if len(word) <= LONGEST_WORD:
            self[word] = count
        return count

    def learn(self, words: list[str], ids: list[int]) -> None:
        """What the tokens of rare words say about each. Nothing, if they are not what they should be."""
        begins = [at for at, number in enumerate(ids) if number in self._begins]
        if len(begins) != len(words):
            return
        begins.append(len(ids))
        for index, word in enumerate(words):
            place = hash(word) & ((1 << _MET_BITS) - 1)
            if not self._met[place]:
                self._met[place] = 1
            elif len(word) <= LONGEST_WORD:
                self[word] = begins[index + 1] - begins[index]

    def make_room(self) -> None:
        if len(self) > _REMEMBERED:
            self.clear()


def open_counter(tokeniser: str | None, template: str) -> Counter:
    """The counter of a tokenizer.json or of the folder that has one; the estimate for None."""
    return _open(tokeniser, template) if tokeniser else Estimate()


@lru_cache(maxsize=4)
def _open(tokeniser: str, template: str) -> Counter:
    path = Path(tokeniser)
    path = path / "tokenizer.json" if path.is_dir() else path
    return ExactCount(path, get_template(template))


def _refuse_without(tree: dict[str, Any], template: ChatTemplate) -> None:
    """As training does: a template's end marks must be in the vocabulary."""
    vocab = tree["model"]["vocab"]
    known = set(vocab if isinstance(vocab, dict) else (token for token, _ in vocab))
    known.update(token["content"] for token in tree["added_tokens"])
    if missing := [token for token in template.special_tokens if token not in known]:
        raise ConfigError(
            f"the tokeniser has no {', '.join(missing)}, with which template {template.name} ends turns",
            hint="choose the template that the base model was made for: --template NAME",
        )


def _read_tokeniser(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "give the tokenizer.json of the model, or its folder"
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
