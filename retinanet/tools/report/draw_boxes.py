"""Boxes drawn on photos at their full resolution, in the colors of the sheets."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from retinanet.tools.report.fonts import drawable_names, font_path
from retinanet.tools.report.pictures import MAX_NAMED, caption, class_color

# Widths of lines and heights of letters follow the side of a square as large as the photo.
LINE = 1 / 320
LETTERS = 1 / 42
# Smaller letters cannot be read, thinner lines not be seen; pixels.
LEAST_LETTERS = 10
LEAST_LINE = 1
# Captions are black on colors brighter than this, white on others; 0 to 1.
BRIGHT = 0.6
# Share of a photo that captions may cover; on small ones with many boxes only the best have one.
MOST_COVERED = 0.25
# JPEG allows no longer side; pixels. Source: libjpeg, JPEG_MAX_DIMENSION.
LONGEST_SIDE = 65_500


class Sign(NamedTuple):
    """A caption on its patch."""

    text: str
    font: ImageFont.FreeTypeFont
    gap: int  # from the left of the patch to the text, pixels
    left: int
    top: int
    wide: int
    high: int


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str],
    ids: Sequence[int],
    scores: Sequence[float] | np.ndarray,
) -> Image.Image:
    """A photo with what was found in it; the best on top.

    Args:
        image: (H, W, 3) uint8.
        boxes: (D, 4) x1, y1, x2, y2 in pixels of it.
        labels: (D,), which give the colors.
        names: D names of classes.
        ids: D category ids, which stand for names that no font can write.
        scores: (D,), the best first. The best ``MAX_NAMED`` have a caption, as far as captions
            cover no more than ``MOST_COVERED`` of the photo.

    Returns:
        A picture of the same size.
    """
    picture = Image.fromarray(image)
    boxes, colors = np.asarray(boxes).tolist(), [_color(int(label)) for label in labels]
    pen = ImageDraw.Draw(picture)
    side = math.sqrt(image.shape[0] * image.shape[1])
    line = max(LEAST_LINE, round(side * LINE))
    for box, color in reversed(list(zip(boxes, colors, strict=True))):
        _draw_box(pen, box, color, line)
    pairs = zip(drawable_names(names, ids), scores, strict=True)
    texts = [caption(name, float(score)) for name, score in pairs]
    letters = max(LEAST_LETTERS, round(side * LETTERS))
    signs = [
        _place_sign(picture.size, box, text, letters, line)
        for box, text in zip(boxes[:MAX_NAMED], texts, strict=False)
    ]
    covered = np.cumsum([sign.wide * sign.high for sign in signs])
    shown = int((covered <= MOST_COVERED * side**2).sum())
    for sign, color in reversed(list(zip(signs[:shown], colors, strict=False))):
        _draw_sign(pen, sign, color)
    return picture


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.cache
def _color(label: int) -> tuple[int, int, int]:
    """0 to 255."""
    red, green, blue = (round(255 * part) for part in to_rgb(class_color(label)))
    return red, green, blue


def _draw_box(
    pen: ImageDraw.ImageDraw, box: Sequence[float], color: tuple[int, int, int], line: int
) -> None:
    """Lines along the edges of a box, pushed into the picture where the box ends at its border."""
    width, height = pen.im.size
    x1, y1, x2, y2 = box
    left, right = _span(x1, x2, width, line)
    top, bottom = _span(y1, y2, height, line)
    pen.rectangle((left, top, right, bottom), outline=color, width=line)


def _span(low: float, high: float, limit: int, line: int) -> tuple[int, int]:
    """First and last pixel of lines that are centered on two edges."""
    first = min(max(round(low - line / 2), 0), limit - 1)
    last = min(max(round(high + line / 2) - 1, first), limit - 1)
    return first, last


def _place_sign(
    size: tuple[int, int], box: Sequence[float], text: str, letters: int, line: int
) -> Sign:
    """A caption above its box, or inside where there is no room above; within the picture."""
    font = _font(font_path(text) or font_path(""), letters)
    gap = max(1, letters // 6)
    wide, high = math.ceil(font.getlength(text)) + 2 * gap, sum(font.getmetrics())
    width, height = size
    left = min(max(round(box[0] - line / 2), 0), max(width - wide, 0))
    top = round(box[1] - line / 2) - high
    if top < 0:
        top = min(max(round(box[1] + line / 2), 0), max(height - high, 0))
    return Sign(text, font, gap, left, top, wide, high)


def _draw_sign(pen: ImageDraw.ImageDraw, sign: Sign, color: tuple[int, int, int]) -> None:
    """A caption on a patch of its color."""
    left, top = sign.left, sign.top
    pen.rectangle((left, top, left + sign.wide - 1, top + sign.high - 1), fill=color)
    red, green, blue = color
    bright = (0.299 * red + 0.587 * green + 0.114 * blue) / 255  # Rec. 601
    ink = (0, 0, 0) if bright > BRIGHT else (255, 255, 255)
    pen.text((left + sign.gap, top), sign.text, fill=ink, font=sign.font)
