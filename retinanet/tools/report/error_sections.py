"""Sections of a report on what a detector gets wrong: kinds of errors, confusion, worst images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import Matched, match_detections
from retinanet.evaluation.thresholds import thresholds_of
from retinanet.tools.diagnose.confusion import Confusion, find_confusion
from retinanet.tools.diagnose.errors import KINDS, NO_ERROR, Errors, find_errors
from retinanet.tools.diagnose.worst import Suspect, find_suspects, worst_images
from retinanet.tools.report.gallery import Box, Exhibit, Gallery, View
from retinanet.tools.report.heat import HeatMap
from retinanet.tools.report.image_grid import color_of, image_of
from retinanet.tools.report.page import Prose, Section
from retinanet.tools.report.sortable import Colored, Column, Table

# Worst images shown; with the others of a report they keep it below 5 MB.
WORST_IMAGES = 8
# Suspicious annotations of each reason, and pairs of classes, that are listed.
LISTED = 8

MEANINGS = {
    "class": "the place is right, the class is another",
    "localization": "the class is right, the box fits badly (overlap 0.1 to 0.5)",
    "both": "neither class nor place is right",
    "duplicate": "the object was found already, by a better detection",
    "background": "nothing is annotated there",
    "missed": "an object that no detection finds, or nearly finds",
}
REASONS = {
    "unlabelled": "found where nothing is annotated",
    "other_class": "found as another class",
    "not_seen": "annotated, and nothing was found there",
}


class Mistakes(NamedTuple):
    """All that these sections show."""

    data: CocoData
    matched: Matched
    errors: Errors
    confusion: Confusion


def find_mistakes(data: CocoData, found: DetectionArrays, evaluation: Evaluation) -> Mistakes:
    """Match detections with objects and tell the errors apart.

    Args:
        data: the ground truth.
        found: what was found.
        evaluation: of both; there must be objects to find.
    """
    matched = match_detections(data, found, evaluation.max_dets[-1])
    score = thresholds_of(matched).overall.score or 0.0
    names = data.category_names
    return Mistakes(
        data, matched, find_errors(matched, score), find_confusion(matched, names, score)
    )


def error_section(mistakes: Mistakes) -> Section:
    """What each kind of error costs."""
    errors = mistakes.errors
    most = max(kind.cost for kind in errors.kinds)
    columns = [
        Column("error"),
        Column("costs AP50", 3, most or 1.0, "what AP50 would gain without these errors"),
        Column(f"score \u2265 {errors.score:.2f}", meaning="errors among these detections"),
        Column("any score"),
        Column("what it is"),
    ]
    rows = [
        [kind.name, kind.cost, kind.count_at_score, kind.count, MEANINGS[kind.name]]
        for kind in sorted(errors.kinds, key=lambda kind: -kind.cost)
    ]
    wrong, lost = errors.false_positives, errors.false_negatives
    total = (
        f"Without any wrong detection AP50 would be {errors.AP50 + wrong.cost:.3f}, with every "
        f"object found {errors.AP50 + lost.cost:.3f}, instead of {errors.AP50:.3f}. Costs do not "
        "add up to these: one error often hides another."
    )
    return Section(
        "Errors",
        "Every wrong detection and every missed object is of one kind (those of TIDE, Bolya et al. "
        "2020). The cost is what AP50 gains when that kind alone is mended: begin at the top.",
        [Table(columns, rows, "errors", "costs AP50"), Prose([total])],
    )


def confusion_section(mistakes: Mistakes) -> Section:
    """Which class is taken for which."""
    confusion = mistakes.confusion
    names = list(confusion.names)
    blocks = [
        HeatMap(
            confusion.counts,
            confusion.shares(),
            [*names, "nothing there"],
            [*names, "not found"],
            corner="object \\ found as",
        )
    ]
    colors = {name: color_of(label) for label, name in enumerate(names)}
    pairs = [
        [Colored(name, colors[name]), Colored(other, colors[other]), count]
        for name, other, count in confusion.worst(LISTED)
    ]
    if pairs:
        columns = [Column("object"), Column("found as"), Column("times")]
        blocks.append(Table(columns, pairs, "pairs of classes", "times"))
    return Section(
        "Confusion",
        f"One row for the objects of each class: how they were found, among the detections with a "
        f"score of at least {confusion.score:.2f} that overlap by {confusion.iou:.2f} or more. The "
        "stronger the color, the larger the share of the row; a good detector has color on the "
        "diagonal alone. "
        "The last row is what was found where nothing is annotated.",
        blocks,
    )


def worst_section(mistakes: Mistakes, num_drawn: int) -> tuple[Section | None, list[Exhibit]]:
    """The images with the worst errors; None where there are none, or none are to be drawn."""
    data, matched, errors = mistakes[:3]
    shown = worst_images(data, matched, errors, min(WORST_IMAGES, num_drawn))
    exhibits = [
        Exhibit(
            image_of(data, image.index),
            image.file_name,
            _views(mistakes, image.image_id),
            note=_counted(image.counts),
        )
        for image in shown
    ]
    section = Section(
        "Worst images",
        f"The images with the most errors, sure ones first. Left the objects, those not found in "
        f"full color; right the wrong detections with a score of at least {errors.score:.2f}, with "
        "the kind of error. What is right is pale. Look for a pattern: one class, one size, one "
        "camera, or annotations that are themselves wrong.",
        [Gallery(exhibits)],
    )
    return (section if exhibits else None), exhibits


def _views(mistakes: Mistakes, image_id: int) -> list[View]:
    """What is there and what was found in one image, errors in front of what is right."""
    data, matched, errors = mistakes[:3]
    image = np.searchsorted(matched.image_ids, image_id)
    objects = np.flatnonzero(matched.truth.image == image)
    objects = objects[np.argsort(errors.missed_at_score[objects], kind="stable")]
    fates = np.where(errors.missed_at_score[objects], "missed", "found").tolist()
    there = [
        _box(data, matched.truth.box[g], matched.truth.label[g], what, what == "missed")
        for g, what in zip(objects, fates, strict=True)
    ]
    shown = (matched.found.image == image) & (matched.scores >= errors.score) & ~matched.ignored
    found = np.flatnonzero(shown)
    found = found[np.lexsort((matched.scores[found], errors.kind[found] != NO_ERROR))]
    wrong = errors.kind[found] != NO_ERROR
    seen = [
        _box(
            data,
            matched.found.box[d],
            matched.found.label[d],
            f"{matched.scores[d]:.2f} {KINDS[errors.kind[d]] if bad else 'right'}",
            bad,
        )
        for d, bad in zip(found, wrong, strict=True)
    ]
    return [
        View(f"Objects: {len(objects)}, missed: {fates.count('missed')}", there),
        View(f"Detections: {len(found)}, wrong: {int(wrong.sum())}", seen),
    ]


def _box(data: CocoData, box: np.ndarray, label: int, what: str, is_error: bool) -> Box:
    name = data.category_names[label]
    return Box(*map(float, box), color_of(int(label)), f"{name} {what}", "" if is_error else "pale")


def _counted(counts: Sequence[int]) -> str:
    """Numbers of errors in words: those of a kind that there are."""
    return ", ".join(f"{count} {kind}" for kind, count in zip(KINDS, counts, strict=True) if count)


def suspect_section(mistakes: Mistakes) -> Section | None:
    """Annotations that may be wrong themselves; None where there are none."""
    found = find_suspects(*mistakes[:3], LISTED)
    if not found:
        return None
    columns = [
        Column("image"),
        Column("why"),
        Column("found"),
        Column("score", 2),
        Column("annotated"),
        Column("box: x, y, width, height"),
    ]
    return Section(
        "Annotations to check",
        "Where detector and annotation contradict each other, and the detector may be right: the "
        "surest cases of each kind. Mistakes in the validation data make every model look worse.",
        [Table(columns, [_suspect(suspect) for suspect in found], "places")],
    )


def _suspect(suspect: Suspect) -> list[str | float | None]:
    return [
        suspect.file_name,
        REASONS[suspect.reason],
        suspect.found or "",
        suspect.score,
        suspect.annotated or "",
        ", ".join(f"{side:.0f}" for side in suspect.box),
    ]
