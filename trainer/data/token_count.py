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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from trainer.conversation import ChatTemplate, Segment, get_template
from trainer.data.tokeniser_file import adds_bos, hidden, without_prefix
from trainer.data.word_counts import WordCounts
from trainer.errors import ConfigError, NotReady


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


class _Waiting:
    """Texts to be counted together, each with the number of its piece."""

    def __init__(self) -> None:
        self.owner = 0
        self.owners: list[int] = []
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.owners.append(self.owner)


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
        self._vocabulary = bare["model"]["vocab"] if self._cuts.wall else {}  # a list where there is no wall
        self._steady = self._cuts.within(template.user_before, template.special_tokens)

    @cached_property
    def _words(self) -> WordCounts:
        """Made where it is used, in a worker: numpy is not to be imported before pool.py has seen to its threads."""
        return WordCounts(self._tokeniser, self._cuts, self._vocabulary)

    def measure(self, pieces: Iterable[Piece]) -> list[int]:
        totals: list[int] = []
        waiting = _Waiting()
        for number, piece in enumerate(pieces):
            waiting.owner = number
            totals.append(self._piece(piece, waiting))
        for owner, count in zip(waiting.owners, self._words.count(waiting.texts), strict=True):
            totals[owner] += count
        return totals

    def steady(self, piece: Piece) -> bool:
        return self._steady and all([self._cuts.divides(segment.text) for segment in piece.segments])

    def _piece(self, piece: Piece, waiting: _Waiting) -> int:
        """Tokens of the piece but for those of the texts that are to wait."""
        total = self._bos if piece.first else 0
        first = piece.first
        run: list[Segment] = []
        for segment in piece.segments:
            if not segment.special:
                run.append(segment)
                continue
            total += self._run(run, first, waiting) + 1
            run, first = [], False
        return total + self._run(run, first, waiting)

    def _run(self, run: list[Segment], first: bool, waiting: _Waiting) -> int:
        """Ordinary text between two special tokens, which the tokeniser sees as one."""
        if not run:
            return 0
        text = self._cuts.prefixed("".join([segment.text for segment in run]), first)
        if len(run) > 1 and self._crosses(run, text):
            # As trainer/encode.py does: the question ends where the answer begins, whatever the tokeniser says.
            alone = self._text(self._cuts.prefixed(run[0].text, first), waiting)
            return alone + sum(self._text(segment.text, waiting) for segment in run[1:])
        return self._text(text, waiting)

    def _text(self, text: str, waiting: _Waiting) -> int:
        if self._cuts.divides(text):
            waiting.add(text)
            return 0
        return len(self._tokeniser.encode(text, add_special_tokens=False))

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
