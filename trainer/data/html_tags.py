"""HTML of any kind -> well-formed tags and texts, as a browser's parser reads it.

lexbor (by selectolax), a browser-grade parser, makes any input a tree and writes it back as well-formed HTML; one
regex then cuts that. Asking Python for every node of the tree costs twice as much. HTML that a parser would leave as
it is, the usual case, is recognised while it is cut, and the blocks of code of ChatGPT's page, which hold most of all
tags, are taken out before.
"""

from __future__ import annotations

import re
from collections import Counter
from html import unescape
from typing import Any

from trainer.data.markdown_blocks import Block, fenced
from trainer.data.mathml import Tag

# Deeper than any answer; CommonMark renderers stop at 20 to 100 levels. Every level of a quote or a
# list indents all its lines again, so without a limit a bomb would grow with the square of its size.
DEEPEST = 100
# lexbor needs about 10 bytes for each byte of HTML: 16 MiB stays far under what a worker may take.
LONGEST = 16 * 2**20
# Looked at only in messages with more tags than this. Time to parse grows with the square of the depth (0.1 s for
# 10,000). Open formatting elements are opened again in every paragraph that follows (HTML 13.2.4.3), so n of them
# before n paragraphs make n * n elements; 300,000 take about 2 s and 100 MB.
_MANY_TAGS, _DEEPEST_TREE, _MOST_NODES = 500, 10_000, 300_000


