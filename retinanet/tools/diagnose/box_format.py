"""Ground truth read in another way: as corners, as centers, as fractions, at another size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.overlaps import (
    counted_things,
    image_rows,
    pairs_of,
    places,
    score_any,
)

# All numbers of all boxes are at most this: fractions of the image, not pixels. A box of a center
# format may end a little beyond 1.
FRACTION_LIMIT = 1.5
# Boxes from which on that is no accident.
FRACTION_BOXES = 3
# Detections of each image that vote for a scaling: the best ones.
VOTING_DETECTIONS = 20
# Width, height and center of a detection and an object agree on a scaling if its logarithms lie
# closer than this; an IoU of 0.7 allows as much.
VOTE_WIDTH = 0.15
# A scaling closer to 1 is none: boxes are found no better than this.
LEAST_SCALING = 0.05
# Votes for one scaling, of so many objects: below, agreement is luck.
LEAST_VOTES = 5

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Reading(NamedTuple):
    """A way to read the boxes of the file."""

    name: str
    meant: str  # completes "they fit the detections when ..."
    remedy: str
    change: Change  # (M, 4) boxes and (M, 2) height, width of their images -> (M, 4) xywh


class Rereading(NamedTuple):
    """What comes of a reading."""

    reading: Reading
    data: CocoData
    AP: float  # classes ignored
    AP50: float  # likewise


def corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The file has x1, y1, x2, y2."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def centers(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The file has the center, then width and height."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def swapped(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The file has y, x, height, width."""
    return boxes[:, [1, 0, 3, 2]]


def swapped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The file has y1, x1, y2, x2."""
    return corners(swapped(boxes, sizes), sizes)


def from_below(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The file counts y from the lower edge, up to the lower side of the box."""
    y = sizes[:, 0] - boxes[:, 1] - boxes[:, 3]
    return np.stack([boxes[:, 0], y, boxes[:, 2], boxes[:, 3]], axis=1)


def from_right(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The images, or the boxes, are mirrored."""
    x = sizes[:, 1] - boxes[:, 0] - boxes[:, 2]
    return np.concatenate([x[:, None], boxes[:, 1:]], axis=1)


def turned(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The images, or the boxes, stand on their heads."""
    return from_below(from_right(boxes, sizes), sizes)


def as_if_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What a network learns from x1, y1, x2, y2 taken for x, y, width, height."""
    return _inside(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), sizes)


def as_if_centers(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What a network learns from centers taken for corners."""
    return _inside(np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1), sizes)


