"""What a tokenizer.json says about itself: how to hide its special tokens, what it puts before a text, and where a
text may be cut so that the tokens of the pieces are the tokens of the whole.

Two places need it: trainer/encode.py makes the tokens of training, trainer/data/token_count.py counts them.

A special token is a wall: what stands left and right of it is tokenised apart. And in the tokenisers people train on,
no token reaches from the end of a word over the blank after it; where the file itself shows that (`_wall`), a text
is the sum of its words, and words repeat.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Never assigned a character, so no text has it and no tokeniser has learnt to join it to its neighbours.
NONCHARACTER = "\ufdd0"
# SentencePiece's blank. A text that holds it is no longer what it seems; it is given to the tokeniser whole.
BLANK = "\u2581"
# Marks that are looked for in every text; Qwen2.5's tokeniser has 8.
_MOST_MARKS = 50
# The pre-tokeniser patterns of GPT-2, GPT-4/LLaMA-3 and Qwen, in none of which a match goes from a visible character
# on to a blank. Of these only GPT-2's never goes from one on to a line end.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_PATTERNS = {_GPT2: " \n", _CL100K % "{1,3}": " ", _CL100K % "": " "}
_WORDS = {
    # Runs that begin after a visible character and before a blank (or a line end).
    " ": re.compile(r"\s*+\S++(?:[^\S ]\s*+\S*+)*+|\s++"),
    " \n": re.compile(r"\s*+\S++(?:[^\S \n]\s*+\S*+)*+|\s++"),
}


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a text may be cut.

    prefix: what the tokeniser puts before a stretch of text: "" nothing; "always" a blank; "unless" a blank where
        none is; "first" as unless, at the very beginning of a conversation only.
    wall: the characters (of " \\n") that no token joins to a visible character before them; None if unknown.
    whole: a text with one of these in it is not cut.
    bare: the model sees of a word nothing but its characters, with BLANK for a blank.
    """

    prefix: str
    wall: str | None
    whole: tuple[str, ...]
    bare: bool = False

    def prefixed(self, text: str, first: bool) -> str:
        """A stretch between two special tokens as the tokeniser sees it; `first` in the conversation or not."""
        if self.prefix == "always":
            return " " + text
        wanted = self.prefix == "unless" or (self.prefix == "first" and first)
        return " " + text if wanted and not text.startswith((" ", BLANK)) else text

    def divides(self, text: str) -> bool:
        """Whether the tokens of the text are those of its words, one after the other. If not, it is taken whole."""
        if self.wall is None:
            return False
        for mark in self.whole:
            if mark in text:
                return False
        return True

    def within(self, text: str, special_tokens: Iterable[str]) -> bool:
        """Whether `text` has a cut in it, whatever stands around it: so what is before and after never join.

        Said only where no mark of more than one character could reach over.
        """
        if self.wall is None or any(len(mark) > 1 for mark in self.whole):
            return False
        return any(token in text for token in special_tokens) or bool(re.search(f"\\S[{self.wall}]", text))

    def words(self, text: str) -> list[str]:
        """The words of a text that divides: each begins after a visible character and before a wall."""
        return _WORDS[self.wall or ""].findall(text)

    def between(self, left: str, right: str) -> bool:
        """Whether the words of both together would be those of `left`, then those of `right`."""
        return self.wall is not None and right[:1] in self.wall and not left[-1:].isspace()

    def apart(self, left: str, right: str) -> bool:
        """Whether it is sure that no token reaches from `left` into `right`. (It may be so where it is not sure.)"""
        before, after = left[-1:], right[:1]
        if self.wall is None or BLANK in (before, after):
            return False
        return self.between(left, right) or (before == "\n" and not after.isspace())


