"""Which detection belongs to which object, as COCO matches them at one IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.average_precision import as_objects
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.numbers import COCO_MAX_DETS
from retinanet.fast.coco_eval import AREAS, Objects, match, not_counted, pairs, rank_detections

# COCO's main rule at its lowest threshold: objects of any size, 100 detections of a class.
IOU = 0.5
MAX_DETS = COCO_MAX_DETS[-1]
ALL_SIZES = AREAS[:1]
# Detections looked at together: a few hundred bytes for each object beside one.
CHUNK = 2**15


@dataclass(frozen=True, slots=True)
class Matched:
    """Detections and objects of the images that were looked at, matched at IoU 0.5.

    D detections that count, by image and class, the best first; G objects by image, without
    crowds. Detections of a crowd, which count neither as right nor as wrong, are ``ignored``.
    """

    ground_truth: Objects  # G
    owner: np.ndarray  # (G,) int64, the detection of each object, -1: none
    detections: Objects  # D
    detection_row: np.ndarray  # (D,) int64, row of the detections as given
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
        return np.bincount(self.ground_truth.label, minlength=self.num_classes)


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
    _, ground_truth, crowd, detected = as_objects(data, detections, detections.evaluated)
    ranking = rank_detections(detected, detections.scores, max_dets)
    ignore = not_counted(ground_truth, crowd, ALL_SIZES)
    matches = match(ground_truth, crowd, ignore, ranking, np.array([IOU]), ALL_SIZES)
    ignored, counted = matches.ignored[0, 0], ~ignore[0]
    return Matched(
        ground_truth=ground_truth.take(counted),
        owner=matches.owner[0, 0, counted].astype(np.int64),
        detections=ranking.detections,
        detection_row=ranking.order,
        scores=ranking.scores,
        right=matches.matched[0, 0] & ~ignored,
        ignored=ignored,
        image_ids=detections.evaluated,
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
    ground_truth, detections = of_one_class(matched.ground_truth), of_one_class(matched.detections)
    no_crowd = np.zeros(len(ground_truth.label), dtype=bool)
    parts = []
    for start in range(0, max(len(matched.scores), 1), CHUNK):
        some = detections.take(slice(start, start + CHUNK))
        detection, gt, iou = pairs(ground_truth, no_crowd, some, least)
        parts.append((detection + start, gt, iou))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
