"""Boxes on images, and sheets of such images: ground truth and detections, drawn by Pillow."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData
from retinanet.data.images import BadImage, read_image
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import DEFAULT_SCORE
from retinanet.tools.report.style import BLACK, class_color, drawable_names, font_path, plain_text

# Detections below this score are not drawn.
DRAWN_SCORE = DEFAULT_SCORE
# Letters of the name of a class on a box, and of a file in a title.
NAME_LETTERS, FILE_LETTERS = 22, 40

# Widths of lines and heights of letters follow the side of a square as large as the image.
LINE, LETTERS = 1 / 250, 1 / 48
# Smaller letters cannot be read; pixels.
LEAST_LETTERS = 10
# Captions of one image: more would only hide it, as would those that cover more of a small one.
MAX_NAMED = 40
MOST_COVERED = 0.25  # share of the image
CAPTION_LETTERS = 40
# Captions are black on colors brighter than this, white on others; 0 to 1.
BRIGHT = 0.6

# Layout of a sheet, in pixels.
PANEL_WIDTH = 480
MAX_HEIGHT = 960  # higher images are drawn narrower
GAP = 10
TITLE_LETTERS, TITLE_LINE = 12, 16
MOST_TITLE = 200  # letters, before it is cut where its panel ends
HEADER = TITLE_LINE + 6  # of one line
ROWS_PER_SHEET = 4
# The pixels of an image enlarged by more than this are seen as they are.
PIXELATED = 3

# solid: an object. crowd: dashed and hatched. haloed: an object among thin boxes of its color.
# thin and dashed: what there are hundreds of, such as anchors.
Style = Literal["solid", "crowd", "haloed", "thin", "dashed"]


class Box(NamedTuple):
    """A box to be drawn."""

    corners: Sequence[float]  # x1, y1, x2, y2 in pixels of the file, finite
    color: str  # "#rrggbb"
    caption: str = ""
    style: Style = "solid"
    opacity: float = 1.0  # 0 to 1


class Panel(NamedTuple):
    """One image of a sheet with its boxes."""

    title: str
    image: np.ndarray  # (h, w, 3) uint8, maybe smaller than the file
    size: tuple[int, int]  # height, width of the file in pixels
    boxes: Sequence[Box]  # the last one on top


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> None:
    """Draw boxes on an RGB image, the last one on top, and their captions above all of them.

    The last ``MAX_NAMED`` boxes with a caption show it, as far as captions cover no more than
    ``MOST_COVERED`` of the image.
    """
    # Blending takes half as long again: only where something is not opaque.
    pen = ImageDraw.Draw(image, "RGBA" if any(box.opacity < 1 for box in boxes) else "RGB")
    area = image.width * image.height
    line = max(1, round(math.sqrt(area) * LINE))
    letters = max(LEAST_LETTERS, round(math.sqrt(area) * LETTERS))
    for box in boxes:
        _draw_box(pen, box, image.size, line)
    covered = 0
    captions = []
    for box in [box for box in boxes if box.caption][: -MAX_NAMED - 1 : -1]:
        text = plain_text(box.caption, CAPTION_LETTERS)
        font = font_for(text, letters)
        width = math.ceil(font.getlength(text)) + 2 * (letters // 6)
        height = sum(font.getmetrics())
        covered += width * height
        if covered > MOST_COVERED * area:
            break
        # Above the box or, without room there, inside; within the image.
        left, edge = round(box.corners[0] - line / 2), round(box.corners[1] - line / 2)
        top = edge - height if edge >= height else edge + line
        left = min(max(left, 0), max(image.width - width, 0))
        top = min(max(top, 0), max(image.height - height, 0))
        captions.append((box.color, text, font, (left, top, left + width - 1, top + height - 1)))
    for color, text, font, patch in reversed(captions):
        red, green, blue = ImageColor.getrgb(color)
        bright = (0.299 * red + 0.587 * green + 0.114 * blue) / 255 > BRIGHT  # Rec. 601
        pen.rectangle(patch, fill=color)
        at = patch[0] + letters // 6, patch[1]
        pen.text(at, text, fill="black" if bright else "white", font=font)


_font = functools.lru_cache(maxsize=64)(ImageFont.truetype)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font with the letters of a text, so many pixels high."""
    return _font(font_path(text) or font_path(""), size)


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], line: int) -> None:
    if box.style in ("thin", "dashed", "crowd"):
        line = max(1, line // 2)
    x1, y1, x2, y2 = box.corners
    left, right = _span(x1, x2, size[0], line)
    top, bottom = _span(y1, y2, size[1], line)
    color = (*ImageColor.getrgb(box.color), round(255 * box.opacity))
    if box.style == "haloed":
        around = (left - 1, top - 1, right + 1, bottom + 1)
        pen.rectangle(around, outline="white", width=line + 2)
    if box.style in ("solid", "haloed", "thin"):
        pen.rectangle((left, top, right, bottom), outline=color, width=line)
        return
    dash = 5 * line
    for x in range(left, right + 1, 2 * dash):
        for y in (top, bottom):
            pen.line((x, y, min(x + dash, right), y), fill=color, width=line)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, right):
            pen.line((x, y, x, min(y + dash, bottom)), fill=color, width=line)
    if box.style == "crowd":  # lines on which x + y is constant
        for total in range(left + top + 2 * dash, right + bottom, 2 * dash):
            start, end = max(left, total - bottom), min(right, total - top)
            pen.line((start, total - start, end, total - end), fill=color, width=line)


