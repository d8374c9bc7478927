"""Whether the boxes of the file fit the detections when they are read in another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from retinanet.data.coco import CocoData, images_of
from retinanet.tools.diagnose.evidence import (
    PROVEN_AP,
    PROVEN_FACTOR,
    Case,
    index_of,
    score_any,
    top_detections,
)
from retinanet.tools.diagnose.scored import Cause

# All numbers of at least so many boxes are at most this: fractions of the image, not pixels. A box
# of a center format may end a little beyond 1.
FRACTION_LIMIT, FRACTION_BOXES = 1.5, 3
# A detection and an object propose a scaling if the ratios of their sides and of their centers
# differ by less than this, as logarithms; an IoU of 0.7 allows as much.
SAME_RATIO = 0.15
# A scaling closer to 1 is none, and one that fewer pairs propose is luck.
LEAST_SCALING, LEAST_PAIRS = 0.05, 5

WRITE = "COCO wants [x, y, width, height] in pixels, x and y of the upper left corner: convert"
MIRRORED = (
    "mirrored boxes",
    "Draw some boxes over their images with another program: either the boxes were made for "
    "images that have been mirrored or turned since, or their y counts from the lower edge. COCO "
    "counts x and y from the upper left corner of the image as it is displayed.",
)
# How the name of a reading begins -> name of the cause, what fixes it.
FAULTS = {
    "from below": MIRRORED,
    "mirrored": MIRRORED,
    "turned": MIRRORED,
    "fractions": ("normalized boxes", f"{WRITE} them."),
    "other size": (
        "box size",
        "The annotations were made for images of another size: scale the boxes to the pixels of "
        "the files, or restore those images.",
    ),
    "trained": ("box format", f"{WRITE} the boxes of the training annotations, and train again."),
    "": ("box format", f"{WRITE} the boxes."),
}

# Name, what completes "the boxes fit when ...", and x, y, width, height of M boxes.
Reading = tuple[str, str, tuple[np.ndarray, ...]]


def check_boxes(case: Case) -> tuple[Cause | None, CocoData]:
    """Boxes in another form, and the data with its boxes as they should be.

    The AP, classes ignored, shows which way to read the boxes fits best; it is the cause when it
    brings the AP back.
    """
    data, detections = case.data, case.detections
    fractions = are_fractions(case)
    best = (-1.0,)
    for name, meant, columns in _fraction_readings(data) if fractions else _readings(case):
        read = _with_boxes(data, np.stack(columns, axis=1))
        AP, AP50 = score_any(read, detections)
        best = max(best, (AP, AP50, name, meant, read), key=lambda row: row[0])
    AP, AP50, name, meant, read = best
    case.numbers |= {"other_reading": name, "AP_other_reading": AP}
    if max(PROVEN_AP, PROVEN_FACTOR * case.AP_any) < AP:
        fault, fix = next(FAULTS[kind] for kind in FAULTS if name.startswith(kind))
        verdict = (
            f"The boxes of {data.path} are not where the detections are, and fit when {meant}: "
            f"then AP is {AP:.3f} and AP50 {AP50:.3f} (classes ignored; now {case.AP_any:.3f} and "
            f"{case.AP50_any:.3f})."
        )
        return Cause(fault, verdict, fix), read
    if fractions:
        return fractions_cause(data), data
    case.evidence.append(
        f"boxes {meant}: AP {AP:.3f}, classes ignored, the most that another way to read them gives"
    )
    return None, data


def are_fractions(case: Case) -> bool:
    """Whether every box lies within the first pixel or so, as fractions of the image do."""
    boxes = case.data.bbox[case.objects()]
    some = len(boxes) >= FRACTION_BOXES and bool(boxes.any())
    return some and bool((np.abs(boxes) <= FRACTION_LIMIT).all())


def fractions_cause(data: CocoData) -> Cause:
    """Boxes that are not in pixels; the annotations alone show it."""
    return Cause(
        "normalized boxes",
        f"The boxes of {data.path} are fractions: none reaches beyond the first pixel or so of its "
        f"image.",
        "COCO wants [x, y, width, height] in pixels, x and y of the upper left corner: multiply x "
        "and width by the image's width, y and height by its height.",
    )


def _with_boxes(data: CocoData, boxes: np.ndarray) -> CocoData:
    """The data with other (M, 4) xywh boxes, clipped to their images as in training."""
    limits = data.sizes[images_of(data)][:, ::-1]
    low = boxes[:, :2].clip(min=0)
    side = (np.minimum(boxes[:, :2] + boxes[:, 2:], limits) - low).clip(min=0)
    return dataclasses.replace(data, bbox=np.hstack([low, side]), area=side.prod(axis=1))


def _columns(data: CocoData) -> tuple[np.ndarray, ...]:
    """The four numbers of each box, then width and height of its image; (M,) each."""
    return *data.bbox.T, *data.sizes[images_of(data)][:, ::-1].T


def _formats(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray) -> Iterator[Reading]:
    """Numbers that mean something else than x, y, width, height."""
    yield "x1 y1 x2 y2", "read as x1, y1, x2, y2", (x, y, w - x, h - y)
    yield "centers", "read as center x, center y, width, height", (x - w / 2, y - h / 2, w, h)
    yield "y x h w", "read as y, x, height, width", (y, x, h, w)
    yield "y1 x1 y2 x2", "read as y1, x1, y2, x2", (y, x, h - y, w - x)


def _fraction_readings(data: CocoData) -> Iterator[Reading]:
    """Fractions of the image, in each of the formats."""
    x, y, w, h, width, height = _columns(data)
    x, y, w, h = x * width, y * height, w * width, h * height
    yield "fractions", "fractions of the image", (x, y, w, h)
    for name, meant, columns in _formats(x, y, w, h):
        yield f"fractions, {name}", f"fractions of the image, {meant}", columns
    below = "fractions of the image, y counts from the lower edge"
    yield "fractions, from below", below, (x, height - y - h, w, h)


def _readings(case: Case) -> Iterator[Reading]:
    """Every way to read boxes of pixels that may make sense of them."""
    x, y, w, h, width, height = _columns(case.data)
    yield from _formats(x, y, w, h)
    yield "from below", "y counts from the lower edge", (x, height - y - h, w, h)
    yield "mirrored", "x counts from the right edge", (width - x - w, y, w, h)
    half_turn = width - x - w, height - y - h, w, h
    yield "turned", "turned by 180 degrees with their images", half_turn
    # What training on a file in another format teaches a network.
    as_sides = "turned into what training on x1, y1, x2, y2 as x, y, width, height teaches"
    yield "trained on x1 y1 x2 y2", as_sides, (x, y, x + w, y + h)
    as_corners = "turned into what training on centers as upper left corners teaches"
    yield "trained on centers", as_corners, (x + w / 2, y + h / 2, w, h)

    # Boxes of images that were larger or smaller, by one factor or all of one size.
    ratios, sizes = _scaling_votes(case)
    if len(ratios) < LEAST_PAIRS:
        return
    fx, fy = np.exp(np.median(ratios, axis=0))
    if np.abs(np.log([fx, fy])).max() > LEAST_SCALING:
        meant = f"x is multiplied by {fx:.2g} and y by {fy:.2g}"
        yield "other size", meant, (fx * x, fy * y, fx * w, fy * h)
    if (case.data.sizes != case.data.sizes[0]).any():
        W, H = np.exp(np.median(np.log(sizes) - ratios, axis=0))
        fx, fy = width / W, height / H
        meant = f"taken for boxes in images of {W:.0f} x {H:.0f} px"
        yield "other size", meant, (fx * x, fy * y, fx * w, fy * h)


def _scaling_votes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) logarithms of factors on x and y, (P, 2) width and height of their image.

    A detection and an object of its image that belong together differ by the same factors in width
    and height as in the center. Pairs that do so by chance have any factors, so the median is that
    of the others.
    """
    data, detections = case.data, case.detections
    rows = np.flatnonzero(top_detections(detections))
    image = index_of(data, detections.image_ids[rows])
    count = data.first[image + 1] - data.first[image]
    detection, image = np.repeat(rows, count), np.repeat(image, count)  # each with every object
    place = np.arange(len(image)) - np.repeat(count.cumsum() - count, count)
    ours, theirs = detections.boxes[detection], data.bbox[data.first[image] + place]
    with np.errstate(divide="ignore", invalid="ignore"):
        center = np.log(ours[:, :2] + ours[:, 2:] / 2) - np.log(theirs[:, :2] + theirs[:, 2:] / 2)
        side = np.log(ours[:, 2:]) - np.log(theirs[:, 2:])
        agreed = (np.abs(center - side) < SAME_RATIO).all(axis=1)
    return (center + side)[agreed] / 2, data.sizes[image[agreed]][:, ::-1]
