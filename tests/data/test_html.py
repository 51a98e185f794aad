"""HTML of answers to Markdown: FastChat's defects as claims, then what becomes of every kind of element.

The numbers are those of the list of 14 defects reproduced with FastChat 0.2.36 (clean_sharegpt); 14, lost rounds,
belongs to the split, and 1 and 13 are in test_clean.py as well.
"""

from __future__ import annotations

import pytest

from tests.data.shown import render, shown_by
from trainer.conversation import Turn
from trainer.data.clean import Cleaned, clean
from trainer.data.html import DEEPEST, HtmlRejected, looks_like_html, to_markdown

PAGE = '<div class="markdown prose w-full break-words dark:prose-invert light">{}</div>'
BAR = (
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center"><span class="">{bar}</span>'
    '<button class="flex gap-2"><svg viewBox="0 0 24 24"><path d="M16 4h2"></path></svg>Copy code</button></div>'
    '<div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs{classes}">{code}</code></div></div></pre>'
)


def code_page(code: str, bar: str = "", classes: str = "") -> str:
    return PAGE.format(BAR.format(code=code, bar=bar, classes=classes))


# --- the fourteen defects ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        "    if (a<b && c>d) { vector<int> v; }\n\n\n\t_x_ = '<script>alert(1)</script>'",
        "<div class='x'><p>Why is this centred?</p></div>",
        "<p>plain</p>",
        "  leading and trailing spaces  \n",
    ],
)
def test_1_questions_are_left_as_they_are_to_the_byte(question: str) -> None:
    sample = {
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "<p>Like this.</p>"}]
    }
    cleaned = clean(sample, "x")
    assert isinstance(cleaned, Cleaned)
    assert cleaned.conversation.turns == (Turn("user", question), Turn("assistant", "Like this."))


@pytest.mark.parametrize(
    "text",
    [
        "snake_case",
        "2 * 3 * 4",
        "a ** b",
        "x_1 and y_2",
        "5 < 6 & 7 > 2",
        "C#",
        "[1] and (2)",
        "$5",
        "a ~ b",
        "#tag",
    ],
)
def test_2_text_that_markdown_reads_as_text_gets_no_backslash(text: str) -> None:
    assert to_markdown(f"<p>{text.replace('&', '&amp;').replace('<', '&lt;')}</p>") == text


def test_3_blank_lines_inside_code_are_kept() -> None:
    code = "a\n\n\n\n    b\n\n\nc\n"
    assert to_markdown(code_page(code, "python")) == f"```python\n{code}```"


def test_4_pipes_in_cells_are_escaped_and_the_alignment_is_kept() -> None:
    table = (
        '<table><thead><tr><th align="left">a</th><th style="text-align: center">b</th><th align="right">c</th></tr>'
        "</thead><tbody><tr><td>2|3</td><td><code>x|y</code></td><td></td></tr></tbody></table>"
    )
    assert to_markdown(table) == "| a | b | c |\n| :--- | :---: | ---: |\n| 2\\|3 | `x\\|y` |  |"
    assert shown_by(render(to_markdown(table))).text == "a b c 2|3 x|y"


KATEX = (
    '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow>'
    '<annotation encoding="application/x-tex">x^2</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true"><span class="base">x2</span></span></span>'
)


def test_5_katex_becomes_its_tex_once() -> None:
    assert to_markdown(f"<p>The square {KATEX} grows.</p>") == "The square $x^2$ grows."
    display = f'<p>So:</p><div class="math math-display"><span class="katex-display">{KATEX}</span></div>'
    assert to_markdown(display) == "So:\n\n$$\nx^2\n$$"


def test_6_the_language_is_taken_from_the_class_without_a_bar() -> None:
    assert to_markdown('<pre><code class="language-go">x := 1\n</code></pre>') == "```go\nx := 1\n```"


def test_7_the_fence_is_longer_than_any_run_of_backticks_inside() -> None:
    code = "```js\nlet a\n```\n`````"
    assert to_markdown(f"<pre><code>{code}</code></pre>") == f"``````\n{code}\n``````"


def test_8_code_inside_a_list_item_is_indented_so_that_the_list_goes_on() -> None:
    page = "<ol><li><p>Do</p><pre><code>if x:\n\n    y\n</code></pre></li><li><p>Go</p></li></ol>"
    assert to_markdown(page) == "1. Do\n\n   ```\n   if x:\n\n       y\n   ```\n\n2. Go"
    assert shown_by(render(to_markdown(page))).code == [("", "if x:\n\n    y")]
    assert render(to_markdown(page)).count("<ol") == 1


def test_9_headings_are_written_with_number_signs() -> None:
    assert to_markdown("<h1>T</h1><h3>U <em>v</em></h3><p>w</p>") == "# T\n\n### U *v*\n\nw"


@pytest.mark.parametrize(
    "text", ["3 / 4 of the people agree", "3 / 4", "2 / 2 = 1, as everyone knows", "10 / 5 is 2"]
)
def test_10_text_that_only_looks_like_a_counter_is_kept(text: str) -> None:
    assert to_markdown(f"<p>{text}</p><p>More.</p>").startswith(text)
    assert to_markdown(PAGE.format(f"<p>{text}</p>")) == text


