"""Generated HTML trees: code survives byte for byte, visible text survives, cleaning twice is cleaning once.

The judge is tests/data/shown.py: the standard library's parser on the page, and on the Markdown as
markdown-it-py renders it. Texts are full of what Markdown reads as markup.
"""

from __future__ import annotations

import html

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.shown import render, shown_by
from trainer.data.html import looks_like_html, to_markdown
from trainer.data.html_page import page_markdown
from trainer.data.html_tags import parsed, without_code
from trainer.data.html_walk import markdown_of

# Every character that begins something in Markdown, with words, numbers and spaces around.
TEXTS = st.lists(
    st.sampled_from(
        "a b word Wort 東京 。 1. 2) 12 - + * ** _ __ x_y ` `` ``` ~ ~~ ~~~ # ## > < <b> </div> <!-- & &amp; &lt; "
        "[ ] [a](b) ![ ( ) | || \\ \\* $ $5 = === --- : ! . , ' \" {} https://a.b/c?d=e&f @ é".split()
        + [" ", " ", " ", "  ", "\n", "\xa0"]
    ),
    max_size=9,
).map("".join)
ESCAPED = TEXTS.map(html.escape)
CODES = st.text(st.sampled_from("ab `~<>&*_#-\t \n\\|[]()1.é"), max_size=40)
URLS = st.sampled_from(["https://a.b/c_d?e=1&f=2", "a b", "(x)", "a(b", "#", "\\", "<x>"]).map(html.escape)


def wrapped(tag: str) -> st.SearchStrategy[str]:
    return st.builds(f"<{tag}>{{}}</{tag}>".format, phrases())


def phrases() -> st.SearchStrategy[str]:
    """Text with emphasis, links, code, breaks, nested."""
    inner = st.deferred(phrases)
    piece = st.one_of(
        ESCAPED,
        ESCAPED,
        st.builds(
            "<{0}>{1}</{0}>".format, st.sampled_from(["strong", "em", "b", "i", "del", "span", "u"]), inner
        ),
        st.builds("<code>{}</code>".format, CODES.map(lambda code: html.escape(code.replace("\n", "")))),
        st.builds('<a href="{}">{}</a>'.format, URLS, ESCAPED),
        st.just("<br>"),
    )
    return st.lists(piece, max_size=4).map("".join)


CODE_BLOCKS = st.builds(
    "<pre><code{}>{}</code></pre>".format,
    st.sampled_from(["", ' class="language-python"', ' class="hljs language-c++"']),
    CODES.map(html.escape),
)
BAR_BLOCKS = st.builds(
    '<pre><div class="bg"><div class="bar"><span>{}</span><button class="b">Copy code</button></div>'
    '<div class="p-4"><code class="hljs">{}</code></div></div></pre>'.format,
    st.sampled_from(["", "python", "c++"]),
    CODES.map(html.escape),
)
TABLES = st.lists(st.lists(ESCAPED, min_size=2, max_size=2), min_size=2, max_size=3).map(
    lambda rows: "<table><thead>{}</thead><tbody>{}</tbody></table>".format(
        "<tr>" + "".join(f"<th>{cell}</th>" for cell in rows[0]) + "</tr>",
        "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:]),
    )
)
PHRASES = phrases()


def blocks() -> st.SearchStrategy[str]:
    inner = st.deferred(blocks)
    item = st.one_of(
        st.builds("<li>{}</li>".format, PHRASES), st.builds("<li>{}{}</li>".format, PHRASES, inner)
    )
    items = st.lists(item, min_size=1, max_size=3).map("".join)
    block = st.one_of(
        st.builds("<p>{}</p>".format, PHRASES),
        st.builds("<p>{}</p>".format, ESCAPED),
        st.builds("<ul>{}</ul>".format, items),
        st.builds('<ol start="{}">{}</ol>'.format, st.integers(0, 120), items),
        st.builds("<ol>{}</ol>".format, items),
        st.builds("<blockquote>{}</blockquote>".format, inner),
        st.builds("<h{0}>{1}</h{0}>".format, st.integers(1, 6), PHRASES),
        st.builds("<div>{}</div>".format, inner),
        st.builds("<div>{}</div>".format, PHRASES),
        st.just("<hr>"),
        CODE_BLOCKS,
        BAR_BLOCKS,
        TABLES,
    )
    return st.lists(block, min_size=1, max_size=3).map("".join)


