"""What a detector gets wrong, as pictures: the worst images, and annotations that may be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.matched import Matched
from retinanet.tools.diagnose.analyze import Analysis
from retinanet.tools.diagnose.errors import KINDS, MISSED, NO_ERROR
from retinanet.tools.diagnose.worst import NOT_SEEN, OTHER_CLASS, UNLABELLED, ImageErrors, Suspect
from retinanet.tools.report.figures import KIND_COLORS, RIGHT_COLOR
from retinanet.tools.report.pictures import Panel, class_names, read_pixels, write_sheets
from retinanet.tools.report.style import GRAY, plain_text

SUSPECTS_PER_ROW = 3
# A suspicious place is shown with so many times its side, and never less than so many pixels.
CONTEXT, LEAST_CROP = 3.0, 96
CROP_RATIO = 3 / 4  # height / width
TITLES = {UNLABELLED: "not annotated?", OTHER_CLASS: "another class?", NOT_SEEN: "nothing found:"}
SUSPECT_COLORS = {
    UNLABELLED: KIND_COLORS["background"],
    OTHER_CLASS: KIND_COLORS["class"],
    NOT_SEEN: KIND_COLORS["missed"],
}
# Fills the last row of a sheet.
EMPTY = Panel(
    title="",
    image=np.full((3, 4, 3), 255, np.uint8),
    size=(3, 4),
    boxes=np.zeros((0, 4)),
    labels=np.zeros(0, int),
    captions=(),
    crowd=np.zeros(0, bool),
)


def draw_worst(data: CocoData, analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``worst_1.png``, ...: ground truth beside detections, colored by what they are.

    Args:
        data: what was analyzed.
        analysis: of it.
        folder: of the sheets; sheets of an earlier analysis are removed.

    Returns:
        The files.
    """
    rows = [_worst_panels(data, analysis, image) for image in analysis.worst]
    legend = {"right": RIGHT_COLOR, **KIND_COLORS, "other objects": GRAY}
    return write_sheets(rows, folder, "worst", legend)[0]


def _worst_panels(data: CocoData, analysis: Analysis, worst: ImageErrors) -> list[Panel]:
    """Ground truth, missed objects colored, and detections, colored by kind, of one image."""
    matched, errors = analysis.matched, analysis.errors
    place = int(np.searchsorted(matched.image_ids, worst.image_id))
    names = class_names(data)
    image, size = read_pixels(data, worst.index), tuple(data.sizes[worst.index].tolist())
    objects = np.flatnonzero(matched.truth.image == place)
    missed = errors.missed_at_score[objects]
    truth = Panel(
        title=f"{plain_text(worst.file_name, 40)}, ground truth: {len(objects)}, "
        f"missed: {missed.sum()}",
        image=image,
        size=size,
        boxes=matched.truth.box[objects],
        labels=matched.truth.label[objects],
        captions=[names[label] for label in matched.truth.label[objects]],
        crowd=np.zeros(len(objects), bool),
        colors=[KIND_COLORS[KINDS[MISSED]] if lost else GRAY for lost in missed],
    )
    mine = matched.found.image == place
    mine &= (matched.scores >= errors.score) & ~matched.ignored
    found = np.flatnonzero(mine)
    # Errors above what is right, and of each the best on top.
    found = found[np.lexsort((matched.scores[found], errors.kind[found] != NO_ERROR))]
    wrong = int((errors.kind[found] != NO_ERROR).sum())
    predicted = Panel(
        title=f"score \u2265 {errors.score:.2f}: {len(found)}, wrong: {wrong}",
        image=image,
        size=size,
        boxes=matched.found.box[found],
        labels=matched.found.label[found],
        captions=[f"{names[matched.found.label[d]]} {matched.scores[d]:.2f}" for d in found],
        crowd=np.zeros(len(found), bool),
        colors=[_color(errors.kind[d]) for d in found],
    )
    return [truth, predicted]


def _color(kind: int) -> str:
    return RIGHT_COLOR if kind == NO_ERROR else KIND_COLORS[KINDS[kind]]


def draw_suspects(data: CocoData, analysis: Analysis, folder: Path) -> list[Path]:
    """Write ``suspects_unlabelled_1.png`` and the like: places where annotations may be wrong.

    Args:
        data: what was analyzed.
        analysis: of it.
        folder: of the sheets; sheets of an earlier analysis are removed.

    Returns:
        The files.
    """
    written = []
    for reason in TITLES:
        mine = [suspect for suspect in analysis.suspects if suspect.reason == reason]
        panels = [_suspect_panel(data, analysis.matched, suspect) for suspect in mine]
        panels += [EMPTY] * (-len(panels) % SUSPECTS_PER_ROW)
        rows = [
            panels[start : start + SUSPECTS_PER_ROW]
            for start in range(0, len(panels), SUSPECTS_PER_ROW)
        ]
        legend = {"this place": SUSPECT_COLORS[reason], "annotated object": GRAY}
        written += write_sheets(rows, folder, f"suspects_{reason}", legend)[0]
    return written


def _suspect_panel(data: CocoData, matched: Matched, suspect: Suspect) -> Panel:
    """The place, and what is annotated around it."""
    image, corner = _crop(data, suspect)
    place = int(np.searchsorted(matched.image_ids, suspect.image_id))
    objects = np.flatnonzero(matched.truth.image == place)
    if suspect.reason == NOT_SEEN:  # it is one of them
        objects = objects[(matched.truth.box[objects] != suspect.box).any(axis=1)]
    boxes = np.concatenate([matched.truth.box[objects], [suspect.box]])
    boxes[:, :2] -= corner
    size = image.shape[:2]
    seen = (boxes[:, :2] < size[::-1]).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] > 0).all(axis=1)
    score = "" if suspect.score is None else f" {suspect.score:.2f}"
    name = plain_text(suspect.found or suspect.annotated or "", 22) + score
    names = class_names(data)
    captions = [*(names[i] for i in matched.truth.label[objects]), name]
    colors = [GRAY] * len(objects) + [SUSPECT_COLORS[suspect.reason]]
    instead = "" if suspect.reason != OTHER_CLASS else f" on {plain_text(suspect.annotated, 14)}"
    return Panel(
        title=f"{TITLES[suspect.reason]} {name}{instead}, {plain_text(suspect.file_name, 32)}",
        image=image,
        size=size,
        boxes=boxes[seen],
        labels=np.zeros(int(seen.sum()), int),
        captions=[caption for caption, keep in zip(captions, seen, strict=True) if keep],
        crowd=np.zeros(int(seen.sum()), bool),
        colors=[color for color, keep in zip(colors, seen, strict=True) if keep],
    )


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
    full = np.array(image.shape[1::-1])
    middle = np.array([x + w / 2, y + h / 2])
    corner = np.clip((middle - side / 2).astype(int), np.minimum(full - side, 0), None)
    corner = np.minimum(corner, np.maximum(full - side, 0))
    part = np.full((side[1], side[0], 3), 255, np.uint8)
    low, high = np.maximum(corner, 0), np.minimum(corner + side, full)
    (left, top), (right, bottom) = low - corner, high - corner
    part[top:bottom, left:right] = image[low[1] : high[1], low[0] : high[0]]
    return part, corner
