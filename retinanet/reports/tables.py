"""An evaluation in words and files: tables for the console, JSON, CSV."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import ClassResult, Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.numbers import ALL_IOUS, NUMBERS, SIZES
from retinanet.terminal import fit, width

# Above this share of images with as many detections as a cap allows, the cap may cost AP.
CAPPED_SHARE = 0.01

# Columns that a category name may fill in the table of classes, at most and at least, and those of
# the numbers beside it.
NAME_WIDTHS = 28, 10
NUMBERS_WIDTH = 49
# Terminals with fewer columns get COCO's twelve numbers without their long names.
SUMMARY_WIDTH = 70


def table(evaluation: Evaluation, max_classes: int | None = None) -> str:
    """The twelve numbers and the table of classes, for a terminal of 80 columns or fewer.

    Args:
        evaluation: from :func:`retinanet.evaluation.coco.evaluate`.
        max_classes: rows of the table of classes, the best and the worst; None: all.
    """
    return f"{summary(evaluation)}\n\n{class_table(evaluation, max_classes)}"


def summary(evaluation: Evaluation) -> str:
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
        iou = (
            "0.50:0.95" if number.threshold == ALL_IOUS else f"{0.5 + 0.05 * number.threshold:.2f}"
        )
        limit = evaluation.max_dets[number.max_dets]
        value = _three_digits(evaluation.metrics[name])
        about = f"{name:<7}{words:<{gap}}{iou:<13}{SIZES[number.area]:<10}"
        lines.append(f"{about}{limit:>10}{value:>10}")
    return "\n".join(lines)


def class_table(evaluation: Evaluation, max_classes: int | None = None) -> str:
    """Numbers of every category, best AP first.

    Args:
        evaluation: from :func:`retinanet.evaluation.coco.evaluate`.
        max_classes: rows, half of them the best and half the worst of what has objects; None: all.
    """
    recall = f"AR{evaluation.max_dets[2]}"
    header = f"{'class':<{_name_width()}}{'objects':>9}{'detections':>12}"
    header += "".join(f"{name:>7}" for name in ("AP", "AP50", "AP75", recall))
    ranked = sorted(evaluation.per_class, key=_rank)
    if max_classes is None or len(ranked) <= max_classes:
        return "\n".join([header, *map(_class_line, ranked)])
    shown = [_class_line(row) for row in ranked if row.AP is not None]
    if len(shown) > max_classes:
        half = max_classes // 2
        shown = [*shown[: max_classes - half], "...", *shown[len(shown) - half :]]
    left_out = f"... {len(ranked) - min(len(shown), max_classes)} more in per_class.csv"
    return "\n".join([header, *shown, left_out])


def caps_warning(
    evaluation: Evaluation | None, detections: DetectionArrays, cap: int
) -> str | None:
    """A sentence when more than 1 % of the images hit a cap, else None.

    Args:
        evaluation: None for data without annotations.
        detections: from :func:`retinanet.evaluation.detect.detect`.
        cap: ``postprocess.detections`` of the run.
    """
    num_images = len(detections.evaluated)
    sentences = []
    if detections.num_capped > CAPPED_SHARE * num_images:
        sentences.append(
            f"{detections.num_capped} of {num_images} images have {cap} detections, the most "
            f"that postprocess.detections={cap} keeps; raise it to see the others."
        )
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
) -> None:
    """Write detections.json and, when there is an evaluation, metrics.json and per_class.csv.

    Every file is written whole or not at all.

    Args:
        folder: made when missing.
        data: names the categories.
        detections: go to COCO's results format: pixels of the file, category ids of ``data``.
        evaluation: None for data without annotations.
        extra: more entries for metrics.json, such as the checkpoint and its step.
    """
    write_whole(folder / "detections.json", _detections_json(data, detections))
    if evaluation is not None:
        found = metrics_dict(evaluation) | (extra or {})
        write_whole(folder / "metrics.json", json.dumps(found, indent=2) + "\n")
        write_whole(folder / "per_class.csv", _classes_csv(evaluation))


def metrics_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The twelve numbers at the top, what they were made from, and the classes."""
    about = ("num_images", "num_gt", "num_detections", "num_over_max_dets", "backend")
    return {
        **evaluation.metrics,
        **{name: getattr(evaluation, name) for name in about},
        "max_dets": list(evaluation.max_dets),
        "classes": [dataclasses.asdict(row) for row in evaluation.per_class],
    }


def _rank(row: ClassResult) -> tuple[bool, float, str]:
    """Best AP first, undefined last, then by name."""
    return row.AP is None, -(row.AP or 0.0), row.name


def _class_line(row: ClassResult) -> str:
    name = fit(row.name, _name_width() - 1)
    numbers = "".join(f"{_three_digits(v):>7}" for v in (row.AP, row.AP50, row.AP75, row.AR100))
    return f"{name} {row.num_gt:>9}{row.num_detections:>12}{numbers}"


def _name_width() -> int:
    widest, narrowest = NAME_WIDTHS
    return max(narrowest, min(widest, width() - NUMBERS_WIDTH))


def _three_digits(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _detections_json(data: CocoData, detections: DetectionArrays) -> str:
    """COCO's results format, one detection a line.

    Floats are written with all their digits, so that an evaluator that reads the file sees the
    numbers that ours saw.
    """
    columns = {
        "image_id": detections.image_ids.tolist(),
        "category_id": np.array(data.category_ids)[detections.labels].tolist(),
        "bbox": detections.boxes.tolist(),
        "score": detections.scores.tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _classes_csv(evaluation: Evaluation) -> str:
    """One row for each category by category id; empty where undefined."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(ClassResult)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in evaluation.per_class)
    return text.getvalue()