def _inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clipped to the image, as in training."""
    limits = sizes[:, ::-1]
    low = boxes[:, :2].clip(min=0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], limits)
    return np.concatenate([low, (high - low).clip(min=0)], axis=1)


WRITE = "COCO wants [x, y, width, height] in pixels, x and y of the upper left corner: convert"
OTHER_SIDE = (
    "Draw some boxes over their images with another program: either the boxes were made for "
    "images that have been mirrored or turned since, or their y counts from the lower edge. COCO "
    "counts x and y from the upper left corner of the image as it is displayed"
)
TRAINED = "of the training annotations, and train again"
READINGS = (
    Reading("x1 y1 x2 y2", "read as x1, y1, x2, y2", f"{WRITE} the boxes", corners),
    Reading("centers", "read as center x, center y, width, height", f"{WRITE} the boxes", centers),
    Reading("y x h w", "read as y, x, height, width", f"{WRITE} the boxes", swapped),
    Reading("y1 x1 y2 x2", "read as y1, x1, y2, x2", f"{WRITE} the boxes", swapped_corners),
    Reading("from below", "y counts from the lower edge", OTHER_SIDE, from_below),
    Reading("mirrored", "x counts from the right edge", OTHER_SIDE, from_right),
    Reading("turned", "turned by 180 degrees with their images", OTHER_SIDE, turned),
    Reading(
        "trained on x1 y1 x2 y2",
        "turned into what training on x1, y1, x2, y2 as x, y, width, height teaches",
        f"{WRITE} the boxes {TRAINED}",
        as_if_corners,
    ),
    Reading(
        "trained on centers",
        "turned into what training on centers as upper left corners teaches",
        f"{WRITE} the boxes {TRAINED}",
        as_if_centers,
    ),
)
AS_THEY_ARE = Reading("as they are", "", "", lambda boxes, sizes: boxes)


def are_fractions(data: CocoData, found: DetectionArrays) -> bool:
    """Whether every box lies within the first pixel or so, as fractions of the image do."""
    boxes = data.bbox[counted_things(data, found)]
    some = len(boxes) >= FRACTION_BOXES and bool(boxes.any())
    return some and bool((np.abs(boxes) <= FRACTION_LIMIT).all())


def reread(data: CocoData, found: DetectionArrays, reading: Reading) -> Rereading:
    """The data with its boxes read in another way, and the AP of that.

    Args:
        data: the ground truth.
        found: the detections.
        reading: how.
    """
    image = np.repeat(np.arange(len(data)), np.diff(data.first))
    boxes = reading.change(data.bbox, data.sizes[image].astype(np.float64))
    area = boxes[:, 2:].clip(min=0).prod(axis=1)
    read = dataclasses.replace(data, bbox=boxes, area=area)
    return Rereading(reading, read, *score_any(read, found))


def readings_of(data: CocoData, found: DetectionArrays) -> list[Reading]:
    """Every way to read the boxes that may make sense of them."""
    if are_fractions(data, found):
        return [_as_fractions(reading) for reading in (AS_THEY_ARE, *READINGS[:5])]
    return [*READINGS, *scalings(data, found)]


def _as_fractions(reading: Reading) -> Reading:
    """The same of boxes that are fractions of the image."""

    def change(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return reading.change(boxes * sizes[:, [1, 0, 1, 0]], sizes)

    meant = (
        f"fractions of the image, {reading.meant}" if reading.meant else "fractions of the image"
    )
    return Reading(f"fractions, {reading.name}", meant, f"{WRITE} them", change)


def scalings(data: CocoData, found: DetectionArrays) -> list[Reading]:
    """Factors on x and y on which many detections and objects agree; none if they are 1.

    Every pair of one of the best detections and an object of its image proposes the factors that
    turn the object's width, height and center into the detection's, if those agree. Pairs that
    belong together propose the same, others anything.
    """
    pairs = pairs_of(data, found, places(found) < VOTING_DETECTIONS)
    ours, theirs = found.boxes[pairs.detection], data.bbox[pairs.thing]
    sizes = data.sizes[image_rows(data, found.image_ids[pairs.detection])][:, ::-1]  # width, height
    with np.errstate(divide="ignore", invalid="ignore"):
        center = np.log(ours[:, :2] + ours[:, 2:] / 2) - np.log(theirs[:, :2] + theirs[:, 2:] / 2)
        side = np.log(ours[:, 2:]) - np.log(theirs[:, 2:])
        votes = (center + side) / 2  # (P, 2)
        agreed = (np.abs(center - side) < VOTE_WIDTH).all(axis=1) & np.isfinite(votes).all(axis=1)
    votes, frames = votes[agreed], votes[agreed] - np.log(sizes[agreed])
    made = []
    factor, count = _mode(votes)
    if count >= LEAST_VOTES and np.abs(np.log(factor)).max() > LEAST_SCALING:
        made.append(_scaled(factor))
    frame, count = _mode(frames)
    one_size = (data.sizes == data.sizes[0]).all()
    if count >= LEAST_VOTES and not one_size:
        made.append(_framed(1 / frame))
    return made


def _mode(votes: np.ndarray) -> tuple[np.ndarray, int]:
    """(2,) factors that most of (V, 2) logarithms lie near, and how many do."""
    if not len(votes):
        return np.ones(2), 0
    cells, count = np.unique(np.round(votes / VOTE_WIDTH), axis=0, return_counts=True)
    near = np.abs(votes - cells[count.argmax()] * VOTE_WIDTH).max(axis=1) < VOTE_WIDTH
    return np.exp(np.median(votes[near], axis=0)), int(near.sum())


def _scaled(factor: np.ndarray) -> Reading:
    fx, fy = factor
    return Reading(
        "other size",
        f"x is multiplied by {fx:.3g} and y by {fy:.3g}",
        "The annotations were made for images of another size: scale the boxes to the pixels of "
        "the files, or restore those images",
        lambda boxes, sizes: boxes * factor[[0, 1, 0, 1]],
    )


def _framed(frame: np.ndarray) -> Reading:
    width, height = frame
    return Reading(
        "other size",
        f"taken for boxes in images of {width:.0f} x {height:.0f} px",
        "The annotations were made for images of one size: scale the boxes to the pixels of the "
        "files, or restore those images",
        lambda boxes, sizes: boxes * (sizes[:, ::-1] / frame)[:, [0, 1, 0, 1]],
    )
