"""HTML and SVG elements from Python calls, with every attribute and every piece of text escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

# HTML elements without an end tag; SVG's empty ones are closed like any other.
_VOID = ("meta", "br")


class Markup(str):
    """Text that is markup already. Only `tag` and `join` make it, so plain text cannot slip in unescaped."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """`tag("td", "5 < 6", class_="n")` -> `<td class="n">5 &lt; 6</td>`; `x_y` becomes `x-y`."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    given = "".join(
        f' {names[key]}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Sequence[str]) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def _text(value: object) -> str:
    """Numbers short: a hundredth of a pixel is not visible."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