PAGES = blocks().map(lambda inside: f'<div class="markdown prose">{inside}</div>')


@settings(max_examples=150, deadline=None)
@given(PAGES)
def test_every_block_of_code_survives_byte_for_byte_with_its_language(page: str) -> None:
    assert shown_by(render(to_markdown(page))).code == shown_by(page).code


@settings(max_examples=150, deadline=None)
@given(PAGES)
def test_the_rendered_markdown_shows_the_text_of_the_page(page: str) -> None:
    assert shown_by(render(to_markdown(page))).text == shown_by(page).text


@settings(max_examples=60, deadline=None)
@given(PAGES)
def test_markdown_is_no_html_so_cleaning_twice_is_cleaning_once(page: str) -> None:
    assert looks_like_html(page)
    assert not looks_like_html(to_markdown(page))


@settings(max_examples=60, deadline=None)
@given(PAGES)
def test_the_short_way_without_a_parser_writes_what_the_long_way_writes(page: str) -> None:
    # An upper case tag is unusual enough to send the page through lexbor.
    assert to_markdown(page) == to_markdown(page.replace("<div class", "<DIV class", 1))


# Pages as chat sites write them: every tag bare, every element closed where it was opened.
LINES = ESCAPED.filter(str.strip) | st.sampled_from(
    [
        "one",
        "- two",
        "3. three",
        "<code>a_b c</code>",
        "see <strong>this</strong>.",
        "<em>x</em> y",
        'a <a href="u?v=1&amp;w=2">b</a>',
    ]
)
PARAGRAPHS = st.builds("<p>{}</p>".format, LINES)
CHAT_TABLES = st.builds(
    "<table><thead><tr><th>{}</th><th>{}</th></tr></thead><tbody><tr><td>{}</td><td></td></tr></tbody></table>".format,
    LINES,
    LINES,
    LINES,
)
CHAT_LEAVES = st.one_of(
    PARAGRAPHS,
    st.builds("<h{0}>{1}</h{0}>".format, st.integers(1, 6), LINES),
    BAR_BLOCKS,
    CHAT_TABLES,
)


def chat_blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, max_size=2).map("".join)
    items = st.lists(st.builds("<li>{}{}</li>".format, LINES | PARAGRAPHS, several), min_size=1, max_size=3)
    return st.builds("<{0}>{1}</{0}>".format, st.sampled_from(["ul", "ol"]), items.map("".join)) | st.builds(
        "<blockquote>{}{}</blockquote>".format, PARAGRAPHS, several
    )


CHAT_PAGES = st.lists(st.recursive(CHAT_LEAVES, chat_blocks, max_leaves=8), min_size=1, max_size=3).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(CHAT_PAGES)
def test_a_page_of_a_chat_site_becomes_what_the_parser_and_the_walk_make_of_it(page: str) -> None:
    bare, code = without_code(f'<div class="markdown">{page}</div>')
    assert page_markdown(bare, code) in (None, markdown_of(parsed(bare), code))


def test_a_usual_page_of_a_chat_site_takes_no_parser() -> None:
    page = (
        '<div class="markdown prose"><p>One <code>a_b</code> and <strong>two</strong>, 3 &lt; 4.</p><h3>Five</h3>'
        "<ol><li>six<ul><li>seven</li><li>eight</li></ul></li><li><p>nine</p><p>ten</p></li></ol>"
        "<blockquote><p>eleven</p></blockquote><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr>"
        '<td>1</td><td></td></tr></tbody></table><p>See <a href="https://a.b/c">there</a>.</p></div>'
    )
    assert page_markdown(page, ()) == to_markdown(page.replace("<div class", "<DIV class"))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('<>/"= apbrediv&;!-\n'), max_size=60) | st.text(max_size=60))
def test_no_text_is_too_broken_to_convert(text: str) -> None:
    to_markdown(text)
