"""Everything that is known of a detector's errors, from its detections alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retinanet.data.coco import CocoData
from retinanet.evaluation.average_precision import Evaluation, SizeResult, evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import Matched, match_detections
from retinanet.evaluation.numbers import COCO_MAX_DETS, SIZES
from retinanet.evaluation.thresholds import Thresholds, thresholds_of
from retinanet.tools.diagnose.confusion import Confusion, find_confusion
from retinanet.tools.diagnose.errors import Errors, find_errors
from retinanet.tools.diagnose.worst import ImageErrors, Suspect, find_suspects, worst_images

# What each kind of error means, and what to do about it.
ADVICE = {
    "class": "the place is right and the class is not{pair}. See confusion.png; then ask whether "
    "the annotations keep these classes apart, and whether there are enough images of each",
    "localization": "the class is right and the box is not tight (IoU 0.1 to 0.5). See the worst "
    "images; then train with larger images, for longer, or with loss.box=giou",
    "both": "neither class nor place is right. See the worst images; more training usually helps "
    "before anything else",
    "duplicate": "one object is detected twice. Lower postprocess.nms_iou",
    "background": "detections lie where no object is annotated. See suspects_unlabelled.png: are "
    "these objects that nobody annotated? Otherwise add images of what is mistaken for objects",
    "missed": "objects are not detected at all{size}. See the worst images; larger images "
    "(data.min_size) and smaller anchors help with small objects, more examples with rare ones",
}


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
    detections: DetectionArrays,
    *,
    score: float | None = None,
    max_dets: Sequence[int] = COCO_MAX_DETS,
    most: int = 12,
) -> Analysis:
    """What the detector gets wrong, at IoU 0.5.

    Args:
        data: the ground truth.
        detections: of its images.
        score: looked at by everything that needs one; None: where F1 is largest.
        max_dets: of the evaluation.
        most: worst images, and suspicious annotations of each kind.

    Raises:
        ValueError: data without annotations, or images that it does not list.
    """
    evaluation = evaluate(data, detections, detections.evaluated, max_dets=max_dets)
    matched = match_detections(data, detections, max_dets[-1])
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
        advice=_first_look(errors, confusion, evaluation.per_size),
    )


def _first_look(errors: Errors, confusion: Confusion, sizes: Sequence[SizeResult]) -> str:
    """The kind of error that costs most, and what to look at first."""
    if errors.AP50 is None:
        return "There are no objects to detect, so nothing can be missed and AP is undefined."
    worst = max(errors.kinds, key=lambda kind: kind.cost)
    if not worst.cost:
        return "No error costs any AP50."
    pair = "".join(
        f", most often {name} taken for {other} ({count} times)"
        for name, other, count in confusion.worst(1)
    )
    recall = {}  # of each size, over all classes
    for size in SIZES[1:]:
        rows = [row for row in sizes if row.size == size and row.num_gt and row.AR is not None]
        if rows:
            total = sum(row.num_gt for row in rows)
            recall[size] = sum(row.AR * row.num_gt for row in rows) / total
    size = min(recall, key=recall.get, default="")
    least = f", {size} ones least (recall {recall[size]:.2f})" if len(recall) > 1 else ""
    advice = ADVICE[worst.name].format(pair=pair, size=least)
    return f"Look at {worst.name} first ({worst.cost:.3f} AP50): {advice}."
