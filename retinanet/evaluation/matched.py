"""Which detection belongs to which object, as COCO matches them at one IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import as_objects, rows_of
from retinanet.evaluation.detect import DetectionArrays
from retinanet.fast.coco_eval import (
    AREAS,
    Objects,
    match,
    not_counted,
    pairs,
    rank_detections,
)

# COCO's main rule at its lowest threshold: objects of any size, 100 detections of a class.
IOU = 0.5
MAX_DETS = 100
ALL_SIZES = AREAS[:1]

# Detections looked at together: a few hundred bytes for each object beside one.
CHUNK = 2**15


@dataclass(frozen=True, slots=True)
class Matched:
    """Detections and objects of the images that were looked at, matched at IoU 0.5.

    D detections that count, by image and class, the best first; G objects by image, without
    crowds. Detections of a crowd, which count neither as right nor as wrong, are ``ignored``.
    """

    truth: Objects  # G
    truth_row: np.ndarray  # (G,) int64, row of the data set
    owner: np.ndarray  # (G,) int64, the detection of each object, -1: none
    found: Objects  # D
    found_row: np.ndarray  # (D,) int64, row of the detections as given
    scores: np.ndarray  # (D,) float64
    right: np.ndarray  # (D,) bool
    ignored: np.ndarray  # (D,) bool
    image_ids: np.ndarray  # (N,) int64 of the images that were looked at, increasing
    num_classes: int  # K

    @property
    def wrong(self) -> np.ndarray:
        """(D,) bool: false positives."""
        return ~self.right & ~self.ignored

    def num_objects(self) -> np.ndarray:
        """(K,) int64: objects of every class."""
        return np.bincount(self.truth.label, minlength=self.num_classes)


def match_detections(
    data: CocoData, detections: DetectionArrays, max_dets: int = MAX_DETS
) -> Matched:
    """Match at IoU 0.5 as the evaluator does for AP50.

    Args:
        data: the ground truth.
        detections: of the images ``detections.evaluated``.
        max_dets: best detections of a class in an image that count.

    Raises:
        ValueError: data without annotations, or images that it does not list.
    """
    if not data.annotated:
        raise ValueError(f"{data.path} has no annotations; its detections cannot be judged.")
    image_ids = detections.evaluated
    rows, truth, crowd, found = as_objects(data, detections, image_ids, rows_of(data, image_ids))
    ranking = rank_detections(found, detections.scores, max_dets)
    ignore = not_counted(truth, crowd, ALL_SIZES)
    matches = match(truth, crowd, ignore, ranking, np.array([IOU]), ALL_SIZES)
    matched, ignored = matches.matched[0, 0], matches.ignored[0, 0]
    counted = ~ignore[0]
    return Matched(
        truth=Objects(*(column[counted] for column in truth)),
        truth_row=rows[counted],
        owner=matches.owner[0, 0, counted].astype(np.int64),
        found=ranking.found,
        found_row=ranking.order,
        scores=ranking.scores,
        right=matched & ~ignored,
        ignored=ignored,
        image_ids=image_ids,
        num_classes=len(data.category_ids),
    )


def of_one_class(objects: Objects) -> Objects:
    """The same with one label for all, so that classes do not matter when they are matched."""
    return objects._replace(label=np.zeros_like(objects.label))


def overlaps(matched: Matched, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections and objects of one image, of any classes, with at least an IoU.

    Returns:
        (P,) detection, increasing, (P,) object, (P,) IoU.
    """
    truth, found = of_one_class(matched.truth), of_one_class(matched.found)
    no_crowd = np.zeros(len(truth.label), dtype=bool)
    parts = []
    for start in range(0, max(len(matched.scores), 1), CHUNK):
        some = Objects(*(column[start : start + CHUNK] for column in found))
        detection, gt, iou = pairs(truth, no_crowd, some, least)
        parts.append((detection + start, gt, iou))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
