"""Blocks of Markdown, and spans that hold text as it is: fences, lists, tables, quotes, code, links.

Each is written so that CommonMark reads back exactly what went in: fences longer than any run inside, code in a list
indented so that the list goes on, markers that keep neighbouring lists apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """A finished block.

    kind: p, text (a list item's bare text), code, list, quote, heading, table, rule or math.
    marker: of a list, what follows or is its first marker: "-", "+", ".", ")".
    interrupts: it may follow a line of text without a blank line between.
    """

    kind: str
    text: str
    marker: str = ""
    interrupts: bool = False


_TICKS = re.compile(r"`+")
_TILDES = re.compile(r"~+")


def code_span(code: str) -> str:
    """Inline code with a fence longer than any run inside; line ends become spaces, as on the screen."""
    code = code.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
    if "`" not in code:
        fence = "`"
    else:
        runs = set(map(len, _TICKS.findall(code)))
        fence = "`" * next(length for length in range(1, len(runs) + 2) if length not in runs)
    if code[:1] == "`" or code[-1:] == "`" or (code[:1] == code[-1:] == " " and code.strip(" ")):
        code = f" {code} "
    return fence + code + fence


def fenced(code: str, language: str) -> str:
    """A code block, byte for byte, with a fence longer than any run of backticks inside."""
    fence = "```"
    if "```" in code:
        fence = "`" * (max(map(len, _TICKS.findall(code))) + 1)
    end = "" if not code or code.endswith("\n") else "\n"
    return f"{fence}{language}\n{code}{end}{fence}"


_ODD_URL = re.compile(r"[\x00- ()<>\\\x7f]|&(?=#|[A-Za-z][A-Za-z0-9]*;)")


def destination(url: str, title: str) -> str:
    """What stands between the parentheses of a link or an image."""
    url = re.sub(r"[ \t\n\r\f]+", " ", url.strip())
    if url and not _ODD_URL.search(url):
        target = url
    else:
        target = "<" + re.sub(r"[<>\\]|&(?=#|[A-Za-z][A-Za-z0-9]*;)", r"\\\g<0>", url) + ">"
    if not title:
        return target
    title = re.sub(r"\n\s*\n", "\n", title)
    return target + ' "' + re.sub(r'["\\]|&(?=[#A-Za-z])', r"\\\g<0>", title) + '"'


def quoted(text: str) -> str:
    return "> " + with_prefix(text, "> ")


def with_prefix(text: str, prefix: str) -> str:
    """Lines after the first begin with it; an empty one with as much of it as is seen."""
    if not prefix or "\n" not in text:
        return text
    bare = prefix.rstrip()
    first, *lines = text.split("\n")
    return "\n".join((first, *(prefix + line if line else bare for line in lines)))


def _item_text(blocks: Sequence[Block], loose: bool) -> str:
    parts: list[str] = []
    previous: Block | None = None
    for block in blocks:
        if previous is not None:
            tight = not loose and (
                (previous.kind == "text" and block.interrupts)
                or (previous.kind == "code" and block.kind in ("code", "text"))
            )
            parts.append("\n" if tight else "\n\n")
        parts.append(block.text)
        previous = block
    return "".join(parts)


LIST_MARKERS = {"ol": (".", ")"), "ul": ("-", "+")}


def list_block(items: Sequence[tuple[int, list[Block]]], ordered: bool, previous: Block | None) -> Block:
    """A list of (number, blocks). A list that follows another of its kind takes the other marker."""
    first, other = LIST_MARKERS["ol" if ordered else "ul"]
    marker = first
    if previous is not None and previous.kind == "list" and previous.marker == first:
        marker = other
    loose = any(block.kind == "p" for _, blocks in items for block in blocks)
    lines: list[str] = []
    start = expected = items[0][0]
    for number, blocks in items:
        if ordered and number != expected:  # value=: Markdown only counts on, so a new list begins
            marker = other if marker == first else first
        expected = number + 1
        bullet = f"{number}{marker} " if ordered else f"{marker} "
        if len(blocks) == 1:
            text = blocks[0].text
        elif blocks:
            text = _item_text(blocks, loose)
        else:
            lines.append(bullet[:-1])
            continue
        lines.append(bullet + with_prefix(text, " " * len(bullet)))
    interrupts = bool(items[0][1]) and (not ordered or start == 1)
    return Block("list", ("\n\n" if loose else "\n").join(lines), marker, interrupts)


def table_block(rows: Sequence[Sequence[str]], alignment: Sequence[str]) -> str:
    """A GFM table; the first row is its head. alignment: "", left, right or center of each column."""
    width = max(len(row) for row in rows)
    rule = {"left": ":---", "right": "---:", "center": ":---:"}
    marks = [rule.get(alignment[at] if at < len(alignment) else "", "---") for at in range(width)]
    lines = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join(marks) + " |")
    return "\n".join(lines)


def cell_text(blocks: Sequence[Block]) -> str:
    """A cell is one line: blocks and lines are set apart by <br>, pipes escaped."""
    parts: list[str] = []
    for block in blocks:
        if block.kind == "code":
            lines = block.text.split("\n")[1:-1]
            parts.extend(code_span(line) if line.strip() else "" for line in lines)
        else:
            parts.extend(line.strip(" ") for line in block.text.split("\n") if line.strip(" "))
    text = "<br>".join(parts)
    if "\\<br>" in text:  # a backslash at the end of a line, which is one only there
        text = re.sub(r"(?<!\\)((?:\\\\)*)\\<br>", r"\1\\\\<br>", text)
    return text.replace("|", "\\|")
