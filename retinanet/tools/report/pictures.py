"""Pictures of detections: on one image at full size, and beside the ground truth on sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from retinanet.data.coco import CocoData
from retinanet.data.images import BadImage, read_image
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import DEFAULT_SCORE
from retinanet.tools.report.boxes import PANEL_WIDTH, Box, Panel, draw_boxes, write_sheets
from retinanet.tools.report.fonts import drawable_names
from retinanet.tools.report.style import class_color, plain_text

# Predictions below this score are not drawn.
DRAWN_SCORE = DEFAULT_SCORE
# Letters of the name of a class on a box, and of a file in a title.
NAME_LETTERS = 22
FILE_LETTERS = 40


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
    names = drawable_names(names, ids)
    rows = zip(np.asarray(boxes).tolist(), labels, names, scores, strict=True)
    drawn = [
        Box(box, class_color(int(label)), caption(name, float(score)))
        for box, label, name, score in rows
    ]
    draw_boxes(picture, drawn[::-1])
    return picture


def draw_predictions(
    data: CocoData,
    detections: DetectionArrays,
    folder: Path,
    num_images: int,
    min_score: float = DRAWN_SCORE,
) -> np.ndarray | None:
    """Write ``predictions_1.png``, ...: predictions beside the ground truth.

    The images are the same at every call with the same evaluated images: they are spread evenly
    over those with objects.

    Args:
        data: images and ground truth; without annotations only predictions are drawn.
        detections: from :func:`retinanet.evaluation.detect.detect`.
        folder: of the sheets; made when missing.
        num_images: images drawn; 0 for none.
        min_score: weaker predictions are left out.

    Returns:
        The first sheet, (H, W, 3) uint8, for TensorBoard; None when there is no image to draw.
    """
    chosen = choose_images(data, detections, num_images)
    rows = (panels_of(data, detections, index, min_score) for index in chosen)
    return write_sheets(rows, folder, "predictions")[1]


def choose_images(data: CocoData, detections: DetectionArrays, num_images: int) -> list[int]:
    """Indices of evaluated images, evenly spread over those with objects if there are any."""
    evaluated = np.flatnonzero(np.isin(data.image_ids, detections.evaluated))
    with_objects = evaluated[data.num_boxes()[evaluated] > 0]
    return spread(with_objects if len(with_objects) else evaluated, num_images)


def spread(indices: np.ndarray, most: int) -> list[int]:
    """At most so many of some indices, at even distances."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // max(count, 1)].tolist()


def panels_of(
    data: CocoData,
    detections: DetectionArrays,
    index: int,
    min_score: float = DRAWN_SCORE,
    names: Sequence[str] | None = None,
) -> list[Panel]:
    """Ground truth (if the set has any) and predictions of one image.

    Args:
        data: images and ground truth.
        detections: of it.
        index: of the image in ``data``.
        min_score: weaker predictions are left out.
        names: of the classes, as they are to stand on boxes; None: :func:`class_names`.
    """
    image, size = read_pixels(data, index), tuple(data.sizes[index].tolist())
    names = class_names(data) if names is None else names
    rows = np.flatnonzero(detections.image_ids == data.image_ids[index])
    best = detections.scores[rows].max(initial=0)
    rows = rows[detections.scores[rows] >= min_score][::-1]  # the best on top
    columns = (detections.boxes[rows], detections.labels[rows], detections.scores[rows])
    predicted = [
        Box(corners(box), class_color(int(label)), caption(names[label], score))
        for box, label, score in zip(*columns, strict=True)
    ]
    title = f"predictions with score \u2265 {min_score:g}: {len(rows)}"
    title += "" if len(rows) or not best else f", the best has {best:.2f}"
    panels = [Panel(title, image, size, predicted)]
    if data.annotated:
        annotations = slice(*data.first[index : index + 2])
        objects = annotated_boxes(data, annotations, names)
        file = plain_text(data.file_name(index), FILE_LETTERS)
        title = f"{file}, ground truth: {(~data.crowd[annotations]).sum()}"
        panels.insert(0, Panel(title, image, size, objects))
    return panels


def annotated_boxes(data: CocoData, rows: slice | Sequence[int], names: Sequence[str]) -> list[Box]:
    """Annotations of a data set as boxes; crowds are dashed and hatched.

    Args:
        data: the data set.
        rows: of its annotations.
        names: of its classes, from :func:`class_names`.
    """
    columns = (data.bbox[rows], data.labels[rows], data.crowd[rows])
    return [
        Box(
            corners(box),
            class_color(int(label)),
            f"crowd: {names[label]}" if crowd else names[label],
            "crowd" if crowd else "solid",
        )
        for box, label, crowd in zip(*columns, strict=True)
    ]


def corners(box: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 of x, y, width, height."""
    x, y, width, height = box.tolist()
    return [x, y, x + width, y + height]


def caption(name: str, score: float) -> str:
    """What stands on the box of a detection."""
    return f"{plain_text(name, NAME_LETTERS)} {score:.2f}"


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
    if whole:
        return image
    step = max(1, min(image.shape[:2]) // (2 * PANEL_WIDTH))
    return image[::step, ::step]
