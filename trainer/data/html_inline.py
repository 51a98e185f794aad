"""The tags inside a paragraph: emphasis, links, code, pictures, buttons, formulas.

Each function acts on one tag, as the walk comes to it: (walker, name of the tag, its attributes).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.data.html_tags import attributes_of, code_of, plain_text
from trainer.data.markdown import RAW_TAGS, Piece
from trainer.data.markdown_blocks import Block, code_span, destination, fenced
from trainer.data.mathml import tex_of

if TYPE_CHECKING:
    from trainer.data.html_walk import Walker

_MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~", "strike": "~~"}
_BUTTONS = {
    "",
    "copy",
    "copy code",
    "copied!",
    "edit",
    "edit code",
    "regenerate",
    "regenerate response",
    "run",
}
_SPACE_RUNS = re.compile(r"\s+")


def _open_mark(walker: Walker, name: str, attributes: str) -> None:
    text = _MARKS[name]
    if any(piece.text == text for piece in walker.opened):
        text = ""  # bold in bold is bold
    piece = Piece("open", text)
    walker.opened.append(piece)
    if text:
        walker.parts.append(piece)
        walker.marked = True


def _close_mark(walker: Walker, name: str, attributes: str) -> None:
    if not walker.opened:
        return
    piece = walker.opened.pop()
    if piece.text:
        walker.parts.append(Piece("close", *piece[1:]))
        walker.marked = True


def _open_link(walker: Walker, name: str, attributes: str) -> None:
    given = attributes_of(attributes)
    href = given.get("href", "").strip()
    piece = Piece("open", "[" if href else "", "", destination(href, given.get("title", "")))
    walker.opened.append(piece)
    if href:
        walker.parts.append(piece)
        walker.marked = True


def _image(walker: Walker, name: str, attributes: str) -> None:
    given = attributes_of(attributes)
    source, alt = given.get("src", ""), re.sub(r"\s+", " ", given.get("alt", ""))
    if source.startswith("data:"):  # the picture itself, megabytes of base64: no text
        source = ""
    if alt or source:
        shown = re.sub(r"[\\`*_<>&\[\]~]", r"\\\g<0>", alt)
        target = destination(source, given.get("title", ""))
        walker.piece(f"![{shown}]({target})", alt)


def _raw_tag(walker: Walker, name: str, attributes: str) -> None:
    walker.piece(f"<{name}>")


def _checkbox(walker: Walker, name: str, attributes: str) -> None:
    given = attributes_of(attributes)
    if given.get("type") == "checkbox":
        box = "[x] " if "checked" in attributes.replace("checkbox", "") else "[ ] "
        walker.piece(box[:-1], box[:-1])
        walker.parts.append(" ")


def _inline_code(walker: Walker, name: str, attributes: str) -> None:
    tags = walker.capture(name)
    code = code_of(tags)
    if any(tag.name == "pre" for tag in tags):
        walker.flush()
        walker.add(Block("code", fenced(code, ""), interrupts=True))
    elif code:
        link = next((tag for tag in tags if tag.name == "a" and 'href="' in tag.attributes), None)
        if link is None or any(piece.text == "[" for piece in walker.opened):
            walker.piece(code_span(code), code)
            return
        _open_link(walker, "a", link.attributes)
        walker.piece(code_span(code), code)
        _close_mark(walker, "/a", "")


def _button(walker: Walker, name: str, attributes: str) -> None:
    text = plain_text("".join(tag.text for tag in walker.capture(name)))
    if text.strip().lower() not in _BUTTONS:
        walker.parts.append(text)


def _span(walker: Walker, name: str, attributes: str) -> None:
    if attributes and ("katex" in attributes or "MathJax" in attributes):
        if "katex-display" in attributes:
            _math(walker, tex_of(walker.capture(name), plain_text), display=True)
        elif 'katex"' in attributes:
            _math(walker, tex_of(walker.capture(name), plain_text), display=False)
        elif "MathJax" in attributes:
            walker.capture(name)


def _math_element(walker: Walker, name: str, attributes: str) -> None:
    tags = walker.capture(name)
    tex = attributes_of(attributes).get("alttext") or tex_of(tags, plain_text)
    _math(walker, tex, display='display="block"' in attributes)


def _math(walker: Walker, tex: str, display: bool) -> None:
    tex = re.sub(r"\n\s*\n", "\n", tex).strip()
    if not tex:
        return
    if not display:
        walker.piece(f"${_SPACE_RUNS.sub(' ', tex)}$", tex)
        return
    walker.flush()
    walker.add(Block("math", f"$$\n{tex}\n$$"))


INLINE: dict[str, Callable[[Walker, str, str], None]] = {
    "a": _open_link,
    "/a": _close_mark,
    "img": _image,
    "input": _checkbox,
    **dict.fromkeys(("code", "tt", "samp"), _inline_code),
    "button": _button,
    "span": _span,
    "math": _math_element,
    **{name: _open_mark for name in _MARKS},
    **{"/" + name: _close_mark for name in _MARKS},
    **{tag[1:-1]: _raw_tag for tag in RAW_TAGS},
}
