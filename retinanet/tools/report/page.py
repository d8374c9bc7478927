"""One HTML file that needs nothing else: sections of prose, facts, tables, figures and galleries.

What is shown is decided elsewhere; here is how. All text is escaped. The own script and style are
the only ones that a browser runs, by their hashes in a Content-Security-Policy, and no part of the
page may load anything from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from retinanet.tools.report.gallery import Image
from retinanet.tools.report.markup import colored, escape, number

# The page's style and script lie beside this file.
ASSETS = Path(__file__).parent


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
    typed: bool = False  # as on a keyboard, short, in several columns

    def html(self) -> str:
        """As markup."""
        tag = "code" if self.typed else "span"
        rows = "".join(
            f"<div><dt>{escape(name)}</dt><dd><{tag}>{escape(value)}</{tag}></dd></div>"
            for name, value in self.facts
        )
        return f'<dl class="facts{" typed" if self.typed else ""}">{rows}</dl>'


@dataclass(frozen=True, slots=True)
class Code:
    """A command, as it is typed."""

    text: str

    def html(self) -> str:
        """As markup."""
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are seen after a click."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """As markup."""
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<details><summary>{escape(self.title)}</summary>{inside}</details>"


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
        entries = "".join(f"<li>{colored(*entry)}</li>" for entry in self.series)
        return f'<ul class="legend">{entries}</ul>'


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing of :mod:`retinanet.tools.report.charts` with its title and legend."""

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
