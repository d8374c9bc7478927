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
from retinanet.tools.diagnose.evidence import index_of

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
    found: str | None  # class of the detection; None: there is none
    score: float | None  # of it
    annotated: str | None  # class of the object; None: there is none


def worst_images(
    data: CocoData, matched: Matched, errors: Errors, most: int = 12
) -> tuple[ImageErrors, ...]:
    """The images that cost most, the worst first; those without errors are left out.

    An image costs the scores of its wrong detections, because a sure mistake displaces more right
    ones in the ranking that AP is made of, and 1 for each missed object.
    """
    N = len(matched.image_ids)
    wrong = (errors.kind != NO_ERROR) & (matched.scores >= errors.score)
    image = matched.detections.image[wrong]
    counts = np.zeros((N, len(KINDS)), dtype=np.int64)
    np.add.at(counts, (image, errors.kind[wrong]), 1)
    np.add.at(counts[:, MISSED], matched.ground_truth.image[errors.missed_at_score], 1)
    cost = np.bincount(image, matched.scores[wrong], minlength=N) + counts[:, MISSED]
    return tuple(
        ImageErrors(*_image(data, matched, i), float(cost[i]), tuple(counts[i].tolist()))
        for i in np.argsort(-cost, kind="stable")[:most]
        if cost[i] > 0
    )


def find_suspects(
    data: CocoData, matched: Matched, errors: Errors, most: int = 12
) -> tuple[Suspect, ...]:
    """Places where the annotation may be wrong, at most ``most`` of each reason, by likelihood.

    ``unlabelled``: a detection of at least the score that is looked at on what the annotations
    call background, by score. ``other_class``: a detection of another class, better than any of
    the annotated one and with an IoU of at least 0.75, by score. ``not_seen``: an object that no
    detection of any class and score touches (IoU 0.1), the largest first.
    """
    ground_truth, detections, scores = matched.ground_truth, matched.detections, matched.scores
    names = data.category_names
    sure = scores >= errors.score
    # The best score of the right class on each object; the last: of no object.
    best_of_class = np.full(len(matched.owner) + 1, -np.inf)
    detected = np.flatnonzero(matched.owner >= 0)
    best_of_class[detected] = scores[matched.owner[detected]]
    other_class = sure & (errors.kind == CLASS) & (errors.iou >= SURE_IOU)
    other_class &= scores > best_of_class[errors.target]
    _, touched, _ = overlaps(matched, BACKGROUND_IOU)
    unseen = np.ones(len(ground_truth.label), dtype=bool)
    unseen[touched] = False

    suspects = []
    for reason, chosen, by in (
        (UNLABELLED, sure & (errors.kind == BACKGROUND), scores),
        (OTHER_CLASS, other_class, scores),
        (NOT_SEEN, unseen, ground_truth.area),
    ):
        boxes = ground_truth if reason == NOT_SEEN else detections
        rows = np.flatnonzero(chosen)
        for row in rows[np.argsort(-by[rows], kind="stable")][:most]:
            is_object = reason == NOT_SEEN
            target = row if is_object else errors.target[row]
            suspects.append(
                Suspect(
                    *_image(data, matched, boxes.image[row]),
                    reason=reason,
                    box=tuple(boxes.box[row].tolist()),
                    found=None if is_object else names[detections.label[row]],
                    score=None if is_object else float(scores[row]),
                    annotated=names[ground_truth.label[target]] if target >= 0 else None,
                )
            )
    return tuple(suspects)


def _image(data: CocoData, matched: Matched, image: int) -> tuple[int, int, str]:
    """Index, id and file name of an image."""
    index = int(index_of(data, matched.image_ids[[image]])[0])
    return index, int(matched.image_ids[image]), data.file_name(index)
