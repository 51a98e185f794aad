"""What Markdown stands between two texts of a page: an automaton that grows as runs of tags are met.

    glue, state = state["</p><ul><li>"]     ("\\n\\n- ", what is open now). Raises Unusual: it takes a parser

A run is block tags without text between, a state is what is open, from the root inwards. What is written is what
html_walk.py and markdown_blocks.py write, seen from the texts: not blocks to be joined, but what comes before a text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trainer.data.html_tags import STAND_IN
from trainer.data.markdown_blocks import LIST_MARKERS

END = "</>"  # behind the last run of a page
# Whether a list is loose is known at its end. Until then this stands where an empty line may be; no text has it.
GAP = "\0"
_RUN_TAG = rf'<(?:/?(?:p|li|[uo]l|t[dhr]|h[1-6]|blockquote|table|thead|tbody)|{STAND_IN[1:]}"\d+"></pre)>'
RUN = re.compile(f"({_RUN_TAG}(?:{_RUN_TAG})*+)")
_TAG = re.compile(r'<(/?)(\w*)(?: [^>"]*"(\d+)"></pre)?>')
# Runs remembered, some 500 bytes each with the states they lead to. 71,000 answers of a generated corpus have 3,700;
# a page in bad faith may have as many as it has tags.
_MOST_RUNS, _LONGEST_RUN = 10_000, 1_000
_DEEPEST = 12  # elements open at once; each level of lists takes two


class Unusual(Exception):
    """Tags that may not stand here, or that this does not write."""


class CodeBlock(NamedTuple):
    """The block of code of this number stands here; `prefix` begins its lines."""

    number: int
    prefix: str


class ListBegins(NamedTuple):
    """From the next glue on gaps are of this list."""


class ListEnds(NamedTuple):
    """The gaps since its beginning turn out to be this."""

    gap: str


Part = str | CodeBlock | ListBegins | ListEnds
Glue = str | tuple[Part, ...]


class _Open(NamedTuple):
    """An open element, by its name ("root" for the page).

    prefix: what its lines begin with. last: the kind of block before in it ("" none; "text" in what holds text).
    marker: a list's; else that of a list just before. size: of a list, its items; of a row, its cells; of a table, its
    columns. loose: of a list, whether one of its items holds a paragraph.
    """

    name: str
    prefix: str
    last: str = ""
    marker: str = ""
    size: int = 0
    loose: bool = False


class State(dict[str, tuple[Glue, "State"]]):
    """What is open; as a dictionary, what became of each run that was met here."""

    def __init__(self, opened: tuple[_Open, ...], automaton: Automaton) -> None:
        super().__init__()
        self._opened = opened
        self._automaton = automaton

    def __missing__(self, run: str) -> tuple[Glue, State]:
        self._automaton.make_room(run)
        writer = _Writer(self._opened)
        for slash, name, number in _TAG.findall(run):
            if slash:
                writer.close(name)
            elif number:
                writer.code(int(number))
            else:
                writer.open(name)
        if not run.endswith(END):
            writer.text()
        found = self[run] = writer.glue(), self._automaton.state(tuple(writer.opened))
        return found


class Automaton:
    """All states that were met. Memory: bounded, by forgetting them between two pages."""

    def __init__(self) -> None:
        self._states: dict[tuple[_Open, ...], State] = {}
        self._runs = 0

    def beginning(self) -> State:
        """Of a page."""
        if self._runs >= _MOST_RUNS:
            self._states.clear()
            self._runs = 0
        return self.state((_Open("root", ""),))

    def state(self, opened: tuple[_Open, ...]) -> State:
        return self._states.get(opened) or self._states.setdefault(opened, State(opened, self))

    def make_room(self, run: str) -> None:
        """Raises Unusual for a page that fills all room, and for a run too long to be remembered."""
        self._runs += 1
        _expect(self._runs <= 2 * _MOST_RUNS and len(run) <= _LONGEST_RUN)


_HOLD_BLOCKS = frozenset(("root", "blockquote", "li"))
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_HOLD_TEXT = frozenset(("p", "li", "th", "td")) | _HEADINGS


class _Writer:
    """Works out one run, tag by tag."""

    def __init__(self, opened: tuple[_Open, ...]) -> None:
        self.opened = list(opened)
        self.parts: list[Part] = []

    def glue(self) -> Glue:
        texts = [part for part in self.parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(self.parts) else tuple(self.parts)

    def text(self) -> None:
        """A text follows the run."""
        top = self.opened[-1]
        _expect(top.name in _HOLD_TEXT and not top.last)
        self.opened[-1] = top._replace(last="text")

    def open(self, name: str) -> None:
        prefix = self.opened[-1].prefix
        if name in ("ul", "ol"):
            self._list(name)
        elif name == "li":
            self._item()
        elif name in ("thead", "tbody", "tr", "th", "td"):
            self._table_part(name)
        elif name in _HEADINGS:
            self._block("heading", "#" * int(name[1]) + " ")
            self._push(name, prefix)
        elif name == "blockquote":
            self._block("quote", "> ")
            self._push(name, prefix + "> ")
        else:
            self._block(name)
            self._push(name, prefix)
            if name == "p" and self.opened[-2].name == "li":
                self.opened[-3] = self.opened[-3]._replace(loose=True)

    def close(self, name: str) -> None:
        closed = self.opened[-1]
        if not name:  # END
            _expect(closed.name == "root")
            return
        _expect(closed.name == name and (closed.last != "" or name in ("th", "td")))
        self.opened.pop()
        if name in ("ul", "ol"):
            _expect(ListBegins() not in self.parts)  # a list without a text, for gaps to be between
            self.parts.append(ListEnds("\n" + closed.prefix.rstrip() if closed.loose else ""))
        elif name == "tr":
            self._row_ends(closed)

    def code(self, number: int) -> None:
        self._block("code")
        self.parts.append(CodeBlock(number, self.opened[-1].prefix))

    def _push(self, name: str, prefix: str, marker: str = "") -> None:
        _expect(len(self.opened) <= _DEEPEST)
        self.opened.append(_Open(name, prefix, marker=marker))

    def _block(self, kind: str, mark: str = "") -> None:
        """A block begins, behind the one before in the same parent."""
        parent = self.opened[-1]
        _expect(parent.name in _HOLD_BLOCKS)
        if parent.last:
            interrupts = parent.last == "text" and kind in ("code", "list")
            tight = parent.name == "li" and (interrupts or parent.last == kind == "code")
            self.parts.append(f"{GAP if tight else _blank(parent)}\n{parent.prefix}")
        if mark:
            self.parts.append(mark)
        self.opened[-1] = parent._replace(last=kind, marker="")

    def _list(self, name: str) -> None:
        before = self.opened[-1]
        first, other = LIST_MARKERS[name]
        marker = other if before.last == "list" and before.marker == first else first
        self._block("list")
        self.opened[-1] = self.opened[-1]._replace(marker=marker)
        self.parts.append(ListBegins())
        self._push(name, before.prefix, marker)

    def _item(self) -> None:
        its = self.opened[-1]
        _expect(its.name in ("ul", "ol"))
        if its.size:
            self.parts.append(f"{GAP}\n{its.prefix}")
        bullet = f"{its.size + 1}{its.marker} " if its.name == "ol" else f"{its.marker} "
        self.parts.append(bullet)
        self.opened[-1] = its._replace(size=its.size + 1, last="li")
        self._push("li", its.prefix + " " * len(bullet))

    # --- tables: one head of one row, then rows of as many cells ---

    def _table_part(self, name: str) -> None:
        parent = self.opened[-1]
        if name in ("th", "td"):
            _expect(parent.name == "tr")
            self.parts.append(" | " if parent.size else "| ")
        elif name == "tr":
            _expect(parent.name == "tbody" or (parent.name == "thead" and not parent.last))
            if parent.name == "tbody":
                self.parts.append(f"\n{parent.prefix}")
        else:
            _expect(parent.name == "table" and parent.last == ("" if name == "thead" else "thead"))
        self.opened[-1] = parent._replace(last=name, size=parent.size + (name in ("th", "td")))
        self._push(name, parent.prefix)

    def _row_ends(self, row: _Open) -> None:
        self.parts.append(" |")
        table = self.opened[-2]
        if self.opened[-1].name == "thead":
            self.parts.append(f"\n{row.prefix}|{' --- |' * row.size}")
            self.opened[-2] = table._replace(size=row.size)
        else:
            _expect(row.size == table.size)


def _expect(there: bool) -> None:
    if not there:
        raise Unusual


def _blank(parent: _Open) -> str:
    return "\n" + parent.prefix.rstrip()