def _span(low: float, high: float, limit: int, line: int) -> tuple[int, int]:
    """First and last pixel of lines centered on two edges, of an image with ``limit`` pixels."""
    # Farther away than a side of the image, numbers would only overflow.
    low, high = (min(max(edge, -limit), 2 * limit) for edge in (low, high))
    first, last = round(low - line / 2), round(high + line / 2) - 1
    # A line on the border is pushed inside; one that lies beyond stays there, unseen.
    if -1 <= low <= limit + 1:
        first = min(max(first, 0), limit - 1)
    if -1 <= high <= limit + 1:
        last = min(max(last, 0), limit - 1)
    return first, max(first, last)


def draw_sheet(
    rows: Sequence[Sequence[Panel]], legend: Mapping[str, str | None] | None = None
) -> np.ndarray:
    """Panels in rows, each with its title.

    Args:
        rows: at least one, none of them empty. A row is as high as its highest panel.
        legend: what stands above all: texts and their colors, None for a text without one.

    Returns:
        (H, W, 3) uint8.
    """
    width = max(map(len, rows)) * (PANEL_WIDTH + GAP) + GAP
    strips = [] if legend is None else [_draw_legend(legend, width)]
    for row in rows:
        images = [_draw_panel(panel) for panel in row]
        titles = [panel.title.split("\n") for panel in row]
        header = HEADER + TITLE_LINE * (max(map(len, titles)) - 1)
        height = header + max(image.height for image in images) + GAP
        strip = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(strip)
        for column, (image, lines) in enumerate(zip(images, titles, strict=True)):
            left = GAP + column * (PANEL_WIDTH + GAP)
            strip.paste(image, (left, header))
            for above, line in enumerate(reversed(lines)):
                text = plain_text(line, MOST_TITLE)
                font = font_for(text, TITLE_LETTERS)
                while font.getlength(text) > PANEL_WIDTH:
                    text = text[:-4] + "..."
                pen.text((left, header - HEADER - above * TITLE_LINE + 4), text, BLACK, font)
        strips.append(np.asarray(strip))
    return np.concatenate(strips)


