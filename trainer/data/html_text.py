"""Texts of a page, plain or with markup inside, -> Markdown, many at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter

from trainer.data.html_tags import tags_of_phrase, unescaped
from trainer.data.html_walk import phrase
from trainer.data.markdown import LINE_STARTS, guard_lines, plain_paragraph

_BETWEEN = "\0"  # in no text: html_tags.py replaces it
# As much as may be written as it stands: nothing that needs an escape, code of one line, words in emphasis with a space
# before and a space or a mark behind. Groups that capture are not for possessive patterns (re's "span is wrong").
_WORDS = r"(?=[^\W_])[^<&*_`\\\[~$\n\t\r\f\0]+(?<=[^\W_])"
_AS_IT_STANDS = re.compile(
    rf"""(?:
      [^<&*_`\\\[~$\n\t\r\f]++
    | (?<!</code>)<code>[^<&`\s\0]++(?:[ ][^<&`\s\0]++)*+</code>
    | (?<=[ \0])<(?: strong>{_WORDS}</strong> | em>{_WORDS}</em> )(?=[ .,;:!?)\0])
    )*+""",
    re.VERBOSE,
)
_MARK = re.compile("(</?(?:code|strong|em)>)")
_MARKS = {"<code>": "`", "<strong>": "**", "<em>": "*", "</code>": "`", "</strong>": "**", "</em>": "*"}
_EDGES = LINE_STARTS | {" "}
_FIRST, _LAST = itemgetter(0), itemgetter(-1)


def texts_of(written: Sequence[str]) -> list[str] | None:
    """The Markdown of each, one line; None if one takes a parser, or nothing is seen of it."""
    if not written:
        return []
    joined = _BETWEEN + _BETWEEN.join(written) + _BETWEEN
    if "  " in joined:
        found = [_text(each) or "" for each in written]
        return None if "" in found else found
    done: list[str] = []
    at = 0
    while (end := _end_of_plain(joined, at)) < len(joined):
        odd = joined.rindex(_BETWEEN, at, end) + 1
        behind = joined.index(_BETWEEN, end)
        text = _text(joined[odd:behind])
        if not text:
            return None
        done += (_marked(joined[at:odd]), text)
        at = behind
    done.append(_marked(joined[at:-1]))
    texts = "".join(done).split(_BETWEEN)[1:]
    if not _EDGES.isdisjoint(map(_FIRST, texts)) or " " in map(_LAST, texts):
        texts = list(map(_line, texts))
    return None if "" in texts else texts


def _end_of_plain(text: str, at: int) -> int:
    found = _AS_IT_STANDS.match(text, at)
    return found.end() if found else at


def _line(text: str) -> str:
    text = text.strip(" ")
    return guard_lines(text) if text[:1] in LINE_STARTS else text


def _marked(text: str) -> str:
    if "<" not in text:
        return text
    pieces = _MARK.split(text)
    pieces[1::2] = map(_MARKS.__getitem__, pieces[1::2])
    return "".join(pieces)


def _text(written: str) -> str | None:
    if "<" not in written:
        return plain_paragraph(unescaped(written) if "&" in written else written)
    tokens = tags_of_phrase(written)
    return phrase(tokens) if tokens else None
