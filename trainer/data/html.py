"""HTML of assistant messages -> Markdown that shows the same text and keeps code byte for byte.

    looks_like_html(text)      is this message HTML that a chat page showed?
    to_markdown(html)          its Markdown

    html_page.py    pages as chat sites write them, nearly all: html_runs.py their tags, html_text.py their texts
    html_tags.py    any other HTML -> well-formed tags and texts
    html_walk.py    what becomes what; html_inline.py in a paragraph; html_code.py blocks of code
    markdown.py     paragraphs written so that they render right; markdown_blocks.py blocks, likewise
    mathml.py       formulas -> TeX

Left out, because it was never part of the answer: the bar over a code block (its language is kept), buttons to copy,
the "2 / 3" counter of answers before the answer, "Copy123 chars / 45 words" after it, the data of pictures that are
not at an address, and what a browser does not show (script, style, svg).
"""

from __future__ import annotations

import re

from trainer.data.html_page import page_markdown
from trainer.data.html_tags import DEEPEST, LONGEST, HtmlRejected, parsed, without_code
from trainer.data.html_walk import markdown_of

__all__ = ["DEEPEST", "LONGEST", "HtmlRejected", "looks_like_html", "to_markdown"]

# --- what is HTML -----------------------------------------------------------------------------

_BLOCK_START = re.compile(
    r"\s*(?:\d{1,3} ?/ ?\d{1,3}\s*)?<(div|p|pre|ol|ul|table|h[1-6]|blockquote|section|article|span)(\s[^<>]*)?>"
)
_CHAT_PAGE = re.compile(r'<div class="[^"]*\b(?:markdown|whitespace-pre-wrap|prose)\b')
# Source code is laid out over indented lines; what a page shows is not. "```" is Markdown already.
_SOURCE = re.compile(r"\n[ \t]+</?[a-z]|^```|^~~~", re.MULTILINE)


def looks_like_html(text: str) -> bool:
    """Whether a message is the HTML that a chat page showed, not text that speaks of HTML.

    It must begin with a block element that is closed again. Laid-out source code, Markdown and
    whole documents are text; a message with a chat page's own <div class="markdown"> is HTML.
    """
    start = _BLOCK_START.match(text)
    if start is None:
        return False
    if _CHAT_PAGE.match(text, start.start(1) - 1):
        return True
    if f"</{start[1]}>" not in text:
        return False
    return _SOURCE.search(_without_code(text)) is None


def _without_code(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("<pre", at)) >= 0 and (end := text.find("</pre>", start)) >= 0:
        kept.append(text[at:start])
        at = end
    return "".join((*kept, text[at:])) if kept else text


def to_markdown(html: str) -> str:
    """The Markdown of this HTML. Raises HtmlRejected. Cost: about 45 MB of chat HTML per CPU second."""
    html, code = without_code(html)
    written = page_markdown(html, code)
    if written is not None:
        return written
    try:
        return markdown_of(parsed(html), code)
    except RecursionError as error:  # of tex_of, the one function here that recurs, and stops itself
        raise HtmlRejected("a formula is nested too deep") from error
