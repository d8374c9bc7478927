"""Where to cut the scores: the threshold at which F1 is largest, for all classes and for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retinanet.data.coco import CocoData
from retinanet.data.records import shown
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import IOU, MAX_DETS, Matched, match_detections


@dataclass(frozen=True, slots=True)
class BestF1:
    """What is had by keeping the detections of at least a score; None: nothing is ever right."""

    score: float | None
    F1: float | None  # 2 precision recall / (precision + recall), the largest of all scores
    precision: float | None  # share of the detections that are right
    recall: float | None  # share of the objects that are found

    def shown_score(self) -> str:
        """The score with three digits, rounded down: what is printed still keeps the best."""
        return f"{math.floor(self.score * 1000) / 1000:.3f}"


NEVER = BestF1(None, None, None, None)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores to cut at."""

    iou: float  # from which on a detection is right
    overall: BestF1  # the same score for all classes, all their detections and objects together
    classes: tuple[BestF1, ...]  # by label

    def plain(self) -> dict[str, Any]:
        """As checkpoints keep them."""
        return {
            "iou": self.iou,
            "score": self.overall.score,
            "f1": self.overall.F1,
            "classes": [best.score for best in self.classes],
        }


def find_thresholds(
    data: CocoData, detections: DetectionArrays, max_dets: int = MAX_DETS
) -> Thresholds:
    """The scores at which F1 is largest at IoU 0.5; arguments of :func:`match_detections`.

    They were chosen on this very data, so F1 there is a little higher than on other images.
    """
    return thresholds_of(match_detections(data, detections, max_dets))


def thresholds_of(matched: Matched) -> Thresholds:
    """The same of detections that are matched already."""
    counts = ~matched.ignored
    label, scores, right = (
        column[counts] for column in (matched.found.label, matched.scores, matched.right)
    )
    order = np.lexsort((-scores, label))
    scores, right = scores[order], right[order]
    starts = np.searchsorted(label[order], np.arange(matched.num_classes + 1))
    classes = [
        best_f1(scores[start:end], right[start:end], int(num_objects))
        for start, end, num_objects in zip(
            starts[:-1], starts[1:], matched.num_objects(), strict=True
        )
    ]
    order = np.argsort(-scores, kind="stable")
    overall = best_f1(scores[order], right[order], len(matched.truth_row))
    return Thresholds(IOU, overall, tuple(classes))


def best_f1(scores: np.ndarray, right: np.ndarray, num_objects: int) -> BestF1:
    """The score to cut at; the highest where several are equally good.

    Args:
        scores: (D,) decreasing.
        right: (D,) bool.
        num_objects: that could be found.
    """
    if not right.any():
        return NEVER
    true = right.cumsum()
    kept = np.arange(1, len(scores) + 1)
    # Detections of one score are kept together or not at all.
    possible = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))
    F1 = 2 * true[possible] / (kept[possible] + num_objects)
    best = possible[np.argmax(F1)]
    return BestF1(
        score=float(scores[best]),
        F1=float(F1.max()),
        precision=float(true[best] / kept[best]),
        recall=float(true[best] / num_objects),
    )


# Where the best score is not known; sheets of predictions have it too.
DEFAULT_SCORE = 0.3


def min_scores(
    score: float | str | None, thresholds: dict[str, Any] | None, num_classes: int, kept: float
) -> Tensor:
    """The score that a detection of each class must reach, (K,) float32.

    Args:
        score: a number in [0, 1): that, for every class; None: ``kept``; ``"auto"``: the class's
            score of best F1, or that of all classes, or ``DEFAULT_SCORE``.
        thresholds: what the checkpoint knows; see :func:`known_thresholds`.
        num_classes: K.
        kept: what the checkpoint's own evaluation keeps.

    Raises:
        ValueError: another score.
    """
    if score == "auto":
        known = thresholds or {"score": None, "classes": [None] * num_classes}
        common = DEFAULT_SCORE if known["score"] is None else known["score"]
        return torch.tensor([common if one is None else one for one in known["classes"]])
    score = kept if score is None else score
    if isinstance(score, bool | str) or not 0 <= score < 1:
        raise ValueError(f"score must be auto or a number in [0, 1), got {score}.")
    return torch.full((num_classes,), float(score))


def known_thresholds(state: dict[str, Any], num_classes: int) -> dict[str, Any] | None:
    """The scores at which F1 was largest when a checkpoint was evaluated.

    Returns:
        ``{"iou", "score", "f1", "classes"}``: the IoU of a right detection, the best score for all
        classes together and its F1, and a list of the best score of each label. A score is None
        where nothing was ever right. None for checkpoints without: those that were not evaluated,
        of older versions and of other projects.

    Raises:
        ValueError: they are not that, or of another number of classes.
    """
    found = state.get("thresholds")
    if found is None:
        return None
    listed = found.get("classes") if isinstance(found, dict) else None
    if not isinstance(listed, list) or len(listed) != num_classes:
        got = f"{len(listed)} of them" if isinstance(listed, list) else "no such list"
        raise ValueError(
            f"the checkpoint's thresholds must list a score for each of its {num_classes} classes, "
            f"got {got}."
        )
    values = [found.get("score"), found.get("f1"), *listed]
    wrong = [value for value in values if value is not None and not _is_fraction(value)]
    wrong += [] if _is_fraction(found.get("iou")) else [found.get("iou")]
    if wrong:
        raise ValueError(
            f"the checkpoint's thresholds must be numbers from 0 to 1, or None where nothing is "
            f"known, got {shown(wrong[0])}. Use a checkpoint as train.py wrote it."
        )
    return {key: found.get(key) for key in ("iou", "score", "f1", "classes")}


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
