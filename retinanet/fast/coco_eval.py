"""COCO's precision and recall, computed on plain arrays.

The same numbers as pycocotools, to the bit: what it does for one image, one class, one size and one
threshold after the other is done for all of them at once. Source: cocodataset/cocoapi,
PythonAPI/pycocotools/cocoeval.py, version 2.0.11.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)  # thresholds, the letter T
RECALLS = np.linspace(0.0, 1.0, 101)  # where precision is read, the letter R
# Areas of objects in square pixels: all, small, medium, large; bounds included. The letter S.
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])


class Objects(NamedTuple):
    """Boxes of many images, in the order of the annotation file within an image."""

    image: np.ndarray  # (N,) int64, number of the image, increasing with its id
    label: np.ndarray  # (N,) int64 in [0, K)
    box: np.ndarray  # (N, 4) float64 x, y, width, height
    area: np.ndarray  # (N,) float64; of annotations as the file says

    def take(self, rows: np.ndarray | slice) -> Objects:
        """Some of them, by index or mask."""
        return Objects(*(column[rows] for column in self))


class Ranking(NamedTuple):
    """The detections that count, by image and class, the best first."""

    order: np.ndarray  # (D,) int64, index of each among all that were given
    detections: Objects
    scores: np.ndarray  # (D,) float64
    rank: np.ndarray  # (D,) int64, position within its image and class, from 0


class Matches(NamedTuple):
    """What became of every detection, for each threshold and size."""

    matched: np.ndarray  # (T, S, D) bool
    ignored: np.ndarray  # (T, S, D) bool, counts neither as right nor as wrong
    owner: np.ndarray  # (T, S, G) int32, the detection that matched each object; -1: none


def precision_recall(
    ground_truth: Objects,
    crowd: np.ndarray,
    detections: Objects,
    scores: np.ndarray,
    num_classes: int,
    max_dets: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Precision at every recall, and recall, of detections.

    Args:
        ground_truth: ground truth, G objects.
        crowd: (G,) bool.
        detections: D of them, in any order.
        scores: (D,) float64, finite.
        num_classes: K.
        max_dets: best detections of a class in an image that count, increasing.

    Returns:
        precision (T, R, K, S) with the last of ``max_dets``, recall (T, K, S, 3); -1 for classes
        and sizes without ground truth.
    """
    T, R, S, K = len(IOUS), len(RECALLS), len(AREAS), num_classes
    precision, recall = -np.ones((T, R, K, S)), -np.ones((T, K, S, len(max_dets)))
    ignore = not_counted(ground_truth, crowd)
    ranking = rank_detections(detections, scores, max_dets[-1])
    matches = match(ground_truth, crowd, ignore, ranking)
    label = ranking.detections.label
    order = np.lexsort((-ranking.scores, label))  # stable: equal scores in the order of images
    starts = np.searchsorted(label[order], np.arange(K + 1))
    for k in range(K):
        mine = order[starts[k] : starts[k + 1]]
        num_objects = (~ignore[:, ground_truth.label == k]).sum(axis=1)  # (S,)
        for s in np.flatnonzero(num_objects):
            counts = ~matches.ignored[:, s, mine]  # (T, D)
            right = matches.matched[:, s, mine] & counts
            for m, limit in enumerate(max_dets):
                seen = right[:, ranking.rank[mine] < limit]
                recall[:, k, s, m] = seen.sum(axis=1) / num_objects[s]
            true = right.cumsum(axis=1, dtype=np.float64)
            false = (counts & ~right).cumsum(axis=1, dtype=np.float64)
            precision[:, :, k, s] = precision_at_recalls(true, false, num_objects[s])
    return precision, recall


def not_counted(ground_truth: Objects, crowd: np.ndarray, areas: np.ndarray = AREAS) -> np.ndarray:
    """(S, G) bool: crowds, and objects of another size; they need not be detected."""
    return (ground_truth.area < areas[:, :1]) | (ground_truth.area > areas[:, 1:]) | crowd


def rank_detections(detections: Objects, scores: np.ndarray, limit: int) -> Ranking:
    """The ``limit`` best detections of every class in every image; of equal scores the first."""
    order = np.lexsort((-scores, detections.label, detections.image))
    image, label = detections.image[order], detections.label[order]
    changes = (np.diff(image, prepend=-1) != 0) | (np.diff(label, prepend=-1) != 0)
    start = np.flatnonzero(changes)  # of each image and class
    rank = np.arange(len(order)) - np.repeat(start, np.diff(np.append(start, len(order))))
    kept = rank < limit
    order = order[kept]
    return Ranking(order, detections.take(order), scores[order], rank[kept])


