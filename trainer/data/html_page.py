"""The quick way for pages as chat sites write them: blocks of bare tags, properly nested, in one <div>.

    page_markdown(html, code)     its Markdown, or None: it takes a parser and the walk (html_walk.py)

Such a page is texts with runs of block tags between them, as "</p><ul><li>". What Markdown writes between two texts
follows from the run and from what is open there; html_runs.py works it out once, and from then on it is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.data.html_runs import (
    END,
    GAP,
    RUN,
    Automaton,
    CodeBlock,
    ListBegins,
    Part,
    Unusual,
)
from trainer.data.html_text import texts_of
from trainer.data.html_walk import COPIED
from trainer.data.markdown_blocks import Block, with_prefix

# What ChatGPT's page has around an answer: perhaps a counter of answers, then one <div>.
_AROUND = re.compile(
    r'(?:<div(?: class="[^"<>]*")?>(\d{1,3}) ?/ ?(\d{1,3})</div>)?<div(?: class="([^"<>]*)")?>'
)
_AUTOMATON = Automaton()


def page_markdown(html: str, code: Sequence[Block]) -> str | None:
    """The Markdown of such a page. code: the blocks whose stand-ins are in it. Raises HtmlRejected."""
    around = _AROUND.match(html)
    if around is not None:
        if not html.endswith("</div>") or not _is_plain(around):
            return None
        html = html[around.end() : -6]
    pieces = RUN.split(html)
    if len(pieces) < 3 or pieces[0] or pieces[-1]:
        return None
    runs, written = pieces[1::2], pieces[2:-1:2]
    texts = texts_of(written)
    if texts is None or not _may_stand(texts, html):
        return None
    runs[-1] += END
    texts.append("")
    try:
        return _joined(runs, texts, code)
    except Unusual:
        return None


def _is_plain(around: re.Match[str]) -> bool:
    number, count, classes = around.groups()
    if number and not 0 < int(number) <= int(count):
        return False
    return not classes or ("whitespace-pre-wrap" not in classes and "MathJax" not in classes)


def _may_stand(texts: list[str], html: str) -> bool:
    """A heading would lose a "#" at its end, a cell ends at a "|", and what a page's button adds is no text."""
    if ("#" in html and "<h" in html) or ("|" in html and "<table>" in html):
        return False
    return not texts or not COPIED.fullmatch(texts[-1])


def _joined(runs: list[str], texts: list[str], code: Sequence[Block]) -> str:
    glues: list[str] = []
    lists: list[int] = []  # of each that is open, where in `glues` its gaps begin
    state = _AUTOMATON.beginning()
    for run in runs:
        glue, state = state[run]
        glues.append(glue if isinstance(glue, str) else _written(glue, glues, lists, code))
    both = glues + texts
    both[::2], both[1::2] = glues, texts
    return "".join(both)


def _written(glue: Sequence[Part], glues: list[str], lists: list[int], code: Sequence[Block]) -> str:
    """A glue that is more than text, behind those before it."""
    text = ""
    for part in glue:
        if isinstance(part, str):
            text += part
        elif isinstance(part, CodeBlock):
            text += with_prefix(code[part.number].text, part.prefix)
        elif isinstance(part, ListBegins):
            lists.append(len(glues) + 1)
        else:
            text = text.replace(GAP, part.gap)
            for at in range(lists.pop(), len(glues)):
                glues[at] = glues[at].replace(GAP, part.gap)
    return text
