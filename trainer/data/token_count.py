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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from operator import sub
from pathlib import Path
from typing import Any, Protocol

from trainer.conversation import ChatTemplate, Segment, get_template
from trainer.data.tokeniser_file import BLANK, LONGEST_WORD, Cuts, adds_bos, hidden, without_prefix
from trainer.errors import ConfigError, NotReady

# Words remembered, about 100 bytes each; all are forgotten when there are more, so memory has an end.
_REMEMBERED = 400_000
_EDGES = 4096  # of those that begin or end a text in an unusual way
_WAITING = 128  # pieces whose new words wait to be counted together
_TOGETHER = 64  # new words in one string


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

    def steady(self, piece: Piece) -> bool:
        """Whether a round has as many tokens at a conversation's beginning as in it, but for a number that all share.

        That number is the same for all that begin with the same system turn.
        """
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

    def steady(self, piece: Piece) -> bool:
        return False  # bytes are rounded up

    def _one(self, piece: Piece) -> int:
        ordinary = sum(-(-len(s.text.encode()) // 3) for s in piece.segments if not s.special)
        return int(piece.first) + ordinary + sum(s.special for s in piece.segments)


class ExactCount:
    """The count of one tokeniser (a Hugging Face tokenizer.json) under one template."""

    exact = True

    def __init__(self, path: Path, template: ChatTemplate) -> None:
        try:
            import orjson
            from tokenizers import Tokenizer
        except ImportError as error:
            hint = "pip install 'vlaunch[data]'"
            raise NotReady("counting tokens needs tokenizers and orjson", hint=hint) from error
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes already
        data = _read_tokeniser(path)
        try:
            tree = orjson.loads(data)
            self._bos = adds_bos(Tokenizer, tree)
            _refuse_without(tree, template)
            bare, self._cuts = without_prefix(hidden(tree)[0])
            self._tokeniser = Tokenizer.from_str(orjson.dumps(bare).decode())
        except ConfigError:
            raise
        except Exception as error:  # tokenizers raises bare Exception, and its JSON may lack any key
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "give the tokenizer.json of the model, or its folder"
            raise ConfigError(f"{path} is no tokeniser: {said}", hint=hint) from error
        self.name = f"{path} sha256:{hashlib.sha256(data).hexdigest()[:16]}"
        vocabulary = bare["model"]["vocab"] if self._cuts.wall else {}  # a list where there is no wall
        self._steady = self._cuts.within(template.user_before, template.special_tokens)
        self._words = _Words(self._tokeniser, self._cuts, vocabulary)

    def measure(self, pieces: Iterable[Piece]) -> list[int]:
        totals: list[int] = []
        waiting: list[tuple[int, list[str]]] = []
        self._words.make_room()
        for number, piece in enumerate(pieces):
            totals.append(self._piece(piece))
            if new := self._words.new():
                waiting.append((number, new))
            if len(waiting) >= _WAITING:
                self._add_new(totals, waiting)
        self._add_new(totals, waiting)
        return totals

    def steady(self, piece: Piece) -> bool:
        return self._steady and all([self._cuts.divides(segment.text) for segment in piece.segments])

    def _add_new(self, totals: list[int], waiting: list[tuple[int, list[str]]]) -> None:
        """Adds new words to the totals of the pieces that have them."""
        counts = self._words.learn(dict.fromkeys(word for _, words in waiting for word in words))
        for number, words in waiting:
            totals[number] += sum(map(counts.__getitem__, words))
        waiting.clear()

    def _piece(self, piece: Piece) -> int:
        """Tokens of the piece but for those of its new words."""
        total = self._bos if piece.first else 0
        first = piece.first
        run: list[Segment] = []
        for segment in piece.segments:
            if not segment.special:
                run.append(segment)
                continue
            total += self._run(run, first) + 1
            run, first = [], False
        return total + self._run(run, first)

    def _run(self, run: list[Segment], first: bool) -> int:
        """Ordinary text between two special tokens, which the tokeniser sees as one."""
        if not run:
            return 0
        count = self._words.count
        text = self._cuts.prefixed("".join([segment.text for segment in run]), first)
        if len(run) > 1 and self._crosses(run, text):
            # As trainer/encode.py does: the question ends where the answer begins, whatever the tokeniser says.
            alone = count(self._cuts.prefixed(run[0].text, first))
            return alone + sum(count(segment.text) for segment in run[1:])
        return count(text)

    def _crosses(self, run: list[Segment], text: str) -> bool:
        """Whether a token would reach over the border between a question and its answer."""
        for number, (left, right) in enumerate(zip(run, run[1:], strict=False), 1):
            if self._cuts.apart(left.text, right.text):
                continue
            edge = len(text) - sum(len(segment.text) for segment in run[number:])
            ids = self._tokeniser.encode(text, add_special_tokens=False)
            if any(start < edge < end for start, end in ids.offsets):
                return True
        return False


class _Words(dict[str, int]):
    """Tokens of words, by what Cuts.pieces calls them.

    A word that is not known waits, and counts as nothing until then: new words are encoded together, each once.
    No piece that is no word is ever known, so where there is one, `__missing__` makes the word.
    """

    def __init__(self, tokeniser: Any, cuts: Cuts, vocabulary: Mapping[str, int]) -> None:
        super().__init__()
        self._tokeniser = tokeniser
        self._cuts = cuts
        self._new: list[str] = []
        self._pieces: Iterator[str] = iter(())  # those still to come of the text that is counted
        self._whole = lru_cache(_EDGES)(self._encoded)
        marks = (BLANK, "\u0120")  # SentencePiece's and byte-level BPE's blank
        self._begins = frozenset(number for token, number in vocabulary.items() if token.startswith(marks))
        self._forget()

    def count(self, text: str) -> int:
        """Tokens of a text but for those of its new words."""
        if not self._cuts.divides(text):
            return self._encoded(text)
        head = self._cuts.head(text)
        self._pieces = iter(self._cuts.pieces(text[len(head) :]))
        known = sum(map(self.__getitem__, self._pieces))
        return known + self._edge(head) if head else known

    def __missing__(self, word: str) -> int:
        if not word or word[-1].isspace():
            pieces = [word]
            for piece in self._pieces:
                pieces.append(piece)
                if piece and not piece[-1].isspace():
                    break
            else:
                return self._edge(self._cuts.word(" ".join(pieces)))
            word = " ".join(pieces)
            if word in self:
                return self[word]
        self._new.append(word)
        return 0

    def new(self) -> list[str]:
        """New words of the texts counted since this was last asked."""
        new, self._new = self._new, []
        return new

    def learn(self, words: Iterable[str]) -> dict[str, int]:
        """Tokens of each of the words; those that may come again are remembered.

        Most words are a blank and visible characters. Many of these in one string cost half of what they cost one by
        one, and each blank begins a token there, so how many tokens each word has is seen from the whole.
        """
        plain: list[str] = []
        groups: list[list[str]] = []
        for word in words:
            if word.split() == [word]:
                plain.append(word)
            else:
                groups.append([word])
        groups += [plain[at : at + _TOGETHER] for at in range(0, len(plain), _TOGETHER)]
        texts = [self._cuts.word(" ".join(group)) for group in groups]
        encoded = self._tokeniser.encode_batch_fast(texts, add_special_tokens=False)
        counts: dict[str, int] = {}
        for group, text, encoding in zip(groups, texts, encoded, strict=True):
            counts.update(zip(group, self._shared_out(group, text, encoding.ids), strict=True))
        self.update({word: count for word, count in counts.items() if len(word) <= LONGEST_WORD})
        return counts

    def _shared_out(self, words: list[str], text: str, ids: list[int]) -> list[int]:
        """Tokens of each of the words that are the text."""
        if len(words) == 1:
            return [len(ids)]
        begins = list(compress(range(len(ids)), map(self._begins.__contains__, ids)))
        # Each word begins with one of these. There are more where a blank came from nowhere, as NFKC makes them.
        if len(begins) == len(words) and self._cuts.divides(text):
            return list(map(sub, [*begins[1:], len(ids)], begins))
        return [self._encoded(self._cuts.word(word)) for word in words]

    def make_room(self) -> None:
        if len(self) > _REMEMBERED:
            self._forget()

    def _forget(self) -> None:
        self.clear()
        if self._cuts.lonely:
            self["\n"] = 1  # a word, whatever follows

    def _edge(self, word: str) -> int:
        """Tokens of a word that begins a text without a wall, or of blanks that end one."""
        return self._whole(word) if len(word) <= LONGEST_WORD else self._encoded(word)

    def _encoded(self, text: str) -> int:
        return len(self._tokeniser.encode(text, add_special_tokens=False))


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
