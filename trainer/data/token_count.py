"""How many tokens a conversation has when it is trained on: exact with a tokeniser, stated as an estimate without.

    counter = open_counter("models/llama/tokenizer.json", "vicuna_v1.1")
    counter.measure([Piece(template.render(conversation), first=True)])    # as training counts, BOS included

Two facts make exactness cheap. A special token is a wall: what stands left and right of it is tokenised apart,
and every template ends an answer with one, so the rounds of a conversation can be counted one by one. And in the
tokenisers people train on, no token reaches from the end of a word over the blank after it; where the
tokeniser's own description shows that (see `_wall`), a text is the sum of its words, and words repeat. A
tokeniser that does not show it is asked for whole pieces instead: slower, the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from trainer.conversation import ChatTemplate, Segment, get_template
from trainer.errors import ConfigError, NotReady

# Words remembered, about 100 bytes each; all are forgotten when there are more, so memory has an end.
_REMEMBERED = 400_000
_MET_BITS = 20  # a megabyte
_NONCHARACTER = "\ufdd0"
# The pre-tokeniser patterns of GPT-2, GPT-4/LLaMA-3 and Qwen, in none of which a match goes from a visible character
# on to a blank. Of these only GPT-2's never goes from one on to a line end.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_PATTERNS = {_GPT2: " \n", _CL100K % "{1,3}": " ", _CL100K % "": " "}


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
            self._bos = _adds_bos(Tokenizer, tree)
            description = _Description(tree, template)
            self._tokeniser = Tokenizer.from_str(json.dumps(description.tree))
        except ConfigError:
            raise
        except Exception as error:  # tokenizers raises bare Exception, and its JSON may lack any key
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "give the tokenizer.json of the model, or its folder"
            raise ConfigError(f"{path} is no tokeniser: {said}", hint=hint) from error
        self.name = f"{path} sha256:{hashlib.sha256(data).hexdigest()[:16]}"
        self._prefix = description.prefix
        self._wall = description.wall
        self._words = _WORDS.get(self._wall or "")
        self._known = _Known(self._tokeniser, self._wall or "")

    def measure(self, pieces: Iterable[Piece]) -> list[int]:
        totals: list[int] = []
        rare: list[str] = []
        owners: list[int] = []
        known = self._known
        known.make_room()
        count = known.__getitem__
        for number, piece in enumerate(pieces):
            words: list[str] = []
            total = self._piece(piece, words)
            totals.append(total + sum(map(count, words)))
            if known.rare:
                rare.append("".join(known.rare))
                owners.append(number)
                known.rare.clear()
        encoded = self._tokeniser.encode_batch_fast(rare, add_special_tokens=False) if rare else ()
        for number, encoding in zip(owners, encoded, strict=True):
            totals[number] += len(encoding)
        return totals

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
        text = self._prefixed("".join(segment.text for segment in run), first)
        if len(run) > 1 and self._crosses(run, text):
            # As trainer/tokenize.py does: the question ends where the answer begins, whatever the tokeniser says.
            alone = self._text(self._prefixed(run[0].text, first), words)
            return alone + sum(self._text(segment.text, words) for segment in run[1:])
        return self._text(text, words)

    def _prefixed(self, text: str, first: bool) -> str:
        if self._prefix == "always":
            return " " + text
        wanted = self._prefix == "unless" or (self._prefix == "first" and first)
        return " " + text if wanted and not text.startswith((" ", "\u2581")) else text

    def _text(self, text: str, words: list[str]) -> int:
        if self._words is None or "\u2581" in text:
            return len(self._tokeniser.encode(text, add_special_tokens=False).ids)
        words += self._words(text)
        return 0

    def _crosses(self, run: list[Segment], text: str) -> bool:
        """Whether a token would reach over the border between a question and its answer."""
        edge = len(text) - sum(len(segment.text) for segment in run)
        for left, right in zip(run, run[1:], strict=False):
            edge += len(left.text)
            before, after = text[edge - 1 : edge], right.text[:1]
            if self._wall and (after in self._wall) != before.isspace() and "\u2581" not in (before, after):
                if after in self._wall or (before == "\n" and not after.isspace()):
                    continue
            ids = self._tokeniser.encode(text, add_special_tokens=False)
            if any(start < edge < end for start, end in ids.offsets):
                return True
        return False


class _Known(dict[str, int]):
    """Tokens of words. Half of all words never come back, so a word is learnt the second time it is met.

    The first time it counts as nothing here and goes to `rare`: rare words of a piece are encoded in one string, which
    is the sum of its words as every text is, and costs half.
    """

    def __init__(self, tokeniser: Any, wall: str) -> None:
        super().__init__()
        self.rare: list[str] = []
        self._tokeniser = tokeniser
        self._wall = wall
        self._met = bytearray(1 << _MET_BITS)  # by hash: a wrong "yes" costs a little time, never a count

    def __missing__(self, word: str) -> int:
        place = hash(word) & ((1 << _MET_BITS) - 1)
        if not self._met[place] and word[0] in self._wall and not word[-1].isspace():
            self._met[place] = 1
            self.rare.append(word)
            return 0
        count = self[word] = len(self._tokeniser.encode(word, add_special_tokens=False))
        return count

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


_WORDS = {
    # Runs that begin after a visible character and before a blank (or a line end).
    " ": re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*(?:[^\S ]\s*\Z)?|\s+").findall,
    " \n": re.compile(r"\s*\S+(?:[^\S \n]\s*\S+)*(?:[^\S \n]\s*\Z)?|\s+").findall,
}


class _Description:
    """A tokenizer.json made fit for counting: special tokens that no text can spell, no prefix, no post-processor.

    prefix: what the tokeniser puts before a piece of text: "" nothing; "always" a blank; "unless" a blank where
        none is; "first" as unless, at the very beginning only.
    wall: the characters (of " \\n") that no token joins to a visible character before them; None if unknown.
    """

    def __init__(self, tree: dict[str, Any], template: ChatTemplate) -> None:
        _refuse_without(tree, template)
        tree = {**tree, "truncation": None, "padding": None, "post_processor": None}
        self.prefix = ""
        tree["normalizer"] = self._without_prefix(tree.get("normalizer"))
        tree["pre_tokenizer"] = self._metaspace(tree.get("pre_tokenizer"))
        ordinary = [token["content"] for token in tree["added_tokens"] if not token["special"]]
        _make_unspellable(tree)
        self.tree = tree
        self.wall = None if ordinary else _wall(tree)

    def _without_prefix(self, normalizer: Any) -> Any:
        if not isinstance(normalizer, dict):
            return normalizer
        if normalizer["type"] == "Sequence":
            kept = [self._without_prefix(each) for each in normalizer["normalizers"]]
            return {**normalizer, "normalizers": [each for each in kept if each is not None]}
        if normalizer["type"] == "Prepend" and normalizer["prepend"] in ("\u2581", " "):
            self.prefix = "always"
            return None
        return normalizer

    def _metaspace(self, pre: Any) -> Any:
        if not isinstance(pre, dict) or pre["type"] != "Metaspace":
            return pre
        scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
        self.prefix = {"always": "unless", "first": "first", "never": ""}[scheme]
        rest = {key: value for key, value in pre.items() if key != "add_prefix_space"}
        return {**rest, "prepend_scheme": "never"}


def _wall(tree: dict[str, Any]) -> str | None:
    normal, pre, model = _steps(tree["normalizer"]), _steps(tree["pre_tokenizer"]), tree["model"]
    if any(each["type"] not in ("NFC", "NFKC", "Replace") for each in normal):
        return None
    blanks = [{"String": " "}, "\u2581"]
    if any(each["type"] == "Replace" and [each["pattern"], each["content"]] != blanks for each in normal):
        return None
    kinds = [each["type"] for each in pre]
    if kinds == ["ByteLevel"] and pre[0].get("use_regex", True):
        return None if pre[0].get("add_prefix_space") else " \n"
    if kinds == ["Split", "ByteLevel"] and not pre[1].get("use_regex", True):
        known = _KNOWN_PATTERNS.get(pre[0]["pattern"].get("Regex", ""))
        return known if pre[0]["behavior"] == "Isolated" and not pre[1].get("add_prefix_space") else None
    if model["type"] != "BPE" or model.get("ignore_merges") or kinds not in ([], ["Metaspace"]):
        return None
    # SentencePiece's BPE sees the whole text as one word: its vocabulary alone says what can be joined.
    merged = _merged(model)
    if re.search("[^\\s\u2581\0]\u2581|\n[^\\s\u2581\0]", merged):
        return None
    return " " if re.search("[^\\s\u2581\0]\n", merged) else " \n"


def _merged(model: dict[str, Any]) -> str:
    """What the merges of a BPE make, each after a NUL: one text to search instead of 100,000."""
    merges = model.get("merges") or ()
    return (
        "".join(f"\0{m[0]}{m[1]}" if isinstance(m, list) else "\0" + m.replace(" ", "") for m in merges)
        + "\0"
    )


def _steps(part: Any) -> list[Any]:
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") if part["type"] == "Sequence" else [part]
    return [step for each in inner or () for step in (_steps(each) if each["type"] == "Sequence" else [each])]


def _make_unspellable(tree: dict[str, Any]) -> None:
    """Special tokens get names no text has: an answer that says "</s>" is tokenised as letters."""
    names = {
        t["content"]: f"{_NONCHARACTER}{n}{_NONCHARACTER}"
        for n, t in enumerate(tree["added_tokens"])
        if t["special"]
    }
    model = tree["model"] = dict(tree["model"])
    tree["added_tokens"] = [
        {**t, "content": names.get(t["content"], t["content"])} for t in tree["added_tokens"]
    ]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    merged = _merged(model)
    if any(name in merged for name in names):
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]


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


def _adds_bos(tokenizer: Any, tree: dict[str, Any]) -> int:
    """Tokens that the tokeniser's own rule puts before a text: LLaMA's puts one, GPT-2's none.

    Asked of a tokeniser of one word with that rule: the real one takes a tenth of a second to build.
    """
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    small: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
    }
    rule = {
        "pre_tokenizer": None,
        "post_processor": tree.get("post_processor"),
        "decoder": None,
        "model": model,
    }
    made = tokenizer.from_str(json.dumps({**small, **rule}))
    with_rule, without = made.encode("a").ids, made.encode("a", add_special_tokens=False).ids
    return int(len(with_rule) > len(without) and with_rule[: len(without)] != without)


def _read_tokeniser(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "give the tokenizer.json of the model, or its folder"
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
