"""Confidence thresholds: the score at which F1 is largest, for all classes and for each."""

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

# Where the best score is not known; sheets of predictions have it too.
DEFAULT_SCORE = 0.3


@dataclass(frozen=True, slots=True)
class BestF1:
    """The confidence threshold of the best F1; None where no detection is right."""

    score: float | None
    F1: float | None  # 2 precision recall / (precision + recall), the largest of all scores
    precision: float | None  # share of the detections that are right
    recall: float | None  # share of the objects that are detected

    def shown_score(self) -> str:
        """The score with three digits, rounded down: what is printed still keeps the best."""
        return f"{math.floor(self.score * 1000) / 1000:.3f}"


NEVER = BestF1(None, None, None, None)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The confidence thresholds of one evaluation."""

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
    order = np.argsort(-matched.scores, kind="stable")
    order = order[~matched.ignored[order]]
    label = matched.detections.label[order]
    scores, right = matched.scores[order], matched.right[order]
    num_objects = matched.num_objects().tolist()
    by_class = np.argsort(label, kind="stable")  # classes apart, each still by score
    ends = np.searchsorted(label[by_class], np.arange(1, matched.num_classes))
    classes = [
        best_f1(scores[rows], right[rows], count)
        for rows, count in zip(np.split(by_class, ends), num_objects, strict=True)
    ]
    return Thresholds(IOU, best_f1(scores, right, sum(num_objects)), tuple(classes))


def best_f1(scores: np.ndarray, right: np.ndarray, num_objects: int) -> BestF1:
    """The score at which F1 is largest; the highest where several are equally good.

    Args:
        scores: (D,) decreasing.
        right: (D,) bool.
        num_objects: that could be detected.
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
    number = isinstance(score, int | float | np.number) and not isinstance(score, bool)
    if not number or not 0 <= score < 1:
        raise ValueError(f"score must be auto or a number in [0, 1), got {score}.")
    return torch.full((num_classes,), float(score))


def known_thresholds(state: dict[str, Any], num_classes: int) -> dict[str, Any] | None:
    """The scores at which F1 was largest when a checkpoint was evaluated.

    Returns:
        As :meth:`Thresholds.plain`; a score is None where nothing was ever right. None for
        checkpoints that were not evaluated, of older versions and of other projects.

    Raises:
        ValueError: they are not that, or of another number of classes.
    """
    known = state.get("thresholds")
    if known is None:
        return None
    listed = known.get("classes") if isinstance(known, dict) else None
    if not isinstance(listed, list) or len(listed) != num_classes:
        got = f"{len(listed)} of them" if isinstance(listed, list) else "no such list"
        raise ValueError(
            f"the checkpoint's thresholds must list a score for each of its {num_classes} classes, "
            f"got {got}."
        )
    may_be_none = [v for v in (known.get("score"), known.get("f1"), *listed) if v is not None]
    for value in (known.get("iou"), *may_be_none):
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(
                f"the checkpoint's thresholds must be numbers from 0 to 1, or None where nothing "
                f"is known, got {shown(value)}. Use a checkpoint as train.py wrote it."
            )
    return {key: known.get(key) for key in ("iou", "score", "f1", "classes")}