def test_10_a_real_counter_and_the_count_of_copied_characters_are_left_out() -> None:
    page = PAGE.format("<p>Yes.</p>")
    assert to_markdown('<div class="text-xs">2 / 3</div>' + page) == "Yes."
    assert to_markdown("2 / 3" + page) == "Yes."
    assert to_markdown(PAGE.format("<p>Yes.</p><p>Copy123 chars / 45 words</p>")) == "Yes."


def test_11_neighbouring_blocks_stay_apart_and_attributes_do_not_leak() -> None:
    assert to_markdown("<div>first</div><div>second</div>") == "first\n\nsecond"
    assert to_markdown('<div title="a>b">c</div>') == "c"


def test_12_nested_lists_are_indented_with_spaces_and_code_spans_hold_backticks() -> None:
    page = "<ul><li>a<ul><li>b <code>`x`</code></li></ul></li><li>c</li></ul>"
    assert to_markdown(page) == "- a\n  - b `` `x` ``\n- c"


# --- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "markdown"),
    [
        ("<p>vector&lt;int&gt; v</p>", "vector\\<int> v"),
        ("<p>&amp;lt; is an entity</p>", "\\&lt; is an entity"),
        ("<p>__init__</p>", "\\_\\_init\\_\\_"),
        ("<p># no heading</p>", "\\# no heading"),
        ("<p>1986. A good year</p>", "1986\\. A good year"),
        ("<p>a<br>- b</p>", "a  \n\\- b"),
        ("<p>C:\\*.txt</p>", "C:\\\\\\*.txt"),
    ],
)
def test_text_that_would_be_markup_is_escaped_where_it_would_be_and_shows_as_it_was(
    page: str, markdown: str
) -> None:
    assert to_markdown(page) == markdown
    assert shown_by(render(markdown)).text == shown_by(page).text


@pytest.mark.parametrize(
    ("page", "markdown"),
    [
        ("a<strong> b </strong>c", "a **b** c"),
        ("<b>a</b><b>b</b>", "**ab**"),
        ("<strong>Note:</strong>text", "**Note**:text"),
        ("<em>a <strong>b</strong></em>", "*a **b***"),
        ("<strong></strong>a<em> </em>b", "a b"),
        ("<b><strong>a</strong></b>", "**a**"),
        ("<del>a</del> H<sub>2</sub>O", "~~a~~ H<sub>2</sub>O"),
        ("<strong>a</strong><br>b", "**a**  \nb"),
        ("a<br><br>b", "a\n\nb"),
    ],
)
def test_emphasis_is_written_so_that_it_renders(page: str, markdown: str) -> None:
    assert to_markdown(f"<p>{page}</p>") == markdown
    assert shown_by(render(markdown)).text == shown_by(f"<p>{page}</p>").text


def test_links_and_images_keep_address_and_title() -> None:
    assert to_markdown('<p><a href="https://a.b/c?d=1&amp;e=2">x</a></p>') == "[x](https://a.b/c?d=1&e=2)"
    assert to_markdown('<p><a href="a (b)" title="t">x</a></p>') == '[x](<a (b)> "t")'
    assert to_markdown('<p>See!<a href="u"><code>x</code></a></p>') == "See\\![`x`](u)"
    assert to_markdown('<p><img src="u.png" alt="a cat"></p>') == "![a cat](u.png)"


def test_quotes_and_rules_and_their_nesting() -> None:
    page = "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><hr><p>c</p>"
    assert to_markdown(page) == "> a\n>\n> > b\n\n---\n\nc"


# --- lists ------------------------------------------------------------------------------------


def test_a_list_counts_on_from_its_start() -> None:
    assert to_markdown('<ol start="9"><li>a</li><li>b<ul><li>c</li></ul></li></ol>') == "9. a\n10. b\n    - c"


def test_neighbouring_lists_are_not_joined() -> None:
    page = "<ol><li>a</li></ol><ol><li>b</li></ol><ul><li>c</li></ul><ul><li>d</li></ul>"
    assert to_markdown(page) == "1. a\n\n1) b\n\n- c\n\n+ d"
    assert shown_by(render(to_markdown(page))).text == shown_by(page).text


def test_items_with_paragraphs_are_set_apart_by_empty_lines() -> None:
    assert to_markdown("<ul><li><p>a</p></li><li><p>b</p><p>c</p></li></ul>") == "- a\n\n- b\n\n  c"


def test_a_list_directly_in_a_list_belongs_to_the_item_before() -> None:
    assert to_markdown("<ul><li>a</li><ul><li>b</li></ul></ul>") == "- a\n  - b"


