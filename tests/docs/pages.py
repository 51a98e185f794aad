"""The pages of the documentation as data: headings, links, tables and console commands."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]

RUN = "<!-- run -->"
_FENCE = re.compile(r"^(```+)(\w*)\s*$")
_HEADING = re.compile(r"^(#{1,6}) (.+)$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SHELL_ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>", "|&", "#"}


@dataclass(frozen=True)
class Block:
    """A ```console block; `run`: its commands are really executed by the tests."""

    page: Path
    line: int
    run: bool
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """The lines under one heading, down to the next heading of any level."""

    heading: str
    lines: tuple[str, ...]

    def first_cells(self) -> list[str]:
        """What stands in back quotes in the first cell of each row of its tables."""
        return [match[1] for line in self.lines if (match := re.match(r"^\| `([^`]+)` \|", line))]


def name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def prose(page: Path) -> list[str]:
    """The lines outside of code fences; a fenced line is empty, so that numbers stay right."""
    lines, fence = [], None
    for line in page.read_text().splitlines():
        match = _FENCE.match(line)
        lines.append("" if fence or match else line)
        if match and fence is None:
            fence = match[1]
        elif match and match[1] == fence and not match[2]:
            fence = None
    return lines


def sections(page: Path) -> list[Section]:
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in prose(page):
        match = _HEADING.match(line)
        if match:
            found.append((match[2].strip(), []))
        else:
            found[-1][1].append(line)
    return [Section(heading, tuple(lines)) for heading, lines in found]


def section(page: Path, heading: str) -> Section:
    return next(found for found in sections(page) if found.heading == heading)


def anchors(page: Path) -> set[str]:
    """The fragments by which a page's headings are reached, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for part in sections(page):
        slug = re.sub(r"[^\w\- ]", "", part.heading.lower()).replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def links(page: Path) -> Iterator[str]:
    """Targets of links that are not on the web."""
    for line in prose(page):
        yield from (target for target in _LINK.findall(line) if not re.match(r"[a-z]+:", target))


def blocks() -> Iterator[Block]:
    for page in PAGES:
        lines = page.read_text().splitlines()
        starts = [number for number, line in enumerate(lines) if line.strip() == "```console"]
        for start in starts:
            end = next(n for n in range(start + 1, len(lines)) if lines[n].strip() == "```")
            above = next((line for line in reversed(lines[:start]) if line.strip()), "")
            commands = tuple(_commands(lines[start + 1 : end]))
            yield Block(page, start + 1, above.strip() == RUN, commands)


def _commands(lines: list[str]) -> Iterator[str]:
    """Prompted lines, each with the lines that a backslash at its end continues."""
    pending = ""
    for line in lines:
        if not pending and not line.startswith("$ "):
            continue
        pending += line if pending else line[2:]
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        yield pending
        pending = ""


def words(command: str) -> tuple[list[str], list[str]]:
    """(variables set before it, program and arguments) of the first program of a shell line."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[str] = []
    for word in lexer:
        if word in _SHELL_ENDS:
            break
        found.append(word)
    variables = 0
    while variables < len(found) and re.match(r"^[A-Z_]+=", found[variables]):
        variables += 1
    return found[:variables], found[variables:]
