"""Text and numbers as parts of an HTML page."""

from __future__ import annotations

import html
import math
import re

NOT_DEFINED = "n/a"


def escape(text: str) -> str:
    """Text as it may stand anywhere in the markup, attributes included.

    Control characters and halves of surrogate pairs, which no document may hold, become U+FFFD.
    """
    return html.escape(_FORBIDDEN.sub("\ufffd", text), quote=True)


_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def number(value: float | None, digits: int | None) -> str:
    """A number for readers: fixed digits, or whole with commas; ``n/a`` where not defined."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOT_DEFINED
    return f"{value:,}" if digits is None else f"{value:,.{digits}f}"


def colored(text: str, color: str) -> str:
    """A text behind a patch of its color, ``#rrggbb``."""
    return (
        f'<span class="colored"><svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
        f'<rect width="10" height="10" rx="2" fill="{color}"/></svg>'
        f"<bdi>{escape(text)}</bdi></span>"
    )


def attribute(name: str, text: str) -> str:
    """An attribute of an element; none where the text is empty."""
    return f' {name}="{escape(text)}"' if text else ""