def hidden(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree with special tokens under names that nobody can spell, and those names by token.

    A text that says "</s>" is then tokenised as letters. Truncation, padding and post-processor are left out:
    without the last no span loses its leading space.
    """
    secret = {
        token["content"]: f"{NONCHARACTER}{secrets.token_hex(8)}{NONCHARACTER}"
        for token in tree["added_tokens"]
        if token["special"]
    }
    added = [
        {**token, "content": secret.get(token["content"], token["content"])} for token in tree["added_tokens"]
    ]
    model = dict(tree["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {secret.get(name, name): number for name, number in model["vocab"].items()}
    else:
        model["vocab"] = [[secret.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in secret:
        model["unk_token"] = secret[model["unk_token"]]
    merged = _merged(model)
    # A merge that would spell a special token has lost its meaning.
    if any(name in merged for name in secret):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not secret.keys() & {*pair, "".join(pair)}]
    plain = {"truncation": None, "padding": None, "post_processor": None}
    return {**tree, **plain, "added_tokens": added, "model": model}, secret


def without_prefix(tree: dict[str, Any]) -> tuple[dict[str, Any], Cuts]:
    """The tree of a tokeniser that puts nothing before a text, and what it did before; for a tree from `hidden`."""
    found: list[str] = []
    normalizer = _without_prepend(tree.get("normalizer"), found.append)
    pre_tokenizer = _without_metaspace(tree.get("pre_tokenizer"), found.append)
    bare = {**tree, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    ordinary = [token for token in tree["added_tokens"] if not token["special"]]
    # Tokens that take the blanks beside them, or stand only between words, reach over walls.
    reaching = any(t.get("lstrip") or t.get("rstrip") or t.get("single_word") for t in tree["added_tokens"])
    known = not reaching and len(ordinary) <= _MOST_MARKS and not any(t.get("normalized") for t in ordinary)
    whole = (BLANK, *(token["content"] for token in ordinary))
    wall = _wall(bare) if known else None
    return bare, Cuts(found[-1] if found else "", wall, whole, wall is not None and _is_bare(bare))


def _without_prepend(normalizer: Any, found: Callable[[str], None]) -> Any:
    if not isinstance(normalizer, dict):
        return normalizer
    if normalizer["type"] == "Sequence":
        kept = [_without_prepend(each, found) for each in normalizer["normalizers"]]
        return {**normalizer, "normalizers": [each for each in kept if each is not None]}
    if normalizer["type"] == "Prepend" and normalizer["prepend"] in (BLANK, " "):
        found("always")
        return None
    return normalizer


def _without_metaspace(pre: Any, found: Callable[[str], None]) -> Any:
    if not isinstance(pre, dict) or pre["type"] != "Metaspace":
        return pre
    scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
    found({"always": "unless", "first": "first", "never": ""}[scheme])
    rest = {key: value for key, value in pre.items() if key != "add_prefix_space"}
    return {**rest, "prepend_scheme": "never"}


def _wall(tree: dict[str, Any]) -> str | None:
    normal, pre, model = _steps(tree["normalizer"]), _steps(tree["pre_tokenizer"]), tree["model"]
    if any(each["type"] not in ("NFC", "NFKC", "Replace") for each in normal):
        return None
    blanks = [{"String": " "}, BLANK]
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
    if not kinds and not any(each["type"] == "Replace" for each in normal):
        return None  # blanks stay blanks, and a merge may hold one anywhere
    if BLANK not in model["vocab"]:
        return None  # unknown characters beside each other become one token
    return _wall_of_merges(model)


def _is_bare(tree: dict[str, Any]) -> bool:
    """Of a tree that has a wall: whether nothing but blanks is changed, and nothing cut, before the model."""
    normal, pre = _steps(tree["normalizer"]), _steps(tree["pre_tokenizer"])
    whole = not pre or (len(pre) == 1 and pre[0]["type"] == "Metaspace" and pre[0].get("split") is False)
    return whole and all(each["type"] == "Replace" for each in normal)


def _wall_of_merges(model: dict[str, Any]) -> str | None:
    """SentencePiece's BPE sees the whole text as one word: its vocabulary alone says what can be joined."""
    merged, visible = _merged(model), f"[^\\s{BLANK}\0]"
    # Patterns begin with the character that is rare: twenty times as fast, and this is waited for at each start.
    if re.search(f"{BLANK}(?<={visible}{BLANK})", merged) or re.search(f"\n{visible}", merged):
        return None
    line_end = "<0x0A>" if model.get("byte_fallback") and "\n" not in model["vocab"] else "\n"
    return " \n" if line_end in model["vocab"] and not re.search(f"\n(?<={visible}\n)", merged) else " "


def _merged(model: dict[str, Any]) -> str:
    """What the merges of a BPE make, each between NULs: one text to search instead of 100,000."""
    merges = model.get("merges") or ()
    made = ("".join(merge) if isinstance(merge, list) else merge.replace(" ", "") for merge in merges)
    return "\0".join(("", *made, ""))


def _steps(part: Any) -> list[Any]:
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") if part["type"] == "Sequence" else [part]
    return [step for each in inner or () for step in (_steps(each) if each["type"] == "Sequence" else [each])]


def adds_bos(tokenizer: Any, tree: dict[str, Any]) -> int:
    """Tokens that the tokeniser's own rule puts before a text: LLaMA's puts one, GPT-2's none.

    Asked of a tokeniser of one word with that rule: the real one takes a tenth of a second to build.
    `tokenizer`: the class tokenizers.Tokenizer.
    """
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    nothing = ("truncation", "padding", "normalizer", "pre_tokenizer", "decoder")
    rule = {"post_processor": tree.get("post_processor")}
    small: dict[str, Any] = {
        **dict.fromkeys(nothing),
        "version": "1.0",
        "added_tokens": [],
        "model": model,
        **rule,
    }
    made = tokenizer.from_str(json.dumps(small))
    with_rule, without = made.encode("a").ids, made.encode("a", add_special_tokens=False).ids
    return int(len(with_rule) > len(without) and with_rule[: len(without)] != without)
