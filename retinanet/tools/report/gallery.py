"""Images of the page with their boxes: predictions beside ground truth, pixels embedded once."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from retinanet.data.coco import CocoData
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.report.boxes import Box
from retinanet.tools.report.page import Colored
from retinanet.tools.report.pictures import DRAWN_SCORE, NAME_LETTERS, choose_images, panels_of
from retinanet.tools.report.style import class_color, plain_text

# Images in a page, at most; with MOST_BYTES each, base64 makes 3.2 MB of twenty.
MOST_IMAGES = 12
# Of one embedded image, before base64, which adds a third.
MOST_BYTES = 120_000
# Longer side in pixels: half a wide screen, where two views lie beside each other.
LONGER_SIDE = 900
# JPEG qualities tried in turn, before a smaller size is.
QUALITIES = (88, 75, 60)


class Image(NamedTuple):
    """Pixels that any number of views show."""

    name: str  # the id, unique in the page
    uri: str  # data URI
    width: int  # of the coordinates in which boxes are given
    height: int


class Exhibit(NamedTuple):
    """Views of one image, beside each other: a title and boxes each."""

    image: Image
    title: str
    views: Sequence[tuple[str, Sequence[Box]]]
    note: str = ""


def prediction_gallery(
    data: CocoData, detections: DetectionArrays, num_images: int
) -> tuple[list[Exhibit], list[Colored]]:
    """The images of :func:`retinanet.tools.report.pictures.draw_predictions`, for the page.

    Args:
        data: images and ground truth; without annotations only predictions are shown.
        detections: from :func:`retinanet.evaluation.detect.detect`.
        num_images: of them at most ``MOST_IMAGES`` are shown.

    Returns:
        The images, and the names and colors of the classes in them.
    """
    # As they are: a browser finds fonts by itself.
    names = [plain_text(name, NAME_LETTERS) for name in data.category_names]
    exhibits, labels = [], set()
    for index in choose_images(data, detections, min(num_images, MOST_IMAGES)):
        panels = panels_of(data, detections, index, names=names)
        image = image_of(data, index, panels[0].image)
        # The titles without the name of the file, which the exhibit has.
        titles = [panel.title[max(panel.title.rfind("ground truth: "), 0) :] for panel in panels]
        views = [
            (title.capitalize(), panel.boxes) for title, panel in zip(titles, panels, strict=True)
        ]
        exhibits.append(Exhibit(image, data.file_name(index), views))
        shown = (detections.image_ids == data.image_ids[index]) & (detections.scores >= DRAWN_SCORE)
        annotated = data.labels[slice(*data.first[index : index + 2])]
        labels |= {*annotated.tolist(), *detections.labels[shown].tolist()}
    return exhibits, [Colored(data.category_names[i], class_color(i)) for i in sorted(labels)]


def image_of(data: CocoData, index: int, pixels: np.ndarray) -> Image:
    """An image of the data for the page.

    Args:
        data: the images.
        index: of the image.
        pixels: of it, (h, w, 3) uint8, maybe smaller than the file.
    """
    height, width = data.sizes[index].tolist()
    return Image(f"image-{index}", embed(pixels), width, height)


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