class HtmlRejected(ValueError):
    """This HTML cannot be converted; `detail` says why."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


# HTML that lexbor has written: text, then six strings for each tag. An element that holds nothing but text and plain
# markup, or a list or table of nothing else, is a leaf, taken whole: ("li" for <li><p>, name, inside, None, None, text
# behind). Any other tag: (None, None, None, name with "/", attributes, text behind).
PHRASE = r"(?:[^<]++|<(?:code>[^<]*+</code>|strong>[^<]*+</strong>|em>[^<]*+</em>))*+"
_CELLS = r"<tr>(?:<t[dh]>[^<]*+</t[dh]>)++</tr>"
_LEAF = (
    r"<(?:(?:(li)><p>|(p|li|ol|ul|table|td|th|code|strong|em|b|i|h[1-6])>)"
    rf"({PHRASE}|(?:\s*+<li>(?:<p>{PHRASE}</p>|{PHRASE})</li>)++\s*+"
    rf"|<thead>{_CELLS}</thead><tbody>(?:{_CELLS})++</tbody>)</(?(1)p></li|\2)>"
)
# Attributes as a page writes them: a tag that is never closed is given up at the next "<".
_PAGE_TAG = re.compile(_LEAF + r'|(/?[a-z][^\s/<>"]*)((?:[^<>"]++|"[^"<>]*+")*+)>)')
# As lexbor writes them: values may hold "<" and ">". The limit is for names of attributes that hold quotation marks.
_WRITTEN = r'(/?[a-z][^\s/<>"]*)((?:[^>"]++|"[^"]*+"){0,200}+)>'
_WRITTEN_TAG = re.compile(_LEAF + "|" + _WRITTEN + ")")
_ANY_TAG = re.compile("<" + _WRITTEN)
_HELD = {"ol": "<li>", "ul": "<li>", "table": "<thead>"}
# The code block of ChatGPT's page: a bar with the language and a button, then the code in spans.
# Most of a message's tags are in these. They are taken out before lexbor sees it, if they hold
# nothing but spans; a <pre> with their number stands for them.
_CHAT_CODE = re.compile(
    r'<pre(?: class="[^"<>]*")?><div class="[^"<>]*"><div class="[^"<>]*">'
    r'<span(?: class="[^"<>]*")?>([^<>`\s&]*)</span>'
    r"<button(?: [^<>]*)?>(?:<svg\b[^<>]*>(?:<[^<>]*>){1,40}?</svg>)?Copy code</button></div>"
    r'<div class="[^"<>]*"><code(?: class="([^"<>]*)")?>'
    r'([^<]*+(?:</?span(?: class="[^"<>]*")?>[^<]*+)*+)</code></div></div></pre>'
)
_SPAN = re.compile(r'</?span(?: class="[^"<>]*")?>')
STAND_IN = "<pre vlaunch-code="
# What is no text and may hold anything.
_RAW_TEXT = re.compile(
    r"<!--.*?-->"
    r"|<(script|style|iframe|noembed|noframes|xmp|template|title)\b(?:[^>\"]+|\"[^\"]*\")*>.*?</\1>",
    re.DOTALL,
)
_RAW_NAMES = frozenset(("script", "style", "iframe", "noembed", "noframes", "xmp", "template", "title"))
_TEX_SCRIPT = re.compile(r"<script\b[^>]*\btype=[\"']math/tex([^\"']*)[\"'][^>]*>(.*?)</script>", re.DOTALL)
_TAG_NAME = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)")
_FORMATTING = frozenset("a b big code em font i nobr s small strike strong tt u".split())
_NEVER_CLOSED = frozenset(
    "area base br col embed hr img input link meta param path rect source track wbr "
    "p li td th tr thead tbody dd dt option".split()
)
_ATTRIBUTE = re.compile(r'([^\s"=]+)="([^"]*)"')
_LANGUAGE = re.compile(r"(?:^|\s)(?:language-|lang-|highlight-source-|brush:\s*)([^\s`\"&<>]+)")


def cut(html: str) -> tuple[list[Any], list[Block]]:
    if len(html) > LONGEST:
        raise HtmlRejected(f"{len(html):,} characters in one message, the most is {LONGEST:,}")
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in html:
        html = html.replace("\0", "\ufffd")
    blocks: list[Block] = []
    if "Copy code" in html and STAND_IN not in html:
        html = _CHAT_CODE.sub(lambda match: _chat_code(match, blocks), html)
    if not _ODD_ENTITY.search(html):
        tokens = _PAGE_TAG.split(html)
        if _is_settled(tokens):
            return tokens, blocks
    from selectolax.lexbor import LexborHTMLParser

    if html.count("<") > _MANY_TAGS:
        _check_nesting(html)
    if 0 < html.count("<script") < _MANY_TAGS:
        html = _TEX_SCRIPT.sub(_tex_script, html)
    body = LexborHTMLParser("<body>" + html).body
    written = body.html if body is not None else None
    if written is None:
        raise HtmlRejected("it has no body")
    if "<!--" in written:
        written = _RAW_TEXT.sub("", written)
    tokens = _WRITTEN_TAG.split(written)
    if not _RAW_NAMES.isdisjoint(tokens[4::6]):
        tokens = _WRITTEN_TAG.split(_RAW_TEXT.sub("", written))
    return tokens, blocks


# What may stand where so that a browser's parser would change nothing, in the HTML of chat pages.
_FLOW = frozenset(
    "p div ol ul table pre blockquote h1 h2 h3 h4 h5 h6 hr code strong em a br b i span".split()
)
PHRASES = frozenset("code strong em a br b i span".split())
_MAY_HOLD: dict[str, frozenset[str]] = {
    **dict.fromkeys(("", "div", "li", "blockquote", "td", "th"), _FLOW),
    **dict.fromkeys(("p", "h1", "h2", "h3", "h4", "h5", "h6"), PHRASES),
    "ol": frozenset(("li",)),
    "ul": frozenset(("li",)),
    "table": frozenset(("thead", "tbody")),
    "thead": frozenset(("tr",)),
    "tbody": frozenset(("tr",)),
    "tr": frozenset(("td", "th")),
    "strong": frozenset(("code", "em", "br")),
    "em": frozenset(("code", "strong", "br")),
    "a": frozenset(("code", "strong", "em")),
}
_ONLY_SPACES = frozenset(("table", "thead", "tbody", "tr"))
_ODD_ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|nbsp);)")
_PLAIN_ATTRIBUTES = re.compile(r'(?: [a-z-]+="[^"&<>]*(?:&amp;[^"&<>]*)*")*')
_NOTHING: frozenset[str] = frozenset()


def _is_settled(tokens: list[Any]) -> bool:
    """Whether a parser would make of this what it says: then lexbor, a fifth of the time, is not needed."""
    path = [""]
    holds = _FLOW
    if "<" in tokens[0]:
        return False
    rest = iter(tokens)
    next(rest)
    for _, leaf, inside, name, attributes, text in zip(rest, rest, rest, rest, rest, rest, strict=True):
        if inside is not None:
            if (leaf or "li") not in holds:
                return False
            if "<li" in inside or "<t" in inside:
                if not inside.lstrip().startswith(_HELD.get(leaf, "\0")):
                    return False
            elif leaf in _HELD:
                return False
        elif name[0] == "/":
            if name[1:] != path.pop() or not path:
                return False
            holds = _MAY_HOLD[path[-1]]
        else:
            if name not in holds or (attributes and not _PLAIN_ATTRIBUTES.fullmatch(attributes)):
                return False
            if name != "br" and name != "hr":
                path.append(name)
                holds = _MAY_HOLD.get(name, _NOTHING)
        if text and ("<" in text or (path[-1] in _ONLY_SPACES and text.strip())):
            return False
    return len(path) == 1


def _chat_code(match: re.Match[str], blocks: list[Block]) -> str:
    bar, classes, written = match.groups()
    code = _SPAN.sub("", written)
    language = _LANGUAGE.search(classes or "")
    blocks.append(
        Block(
            "code",
            fenced(_unescaped(code) if "&" in code else code, language[1] if language else bar),
            interrupts=True,
        )
    )
    return f'{STAND_IN}"{len(blocks) - 1}"></pre>'


def _unescaped(code: str) -> str:
    """As `html.unescape`, which calls a function for each entity; five of them are nearly all that code has."""
    usual = code.replace("&#x27;", "'").replace("&#39;", "'")
    return unescape(code) if _ODD_ENTITY.search(usual) else plain_text(usual)


def _check_nesting(html: str) -> None:
    """Raises HtmlRejected for HTML that takes a parser time or memory out of proportion to its size."""
    depth = tags = most = 0
    opened: Counter[str] = Counter()
    for slash, name in _TAG_NAME.findall(html):
        tags += 1
        if name in _NEVER_CLOSED:
            continue
        depth = max(0, depth - 1) if slash else depth + 1
        if depth > _DEEPEST_TREE:
            raise HtmlRejected(f"more than {_DEEPEST_TREE:,} elements are open at once")
        if name in _FORMATTING:
            opened[name] = max(0, opened[name] - 1) if slash else opened[name] + 1
            most = max(most, opened.total())
    if most * tags > _MOST_NODES:
        raise HtmlRejected(f"{most} formatting elements are open at once, among {tags:,} tags")


def _tex_script(match: re.Match[str]) -> str:
    tex = match[2].replace("&", "&amp;").replace("<", "&lt;")
    display = "katex-display" if "display" in match[1] else "katex"
    return f'<span class="{display}"><annotation encoding="application/x-tex">{tex}</annotation></span>'


def plain_text(written: str) -> str:
    # lexbor writes these four and no other entity.
    if "&" not in written:
        return written
    return (
        written.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", '"')
        .replace("&nbsp;", "\xa0")
        .replace("&amp;", "&")
    )


# --- tags -------------------------------------------------------------------------------------


def leaf_tags(item: str | None, name: str | None, inside: str, behind: str) -> list[Tag]:
    """A leaf cut into its tags."""
    whole = f"<{name}>{inside}</{name}>" if item is None else f"<li><p>{inside}</p></li>"
    _, *rest = _ANY_TAG.split(whole + behind)
    return [Tag(*rest[at : at + 3]) for at in range(0, len(rest), 3)]


def code_of(tags: list[Tag]) -> str:
    return plain_text("".join("\n" + tag.text if tag.name == "br" else tag.text for tag in tags))


def without(tags: list[Tag], *names: str) -> list[Tag]:
    kept, inside = [], ""
    for tag in tags:
        if inside:
            if tag.name == "/" + inside:
                inside = ""
                kept.append(Tag("", "", tag.text))
        elif tag.name in names:
            inside = tag.name
        else:
            kept.append(tag)
    return kept


def language_of(attributes: str) -> str:
    if not attributes:
        return ""
    found = _LANGUAGE.search(attributes_of(attributes).get("class", ""))
    return found[1] if found else ""


def attributes_of(written: str) -> dict[str, str]:
    return {name: plain_text(value) for name, value in _ATTRIBUTE.findall(written)}


def number_of(given: str | None, default: int) -> int:
    # CommonMark numbers have at most nine digits and no sign.
    return int(given) if given is not None and re.fullmatch(r"[0-9]{1,9}", given.strip()) else default
