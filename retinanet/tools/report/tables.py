"""An evaluation in words and files: tables for the console, JSON, CSV."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.data.coco import CocoData
from retinanet.evaluation.average_precision import Evaluation
from retinanet.evaluation.detect import CONFIDENT_SCORE, DetectionArrays
from retinanet.evaluation.numbers import ALL_IOUS, NUMBERS, SIZES, shown_name
from retinanet.evaluation.thresholds import NEVER, BestF1, Thresholds
from retinanet.terminal import fit, width

# Above this share of images with as many detections as a cap allows, the cap may cost AP.
CAPPED_SHARE = 0.01
# Columns that a category name may fill in the table of classes, at most and at least, and those of
# the numbers beside it.
NAME_WIDTHS = 24, 10
NUMBERS_WIDTH = 56
# Terminals with fewer columns get COCO's twelve numbers without their long names.
SUMMARY_WIDTH = 70


def table(
    evaluation: Evaluation, max_classes: int | None = None, thresholds: Thresholds | None = None
) -> str:
    """The twelve numbers and the table of classes, for a terminal of 80 columns or fewer."""
    classes = class_table(evaluation, max_classes, thresholds)
    return f"{summary(evaluation, thresholds)}\n\n{classes}"


def summary(evaluation: Evaluation, thresholds: Thresholds | None = None) -> str:
    """COCO's twelve numbers in COCO's words; what has no ground truth is ``n/a``."""
    gap = 20 if width() >= SUMMARY_WIDTH else 0
    lines = [
        f"{evaluation.num_images} images, {evaluation.num_gt} objects, "
        f"{evaluation.num_detections} detections",
        "",
        f"{'':{7 + gap}}{'IoU':<13}{'objects':<10}{'detections':>10}",
    ]
    for name, number in NUMBERS.items():
        words = f"Average {number.mean_of.capitalize()}" if gap else ""
        every = number.threshold == ALL_IOUS
        iou = "0.50:0.95" if every else f"{0.5 + 0.05 * number.threshold:.2f}"
        limit = evaluation.max_dets[number.max_dets]
        value = _three_digits(evaluation.metrics[name])
        about = f"{shown_name(name, evaluation.max_dets):<7}{words:<{gap}}{iou:<13}"
        lines.append(f"{about}{SIZES[number.area]:<10}{limit:>10}{value:>10}")
    if thresholds is not None and thresholds.overall is not NEVER:
        best = thresholds.overall
        lines += [
            "",
            f"Best F1 {best.F1:.3f} with score >= {best.shown_score()}: precision "
            f"{best.precision:.3f}, recall {best.recall:.3f} (IoU {thresholds.iou:.2f})",
        ]
    return "\n".join(lines)


def class_table(
    evaluation: Evaluation, max_classes: int | None = None, thresholds: Thresholds | None = None
) -> str:
    """Numbers of every category, best AP first.

    Args:
        evaluation: from :func:`retinanet.evaluation.average_precision.evaluate`.
        max_classes: rows, half of them the best and half the worst of what has objects; None: all.
        thresholds: adds the largest F1 of each class, and the score where it is.
    """
    widest, narrowest = NAME_WIDTHS
    if width() < NUMBERS_WIDTH + narrowest:
        thresholds = None  # no room for F1 and its score
    name_width = max(narrowest, min(widest, width() - NUMBERS_WIDTH))
    F1 = [] if thresholds is None else ["F1", "score"]
    recall = shown_name("AR100", evaluation.max_dets)
    rows = [("class", "objects", "detections", "AP", "AP50", "AP75", recall, *F1)]
    labels = list(range(len(evaluation.per_class)))

    def order(label: int) -> tuple[bool, float, str]:
        """Undefined ones last, equal ones by name."""
        row = evaluation.per_class[label]
        return row.AP is None, -(row.AP or 0.0), row.name

    for label in sorted(labels, key=order):
        row = evaluation.per_class[label]
        numbers = [row.AP, row.AP50, row.AP75, row.AR100]
        if thresholds is not None:
            numbers += [thresholds.classes[label].F1, thresholds.classes[label].score]
        rows.append((row.name, row.num_gt, row.num_detections, *map(_three_digits, numbers)))
    header, *lines = (
        f"{fit(name, name_width - 1)} {num_gt:>8}{num_detections:>11}"
        + "".join(f" {text:>5}" for text in texts)
        for name, num_gt, num_detections, *texts in rows
    )
    if max_classes is not None and len(lines) > max_classes:
        shown = lines[: sum(row.AP is not None for row in evaluation.per_class)]
        rest = f"... {len(lines) - min(len(shown), max_classes)} more in per_class.csv"
        if len(shown) > max_classes:
            half = max_classes // 2
            shown = [*shown[: max_classes - half], "...", *shown[len(shown) - half :]]
        lines = [*shown, rest]
    return "\n".join([header, *lines])


def _three_digits(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def warnings_of(evaluation: Evaluation | None, detections: DetectionArrays, cap: int) -> str | None:
    """Sentences when many images hit a cap, or there is nothing to detect; or None.

    Args:
        evaluation: None for data without annotations.
        detections: of all images.
        cap: ``postprocess.detections`` of the run.
    """
    num_images = len(detections.evaluated)
    sentences = []
    if detections.num_capped > CAPPED_SHARE * num_images:
        sentences.append(
            f"{detections.num_capped} of {num_images} images have {cap} detections of score "
            f"{CONFIDENT_SCORE:g} or more, the most that postprocess.detections={cap} keeps; raise "
            f"it to see the others."
        )
    if evaluation is not None and not evaluation.num_gt:
        sentences.append("There are no objects in these images, so every AP and AR is n/a.")
    if evaluation is not None and evaluation.num_over_max_dets > CAPPED_SHARE * num_images:
        limits = list(evaluation.max_dets)
        sentences.append(
            f"{evaluation.num_over_max_dets} of {num_images} images have more than {limits[2]} "
            f"detections of one class, the most that evaluation.max_dets={limits} lets AP see; "
            f"raise its last number to score them all."
        )
    return " ".join(sentences) or None


def write_report(
    folder: Path,
    data: CocoData,
    detections: DetectionArrays,
    evaluation: Evaluation | None,
    extra: dict[str, Any] | None = None,
    thresholds: Thresholds | None = None,
) -> None:
    """Write detections.json and, when there is an evaluation, metrics.json and per_class.csv.

    Args:
        folder: made when missing. Every file is written whole or not at all.
        data: the ground truth.
        detections: of it.
        evaluation: None for data without annotations.
        extra: more entries for metrics.json, such as the checkpoint and its step.
        thresholds: where F1 is largest, for metrics.json and per_class.csv.
    """
    # COCO's results format, one detection a line. Floats have all their digits, so that an
    # evaluator that reads the file sees the numbers that ours saw.
    columns = {
        "image_id": detections.image_ids.tolist(),
        "category_id": np.array(data.category_ids)[detections.labels].tolist(),
        "bbox": detections.boxes.tolist(),
        "score": detections.scores.tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    write_whole(folder / "detections.json", "[\n" + ",\n".join(lines) + "\n]\n")
    if evaluation is not None:
        metrics = metrics_dict(evaluation, thresholds)
        write_whole(folder / "metrics.json", json.dumps(metrics | (extra or {}), indent=2) + "\n")
        classes = metrics["classes"]
        per_class = csv_text(classes[0], [row.values() for row in classes])
        write_whole(folder / "per_class.csv", per_class)


def metrics_dict(evaluation: Evaluation, thresholds: Thresholds | None = None) -> dict[str, Any]:
    """What metrics.json holds: the twelve numbers, the best F1, their basis, and the classes."""
    classes = [dataclasses.asdict(row) for row in evaluation.per_class]  # by label
    if thresholds is not None:
        for row, best in zip(classes, thresholds.classes, strict=True):
            row |= f1_entries(best)
    about = ("num_images", "num_gt", "num_detections", "num_over_max_dets", "backend")
    return {
        **evaluation.metrics,
        **({} if thresholds is None else f1_entries(thresholds.overall)),
        **{name: getattr(evaluation, name) for name in about},
        "max_dets": list(evaluation.max_dets),
        "classes": classes,
    }


def f1_entries(best: BestF1) -> dict[str, float | None]:
    """The largest F1, and what it takes, as files name it."""
    names = {"F1": "F1", "precision": "precision", "recall": "recall", "score_threshold": "score"}
    return {name: getattr(best, attribute) for name, attribute in names.items()}
