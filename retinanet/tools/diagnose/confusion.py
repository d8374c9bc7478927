"""The confusion matrix, counted; ``report/figures.py`` draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.evaluation.matched import ALL_SIZES, IOU, Matched, of_one_class
from retinanet.fast.coco_eval import match, rank_detections


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often an object of one class (row) was detected as another (column).

    The last row is what nothing in the image matches, the last column what was not detected.
    Detections that the evaluator ignores, of crowds, are left out.
    """

    counts: np.ndarray  # (K + 1, K + 1) int64
    names: tuple[str, ...]  # K
    score: float  # detections below it are left out
    iou: float

    def shares(self) -> np.ndarray:
        """(K + 1, K + 1): counts of a row by their sum; 0 for rows without any."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    def worst(self, most: int = 5) -> list[tuple[str, str, int]]:
        """Pairs of classes confused most often: of the object, as detected, how often."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        order = np.argsort(-between, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, between.shape), strict=True)
        return [
            (self.names[r], self.names[c], int(between[r, c])) for r, c in pairs if between[r, c]
        ]


def find_confusion(matched: Matched, names: tuple[str, ...], score: float) -> Confusion:
    """Match detections and objects whatever their classes, one to one, and count the classes.

    As COCO matches at IoU 0.5, but with all classes taken for one: the best detections first, each
    with the object that it overlaps most among those that are left. An object counts as the class
    of the best detection on it; what else lies there has nothing left to match.

    Args:
        matched: from :func:`retinanet.evaluation.matched.match_detections`.
        names: of the K classes.
        score: detections below it are left out.
    """
    ground_truth, K = matched.ground_truth, matched.num_classes
    shown = (matched.scores >= score) & ~matched.ignored
    detections = matched.detections.take(shown)
    ranking = rank_detections(of_one_class(detections), matched.scores[shown], shown.sum())
    none = np.zeros(len(ground_truth.label), dtype=bool)
    matches = match(
        of_one_class(ground_truth), none, none[None], ranking, np.array([IOU]), ALL_SIZES
    )
    label = np.append(detections.label[ranking.order], K)  # the last: of nothing
    counts = np.zeros((K + 1, K + 1), dtype=np.int64)
    np.add.at(counts, (ground_truth.label, label[matches.owner[0, 0]]), 1)
    np.add.at(counts, (K, label[:-1][~matches.matched[0, 0]]), 1)
    return Confusion(counts, tuple(names), score, IOU)