def _draw_panel(panel: Panel) -> Image.Image:
    """The image of a panel with its boxes, ``PANEL_WIDTH`` wide unless that makes it too high."""
    height, width = panel.size
    scale = min(PANEL_WIDTH / width, MAX_HEIGHT / height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    enlarged = size[0] / panel.image.shape[1] > PIXELATED
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC
    image = Image.fromarray(panel.image).resize(size, how)
    scales = np.array([size[0] / width, size[1] / height] * 2)
    boxes = [box._replace(corners=np.multiply(box.corners, scales).tolist()) for box in panel.boxes]
    draw_boxes(image, boxes)
    return image


def _draw_legend(legend: Mapping[str, str | None], width: int) -> np.ndarray:
    """Texts with their colors, on as many lines as they need."""
    strip = Image.new("RGB", (width, TITLE_LINE * (len(legend) + 1)), "white")
    pen = ImageDraw.Draw(strip)
    x, y = GAP, 5
    for text, color in legend.items():
        font = font_for(text, TITLE_LETTERS)
        swatch = 0 if color is None else TITLE_LETTERS + 6
        length = swatch + math.ceil(font.getlength(text))
        if x > GAP and x + length > width - GAP:
            x, y = GAP, y + TITLE_LINE
        if color is not None:
            pen.rectangle((x, y + 2, x + TITLE_LETTERS, y + 2 + TITLE_LETTERS), fill=color)
        pen.text((x + swatch, y), text, BLACK, font)
        x += length + 2 * GAP
    return np.asarray(strip)[: y + TITLE_LINE + 4]


def in_rows(panels: Sequence[Panel], columns: int) -> list[Sequence[Panel]]:
    """Panels in rows of so many; the last row may have fewer."""
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def write_sheets(
    rows: Iterable[Sequence[Panel]],
    folder: Path,
    stem: str,
    legend: Mapping[str, str | None] | None = None,
) -> tuple[list[Path], np.ndarray | None]:
    """Write ``STEM_1.png``, ..., with ``ROWS_PER_SHEET`` rows each.

    Args:
        rows: none of them empty; those of one sheet are in memory at a time.
        folder: made when missing; sheets of that name from an earlier call, perhaps more of them,
            are removed.
        stem: of the names.
        legend: see :func:`draw_sheet`.

    Returns:
        The files, and the first sheet, (H, W, 3) uint8; None when there are no rows.
    """
    for old in folder.glob(f"{stem}_*.png"):
        old.unlink()
    rows = iter(rows)
    written: list[Path] = []
    first = None
    while some := list(islice(rows, ROWS_PER_SHEET)):
        sheet = draw_sheet(some, legend)
        first = sheet if first is None else first
        written.append(folder / f"{stem}_{len(written) + 1}.png")
        save_picture(sheet, written[-1])
    return written, first


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 picture as PNG, whole or not at all."""
    memory = io.BytesIO()
    Image.fromarray(picture).save(memory, format="png")
    write_whole(path, memory.getvalue())


def draw_detections(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str],
    ids: Sequence[int],
    scores: Sequence[float] | np.ndarray,
) -> Image.Image:
    """An image with what was detected in it; the best on top.

    Args:
        image: (H, W, 3) uint8.
        boxes: (D, 4) x1, y1, x2, y2 in pixels of it.
        labels: (D,), which give the colors.
        names: D names of classes.
        ids: D category ids, which stand for names that no font can write.
        scores: (D,), the best first.

    Returns:
        A picture of the same size.
    """
    picture = Image.fromarray(image)
    rows = zip(np.asarray(boxes).tolist(), labels, drawable_names(names, ids), scores, strict=True)
    drawn = [
        Box(box, class_color(int(label)), caption(name, score)) for box, label, name, score in rows
    ]
    draw_boxes(picture, drawn[::-1])
    return picture


def draw_predictions(
    data: CocoData, detections: DetectionArrays, folder: Path, num_images: int
) -> np.ndarray | None:
    """Write ``predictions_1.png``, ...: detections beside the ground truth.

    Args:
        data: images and ground truth; without annotations only detections are drawn.
        detections: of it.
        folder: of the sheets; made when missing.
        num_images: images drawn, see :func:`choose_images`.

    Returns:
        The first sheet, (H, W, 3) uint8; None when there is no image to draw.
    """
    names = class_names(data)
    chosen = choose_images(data, detections, num_images)
    rows = (panels_of(data, detections, index, names) for index in chosen)
    return write_sheets(rows, folder, "predictions")[1]


def choose_images(data: CocoData, detections: DetectionArrays, num_images: int) -> list[int]:
    """Indices of evaluated images, evenly spread over those with objects if there are any.

    They are the same at every call with the same evaluated images.
    """
    evaluated = np.flatnonzero(np.isin(data.image_ids, detections.evaluated))
    with_objects = evaluated[data.num_boxes()[evaluated] > 0]
    return spread(with_objects if len(with_objects) else evaluated, num_images)


def spread(indices: np.ndarray, most: int) -> list[int]:
    """At most so many of some indices, at even distances."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // max(count, 1)].tolist()


def panels_of(
    data: CocoData, detections: DetectionArrays, index: int, names: Sequence[str]
) -> list[Panel]:
    """Ground truth (if the set has any) and detections of one image.

    Args:
        data: images and ground truth.
        detections: of it; those below ``DRAWN_SCORE`` are left out.
        index: of the image in ``data``.
        names: of the classes, as they are to stand on boxes.
    """
    image, size = read_pixels(data, index), tuple(data.sizes[index].tolist())
    rows = np.flatnonzero(detections.image_ids == data.image_ids[index])
    best = detections.scores[rows].max(initial=0)
    rows = rows[detections.scores[rows] >= DRAWN_SCORE][::-1]  # the best on top
    columns = (detections.boxes[rows], detections.labels[rows], detections.scores[rows])
    detected = [
        Box(corners(box), class_color(int(label)), caption(names[label], score))
        for box, label, score in zip(*columns, strict=True)
    ]
    title = f"predictions with score \u2265 {DRAWN_SCORE:g}: {len(rows)}"
    title += "" if len(rows) or not best else f", the best has {best:.2f}"
    panels = [Panel(title, image, size, detected)]
    if data.annotated:
        annotations = slice(*data.first[index : index + 2])
        file = plain_text(data.file_name(index), FILE_LETTERS)
        title = f"{file}, ground truth: {(~data.crowd[annotations]).sum()}"
        panels.insert(0, Panel(title, image, size, annotated_boxes(data, annotations, names)))
    return panels


def annotated_boxes(data: CocoData, rows: slice | Sequence[int], names: Sequence[str]) -> list[Box]:
    """Some annotations as boxes, named by :func:`class_names`; crowds are dashed and hatched."""
    boxes = []
    for box, k, crowd in zip(data.bbox[rows], data.labels[rows], data.crowd[rows], strict=True):
        text, style = (f"crowd: {names[k]}", "crowd") if crowd else (names[k], "solid")
        boxes.append(Box(corners(box), class_color(int(k)), text, style))
    return boxes


def corners(box: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 of x, y, width, height."""
    x, y, width, height = box.tolist()
    return [x, y, x + width, y + height]


def caption(name: str, score: float) -> str:
    """What stands on the box of a detection."""
    return f"{plain_text(name, NAME_LETTERS)} {float(score):.2f}"


def class_names(data: CocoData) -> list[str]:
    """Names of the classes as they stand on boxes."""
    names = drawable_names(data.category_names, data.category_ids)
    return [plain_text(name, NAME_LETTERS) for name in names]


def read_pixels(data: CocoData, index: int, *, whole: bool = False) -> np.ndarray:
    """(h, w, 3) pixels, of large files every n-th unless whole; gray where it is unreadable."""
    try:
        image = read_image(data.image_path(index)).permute(1, 2, 0).numpy()
    except (BadImage, FileNotFoundError):
        return np.full((*data.sizes[index], 3) if whole else (8, 8, 3), 128, np.uint8)
    step = 1 if whole else max(1, min(image.shape[:2]) // (2 * PANEL_WIDTH))
    return image[::step, ::step]
