"""One HTML file that needs nothing else: sections of prose, facts, tables, figures and galleries.

What is shown is decided elsewhere; here is how. All text is escaped. The own script and style are
the only ones that a browser runs, by their hashes in a Content-Security-Policy, and no part of the
page may load anything from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

# The page's style and script lie beside this file.
ASSETS = Path(__file__).parent
# A table with more rows gets a box to filter them by name, and scrolls in itself.
FILTERED_ROWS = 12
NOT_DEFINED = "n/a"


class Block(Protocol):
    """A part of a section."""

    def html(self) -> str:
        """As markup, escaped."""
        ...


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a line in plain words, and what is below."""

    title: str
    explanation: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A whole document."""

    title: str
    kind: str  # what is above the title, such as "Training run"
    lead: str  # a sentence below the title
    top: Sequence[Block]  # what comes before the first section
    sections: Sequence[Section]
    images: Sequence[Image] = ()  # that galleries refer to

    def html(self) -> str:
        """The document: UTF-8 text that depends on the content alone."""
        style, script = ((ASSETS / name).read_text("utf-8") for name in ("page.css", "page.js"))
        policy = (
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src {_hash(style)}; script-src {_hash(script)}"
        )
        ids = _ids([section.title for section in self.sections])
        links = "".join(
            f'<li><a href="#{name}">{escape(section.title)}</a></li>'
            for name, section in zip(ids, self.sections, strict=True)
        )
        sections = "\n".join(
            f'<section id="{name}">\n<h2>{escape(section.title)}</h2>\n'
            + f'<p class="how">{escape(section.explanation)}</p>\n'
            + "\n".join(block.html() for block in section.blocks)
            + "\n</section>"
            for name, section in zip(ids, self.sections, strict=True)
        )
        return _DOCUMENT.format(
            policy=escape(policy),
            title=escape(self.title),
            kind=escape(self.kind),
            lead=escape(self.lead),
            style=style,
            script=script,
            links=links,
            images="".join(image.html() for image in self.images),
            top="\n".join(block.html() for block in self.top),
            sections=sections,
        )


_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<svg class="images" width="0" height="0" aria-hidden="true"><defs>{images}</defs></svg>
<header>
<p class="kind">{kind}</p>
<h1><bdi>{title}</bdi></h1>
<p class="lead">{lead}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{top}
{sections}
</main>
<dialog id="enlarged" aria-label="Enlarged picture"></dialog>
<script>{script}</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Prose:
    """Paragraphs."""

    paragraphs: Sequence[str]

    def html(self) -> str:
        """As markup."""
        return "".join(f"<p>{escape(text)}</p>" for text in self.paragraphs)


@dataclass(frozen=True, slots=True)
class Notice:
    """A box that is seen first: a verdict, what to do, and what it rests on."""

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    severe: bool = True

    def html(self) -> str:
        """As markup."""
        points = "".join(f"<li>{escape(text)}</li>" for text in self.points)
        return (
            f'<aside class="notice{" severe" if self.severe else ""}">'
            f'<p class="verdict">{escape(self.title)}</p>'
            + Prose(self.paragraphs).html()
            + (f"<ul>{points}</ul>" if points else "")
            + "</aside>"
        )


class Tile(NamedTuple):
    """A number that stands for itself."""

    name: str
    value: float | None  # a fraction; None: not defined
    meaning: str


@dataclass(frozen=True, slots=True)
class Tiles:
    """Numbers at the top, the first one large."""

    tiles: Sequence[Tile]

    def html(self) -> str:
        """As markup."""
        cells = "".join(
            f"<div><dt>{escape(tile.name)}</dt><dd><strong>{number(tile.value, 3)}</strong>"
            f"<span>{escape(tile.meaning)}</span></dd></div>"
            for tile in self.tiles
        )
        return f'<dl class="tiles">{cells}</dl>'


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    facts: Sequence[tuple[str, str]]
    code: bool = False  # the values are typed, not written

    def html(self) -> str:
        """As markup."""
        tag = "code" if self.code else "span"
        rows = "".join(
            f"<div><dt>{escape(name)}</dt><dd><{tag}>{escape(value)}</{tag}></dd></div>"
            for name, value in self.facts
        )
        return f'<dl class="facts">{rows}</dl>'


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are seen after a click."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """As markup."""
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<details><summary>{escape(self.title)}</summary>{inside}</details>"


class Column(NamedTuple):
    """How a column of a table is headed and shown."""

    title: str
    digits: int | None = None  # after the point; None: text and whole numbers as they are
    bar: bool = False  # a bar behind fractions
    meaning: str = ""  # seen when the pointer rests on the title


class Colored(NamedTuple):
    """A text with the color that stands for it in the pictures."""

    text: str
    color: str


Cell = str | int | float | None | Colored


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are sorted by a click on a title; with many rows also filtered."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    what: str = "rows"  # what the rows are, in the plural

    def html(self) -> str:
        """As markup."""
        head = "".join(
            f'<th scope="col"{_kind(column, cells)}>'
            f'<button type="button"{_attribute("title", column.meaning)}>{escape(column.title)}'
            "</button></th>"
            for column, cells in zip(self.columns, self._cells(), strict=True)
        )
        body = "\n".join(
            "<tr>"
            + "".join(
                _cell(column, cell, first=place == 0)
                for place, (column, cell) in enumerate(zip(self.columns, row, strict=True))
            )
            + "</tr>"
            for row in self.rows
        )
        long = len(self.rows) > FILTERED_ROWS
        box = (
            f'<p class="filter" hidden><label>Filter {escape(self.what)} '
            f'<input type="search" autocomplete="off" spellcheck="false"></label> '
            f"<output>{len(self.rows)} of {len(self.rows)}</output></p>"
            if long
            else ""
        )
        return (
            f'<div class="sortable">{box}<div class="scroll{" long" if long else ""}" tabindex="0"'
            f' role="region" aria-label="{escape(self.what)}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div></div>"
        )

    def _cells(self) -> list[Sequence[Cell]]:
        return list(zip(*self.rows, strict=True)) or [()] * len(self.columns)


class Series(NamedTuple):
    """An entry of a legend."""

    name: str
    color: str


@dataclass(frozen=True, slots=True)
class Legend:
    """Colors and what they stand for."""

    series: Sequence[Series]

    def html(self) -> str:
        """As markup."""
        entries = "".join(f"<li>{_colored(*entry)}</li>" for entry in self.series)
        return f'<ul class="legend">{entries}</ul>'


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing of :mod:`retinanet.reports.charts` with its title and legend."""

    title: str
    svg: str  # markup, escaped by whoever drew it
    legend: Sequence[Series] = ()

    def html(self) -> str:
        """As markup."""
        legend = Legend(self.legend).html() if self.legend else ""
        return (
            f'<figure class="chart"><figcaption>{escape(self.title)}</figcaption>{self.svg}{legend}'
            "</figure>"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks beside each other where there is room."""

    blocks: Sequence[Block]

    def html(self) -> str:
        """As markup."""
        return f'<div class="row">{"".join(block.html() for block in self.blocks)}</div>'


class Image(NamedTuple):
    """Pixels that any number of views show, in the page once."""

    name: str  # the id, unique in the page
    uri: str  # data URI
    width: int  # of the coordinates in which boxes are given
    height: int

    def html(self) -> str:
        """As markup."""
        return (
            f'<image id="{self.name}" width="{self.width}" height="{self.height}" '
            f'preserveAspectRatio="none" href="{self.uri}"/>'
        )


class Box(NamedTuple):
    """A rectangle drawn over an image, in its coordinates."""

    x: float
    y: float
    width: float
    height: float
    color: str
    caption: str
    dashed: bool = False


class View(NamedTuple):
    """An image with some boxes."""

    title: str
    boxes: Sequence[Box]


class Exhibit(NamedTuple):
    """Views of one image, beside each other."""

    image: Image
    title: str
    views: Sequence[View]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Exhibits that a click enlarges."""

    exhibits: Sequence[Exhibit]

    def html(self) -> str:
        """As markup."""
        return f'<div class="gallery">{"".join(map(_exhibit, self.exhibits))}</div>'


def _exhibit(exhibit: Exhibit) -> str:
    views = "".join(
        f'<span class="view"><svg viewBox="0 0 {exhibit.image.width} {exhibit.image.height}" '
        f'role="img" aria-label="{escape(view.title)}"><use href="#{exhibit.image.name}"/>'
        f"{_boxes(view.boxes, exhibit.image)}</svg><span>{escape(view.title)}</span></span>"
        for view in exhibit.views
    )
    note = f"<span>{escape(exhibit.note)}</span>" if exhibit.note else ""
    return (
        f'<figure class="exhibit"><button type="button" class="views" '
        f'aria-label="Enlarge {escape(exhibit.title)}">{views}</button>'
        f"<figcaption><bdi>{escape(exhibit.title)}</bdi>{note}</figcaption></figure>"
    )


def _boxes(boxes: Sequence[Box], image: Image) -> str:
    """Rectangles, and above them the captions, whose size follows that of the image."""
    size = max(image.width, image.height) / CAPTIONS_PER_SIDE
    shapes = "".join(
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'stroke="{box.color}"{_attribute("class", "dashed" if box.dashed else "")}>'
        f"<title>{escape(box.caption)}</title></rect>"
        for box in boxes
    )
    texts = "".join(
        f'<text x="{max(box.x, 0) + 0.15 * size:.1f}" y="{_baseline(box, size):.1f}" '
        f'stroke="{box.color}">{escape(box.caption)}</text>'
        for box in boxes
        if box.caption
    )
    crowded = " crowded" if len(boxes) > FEW_BOXES else ""
    return f'<g>{shapes}</g><g class="captions{crowded}" font-size="{size:.2f}">{texts}</g>'


# Lines of captions that would fill the longer side of an image.
CAPTIONS_PER_SIDE = 30
# More boxes than this have captions in the enlarged picture only; they would hide the small one.
FEW_BOXES = 8


def _baseline(box: Box, size: float) -> float:
    """Above the box, or inside where there is no room above."""
    return box.y - 0.3 * size if box.y > 1.3 * size else max(box.y, 0) + size


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


def _cell(column: Column, cell: Cell, *, first: bool) -> str:
    """One cell; the first of a row heads it."""
    if isinstance(cell, str | Colored):
        inside = _colored(*cell) if isinstance(cell, Colored) else f"<bdi>{escape(cell)}</bdi>"
        return f'<th scope="row">{inside}</th>' if first else f"<td>{inside}</td>"
    shown = number(cell, column.digits)
    if shown == NOT_DEFINED:
        return f'<td class="number none">{shown}</td>'
    bar = _bar(cell) if column.bar else ""
    return f'<td class="number" data-value="{cell!r}">{bar}{shown}</td>'


def _bar(fraction: float) -> str:
    width = 100 * min(max(fraction, 0.0), 1.0)
    return (
        '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.1f}" height="1"/></svg>'
    )


def _colored(text: str, color: str) -> str:
    return (
        f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" '
        f'rx="2" fill="{color}"/></svg><bdi>{escape(text)}</bdi>'
    )


def _kind(column: Column, cells: Sequence[Cell]) -> str:
    numbers = column.digits is not None or any(isinstance(cell, int | float) for cell in cells)
    return ' class="number"' if numbers else ""


def _attribute(name: str, text: str) -> str:
    return f' {name}="{escape(text)}"' if text else ""


def _hash(text: str) -> str:
    """What a Content-Security-Policy knows a style or script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _ids(titles: Sequence[str]) -> list[str]:
    """A name for each heading that a link can lead to, no two the same."""
    found: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        found.append(f"{name}-{len(found) + 1}" if name in ("", *found) else name)
    return found
