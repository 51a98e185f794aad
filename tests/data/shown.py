"""What a reader sees of HTML, by the standard library's parser: the judge of the conversion to Markdown.

It shares no code with trainer.data.html. Both sides are read by it: the page's HTML, and the Markdown rendered
by markdown-it-py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from markdown_it import MarkdownIt

_BLOCKS = set(
    "p div ol ul li table thead tbody tr td th pre blockquote h1 h2 h3 h4 h5 h6 hr dl dt dd section article "
    "header footer figure figcaption details summary center address main nav aside form br body html".split()
)
_UNSEEN = {"script", "style", "svg", "button", "template", "title"}


@dataclass
class Shown:
    """words: the visible text, list numbers included, code blocks replaced by a mark. code: each code block."""

    words: list[str] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)  # (language, text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.shown = Shown()
        self.now: list[str] = []
        self.unseen = 0
        self.lists: list[int | None] = []
        self.pre = False
        self.code: list[str] | None = None
        self.bar: list[str] = []
        self.language = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in _UNSEEN:
            self.unseen += 1
        if tag in _BLOCKS and not self.pre:
            self.flush()
        if tag == "ol":
            start = given.get("start") or "1"
            self.lists.append(int(start) if start.isdigit() else 1)
        elif tag == "ul":
            self.lists.append(None)
        elif tag == "li" and self.lists and self.lists[-1] is not None:
            self.shown.words.append(f"{self.lists[-1]}.")
            self.lists[-1] += 1
        elif tag == "img":
            self.now.append(given.get("alt") or "")
        elif tag == "pre":
            self.pre, self.bar, self.language = True, [], ""
        elif tag == "code" and self.pre:
            found = re.search(r"language-(\S+)", given.get("class") or "")
            self.language = found[1] if found else ""
            self.code = []

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self.unseen -= 1
        if tag == "pre":
            self.pre = False
            code = "".join(self.code if self.code is not None else self.bar)
            language = self.language or ("".join(self.bar).strip() if self.code is not None else "")
            self.shown.code.append((language, code.removesuffix("\n")))
            self.shown.words.append("\ue001")
            self.code = None
        elif tag in ("ol", "ul"):
            self.flush()
            self.lists.pop()
        elif tag in _BLOCKS and not self.pre:
            self.flush()

    def handle_data(self, data: str) -> None:
        if self.pre:
            if self.code is not None:
                self.code.append(data)
            elif not self.unseen:
                self.bar.append(data)
        elif not self.unseen:
            self.now.append(data)

    def flush(self) -> None:
        self.shown.words.append("".join(self.now))
        self.now = []


def shown_by(html: str) -> Shown:
    """What is seen of a page's HTML; the bars and buttons over code blocks are not part of it."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.flush()
    return reader.shown


_RENDERER = MarkdownIt("commonmark", {"maxNesting": 1000}).enable(["table", "strikethrough"])


def render(markdown: str) -> str:
    return str(_RENDERER.render(markdown))
