"""Images with their boxes for a page: ground truth beside predictions, pixels embedded once."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow

from retinanet.data.coco import CocoData
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.report.boxes import Panel
from retinanet.tools.report.gallery import Box, Exhibit, Image, View
from retinanet.tools.report.page import Legend, Series
from retinanet.tools.report.pictures import NAME_LETTERS, choose_images, panels_of, read_pixels
from retinanet.tools.report.style import class_color, plain_text

# Images in a page, at most; with MOST_BYTES each, base64 makes 3.2 MB of twenty.
MOST_IMAGES = 12
# Of one embedded image, before base64, which adds a third.
MOST_BYTES = 120_000
# Longer side in pixels: half a wide screen, where two views lie beside each other.
LONGER_SIDE = 900
# JPEG qualities tried in turn, before a smaller size is.
QUALITIES = (88, 75, 60)


def exhibits_of(
    data: CocoData, detections: DetectionArrays, num_images: int
) -> tuple[list[Exhibit], Legend]:
    """The images of :func:`retinanet.tools.report.pictures.draw_predictions`, as exhibits.

    Args:
        data: images and ground truth; without annotations only predictions are shown.
        detections: what was found.
        num_images: of them at most ``MOST_IMAGES`` are shown.

    Returns:
        The exhibits, and the colors of the classes that are in them.
    """
    chosen = choose_images(data, detections, min(num_images, MOST_IMAGES))
    # As they are: a browser finds fonts by itself.
    names = [plain_text(name, NAME_LETTERS) for name in data.category_names]
    shown = [(index, panels_of(data, detections, index, names=names)) for index in chosen]
    colors = {box.color for _, panels in shown for panel in panels for box in panel.boxes}
    entries = [
        Series(name, color_of(label))
        for label, name in enumerate(data.category_names)
        if color_of(label) in colors
    ]
    return [_exhibit(data, *entry) for entry in shown], Legend(entries)


def color_of(label: int) -> str:
    """The color of a class in every picture, as ``#rrggbb``."""
    return class_color(label)


def _exhibit(data: CocoData, index: int, panels: Sequence[Panel]) -> Exhibit:
    image = image_of(data, index, panels[0].image)
    return Exhibit(image, data.file_name(index), [_view(data, panel) for panel in panels])


def image_of(data: CocoData, index: int, pixels: np.ndarray | None = None) -> Image:
    """An image of the data for a page; gray where the file is unreadable.

    Args:
        data: the images.
        index: of one.
        pixels: of it, (h, w, 3) uint8; None: they are read.
    """
    height, width = data.sizes[index].tolist()
    pixels = read_pixels(data, index) if pixels is None else pixels
    return Image(f"image-{index}", embed(pixels), width, height)


def _view(data: CocoData, panel: Panel) -> View:
    title = panel.title.rpartition("ground truth")
    boxes = []
    for (x1, y1, x2, y2), color, caption, style, _ in panel.boxes:
        dashed = "dashed" if style == "crowd" else ""
        boxes.append(Box(x1, y1, x2 - x1, y2 - y1, color, caption, dashed))
    return View((title[1] + title[2]).capitalize(), boxes)


def embed(pixels: np.ndarray) -> str:
    """A data URI of at most ``MOST_BYTES`` before base64, PNG or JPEG, whichever is smaller.

    Args:
        pixels: (h, w, 3) uint8.
    """
    picture = Pillow.fromarray(pixels)
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE))
    while True:
        # Level 3 of 9: the last tenth of the size takes ten times as long.
        png = _encoded(picture, "png", compress_level=3)
        for quality in QUALITIES:
            jpeg = _encoded(picture, "jpeg", quality=quality, optimize=True)
            kind, content = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
            if len(content) <= MOST_BYTES:
                return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        # Noise, which nothing makes small.
        picture = picture.resize([max(1, side // 2) for side in picture.size])


def _encoded(picture: Pillow.Image, kind: str, **how: int) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, format=kind, **how)
    return memory.getvalue()
