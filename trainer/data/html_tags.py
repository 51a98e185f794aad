"""HTML of any kind -> well-formed tags and texts, as a browser's parser reads it.

lexbor (by selectolax), a browser-grade parser, makes any input a tree and writes it back as well-formed HTML; one
regex then cuts that. Asking Python for every node of the tree costs twice as much. The blocks of code of ChatGPT's
page, which hold most of all tags, are taken out before.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from html import unescape

from trainer.data.markdown_blocks import Block, fenced
from trainer.data.mathml import Tag

# Deeper than any answer; CommonMark renderers stop at 20 to 100 levels. Every level of a quote or a
# list indents all its lines again, so without a limit a bomb would grow with the square of its size.
DEEPEST = 100
# The walk needs up to 60 bytes for each byte of HTML (a list of a million items): 4 MiB stay under 250 MB.
LONGEST = 4 * 2**20
# Looked at only in messages with more tags than this. Time to parse grows with the square of the depth (0.1 s for
# 10,000). Open formatting elements are opened again in every paragraph that follows (HTML 13.2.4.3), so n of them
# before n paragraphs make n * n elements; 300,000 take about 2 s and 100 MB.
_MANY_TAGS, _DEEPEST_TREE, _MOST_NODES = 500, 10_000, 300_000


class HtmlRejected(ValueError):
    """This HTML cannot be converted; `detail` says why."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


# A tag as lexbor writes it: values may hold "<" and ">". The limit is for attributes whose names hold quotation marks.
_TAG = re.compile(r'<(/?[a-z][^\s/<>"]*)((?:[^>"]++|"[^"]*+"){0,200}+)>')
# The code block of ChatGPT's page: a bar with the language and a button, then the code in spans.
# Most of a message's tags are in these. They are taken out before lexbor sees it, if they hold
# nothing but spans; a <pre> with their number stands for them.
_CHAT_CODE = re.compile(
    r'<pre(?: class="[^"<>]*")?><div class="[^"<>]*"><div class="[^"<>]*">'
    r'<span(?: class="[^"<>]*")?>([^<>`\s&]*)</span>'
    r"<button(?: [^<>]*)?>(?:<svg\b[^<>]*>(?:<[^<>]*>){1,40}?</svg>)?Copy code</button></div>"
    r'<div class="[^"<>]*"><code(?: class="([^"<>]*)")?>'
    r'([^<]*+(?:(?:</span>|<span(?: class="[^"<>]*")?>)[^<]*+)*+)</code></div></div></pre>'
)
_SPAN = re.compile(r'<span(?: class="[^"<>]*")?>')
# Stands where a block of code was, before its number. Another word in every process: no page can say it.
STAND_IN = f"<pre vlaunch-{secrets.token_hex(8)}="
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


def without_code(html: str) -> tuple[str, list[Block]]:
    """The page with line ends as a parser makes them, its blocks of code taken out, and those. Raises HtmlRejected."""
    if len(html) > LONGEST:
        raise HtmlRejected(f"{len(html):,} characters in one message, the most is {LONGEST:,}")
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in html:
        html = html.replace("\0", "\ufffd")
    blocks: list[Block] = []
    if "Copy code" in html:
        html = _CHAT_CODE.sub(lambda match: _chat_code(match, blocks), html)
    return html, blocks


def parsed(html: str) -> list[str]:
    """Text, then a tag's name, its attributes and the text behind, for each tag. Raises HtmlRejected."""
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
    tokens = _TAG.split(written)
    if not _RAW_NAMES.isdisjoint(tokens[1::3]):
        tokens = _TAG.split(_RAW_TEXT.sub("", written))
    return tokens


# Markup of text that a parser leaves as it is where each is closed inside what it was opened in.
_PHRASES = frozenset("a b code del em i kbd s span strong sub sup u".split())
_ODD_ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|nbsp);)")
_PLAIN_ATTRIBUTES = re.compile(r'(?: [a-z-]+="[^"&<>]*(?:&amp;[^"&<>]*)*")*')


def tags_of_phrase(written: str) -> list[str] | None:
    """As `parsed`, for text with markup; None if that takes a parser."""
    tokens = _TAG.split(written)
    opened: list[str] = []
    for name in tokens[1::3]:
        if name[0] == "/":
            if not opened or opened.pop() != name[1:]:
                return None
        elif name != "br":
            if name not in _PHRASES or name in opened:
                return None
            opened.append(name)
    plain = all(not each or _PLAIN_ATTRIBUTES.fullmatch(each) for each in tokens[2::3])
    if opened or not plain or any("<" in text for text in tokens[::3]) or _ODD_ENTITY.search(written):
        return None
    return tokens


def _chat_code(match: re.Match[str], blocks: list[Block]) -> str:
    bar, classes, written = match.groups()
    code = _SPAN.sub("", written.replace("</span>", ""))
    language = _LANGUAGE.search(classes or "")
    blocks.append(
        Block(
            "code",
            fenced(unescaped(code) if "&" in code else code, language[1] if language else bar),
            interrupts=True,
        )
    )
    return f'{STAND_IN}"{len(blocks) - 1}"></pre>'


def unescaped(code: str) -> str:
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
