"""Images of a page with boxes drawn over them, enlarged by a click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retinanet.tools.report.markup import attribute, escape

# Lines of captions that would fill the longer side of an image.
CAPTIONS_PER_SIDE = 30
# More boxes than this have captions in the enlarged picture only; they would hide the small one.
FEW_BOXES = 8


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
    style: str = ""  # "dashed", "pale" or as usual


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
        f'stroke="{box.color}"{attribute("class", box.style)}>'
        f"<title>{escape(box.caption)}</title></rect>"
        for box in boxes
    )
    texts = "".join(
        f'<text x="{max(box.x, 0) + 0.15 * size:.1f}" y="{_baseline(box, size):.1f}" '
        f'stroke="{box.color}">{escape(box.caption)}</text>'
        for box in boxes
        if box.caption and box.style != "pale"
    )
    crowded = " crowded" if sum(box.style != "pale" for box in boxes) > FEW_BOXES else ""
    return f'{shapes}<g font-size="{size:.2f}"><g class="captions{crowded}">{texts}</g></g>'


def _baseline(box: Box, size: float) -> float:
    """Above the box, or inside where there is no room above."""
    return box.y - 0.3 * size if box.y > 1.3 * size else max(box.y, 0) + size
