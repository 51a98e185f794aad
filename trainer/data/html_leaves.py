"""The quick way for elements that hold text and plain markup alone, which most elements of an answer are.

Each function writes one such element at once, or hands it back to the walk where a closer look is needed. What comes
out is the same either way; only the time differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.data.html_tags import PHRASE, plain_text
from trainer.data.markdown import LINE_STARTS, Piece, guard_lines, plain_paragraph
from trainer.data.markdown_blocks import LIST_MARKERS, Block, code_span, table_block

if TYPE_CHECKING:
    from trainer.data.html_walk import Walker

MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~", "strike": "~~"}
_LEAF_MARKS = {name: (Piece("open", mark), Piece("close", mark)) for name, mark in MARKS.items()}
# Such an inside of which it is plain to see that its markup may be written as it stands: nothing that
# needs an escape, words in emphasis with a space before and a space or a mark behind.
_PLAIN_INSIDE = re.compile(
    r"""(?:
      [^<&*_`\\\[~$\n\t\r\f]++
    | (?<!</code>)<code>[^<&`\s]++</code>
    | (?:(?<=\ )|\A) <(strong|em)>(?=[^\W_])[^<&*_`\\\[~$\n\t\r\f]+(?<=[^\W_])</\1>(?=[ .,;:!?)]|\Z)
    )*+""",
    re.VERBOSE,
)
_ITEM = re.compile(rf"<li>(?:(<p>)({PHRASE})</p>|({PHRASE}))</li>")
_CELL = re.compile(r"<t[dh]>([^<]*)</t[dh]>")


def _quick_text(inside: str) -> str | None:
    """The Markdown of a leaf's inside; None if that takes a closer look."""
    if "<" not in inside:
        return plain_paragraph(plain_text(inside) if "&" in inside else inside)
    plain = _PLAIN_INSIDE.match(inside)
    if plain is None or plain.end() != len(inside) or "  " in inside:
        return None
    text = inside.strip(" ")
    if "<code>" in text:
        text = text.replace("<code>", "`").replace("</code>", "`")
    if "<strong>" in text:
        text = text.replace("<strong>", "**").replace("</strong>", "**")
    if "<em>" in text:
        text = text.replace("<em>", "*").replace("</em>", "*")
    return guard_lines(text) if text[:1] in LINE_STARTS else text


def _block(walker: Walker, name: str | None, inside: str) -> None:
    """<p>, <li> or, without a name, <li><p>."""
    frame = walker.frame
    if walker.pre_wrap or walker.opened or (name != "p") != (frame.kind == "list"):
        walker.long_way(name, inside)
        return
    if walker.parts:
        walker.flush()
    text = _quick_text(inside)
    if text is None:
        walker.long_way(name, inside)
    elif name == "p":
        if text and frame.kind != "table":
            frame.blocks.append(Block("p", text))
        elif text:
            walker.add(Block("p", text))
    else:
        frame.items.append((frame.number, [Block("text" if name else "p", text)] if text else []))
        frame.number += frame.step


def _list(walker: Walker, name: str, inside: str) -> None:
    """A list of nothing but text and plain markup."""
    items = _ITEM.findall(inside)
    frame = walker.frame
    if walker.pre_wrap or walker.opened or not items or frame.kind in ("list", "table"):
        walker.long_way(name, inside)
        return
    texts = [_quick_text(in_p or bare) for _, in_p, bare in items]
    if None in texts:
        walker.long_way(name, inside)
        return
    if walker.parts:
        walker.flush()
    numbered = list(enumerate(texts, 1))
    loose = "\n\n" if any(p and text for (p, _, _), text in zip(items, texts, strict=True)) else "\n"
    previous = frame.blocks[-1] if frame.blocks else None
    first, other = LIST_MARKERS[name]
    marker = other if previous is not None and previous.kind == "list" and previous.marker == first else first
    if name == "ol":
        lines = [f"{number}{marker} {text}" if text else f"{number}{marker}" for number, text in numbered]
    else:
        lines = [f"{marker} {text}" if text else marker for text in texts]
    walker.add(Block("list", loose.join(lines), marker, bool(texts[0])))


def _table(walker: Walker, name: str, inside: str) -> None:
    """A table of nothing but text, with a head."""
    if walker.pre_wrap or walker.opened or walker.frame.kind in ("list", "table") or "<thead>" not in inside:
        walker.long_way(name, inside)
        return
    if walker.parts:
        walker.flush()
    rows = []
    for row in inside.split("</tr>")[:-1]:
        cells = [plain_paragraph(plain_text(cell)) for cell in _CELL.findall(row)]
        rows.append([cell.replace("|", "\\|") if "|" in cell else cell for cell in cells])
    walker.add(Block("table", table_block(rows, ())))


def _heading(walker: Walker, name: str, inside: str) -> None:
    text = None if walker.pre_wrap or walker.opened or walker.frame.kind == "list" else _quick_text(inside)
    if text is None or "#" in text:
        walker.long_way(name, inside)
        return
    if walker.parts:
        walker.flush()
    if text:
        walker.add(Block("heading", f"{'#' * int(name[1])} {text}"))


def _cell(walker: Walker, name: str, inside: str) -> None:
    frame = walker.frame
    if walker.pre_wrap or walker.opened or frame.kind != "table" or not frame.rows:
        walker.long_way(name, inside)
        return
    text = _quick_text(inside)
    if text is None:
        walker.long_way(name, inside)
        return
    walker.parts.clear()  # between the cells of a row there can only be spaces
    frame.rows[-1].append(text.replace("|", "\\|") if "|" in text else text)


def _code(walker: Walker, name: str, inside: str) -> None:
    if "<" in inside:
        walker.long_way(name, inside)
    elif inside:
        code = plain_text(inside)
        walker.parts.append(Piece("raw", code_span(code), code))
        walker.marked = True


def _mark(walker: Walker, name: str, inside: str) -> None:
    if walker.pre_wrap or walker.opened or "<" in inside:
        walker.long_way(name, inside)
    else:
        opening, closing = _LEAF_MARKS[name]
        walker.parts += (opening, plain_text(inside), closing)
        walker.marked = True


LEAVES: dict[str, Callable[[Walker, str, str], None]] = {
    "p": _block,
    "li": _block,
    "ol": _list,
    "ul": _list,
    "table": _table,
    "td": _cell,
    "th": _cell,
    "code": _code,
    **{name: _mark for name in ("strong", "b", "em", "i")},
    **{f"h{level}": _heading for level in range(1, 7)},
}
