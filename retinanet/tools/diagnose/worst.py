"""Where to look: the images with the worst errors, and annotations that may be wrong themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.matched import Matched, overlaps
from retinanet.tools.diagnose.errors import (
    BACKGROUND,
    BACKGROUND_IOU,
    CLASS,
    KINDS,
    MISSED,
    NO_ERROR,
    Errors,
)

# A detection of another class that lies on an object like this is no neighbor's.
SURE_IOU = 0.75

# What an annotation may have wrong.
UNLABELLED, NOT_SEEN, OTHER_CLASS = "unlabelled", "not_seen", "other_class"


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """The errors of one image, among the detections of at least the score that is looked at."""

    index: int  # of the image in the data
    image_id: int
    file_name: str
    cost: float  # the scores of its wrong detections, and 1 for each missed object
    counts: tuple[int, ...]  # errors of each of KINDS


@dataclass(frozen=True, slots=True)
class Suspect:
    """A place where the annotation may be wrong rather than the detector."""

    index: int  # of the image in the data
    image_id: int
    file_name: str
    reason: str  # "unlabelled", "not_seen" or "other_class"
    box: tuple[float, ...]  # x, y, width, height in pixels of the file
    found: str | None  # class of the detection; None: nothing was found
    score: float | None  # of it
    annotated: str | None  # class of the object; None: there is none


def worst_images(
    data: CocoData, matched: Matched, errors: Errors, most: int = 12
) -> tuple[ImageErrors, ...]:
    """The images that cost most, the worst first; those without errors are left out.

    An image costs the scores of its wrong detections, because a sure mistake displaces more right
    ones in the ranking that AP is made of, and 1 for each missed object.

    Args:
        data: what was evaluated.
        matched: its detections.
        errors: of them.
        most: images.
    """
    N = len(matched.image_ids)
    wrong = (errors.kind != NO_ERROR) & (matched.scores >= errors.score)
    counts = np.zeros((N, len(KINDS)), dtype=np.int64)
    np.add.at(counts, (matched.found.image[wrong], errors.kind[wrong]), 1)
    lost = matched.truth.image[errors.missed_at_score]
    np.add.at(counts[:, MISSED], lost, 1)
    cost = np.bincount(matched.found.image[wrong], matched.scores[wrong], minlength=N)
    cost = cost + counts[:, MISSED]
    order = np.argsort(-cost, kind="stable")[:most]
    rows = index_of(data, matched.image_ids[order])
    return tuple(
        ImageErrors(
            index=row,
            image_id=int(matched.image_ids[image]),
            file_name=data.file_name(row),
            cost=float(cost[image]),
            counts=tuple(counts[image].tolist()),
        )
        for image, row in zip(order, rows, strict=True)
        if cost[image] > 0
    )


def index_of(data: CocoData, image_ids: np.ndarray) -> list[int]:
    """Where images stand in the data."""
    order = np.argsort(data.image_ids, kind="stable")
    return order[np.searchsorted(data.image_ids, image_ids, sorter=order)].tolist()


def find_suspects(
    data: CocoData, matched: Matched, errors: Errors, most: int = 12
) -> tuple[Suspect, ...]:
    """Places where the annotation may be wrong, of each reason the most likely first.

    ``unlabelled``: a detection of at least the score that is looked at on what the annotations
    call background, by score. ``other_class``: a detection of another class, better than any of
    the annotated one and with an IoU of at least 0.75, by score. ``not_seen``: an object that no
    detection of any class and score touches (IoU 0.1), the largest first.

    Args:
        data: what was evaluated.
        matched: its detections.
        errors: of them.
        most: places of each reason.
    """
    sure = matched.scores >= errors.score
    unlabelled = sure & (errors.kind == BACKGROUND)
    other = sure & (errors.kind == CLASS) & (errors.iou >= SURE_IOU)
    other &= _beats_its_class(matched, errors)
    _, touched, _ = overlaps(matched, BACKGROUND_IOU)
    unseen = np.ones(len(matched.truth_row), dtype=bool)
    unseen[touched] = False
    unseen = np.flatnonzero(unseen)
    largest = unseen[np.argsort(-matched.truth.area[unseen], kind="stable")][:most]
    chosen = [(UNLABELLED, d) for d in _by_score(matched, unlabelled, most)]
    chosen += [(OTHER_CLASS, d) for d in _by_score(matched, other, most)]
    return (
        *(_detection(data, matched, errors, d, reason) for reason, d in chosen),
        *(_object(data, matched, g) for g in largest),
    )


def _beats_its_class(matched: Matched, errors: Errors) -> np.ndarray:
    """(D,) bool: no better detection has found the target in its own class."""
    best = np.full(len(matched.owner) + 1, -np.inf)  # the last: of no target
    is_found = matched.owner >= 0
    best[:-1][is_found] = matched.scores[matched.owner[is_found]]
    return matched.scores > best[errors.target]


def _by_score(matched: Matched, chosen: np.ndarray, most: int) -> np.ndarray:
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-matched.scores[rows], kind="stable")][:most]


def _detection(data: CocoData, matched: Matched, errors: Errors, d: int, reason: str) -> Suspect:
    target, names = errors.target[d], data.category_names
    return Suspect(
        **_image(data, matched, matched.found.image[d]),
        reason=reason,
        box=tuple(matched.found.box[d].tolist()),
        found=names[matched.found.label[d]],
        score=float(matched.scores[d]),
        annotated=names[matched.truth.label[target]] if target >= 0 else None,
    )


def _object(data: CocoData, matched: Matched, g: int) -> Suspect:
    return Suspect(
        **_image(data, matched, matched.truth.image[g]),
        reason=NOT_SEEN,
        box=tuple(matched.truth.box[g].tolist()),
        found=None,
        score=None,
        annotated=data.category_names[matched.truth.label[g]],
    )


def _image(data: CocoData, matched: Matched, image: int) -> dict:
    (index,) = index_of(data, matched.image_ids[image : image + 1])
    return {
        "index": index,
        "image_id": int(matched.image_ids[image]),
        "file_name": data.file_name(index),
    }