# --- code -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bar", "classes", "language"),
    [
        ("python", " language-python", "python"),
        ("c++", "", "c++"),
        ("", " language-lua", "lua"),
        ("", "", ""),
        ("js", " language-javascript", "javascript"),
    ],
)
def test_code_keeps_its_bytes_and_the_language_of_class_or_bar(bar: str, classes: str, language: str) -> None:
    code = "\n  a = '&lt;b&gt; &amp;amp; _x_ **y**'\t\n\n\n<span class=\"hljs-keyword\">end</span>  "
    text = "\n  a = '<b> &amp; _x_ **y**'\t\n\n\nend  "
    assert to_markdown(code_page(code, bar, classes)) == f"```{language}\n{text}\n```"


def test_the_bar_of_a_page_whose_markup_is_gone_gives_the_language() -> None:
    assert to_markdown("<pre>pythonCopy code\nx = 1\n</pre>") == "```python\nx = 1\n```"


def test_text_beside_the_code_in_a_block_that_is_no_bar_is_kept() -> None:
    assert to_markdown("<pre>main.py: <code>x</code> (end)</pre>") == "main.py:\n\n```\nx\n```\n\n(end)"


def test_code_with_unescaped_tags_inside_goes_the_way_a_browser_would() -> None:
    assert to_markdown(code_page("a<b>c</b>\n")) == "```\nac\n```"


def test_mathml_without_an_annotation_becomes_tex() -> None:
    fraction = "<mfrac><mi>a</mi><msup><mi>b</mi><mn>2</mn></msup></mfrac>"
    page = f"<p><math>{fraction}<mo>=</mo><msqrt><mi>c</mi></msqrt></math></p>"
    assert to_markdown(page) == r"$\frac{a}{b^{2}} = \sqrt{c}$"


# --- what is HTML -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [PAGE.format("a"), "<p>a</p>", "2 / 2<div>a</div>", "<ol><li>a</li></ol>", "\n<p>a</p>\n"]
)
def test_what_a_page_shows_is_html(text: str) -> None:
    assert looks_like_html(text)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "Use <div> for this.",
        "`<p>a</p>`",
        "```html\n<p>a</p>\n```",
        "<div>\n  <p>source code, laid out</p>\n</div>",
        "<p>first line\n\n```\ncode\n```\n</p>",
        "<!DOCTYPE html><html><body><p>a</p></body></html>",
        "<p> is a tag",
        "<T> is a type",
        "1 / 2 <b>",
    ],
)
def test_text_that_speaks_of_html_is_text(text: str) -> None:
    assert not looks_like_html(text)


# --- bad input --------------------------------------------------------------------------------


def test_ten_thousand_nested_divs_are_no_problem() -> None:
    assert to_markdown("<div>" * 10_000 + "deep" + "</div>" * 10_000) == "deep"


@pytest.mark.parametrize("tag", ["ul><li", "blockquote", "ol><li"])
def test_ten_thousand_nested_lists_or_quotes_are_rejected(tag: str) -> None:
    with pytest.raises(HtmlRejected, match=f"more than {DEEPEST} deep"):
        to_markdown(f"<{tag}>" * 10_000 + "deep")


def test_a_tree_too_deep_to_parse_in_time_is_rejected() -> None:
    with pytest.raises(HtmlRejected, match="more than 10,000 elements"):
        to_markdown("<div>" * 20_000)


@pytest.mark.parametrize(
    "page",
    [
        "<p>" + "<a" * 50_000,
        "<p>" + '<a "' * 50_000,
        "<p>" + '<a b"c>x' * 20_000,
        "<p><pre" * 50_000,
        "<p>" + "<script type='math/tex'>" * 400,
    ],
    ids=[
        "tags that never end",
        "quotes that never end",
        "names with quotes",
        "code that never ends",
        "scripts that never end",
    ],
)
def test_what_never_ends_takes_no_time_out_of_proportion(page: str) -> None:
    # Without limits each of these takes minutes; the test would be seen to hang.
    looks_like_html(page)
    try:
        to_markdown(page)
    except HtmlRejected:
        pass


def test_formatting_that_would_multiply_is_rejected() -> None:
    bomb = "".join(f"<b id={number}>" for number in range(2000)) + "<p>x" * 2000
    with pytest.raises(HtmlRejected, match="formatting elements are open at once"):
        to_markdown(bomb)


@pytest.mark.parametrize(
    ("page", "markdown"),
    [
        ("<p>a<p>b<li>c", "a\n\nb\n\n- c"),
        ("<table><tr><td colspan=999999999>a<td>b</table>", None),
        ("<p>a\0b</p>", None),
        ("<math>" * 500 + "x", None),
        ("<p>a<!-- <pre> --><script>if (a<b && c>'\"') {}</script>b</p><p>c</p>", "ab\n\nc"),
        ("</div></p>a", None),
        ("<pre>", None),
        ("", ""),
    ],
)
def test_broken_html_is_read_as_a_browser_reads_it_or_rejected(page: str, markdown: str | None) -> None:
    try:
        text = to_markdown(page)
    except HtmlRejected:
        return
    assert markdown is None or text == markdown
    assert len(text) < 10_000


def test_a_page_cannot_speak_of_the_blocks_of_code_that_were_taken_out_of_it() -> None:
    assert to_markdown(PAGE.format('<p>a</p><PRE vlaunch-code="7">b</PRE>')) == "a\n\n```\nb\n```"
