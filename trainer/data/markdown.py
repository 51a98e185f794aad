"""Paragraphs of Markdown that render to exactly the given text: emphasis, links, line breaks, escapes.

A converter that escapes every "_" and "*" teaches a model to write `snake\\_case` (FastChat: 21 % of
answers); one that escapes nothing lets `vector<int>` vanish. Here a character is escaped only where
CommonMark would read it as markup. Text without such places, nearly all of it, takes one regex
search. Where markup and risky text meet, candidates are rendered by markdown-it-py, from the one
with the fewest escapes on, and the first that shows the right text is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from trainer.data.markdown_blocks import code_span

Kind = Literal["text", "raw", "open", "close", "break"]


class Piece(NamedTuple):
    """A piece of a paragraph that is not plain text.

    raw: finished Markdown (code span, image, math). open, close: the marker of emphasis or "[" of a
    link. break: a line break. `shows` is what a reader sees of a raw piece; `target` ends a link.
    """

    kind: Kind
    text: str = ""
    shows: str = ""
    target: str = ""


BREAK = Piece("break")

# Longer paragraphs are escaped without being rendered to see what they need: rendering takes about
# 1 s per 100,000 risky characters, and a paragraph of a person is never that long.
_LONGEST_RENDERED = 20_000

_SPACES = re.compile(r"[ \t\n\r\f]+")
_RISK = re.compile(
    r"""\\(?=[\0!-/:-@\[-`{-~]|$)     # a backslash that would escape
    |`                              # code
    |\*(?!\s)|(?<=\S)\*             # emphasis, if it touches something
    |(?<![^\W_])_|_(?![^\W_])       # emphasis, unless inside a word
    |<(?=[A-Za-z/!?])               # tags, comments, autolinks
    |&(?=\#|[A-Za-z])               # entities
    |\[(?=[^\]]*\][(\[:])           # links and their definitions
    |~(?=[~\0])|(?<=[~\0])~                 # strikethrough
    """,
    re.VERBOSE | re.MULTILINE,
)
_MARKUP = re.compile(r"[\\`*_<&\[~]")
_ANY_MARKUP = re.compile(r"[\\`*_<>&\[\]~]")
LINE_STARTS = frozenset("#>-+*0123456789=_:|~")
_LINE_START = re.compile(
    r"""^(?:
      (\d{1,9})([.)])(?=[ ]|$)
    | (\#(?=\#{0,5}(?:[ ]|$)) | > | [-+*](?=[ ]|$)
      | ([-*_])(?=(?:[ ]*\4){2,}[ ]*$) | [-=](?=[-=]*[ ]*$) | [-:|](?=[-:| ]*$) | ~(?=~~))
    )""",
    re.VERBOSE | re.MULTILINE,
)


# --- paragraphs -------------------------------------------------------------------------------


def plain_paragraph(text: str) -> str:
    """The Markdown of text without any markup; "" if it is only spaces."""
    if "\n" in text or "  " in text or "\t" in text or "\r" in text or "\f" in text:
        text = _SPACES.sub(" ", text)
    text = text.strip(" ")
    if not text:
        return ""
    if _special(text) and _risky(text):
        return _escaped([text])
    return guard_lines(text) if text[0] in LINE_STARTS else text


def _special(text: str) -> bool:
    # Eight searches of one character each take a third of the time of one for a set of characters.
    return (
        "_" in text
        or "*" in text
        or "`" in text
        or "<" in text
        or "&" in text
        or "[" in text
        or "\\" in text
        or "~" in text
    )


def _risky(text: str) -> bool:
    # One class of characters is searched five times as fast as nine alternatives.
    return any(_RISK.match(text, found.start()) for found in _MARKUP.finditer(text))


def paragraph(pieces: Sequence[str | Piece]) -> str:
    """The Markdown of text mixed with markup, spaces moved out of emphasis; "" if nothing is seen."""
    simple = _simple_paragraph(pieces)
    if simple is not None:
        return simple
    settled = _settle(pieces)
    if not settled:
        return ""
    literal = "".join("\0" if isinstance(piece, Piece) else piece for piece in settled)
    if _needs_care(settled, literal):
        return _escaped(settled)
    return guard_lines(_join(settled))


def _simple_paragraph(pieces: Sequence[str | Piece]) -> str | None:
    """The paragraph if its markup is code, and emphasis of words between spaces; None sends it the long way."""
    out: list[str] = []
    literal: list[str] = []
    outside = " "  # the character before the next piece
    opening = closing = linked = False
    for piece in pieces:
        if isinstance(piece, str):
            if not piece:
                continue
            if "\n" in piece or "  " in piece or (outside == " " and out and piece[0] == " "):
                return None
            if opening and not piece[0].isalnum():
                return None
            if closing and piece[0] not in " .,;:!?)":
                return None
            opening = closing = False
            outside = piece[-1]
            literal.append(piece)
            out.append(piece)
        elif piece.text == "[":
            if opening or closing or outside == "!":
                return None
            linked = True
            outside = "["
            literal.append("\0")
            out.append("[" if piece.kind == "open" else f"]({piece.target})")
        elif piece.kind == "open":
            if opening or closing or outside != " ":
                return None
            opening = True
            out.append(piece.text)
        elif piece.kind == "close":
            if opening or closing or not outside.isalnum():
                return None
            closing = True
            out.append(piece.text)
        elif piece.kind == "raw" and piece.text[0] == "`" and not (opening or closing or outside == "`"):
            outside = "`"
            literal.append("\0")
            out.append(piece.text)
        else:
            return None
    text = "".join(out).strip(" ")
    plain = "".join(literal)
    if linked and ("[" in plain or "]" in plain or "[]" in text or "[ " in text or " ](" in text):
        return None
    if not text or "\t" in plain or "\f" in plain or (_special(plain) and _risky(plain)):
        return None
    return guard_lines(text) if text[0] in LINE_STARTS else text


def _needs_care(pieces: Sequence[str | Piece], literal: str) -> bool:
    if _special(literal) and _risky(literal):
        return True
    marked = False
    for index, piece in enumerate(pieces):
        if isinstance(piece, str) or piece.kind in ("break", "raw"):
            marked = marked or (isinstance(piece, Piece) and "$" in piece.text)
            continue
        before = pieces[index - 1] if index else " "
        after = pieces[index + 1] if index + 1 < len(pieces) else " "
        outer, inner = (before, after) if piece.kind == "open" else (after, before)
        if piece.text == "[":
            if "[" in literal or "]" in literal:
                return True
        # A marker beside another marker, or between a letter and a punctuation mark, may not count.
        elif isinstance(inner, Piece) or (isinstance(outer, Piece) and outer.kind != "break"):
            return True
        else:
            outer = outer if isinstance(outer, str) else " "
            out, within = (outer[-1], inner[0]) if piece.kind == "open" else (outer[0], inner[-1])
            if not (within.isalnum() and not out.isalnum()) and not (out == " " and not within.isspace()):
                return True
    return marked and "$" in literal


def _settle(pieces: Sequence[str | Piece]) -> list[str | Piece]:
    """Spaces collapsed and moved out of emphasis, empty emphasis gone, neighbours of one kind joined."""
    out: list[str | Piece] = []
    waiting: list[Piece] = []  # opened, nothing inside yet
    space = False
    line_start = True

    def write(piece: str | Piece) -> None:
        nonlocal space, line_start
        if space and not line_start:
            _append(out, " ")
        space = line_start = False
        for opened in waiting:
            last = out[-1] if out else None
            if isinstance(last, Piece) and last.kind == "close" and last[1:] == opened[1:]:
                out.pop()  # **a****b** is not two of anything: **ab**
            else:
                out.append(opened)
        waiting.clear()
        _append(out, piece)

    for piece in pieces:
        if isinstance(piece, str):
            text = _SPACES.sub(" ", piece)
            space = space or text.startswith(" ")
            if text.strip(" "):
                write(text.strip(" "))
                space = text.endswith(" ")
        elif piece.kind == "open":
            waiting.append(piece)
        elif piece.kind == "close":
            if waiting:
                waiting.pop()
            else:
                out.append(piece)
        elif piece.kind == "break":
            if out:
                out.append(piece)
            space, line_start = False, True
        else:
            write(piece)
    return _without_last_breaks(out)


def _append(out: list[str | Piece], piece: str | Piece) -> None:
    last = out[-1] if out else None
    if isinstance(last, str) and isinstance(piece, str):
        out[-1] = last + piece
    elif isinstance(last, Piece) and isinstance(piece, Piece) and last.text[:1] == piece.text[:1] == "`":
        code = last.shows + piece.shows  # `a``b` is something else
        out[-1] = Piece("raw", code_span(code), code)
    else:
        out.append(piece)


def _without_last_breaks(out: list[str | Piece]) -> list[str | Piece]:
    end = len(out)
    while end and isinstance(out[end - 1], Piece) and out[end - 1][0] in ("break", "close"):
        end -= 1
    return out[:end] + [piece for piece in out[end:] if piece != BREAK]


def _join(pieces: Sequence[str | Piece], escape: Callable[[str], str] = str, emphasis: bool = True) -> str:
    parts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(escape(piece))
        elif piece.text == "[" and piece.kind == "open":
            if parts and parts[-1].endswith("!"):  # "![" begins an image
                parts[-1] = parts[-1][:-1] + "\\!"
            parts.append("[")
        elif piece.kind == "break":
            parts.append("  \n")
        elif piece.kind == "raw":
            parts.append(piece.text)
        elif piece.text == "[":
            parts.append(f"]({piece.target})")
        elif emphasis:
            parts.append(piece.text)
    return "".join(parts)


# --- escapes ----------------------------------------------------------------------------------


def guard_lines(text: str) -> str:
    """Line starts that would begin a heading, list, quote, rule, table or fence are escaped."""
    return _LINE_START.sub(r"\1\\\2\3", text)


def _escaped(pieces: Sequence[str | Piece]) -> str:
    """The candidate with the fewest escapes that shows the right text."""
    math = any(isinstance(piece, Piece) and piece.text.startswith("$") for piece in pieces)

    def risky(text: str) -> str:
        return _dollars(_RISK.sub(r"\\\g<0>", text), math)

    def everything(text: str) -> str:
        return _dollars(_ANY_MARKUP.sub(r"\\\g<0>", text), math)

    tame = _outside_punctuation(pieces)
    candidates = (
        (pieces, partial(_dollars, math=math), True),
        (pieces, risky, True),
        (tame, risky, True),
        (tame, everything, True),
    )
    size = sum(len(piece if isinstance(piece, str) else piece.text) for piece in pieces)
    if size <= _LONGEST_RENDERED:
        for chosen, escape, emphasis in candidates:
            if _shows_right(chosen, escape, emphasis):
                return guard_lines(_join(chosen, escape, emphasis))
    bare: list[str | Piece] = []
    for piece in tame:
        if isinstance(piece, str) or piece.kind in ("raw", "break") or piece.text == "[":
            _append(bare, piece)
    return guard_lines(_join(bare, everything, emphasis=False))


def _dollars(text: str, math: bool) -> str:
    return text.replace("$", "\\$") if math else text


def _outside_punctuation(pieces: Sequence[str | Piece]) -> list[str | Piece]:
    """`**note:**text` is no emphasis in CommonMark, `**note**:text` is: marks at the edges move out."""
    out: list[str | Piece] = []
    for index, piece in enumerate(pieces):
        previous = out[-1] if out else ""
        following = pieces[index + 1] if index + 1 < len(pieces) else ""
        if isinstance(piece, Piece) and piece.kind == "close" and piece.text != "[":
            if isinstance(previous, str) and isinstance(following, str) and following[:1].isalnum():
                core = previous.rstrip("".join(char for char in set(previous) if not char.isalnum()))
                if core:
                    out[-1] = core
                    out.append(piece)
                    out.append(previous[len(core) :])
                    continue
        if isinstance(piece, str) and isinstance(previous, str) and out:
            out[-1] = previous + piece
            continue
        out.append(piece)
    return out


# Stands for math, which a plain renderer does not know: code, because "`" is a punctuation mark as "$" is.
_MATH = Piece("raw", "`\ue000`", "\ue000")


def _shows_right(pieces: Sequence[str | Piece], escape: Callable[[str], str], emphasis: bool) -> bool:
    """Whether a renderer shows the text and the markup of these pieces, and nothing else."""
    inert = [
        _MATH if isinstance(piece, Piece) and piece.kind == "raw" and piece.text.startswith("$") else piece
        for piece in pieces
    ]
    wanted: list[str] = []
    for piece in inert:
        if isinstance(piece, str):
            wanted.append(piece)
        elif piece.kind == "break":
            wanted.append(" ")
        elif piece.kind == "raw":
            wanted.append(piece.shows)
        elif emphasis or piece.text == "[":
            wanted.append("\x02" if piece.kind == "open" else "\x03")
    shown = _rendered(guard_lines(_join(inert, escape, emphasis)))
    return _squeezed(shown) == _squeezed("".join(wanted))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _rendered(markdown: str) -> str:
    """What a reader sees of one paragraph, with \\x02 and \\x03 around emphasis and links; "" for other blocks."""
    tokens = _renderer().parse(markdown)
    if [token.type for token in tokens] != ["paragraph_open", "inline", "paragraph_close"]:
        return "\x00"
    return "".join(_shown(token) for token in tokens[1].children or ())


def _shown(token: Any) -> str:
    if token.type in ("text", "code_inline", "text_special"):
        return str(token.content)
    if token.type == "image":
        return str(token.content)
    if token.type == "html_inline":  # only the few that html.py writes itself
        return "" if token.content in RAW_TAGS else "\x00"
    if token.type in ("softbreak", "hardbreak"):
        return " "
    return "\x02" if token.nesting == 1 else "\x03"


RAW_TAGS = frozenset(f"<{slash}{name}>" for name in ("sub", "sup", "kbd") for slash in ("", "/"))


@cache
def _renderer() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])
