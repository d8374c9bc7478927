"""What a detector gets wrong, as pictures: the worst images, and annotations that may be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from retinanet.data.coco import CocoData
from retinanet.evaluation.matched import Matched
from retinanet.tools.diagnose.analyze import Analysis
from retinanet.tools.diagnose.errors import KINDS, MISSED, NO_ERROR
from retinanet.tools.diagnose.worst import NOT_SEEN, OTHER_CLASS, UNLABELLED, ImageErrors, Suspect
from retinanet.tools.report.boxes import Box, Panel, in_rows, write_sheets
from retinanet.tools.report.figures import KIND_COLORS, RIGHT_COLOR
from retinanet.tools.report.pictures import (
    FILE_LETTERS,
    caption,
    class_names,
    corners,
    read_pixels,
)
from retinanet.tools.report.style import GRAY, plain_text

SUSPECTS_PER_ROW = 3
# A suspicious box is shown with so many times its side, and never less than so many pixels.
CONTEXT, LEAST_CROP = 3.0, 96
CROP_RATIO = 3 / 4  # height / width
TITLES = {UNLABELLED: "not annotated?", OTHER_CLASS: "another class?", NOT_SEEN: "not detected:"}
SUSPECT_COLORS = {
    UNLABELLED: KIND_COLORS["background"],
    OTHER_CLASS: KIND_COLORS["class"],
    NOT_SEEN: KIND_COLORS["missed"],
}
MISSED_COLOR = KIND_COLORS[KINDS[MISSED]]


def draw_worst(data: CocoData, analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``worst_1.png``, ...: ground truth beside detections, colored by what they are.

    Args:
        data: what was analyzed.
        analysis: of it.
        folder: of the sheets; sheets of an earlier analysis are removed.

    Returns:
        The files.
    """
    rows = (_worst_panels(data, analysis, image) for image in analysis.worst)
    legend = {"right": RIGHT_COLOR, **KIND_COLORS, "other objects": GRAY}
    return write_sheets(rows, folder, "worst", legend)[0]


def _worst_panels(data: CocoData, analysis: Analysis, worst: ImageErrors) -> list[Panel]:
    """Ground truth, missed objects colored, and detections, colored by kind, of one image."""
    matched, errors = analysis.matched, analysis.errors
    truth, detections, names = matched.truth, matched.detections, class_names(data)
    place = np.searchsorted(matched.image_ids, worst.image_id)
    image, size = read_pixels(data, worst.index), tuple(data.sizes[worst.index].tolist())

    objects = np.flatnonzero(truth.image == place)
    missed = errors.missed_at_score[objects]
    file = plain_text(worst.file_name, FILE_LETTERS)
    title = f"{file}, ground truth: {len(objects)}, missed: {missed.sum()}"
    boxes = [
        Box(corners(truth.box[g]), MISSED_COLOR if lost else GRAY, names[truth.label[g]])
        for g, lost in zip(objects, missed, strict=True)
    ]
    objects_panel = Panel(title, image, size, boxes)

    shown = (detections.image == place) & (matched.scores >= errors.score) & ~matched.ignored
    shown = np.flatnonzero(shown)
    wrong = errors.kind[shown] != NO_ERROR
    # Errors above what is right, and of each the best on top.
    boxes = []
    for d in shown[np.lexsort((matched.scores[shown], wrong))]:
        kind = errors.kind[d]
        color = RIGHT_COLOR if kind == NO_ERROR else KIND_COLORS[KINDS[kind]]
        text = caption(names[detections.label[d]], matched.scores[d])
        boxes.append(Box(corners(detections.box[d]), color, text))
    title = f"score \u2265 {errors.score:.2f}: {len(shown)}, wrong: {wrong.sum()}"
    return [objects_panel, Panel(title, image, size, boxes)]


def draw_suspects(data: CocoData, analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``suspects_unlabelled_1.png`` and the like: boxes where annotations may be wrong.

    Args:
        data: what was analyzed.
        analysis: of it.
        folder: of the sheets; sheets of an earlier analysis are removed.

    Returns:
        The files.
    """
    written = []
    for reason in TITLES:
        panels = [
            _suspect_panel(data, analysis.matched, suspect)
            for suspect in analysis.suspects
            if suspect.reason == reason
        ]
        rows = in_rows(panels, SUSPECTS_PER_ROW)
        legend = {"this place": SUSPECT_COLORS[reason], "annotated object": GRAY}
        written += write_sheets(rows, folder, f"suspects_{reason}", legend)[0]
    return written


def _suspect_panel(data: CocoData, matched: Matched, suspect: Suspect) -> Panel:
    """The box, and what is annotated around it."""
    image, corner = _crop(data, suspect)
    truth, names = matched.truth, class_names(data)
    objects = np.flatnonzero(truth.image == np.searchsorted(matched.image_ids, suspect.image_id))
    if suspect.reason == NOT_SEEN:  # it is one of them
        objects = objects[(truth.box[objects] != suspect.box).any(axis=1)]
    offset = np.array([*corner, 0, 0])
    boxes = [Box(corners(truth.box[g] - offset), GRAY, names[truth.label[g]]) for g in objects]
    height, width = image.shape[:2]
    boxes = [
        box
        for box in boxes
        if box.corners[0] < width and box.corners[1] < height and min(box.corners[2:]) > 0
    ]
    name = plain_text(suspect.found or suspect.annotated or "", 22)
    name += "" if suspect.score is None else f" {suspect.score:.2f}"
    color = SUSPECT_COLORS[suspect.reason]
    boxes.append(Box(corners(np.array(suspect.box) - offset), color, name))
    instead = "" if suspect.reason != OTHER_CLASS else f" on {plain_text(suspect.annotated, 14)}"
    title = f"{TITLES[suspect.reason]} {name}{instead}, {plain_text(suspect.file_name, 32)}"
    return Panel(title, image, (height, width), boxes)


def _crop(data: CocoData, suspect: Suspect) -> tuple[np.ndarray, np.ndarray]:
    """A part of the image of fixed shape around the place, and (2,) its corner in the file.

    What would lie outside the image is white.
    """
    image = read_pixels(data, suspect.index, whole=True)
    x, y, w, h = suspect.box
    width = int(max(CONTEXT * w, CONTEXT * h / CROP_RATIO, LEAST_CROP))
    # No more than shows the whole image.
    width = min(width, int(max(image.shape[1], image.shape[0] / CROP_RATIO)) + 1)
    side = np.array([width, round(CROP_RATIO * width)])
    room = np.array(image.shape[1::-1]) - side
    corner = (np.array([x + w / 2, y + h / 2]) - side / 2).astype(int)
    corner = np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))
    part = Image.new("RGB", tuple(side.tolist()), "white")
    part.paste(Image.fromarray(image), tuple((-corner).tolist()))
    return np.asarray(part), corner