def pairs(
    ground_truth: Objects, crowd: np.ndarray, detections: Objects, least: float = IOUS[0]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections and objects of one image and class that overlap enough to match.

    Args:
        ground_truth: G objects.
        crowd: (G,) bool.
        detections: D of them.
        least: IoU of a pair, above 0.

    Returns:
        (P,) index of the detection, (P,) index of the object, (P,) IoU. For crowds the
        intersection is divided by the detection's area alone.
    """
    K = 1 + max(ground_truth.label.max(initial=0), detections.label.max(initial=0))
    key = ground_truth.image * K + ground_truth.label  # one number for each image and class
    order = np.argsort(key, kind="stable")
    wanted = detections.image * K + detections.label
    first, last = (np.searchsorted(key[order], wanted, side) for side in ("left", "right"))
    count = last - first  # (D,) objects of the image and class
    detection = np.repeat(np.arange(len(count)), count)  # (P,)
    nth = np.arange(len(detection)) - np.repeat(count.cumsum() - count, count)
    gt = order[first[detection] + nth]

    a, b = detections.box[detection], ground_truth.box[gt]
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    width, height = (high - low).clip(min=0).T
    shared = width * height
    own, other = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
    union = np.where(crowd[gt], own, own + other - shared)
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    kept = iou >= least
    return detection[kept], gt[kept], iou[kept]


def match(
    ground_truth: Objects,
    crowd: np.ndarray,
    ignore: np.ndarray,
    ranking: Ranking,
    ious: np.ndarray = IOUS,
    areas: np.ndarray = AREAS,
) -> Matches:
    """Greedily, the best detections first: the k-th ones of all images and classes at once.

    Args:
        ground_truth: G objects.
        crowd: (G,) bool; a crowd can be matched many times.
        ignore: (S, G) bool, objects whose detections do not count.
        ranking: D detections.
        ious: (T,) thresholds, none below 0.5.
        areas: (S, 2) square pixels; a detection of another size that matches nothing is ignored.
    """
    area, rank = ranking.detections.area, ranking.rank
    T, S, D, G = len(ious), len(areas), len(rank), len(crowd)
    other_size = (area < areas[:, :1]) | (area > areas[:, 1:])  # (S, D)
    matched = np.zeros((T, S, D), dtype=bool)
    ignored = np.repeat(other_size[None], T, axis=0)
    owner = np.full((T, S, G), -1, dtype=np.int32)
    detection, gt, iou = pairs(ground_truth, crowd, ranking.detections)
    order = np.argsort(rank[detection], kind="stable")
    detection, gt, iou = detection[order], gt[order], iou[order]
    turns = np.flatnonzero(np.diff(rank[detection], prepend=-1))
    for start, end in pairwise([*turns, len(detection)]):
        d, g, overlap = detection[start:end], gt[start:end], iou[start:end]  # (P,) this turn
        enough = overlap >= np.minimum(ious, 1 - 1e-10)[:, None, None]  # (T, 1, P)
        free = enough & ((owner[:, :, g] < 0) | crowd[g])  # (T, S, P)
        counts = ~ignore[:, g]  # (S, P)
        segment = np.flatnonzero(np.diff(d, prepend=-1))  # where each detection's pairs begin
        best = _last_best(free & counts, overlap, segment)  # (T, S, detections), -1: none
        second = _last_best(free & ~counts, overlap, segment)
        best = np.where(best >= 0, best, second)
        t, s, i = np.nonzero(best >= 0)
        pair = best[t, s, i]
        matched[t, s, d[pair]] = True
        ignored[t, s, d[pair]] = ignore[s, g[pair]]
        owner[t, s, g[pair]] = d[pair]
    return Matches(matched, ignored, owner)


def _last_best(allowed: np.ndarray, overlap: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """(T, S, N) the allowed pair of each detection that overlaps most, the last of equals; or -1.

    ``allowed`` is (T, S, P), ``overlap`` (P,) above 0, ``segment`` (N,) where the pairs of each
    detection begin.
    """
    value = np.where(allowed, overlap, 0.0)
    most = np.maximum.reduceat(value, segment, axis=2)  # (T, S, N)
    length = np.diff(np.append(segment, len(overlap)))
    is_best = allowed & (value == np.repeat(most, length, axis=2))
    return np.maximum.reduceat(np.where(is_best, np.arange(len(overlap)), -1), segment, axis=2)


def precision_at_recalls(true: np.ndarray, false: np.ndarray, num_objects: int) -> np.ndarray:
    """(T, R) precision where each recall is reached first, 0 where it never is.

    Args:
        true: (T, D) right detections so far.
        false: (T, D) wrong ones.
        num_objects: that could be detected.
    """
    precision = true / (false + true + np.spacing(1))
    # The best that is possible at this recall or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros((len(true), len(RECALLS)))
    for row, (recalls, values) in enumerate(zip(true / num_objects, precision, strict=True)):
        at = np.searchsorted(recalls, RECALLS, side="left")
        possible = at < len(values)
        result[row, possible] = values[at[possible]]
    return result
