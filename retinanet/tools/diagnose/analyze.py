"""Everything that is known of a detector's errors, from its detections alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation, SizeResult, evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import Matched, match_detections
from retinanet.evaluation.thresholds import Thresholds, thresholds_of
from retinanet.tools.diagnose.advice import first_look
from retinanet.tools.diagnose.confusion import Confusion, find_confusion
from retinanet.tools.diagnose.errors import Errors, find_errors
from retinanet.tools.diagnose.worst import ImageErrors, Suspect, find_suspects, worst_images


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the detector gets wrong."""

    evaluation: Evaluation
    matched: Matched
    thresholds: Thresholds
    score: float  # that confusion, pictures and the second count of errors look at
    errors: Errors
    confusion: Confusion
    sizes: list[SizeResult]  # by label, then size
    worst: tuple[ImageErrors, ...]  # the worst first
    suspects: tuple[Suspect, ...]  # annotations that may be wrong
    advice: str  # what to look at first


def analyze(
    data: CocoData,
    found: DetectionArrays,
    *,
    score: float | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
    most: int = 12,
) -> Analysis:
    """Find out what the detector gets wrong, at IoU 0.5.

    Args:
        data: the ground truth.
        found: the detections.
        score: looked at by everything that needs one; None: where F1 is largest.
        max_dets: of the evaluation.
        most: worst images, and suspicious annotations of each kind.

    Raises:
        ValueError: data without annotations, or images that it does not list.
    """
    evaluation = evaluate(data, found, found.evaluated, max_dets=max_dets)
    matched = match_detections(data, found, max_dets[-1])
    thresholds = thresholds_of(matched)
    if score is None:
        score = thresholds.overall.score or 0.0
    errors = find_errors(matched, score)
    confusion = find_confusion(matched, data.category_names, score)
    return Analysis(
        evaluation=evaluation,
        matched=matched,
        thresholds=thresholds,
        score=score,
        errors=errors,
        confusion=confusion,
        sizes=evaluation.per_size,
        worst=worst_images(data, matched, errors, most),
        suspects=find_suspects(data, matched, errors, most),
        advice=first_look(errors, confusion, evaluation.per_size),
    )
