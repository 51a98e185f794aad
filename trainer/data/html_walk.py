"""One walk over the tags and texts of a message, which writes its Markdown block by block.

The rules of what becomes what. There is no recursion: open blocks are a stack of frames. How Markdown must be written
so that it renders to exactly this text is in markdown.py and markdown_blocks.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from trainer.data.html_code import code_blocks
from trainer.data.html_inline import INLINE
from trainer.data.html_tags import (
    DEEPEST,
    STAND_IN,
    HtmlRejected,
    attributes_of,
    language_of,
    number_of,
    plain_text,
)
from trainer.data.markdown import BREAK, Piece, paragraph, plain_paragraph
from trainer.data.markdown_blocks import (
    Block,
    cell_text,
    list_block,
    quoted,
    table_block,
)
from trainer.data.mathml import Tag

_REGENERATED = re.compile(r"(\d{1,3}) ?/ ?(\d{1,3})")
COPIED = re.compile(r"Copy\d+ chars / \d+ words")


def markdown_of(tokens: list[str], code: Sequence[Block]) -> str:
    """The Markdown of a page. tokens: as html_tags.parsed gives them."""
    walker = Walker(tokens, code)
    walker.walk()
    return walker.result()


def phrase(tokens: list[str]) -> str | None:
    """The Markdown of text with markup; None if it is not one line."""
    walker = Walker(tokens, ())
    walker.walk()
    walker.flush()
    blocks = walker.frame.blocks
    return blocks[0].text if len(blocks) == 1 and "\n" not in blocks[0].text else None


class _Frame:
    """An open block that holds others: root, quote, list, item, heading, table, cell."""

    level = 0  # of a heading; of a cell, the columns it takes
    number = 1  # of a list, its next item's; of an item, its own
    step = 1  # of a list, from item to item
    ordered = False
    items: list[tuple[int, list[Block]]]  # of a list
    rows: list[list[str]]  # of a table
    alignment: list[str]

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.blocks: list[Block] = []


class Walker:
    """One walk over the tags and texts of one message."""

    def __init__(self, tokens: list[str], code: Sequence[Block]) -> None:
        rest = iter(tokens)
        self.first = next(rest)
        self.tags = zip(rest, rest, rest, strict=True)
        self.code = code  # the blocks that were taken out before
        self.text = ""  # behind the tag that is acted on
        self.parts: list[str | Piece] = []  # the paragraph so far
        self.marked = False  # whether `parts` has pieces
        self.opened: list[Piece] = []  # emphasis and links that are open now
        self.in_p = 0
        self.divs: list[bool] = []  # of each open one, whether its line ends are shown
        self.pre_wrap = False
        self.frames = [_Frame("root")]
        self.frame = self.frames[0]
        self.counter: int | None = None  # where among the root's blocks a "2 / 3" may stand

    def walk(self) -> None:
        if self.first:
            self.add_text(self.first)
        for name, attributes, text in self.tags:
            action = _ACTIONS.get(name)
            if action is not None:
                self.text = text
                action(self, name, attributes)
                text = self.text  # where the action took more tags, what is behind the last one
            if text:
                self.add_text(text)

    def add_text(self, written: str) -> None:
        text = plain_text(written) if "&" in written else written
        if self.pre_wrap and "\n" in text:
            first, *lines = text.split("\n")
            self.parts.append(first)
            for line in lines:
                self.line_break("br", "")
                self.parts.append(line)
        else:
            self.parts.append(text)

    def result(self) -> str:
        self.flush()
        while len(self.frames) > 1:  # lexbor closes everything; this is for its depth limit
            self.pop()
        blocks = self.frame.blocks
        if self.counter == 0 and len(blocks) > 1:
            del blocks[0]
        if len(blocks) > 1 and COPIED.fullmatch(blocks[-1].text):
            del blocks[-1]
        return "\n\n".join(block.text for block in blocks)

    # --- blocks ---

    def flush(self) -> None:
        """What has been collected becomes a paragraph of the open frame."""
        parts = self.parts
        if not parts:
            return
        if self.marked:
            parts.extend(Piece("close", *piece[1:]) for piece in reversed(self.opened))
            text = paragraph(parts)
            self.parts = list(self.opened)
            self.marked = bool(self.opened)
        else:
            text = plain_paragraph("".join(map(str, parts)))
            self.parts = []
        if text:
            kind = "p" if self.in_p else "text"
            if self.frame is self.frames[0] and not self.frame.blocks and kind == "text":
                counted = _REGENERATED.fullmatch(text)
                if counted and 0 < int(counted[1]) <= int(counted[2]):
                    self.counter = 0
            self.add(Block(kind, text))

    def add(self, block: Block) -> None:
        frame = self.frame
        if frame.kind == "list":  # text or a list directly in a list belongs to the item before
            if frame.items:
                frame.items[-1][1].append(block)
            else:
                frame.items.append((frame.number, [block]))
                frame.number += frame.step
        elif frame.kind == "table":
            self.frames[-2].blocks.append(block)
        else:
            frame.blocks.append(block)

    def push(self, kind: str) -> _Frame:
        if self.parts:
            self.flush()
        if len(self.frames) > DEEPEST:
            raise HtmlRejected(f"lists, quotes and tables are nested more than {DEEPEST} deep")
        self.frame = _Frame(kind)
        self.frames.append(self.frame)
        return self.frame

    def pop(self) -> _Frame:
        if self.parts:
            self.flush()
        closed = self.frames.pop()
        self.frame = self.frames[-1]
        return closed

    def block(self, name: str, attributes: str) -> None:
        if self.parts:
            self.flush()

    def open_p(self, name: str, attributes: str) -> None:
        if self.parts:
            self.flush()
        self.in_p += 1

    def close_p(self, name: str, attributes: str) -> None:
        if self.parts:
            self.flush()
        self.in_p -= 1

    def open_div(self, name: str, attributes: str) -> None:
        if self.parts:
            self.flush()
        if "MathJax" in attributes:
            self.capture("div")
            return
        self.divs.append(self.pre_wrap)
        self.pre_wrap = self.pre_wrap or "whitespace-pre-wrap" in attributes

    def close_div(self, name: str, attributes: str) -> None:
        if self.parts:
            self.flush()
        self.pre_wrap = self.divs.pop()

    def open_quote(self, name: str, attributes: str) -> None:
        self.push("quote")

    def close_quote(self, name: str, attributes: str) -> None:
        inner = "\n\n".join(block.text for block in self.pop().blocks)
        if inner:
            self.add(Block("quote", quoted(inner)))

    def open_heading(self, name: str, attributes: str) -> None:
        level = int(name[1])
        self.push("heading").level = level

    def close_heading(self, name: str, attributes: str) -> None:
        frame = self.pop()
        text = " ".join(re.sub(r" *\n", " ", block.text) for block in frame.blocks)
        if text:
            text = re.sub(r" (#+)$", r" \\\1", text)  # "C #" would lose its "#"
            self.add(Block("heading", "#" * frame.level + " " + text))

    def rule(self, name: str, attributes: str) -> None:
        self.flush()
        # Under a line of text "---" would make it a heading, and "- ---" is a rule without a list.
        self.add(Block("rule", "---" if self.frame.kind == "root" else "***"))

    # --- lists ---

    def open_list(self, name: str, attributes: str) -> None:
        ordered = name == "ol"
        frame = self.push("list")
        frame.items, frame.ordered = [], ordered
        if ordered and attributes:
            given = attributes_of(attributes)
            frame.number = number_of(given.get("start"), 1)
            if "reversed" in attributes:
                frame.step = -1

    def close_list(self, name: str, attributes: str) -> None:
        frame = self.pop()
        if not frame.items:
            return
        items = frame.items
        if frame.step < 0 and frame.number < 0:  # reversed without start=: it counts down to 1
            items = [(len(items) - index, blocks) for index, (_, blocks) in enumerate(items)]
        siblings = (
            self.frame.items[-1][1] if self.frame.kind == "list" and self.frame.items else self.frame.blocks
        )
        self.add(list_block(items, frame.ordered, siblings[-1] if siblings else None))

    def open_item(self, name: str, attributes: str) -> None:
        parent = self.frame
        item = self.push("item")
        if parent.kind == "list":
            item.number = (
                number_of(attributes_of(attributes).get("value"), parent.number)
                if attributes
                else parent.number
            )

    def close_item(self, name: str, attributes: str) -> None:
        item = self.pop()
        if self.frame.kind == "list":
            self.frame.items.append((item.number, item.blocks))
            self.frame.number = item.number + self.frame.step
        elif item.blocks:  # an item outside any list
            self.add(
                list_block([(1, item.blocks)], False, self.frame.blocks[-1] if self.frame.blocks else None)
            )

    # --- tables ---

    def open_table(self, name: str, attributes: str) -> None:
        frame = self.push("table")
        frame.rows, frame.alignment = [], []

    def open_row(self, name: str, attributes: str) -> None:
        self.flush()
        if self.frame.kind == "table":
            self.frame.rows.append([])

    def open_cell(self, name: str, attributes: str) -> None:
        table = self.frame
        cell = self.push("cell")
        if attributes:
            given = attributes_of(attributes)
            cell.level = max(1, min(number_of(given.get("colspan"), 1), DEEPEST))
            style = re.search(r"text-align:\s*(left|right|center)", given.get("style", ""))
            aligned = given.get("align", "") if style is None else style[1]
            if table.kind == "table" and table.rows:
                column = len(table.rows[-1])
                table.alignment.extend([""] * (column + 1 - len(table.alignment)))
                table.alignment[column] = table.alignment[column] or aligned

    def close_cell(self, name: str, attributes: str) -> None:
        cell = self.pop()
        if self.frame.kind != "table":
            self.frame.blocks.extend(cell.blocks)
            return
        if not self.frame.rows:
            self.frame.rows.append([])
        self.frame.rows[-1].append(cell_text(cell.blocks))
        self.frame.rows[-1].extend([""] * (cell.level - 1))

    def close_table(self, name: str, attributes: str) -> None:
        frame = self.pop()
        rows = [row for row in frame.rows if row]
        if rows:
            self.add(Block("table", table_block(rows, frame.alignment)))

    # --- text with markup ---

    def line_break(self, name: str, attributes: str) -> None:
        if self.parts and self.parts[-1] == BREAK and self.frame.kind not in ("heading", "cell"):
            self.parts.pop()  # two of them are an empty line: a new paragraph
            self.flush()
            return
        self.parts.append(BREAK)
        self.marked = True

    def piece(self, text: str, shows: str = "") -> None:
        self.parts.append(Piece("raw", text, shows))
        self.marked = True

    # --- code blocks, what is not shown ---

    def capture(self, name: str) -> list[Tag]:
        """The tags and texts inside the element that opens here; the walk goes on behind its end."""
        depth, closing = 1, "/" + name
        inside = [Tag("", "", self.text)]
        self.text = ""
        for tag, attributes, text in self.tags:
            if tag == name:
                depth += 1
            elif tag == closing:
                depth -= 1
                if not depth:
                    self.text = text
                    break
            inside.append(Tag(tag, attributes, text))
        return inside

    def skip(self, name: str, attributes: str) -> None:
        self.capture(name)

    def preformatted(self, name: str, attributes: str) -> None:
        if self.parts:
            self.flush()
        if attributes.startswith(STAND_IN[4:]):
            self.capture("pre")
            self.add(self.code[int(attributes[len(STAND_IN[4:]) + 1 : -1])])
        else:
            for block in code_blocks(self.capture("pre"), language_of(attributes)):
                self.add(block)


_BLOCKS = """address article aside body caption center dd details dialog dir dl dt fieldset figcaption figure
footer form header hgroup legend main menu nav noscript option optgroup search section select summary"""
_NOT_SHOWN = "svg canvas audio video object datalist map head annotation-xml rp"


def _actions() -> dict[str, Callable[[Walker, str, str], None]]:
    walker = Walker
    actions: dict[str, Callable[[Walker, str, str], None]] = {
        "p": walker.open_p,
        "/p": walker.close_p,
        "div": walker.open_div,
        "/div": walker.close_div,
        "blockquote": walker.open_quote,
        "/blockquote": walker.close_quote,
        "hr": walker.rule,
        "li": walker.open_item,
        "/li": walker.close_item,
        "table": walker.open_table,
        "/table": walker.close_table,
        "tr": walker.open_row,
        "br": walker.line_break,
        "pre": walker.preformatted,
        **{f"h{level}": walker.open_heading for level in range(1, 7)},
        **{f"/h{level}": walker.close_heading for level in range(1, 7)},
    }
    for name in ("ol", "ul"):
        actions |= {name: walker.open_list, "/" + name: walker.close_list}
    for name in ("td", "th"):
        actions |= {name: walker.open_cell, "/" + name: walker.close_cell}
    for name in _BLOCKS.split():
        actions |= {name: walker.block, "/" + name: walker.block}
    return INLINE | actions | {name: walker.skip for name in _NOT_SHOWN.split()}


_ACTIONS = _actions()
