"""One HTML file that needs nothing else: report.html.j2 with its style, script and figures.

All text is escaped. The own script and style are the only ones that a browser runs, by their
hashes in a Content-Security-Policy, and no part of the page may load anything from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from retinanet.data.coco import CocoData
from retinanet.tools.report.boxes import Box
from retinanet.tools.report.style import BLACK, house_style

# Template, style and script lie beside this file.
ASSETS = Path(__file__).parent
# Control characters and halves of surrogate pairs, which no document may hold.
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# Of one embedded image, before base64, which adds a third: 3.2 MB of twenty images.
MOST_BYTES = 120_000
# Longer side in pixels: half a wide screen, where two views lie beside each other.
LONGER_SIDE_PIXELS = 900
# JPEG qualities tried in turn, before a smaller size is.
QUALITIES = (88, 75, 60)


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


class Exhibit(NamedTuple):
    """Views of one image, beside each other: a title and boxes each. Its pixels are in it once."""

    name: str  # the id of the image, unique in the page
    uri: str  # data URI
    width: int  # of the coordinates in which boxes are given
    height: int
    title: str
    views: Sequence[tuple[str, Sequence[Box]]]
    note: str = ""


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

    def source_hash(text: str) -> Markup:
        """What a Content-Security-Policy knows a style or script by."""
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return Markup(f"'sha256-{digest}'")

    environment.filters |= {
        "number": number,
        "percent": lambda share: f"{share:.1%}",
        "shade": lambda share: math.ceil(10 * share),  # 0 for nothing, then 1 to 10
        "source_hash": source_hash,
    }
    document = environment.get_template("report.html.j2").render(
        style=Markup((ASSETS / "page.css").read_text("utf-8")),
        script=Markup((ASSETS / "page.js").read_text("utf-8")),
        **content,
    )
    return FORBIDDEN.sub("\ufffd", document)


def number(value: float | None, digits: int = 0) -> str:
    """A number for readers, with commas between thousands; ``n/a`` where it is not defined."""
    return "n/a" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


@house_style()
def inline_svg(figure: Figure) -> Markup:
    """A figure as an ``<svg>`` element that the page's policy admits; the same figure, same text.

    It has no background, and what is BLACK takes the color of the text around it, so that it can
    be read on light and on dark pages. No id in it occurs in the element of another figure.
    """
    memory = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(memory, format="svg", dpi=200, transparent=True, metadata=no_metadata)
    svg = memory.getvalue()
    svg = svg[svg.index("<svg ") :].replace(BLACK, "currentColor")
    # Letters in the page's own font, and no rule that would hold for the whole page.
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin: round" ', 1)
    prefix = "figure-" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg, count=2)

    def as_attributes(tag: re.Match[str]) -> str:
        properties = (text.split(":", 1) for text in tag[2].split(";") if text.strip())
        return tag[1] + "".join(f' {name.strip()}="{text.strip()}"' for name, text in properties)

    # The policy forbids style attributes. In texts of users "<" is escaped, so none of them looks
    # like the inside of a tag.
    return Markup(re.sub(r'(<[^<>]*) style="([^"]*)"', as_attributes, svg))


def exhibit(
    data: CocoData,
    index: int,
    pixels: np.ndarray,
    views: Sequence[tuple[str, Sequence[Box]]],
    note: str = "",
) -> Exhibit:
    """The image of the data with an index, from its (h, w, 3) pixels, maybe fewer than the file."""
    height, width = data.sizes[index].tolist()
    return Exhibit(
        f"image-{index}", embed(pixels), width, height, data.file_name(index), views, note
    )


def embed(pixels: np.ndarray) -> str:
    """A data URI of at most ``MOST_BYTES`` before base64, PNG or JPEG, whichever is smaller.

    Args:
        pixels: (h, w, 3) uint8.
    """

    def encoded(kind: str, **how: int) -> bytes:
        memory = io.BytesIO()
        picture.save(memory, format=kind, **how)
        return memory.getvalue()

    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGER_SIDE_PIXELS, LONGER_SIDE_PIXELS))
    while True:
        # Level 3 of 9: the last tenth of the size takes ten times as long.
        png = encoded("png", compress_level=3)
        for quality in QUALITIES:
            jpeg = encoded("jpeg", quality=quality, optimize=True)
            kind, content = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
            if len(content) <= MOST_BYTES:
                return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        # Noise, which nothing makes small.
        picture = picture.resize([max(1, side // 2) for side in picture.size])
