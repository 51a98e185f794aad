"""Formulas of a page -> TeX: the annotation that KaTeX and MathJax keep, else from the MathML itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_DEEPEST = 100


class Tag(NamedTuple):
    """One tag of well-formed HTML ("span", "/span") and the text behind it, as written."""

    name: str
    attributes: str
    text: str


class _Node:
    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[_Node] = []


def tex_of(tags: list[Tag], unescape: Callable[[str], str]) -> str:
    """The TeX of the tags inside a formula. Raises RecursionError past 100 levels."""
    inside = False
    tex: list[str] = []
    for tag in tags:
        if tag.name == "annotation" and "application/x-tex" in tag.attributes:
            inside = True
        elif tag.name == "/annotation":
            if inside:
                return unescape("".join(tex))
        if inside:
            tex.append(tag.text)
    return _tex(_tree(tags, unescape))


def _tree(tags: list[Tag], unescape: Callable[[str], str]) -> _Node:
    root = _Node("mrow")
    path = [root]
    skipped = 0
    for tag in tags:
        if tag.name in ("annotation", "annotation-xml"):
            skipped += 1
        elif tag.name in ("/annotation", "/annotation-xml"):
            skipped -= 1
        elif skipped:
            continue
        elif tag.name.startswith("/"):
            if len(path) > 1:
                path.pop()
        elif tag.name and tag.name not in ("span", "br", "img"):
            if len(path) > _DEEPEST:
                raise RecursionError
            node = _Node(tag.name)
            path[-1].children.append(node)
            path.append(node)
            node.text = unescape(tag.text).strip()
        elif not tag.name or tag.name == "span":
            root.text += unescape(tag.text).strip()
    return root


# name -> TeX of its children's TeX, by place.
_FORMS = {
    "mfrac": "\\frac{{{0}}}{{{1}}}",
    "msqrt": "\\sqrt{{{0}}}",
    "mroot": "\\sqrt[{1}]{{{0}}}",
    "msup": "{{{0}}}^{{{1}}}",
    "msub": "{{{0}}}_{{{1}}}",
    "msubsup": "{{{0}}}_{{{1}}}^{{{2}}}",
    "mover": "\\overset{{{1}}}{{{0}}}",
    "munder": "\\underset{{{1}}}{{{0}}}",
    "munderover": "{{{0}}}_{{{1}}}^{{{2}}}",
}


def _tex(node: _Node) -> str:
    if node.name == "mtext":
        return f"\\text{{{node.text}}}" if node.text else ""
    if node.name == "mtable":
        return "\\begin{matrix} " + " \\\\ ".join(_tex(row) for row in node.children) + " \\end{matrix}"
    if node.name == "mtr":
        return " & ".join(_tex(cell) for cell in node.children)
    inner = [_tex(child) for child in node.children]
    form = _FORMS.get(node.name)
    if node.name == "msqrt":
        inner = [" ".join(inner)]
    if form is None or len(inner) != form.count("}}}"):
        return node.text + " ".join(inner)
    # x^{2} needs no braces around the x.
    text = form.format(*inner)
    return (
        text[1 : len(inner[0]) + 1] + text[len(inner[0]) + 2 :]
        if form[:2] == "{{" and len(inner[0]) == 1
        else text
    )
