"""One HTML file that needs nothing else: report.html.j2 with its style, script and figures.

All text is escaped. The own script and style are the only ones that a browser runs, by their
hashes in a Content-Security-Policy, and no part of the page may load anything from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from retinanet.tools.report.style import as_svg

# Template, style and script lie beside this file.
ASSETS = Path(__file__).parent
# Control characters and halves of surrogate pairs, which no document may hold.
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Column(NamedTuple):
    """How a column of a table is headed and shown."""

    title: str
    digits: int | None = None  # of its numbers, after the point; None: a column of text
    bar: float | None = None  # the number that a full bar beside it stands for; None: no bar
    meaning: str = ""  # shown when the pointer rests on the title


class Colored(NamedTuple):
    """A class name with the color that stands for it in the pictures."""

    text: str
    color: str


class Table(NamedTuple):
    """Rows that the reader can sort, and filter where there are many."""

    what: str  # what the rows are, in the plural
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | float | Colored | None]]
    sorted_by: str | None = None  # title of the column by which they come, the largest first


def render(**content: Any) -> str:
    """The document: text that depends on the content alone.

    Args:
        content: the variables of report.html.j2, as
            :func:`retinanet.tools.report.run_report.run_page` collects them.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": lambda share: f"{share:.1%}",
        "shade": lambda share: math.ceil(10 * share),  # 0 for nothing, then 1 to 10
        "source_hash": _source_hash,
    }
    document = environment.get_template("report.html.j2").render(
        style=Markup((ASSETS / "page.css").read_text("utf-8")),
        script=Markup((ASSETS / "page.js").read_text("utf-8")),
        **content,
    )
    return FORBIDDEN.sub("\ufffd", document)


def number(value: float | None, digits: int = 0) -> str:
    """A number for readers, with commas between thousands; ``n/a`` where it is not defined."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:,.{digits}f}"


def inline_svg(figure: Figure) -> Markup:
    """A figure as an ``<svg>`` element that the page's policy admits.

    The policy forbids style attributes: they become attributes of SVG.
    """
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", as_svg(figure), count=2)
    # In texts of users "<" is escaped, so none of them looks like the inside of a tag.
    return Markup(re.sub(r'(<[^<>]*) style="([^"]*)"', _as_attributes, svg))


def _as_attributes(tag: re.Match[str]) -> str:
    properties = (text.split(":", 1) for text in tag[2].split(";") if text.strip())
    return tag[1] + "".join(f' {name.strip()}="{value.strip()}"' for name, value in properties)


def _source_hash(text: str) -> Markup:
    """What a Content-Security-Policy knows a style or script by."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")
