"""What a page shows as a block of code, with what stands around it in the same <pre>."""

from __future__ import annotations

import re

from trainer.data.html_tags import code_of, language_of, without
from trainer.data.markdown import plain_paragraph
from trainer.data.markdown_blocks import Block, fenced
from trainer.data.mathml import Tag

# The bar above a block: its language and a button to copy it. It is no part of the answer.
_BAR = re.compile(r"\s*([^\s`]*)\s*(?:Copy code|Copy)\s*")
_BAR_IN_TEXT = re.compile(r"\s*([\w+#.-]{0,20})Copy code\n?")


def code_blocks(tags: list[Tag], language: str) -> list[Block]:
    """The code of a <pre> with its language; what stands beside its <code> and is no bar is kept as text."""
    first = next((at for at, tag in enumerate(tags) if tag.name == "code"), None)
    if first is None:
        code = code_of(without(tags, "svg"))
        bar = _BAR_IN_TEXT.match(code)
        if bar:
            language, code = language or bar[1], code[bar.end() :]
        return [Block("code", fenced(code, language), interrupts=True)]
    before, language = _above(tags[:first], language_of(tags[first].attributes) or language)
    last = max((at for at, tag in enumerate(tags) if tag.name == "/code"), default=len(tags))
    code = code_of(tags[first:last])
    ending = [tag._replace(name="") for tag in tags[last : last + 1]]
    after = code_of(without(ending + tags[last + 1 :], "button"))
    blocks = _text(before)
    if code or not (blocks or after.strip()):
        blocks.append(Block("code", fenced(code, language), interrupts=True))
    return blocks + _text(after)


def _above(tags: list[Tag], language: str) -> tuple[str, str]:
    """The text above the code, and the language, which a bar may tell; a bar is no text."""
    text = code_of(without(tags, "button", "svg"))
    bar = _BAR.fullmatch(code_of(without(tags, "svg")))
    if bar or (text.strip() and text.strip().lower() == language.lower()):
        return "", language or (bar[1] if bar else "")
    return text, language


def _text(text: str) -> list[Block]:
    return [Block("text", plain_paragraph(text))] if text.strip() else []
