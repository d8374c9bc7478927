"""Detections beside the objects of their image, whatever the classes: what a diagnosis looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation, evaluate
from retinanet.evaluation.detect import DetectionArrays

# Images that are scored anew in a diagnosis, spread evenly: enough to tell 0 from 0.1, and seconds.
SAMPLED_IMAGES = 500


class Pairs(NamedTuple):
    """Detections and objects of one image, each with each; P pairs."""

    detection: np.ndarray  # (P,) int64, row of the detections
    thing: np.ndarray  # (P,) int64, row of the annotations
    iou: np.ndarray  # (P,) float64


def sample(
    data: CocoData, found: DetectionArrays, most: int = SAMPLED_IMAGES
) -> tuple[CocoData, DetectionArrays]:
    """A part of the evaluated images, with what was found in them.

    Args:
        data: the ground truth; it stays whole, and ``evaluated`` says which images count.
        found: all detections.
        most: images that are kept.
    """
    N = len(found.evaluated)
    if most >= N:
        return data, found
    chosen = found.evaluated[np.linspace(0, N - 1, most).astype(int)]
    return data, only(found, np.isin(found.image_ids, chosen), chosen)


def only(found: DetectionArrays, kept: np.ndarray, evaluated: np.ndarray) -> DetectionArrays:
    """Some of the detections.

    Args:
        found: all of them.
        kept: (D,) bool.
        evaluated: the images that count then.
    """
    columns = {
        name: getattr(found, name)[kept] for name in ("image_ids", "boxes", "scores", "labels")
    }
    return dataclasses.replace(found, evaluated=evaluated, **columns)


def score(data: CocoData, found: DetectionArrays, max_dets: Sequence[int] = (1, 10, 100)) -> float:
    """AP, 0 where there is nothing to find."""
    return _ap(evaluate(data, found, found.evaluated, max_dets=max_dets))


def score_any(data: CocoData, found: DetectionArrays) -> tuple[float, float]:
    """AP and AP50 when classes are ignored: of boxes alone."""
    data = dataclasses.replace(
        data, labels=np.zeros_like(data.labels), category_ids=(1,), category_names=("object",)
    )
    found = dataclasses.replace(found, labels=np.zeros_like(found.labels))
    evaluation = evaluate(data, found, found.evaluated)
    return _ap(evaluation), evaluation.metrics["AP50"] or 0.0


def _ap(evaluation: Evaluation) -> float:
    return evaluation.metrics["AP"] or 0.0


def image_rows(data: CocoData, image_ids: np.ndarray) -> np.ndarray:
    """Where images stand in the data, for ids that all are there."""
    order = np.argsort(data.image_ids, kind="stable")
    return order[np.searchsorted(data.image_ids, image_ids, sorter=order)]


def places(found: DetectionArrays) -> np.ndarray:
    """(D,) place of every detection in its image, 0 for the best."""
    first = np.searchsorted(found.image_ids, found.image_ids, side="left")
    return np.arange(len(found)) - first


def pairs_of(data: CocoData, found: DetectionArrays, kept: np.ndarray) -> Pairs:
    """Every chosen detection with every object of its image that is no crowd.

    Args:
        data: the ground truth.
        found: detections.
        kept: (D,) bool, the chosen ones.
    """
    rows = np.flatnonzero(kept)
    image = image_rows(data, found.image_ids[rows])
    count = data.first[image + 1] - data.first[image]
    detection = np.repeat(rows, count)
    start = np.repeat(data.first[image], count)
    place = np.arange(len(detection)) - np.repeat(count.cumsum() - count, count)
    thing = start + place
    counted = ~data.crowd[thing]
    detection, thing = detection[counted], thing[counted]
    return Pairs(detection, thing, iou_of(found.boxes[detection], data.bbox[thing]))


def iou_of(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(...) IoU of (..., 4) xywh boxes; 0 where a side is not positive."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., :2] + boxes[..., 2:], others[..., :2] + others[..., 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    areas = boxes[..., 2:].clip(min=0).prod(axis=-1) + others[..., 2:].clip(min=0).prod(axis=-1)
    union = areas - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=(shared > 0) & (union > 0))


def counted_things(data: CocoData, found: DetectionArrays) -> np.ndarray:
    """(M,) bool: the annotations that can be found in the evaluated images."""
    image = np.repeat(np.isin(data.image_ids, found.evaluated), np.diff(data.first))
    return image & ~data.crowd
