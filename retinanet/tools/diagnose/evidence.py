"""The evidence of a diagnosis in sentences and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose import history as training
from retinanet.tools.diagnose.causes import Case, Network
from retinanet.tools.diagnose.history import Course
from retinanet.tools.diagnose.overlaps import SAMPLED_IMAGES

# Classes that the evidence counts.
SHOWN_CLASSES = 4


def evidence_of(
    case: Case, whole: DetectionArrays, network: Network | None, course: Course | None
) -> list[str]:
    """What was seen, one sentence each, what concerns all of it first."""
    lines = [*_counts(case, whole), _scores(case)]
    if case.best is not None and not case.rescued:
        lines.append(
            f"boxes {case.best.reading.meant}: AP {case.best.AP:.3f}, classes "
            f"ignored, the most that another way to read them gives"
        )
    if case.best_iou is not None:
        lines.append(
            f"mean IoU of the objects with their best detection {case.best_iou:.2f}, with the best "
            f"of an image's first 20 {case.top_iou:.2f}, classes ignored"
        )
    if case.pairing is not None:
        lines.append(
            f"detections fit the boxes of their image better than those of "
            f"{case.pairing.own_rank:.0%} of the other images (chance: 50%)"
        )
    if case.reach is not None:
        lines.append(
            f"{case.reach.uncovered:.0%} of {case.reach.num_boxes} boxes have no anchor of IoU "
            f"{network.positive_iou:g}, {case.reach.background:.0%} none of "
            f"{network.negative_iou:g}; their median side is {case.reach.side:.3g} px in the "
            f"network"
        )
    lines += _id_differences(case.data, network)
    lines += training.describe(course) if course is not None else []
    return lines


def _counts(case: Case, whole: DetectionArrays) -> list[str]:
    evaluation = case.evaluation
    N = evaluation.num_images
    without = N - len(np.unique(whole.image_ids))
    lines = [
        f"{evaluation.num_gt} objects and {len(whole)} detections in {N} images, of which "
        f"{without} have no detection"
    ]
    rows = sorted(evaluation.per_class, key=lambda row: -row.num_gt)
    shown = ", ".join(f"{r.name} {r.num_gt}/{r.num_detections}" for r in rows[:SHOWN_CLASSES])
    more = f", and {len(rows) - SHOWN_CLASSES} more" if len(rows) > SHOWN_CLASSES else ""
    lines.append(f"objects/detections of classes: {shown}{more}")
    if len(whole):
        quantiles = np.quantile(whole.scores, [0.05, 0.5, 0.95, 1])
        shown = ", ".join(f"{q:.3g}" for q in quantiles)
        lines.append(f"scores: 5 %, median, 95 %, best {shown}")
    return lines


def _scores(case: Case) -> str:
    metrics = case.evaluation.metrics
    AP, AP50, AR = (_digits(metrics[name]) for name in ("AP", "AP50", "AR100"))
    line = f"AP {AP}, AP50 {AP50}, AR {AR}; classes ignored AP {case.AP_any:.3f}, AP50 "
    line += f"{case.AP50_any:.3f}"
    if case.naming is not None and len(case.naming.moved):
        line += f"; classes renamed AP {case.AP_renamed:.3f}"
    if case.evaluation.num_images > SAMPLED_IMAGES:
        line += f" (on {SAMPLED_IMAGES} images)"
    return line


def _digits(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _id_differences(data: CocoData, network: Network | None) -> list[str]:
    """Category ids that are not those of the training."""
    if network is None or network.train_ids is None or network.train_ids == data.category_ids:
        return []
    pairs = list(zip(data.category_names, network.train_ids, data.category_ids, strict=True))
    differ = [f"{name} {there}, here {here}" for name, there, here in pairs if there != here]
    more = ", ..." if len(differ) > 3 else ""
    return [f"category ids in training differ: {'; '.join(differ[:3])}{more}"]


def numbers_of(case: Case, course: Course | None) -> dict[str, Any]:
    """The evidence as numbers; what was not looked at is None."""
    best, naming, pairing = case.best, case.naming, case.pairing
    numbers = {
        "sampled_images": len(case.found.evaluated),
        "AP_sampled": case.AP,
        "AP_classes_ignored": case.AP_any,
        "AP50_classes_ignored": case.AP50_any,
        "AP_renamed": case.AP_renamed,
        "renaming": naming
        and {
            case.data.category_names[g]: case.data.category_names[naming.new[g]]
            for g in naming.moved
        },
        "other_reading": best and best.reading.name,
        "AP_other_reading": best and best.AP,
        "mean_best_iou": case.best_iou,
        "rank_of_own_image": pairing and pairing.own_rank,
        "AP_images_exchanged": pairing and pairing.AP,
        "AP_of_images_with_boxes": case.AP_with_boxes,
        "boxes_without_anchor": case.reach and case.reach.uncovered,
    }
    if course is not None:
        numbers |= {
            "step": course.step,
            "loss_of_one_score": training.constant_loss(course),
        }
    return numbers
