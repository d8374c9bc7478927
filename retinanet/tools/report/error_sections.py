"""What the page shows of errors: their kinds, the confusion of classes, the worst images."""

from __future__ import annotations

from typing import Any

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.matched import Matched, match_detections
from retinanet.evaluation.thresholds import thresholds_of
from retinanet.tools.diagnose.confusion import find_confusion
from retinanet.tools.diagnose.errors import KINDS, NO_ERROR, Errors, find_errors
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.diagnose.worst import find_suspects, worst_images
from retinanet.tools.report.boxes import Box
from retinanet.tools.report.gallery import Exhibit, image_of
from retinanet.tools.report.page import Colored, Column, Table
from retinanet.tools.report.pictures import corners, read_pixels
from retinanet.tools.report.style import class_color

# Worst images shown; with the others of a report they keep it below 5 MB.
WORST_IMAGES = 8
# Suspicious annotations of each reason, and pairs of classes, that are listed.
LISTED = 8

# Opacity of what is right, which has no caption.
PALE = 0.45

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


def error_sections(scored: Scored) -> dict[str, Any]:
    """The variables of the template for the errors of an evaluation.

    Args:
        scored: an evaluation with objects to detect.

    Returns:
        ``errors`` and ``confusion`` as found, the tables ``error_kinds``, ``confused`` and
        ``suspects``, and ``worst``, images with the most errors as exhibits.
    """
    data = scored.data
    matched = match_detections(data, scored.found, scored.evaluation.max_dets[-1])
    score = thresholds_of(matched).overall.score or 0.0
    errors = find_errors(matched, score)
    confusion = find_confusion(matched, data.category_names, score)
    colored = {
        name: Colored(name, class_color(label)) for label, name in enumerate(data.category_names)
    }
    kinds = sorted(errors.kinds, key=lambda kind: -kind.cost)
    error_kinds = Table(
        "errors",
        [
            Column("error"),
            Column("costs AP50", 3, kinds[0].cost or 1.0, "what AP50 would gain without them"),
            Column(f"score \u2265 {score:.2f}", 0, meaning="errors among these detections"),
            Column("any score", 0),
            Column("what it is"),
        ],
        [
            [kind.name, kind.cost, kind.count_at_score, kind.count, MEANINGS[kind.name]]
            for kind in kinds
        ],
        sorted_by="costs AP50",
    )
    confused = Table(
        "pairs of classes",
        [Column("object"), Column("found as"), Column("times", 0)],
        [[colored[name], colored[other], count] for name, other, count in confusion.worst(LISTED)],
        sorted_by="times",
    )
    suspects = Table(
        "places",
        [
            Column("image"),
            Column("why"),
            Column("found"),
            Column("score", 2),
            Column("annotated"),
            Column("box: x, y, width, height"),
        ],
        [
            [
                suspect.file_name,
                REASONS[suspect.reason],
                suspect.found or "",
                suspect.score,
                suspect.annotated or "",
                ", ".join(f"{side:.0f}" for side in suspect.box),
            ]
            for suspect in find_suspects(data, matched, errors, LISTED)
        ],
    )
    worst = [
        Exhibit(
            image_of(data, image.index, read_pixels(data, image.index)),
            image.file_name,
            _views(data, matched, errors, image.image_id),
            note=", ".join(f"{n} {kind}" for kind, n in zip(KINDS, image.counts, strict=True) if n),
        )
        for image in worst_images(data, matched, errors, min(WORST_IMAGES, scored.num_drawn))
    ]
    return {
        "errors": errors,
        "error_kinds": error_kinds,
        "confusion": confusion,
        "confused": confused,
        "suspects": suspects,
        "worst": worst,
    }


def _views(
    data: CocoData, matched: Matched, errors: Errors, image_id: int
) -> list[tuple[str, list[Box]]]:
    """Ground truth and detections of one image, errors on top of what is right."""
    image = np.searchsorted(matched.image_ids, image_id)

    def box(xywh: np.ndarray, label: int, what: str, is_error: bool) -> Box:
        caption = f"{data.category_names[label]} {what}"
        opacity = 1.0 if is_error else PALE
        return Box(corners(xywh), class_color(label), caption, opacity=opacity)

    truth, missed = matched.truth, errors.missed_at_score
    objects = np.flatnonzero(truth.image == image)
    objects = objects[np.argsort(missed[objects], kind="stable")]
    objects_view = [
        box(truth.box[g], truth.label[g], "missed" if missed[g] else "found", missed[g])
        for g in objects
    ]
    found, wrong = matched.detections, errors.kind != NO_ERROR
    shown = (found.image == image) & (matched.scores >= errors.score) & ~matched.ignored
    shown = np.flatnonzero(shown)
    shown = shown[np.lexsort((matched.scores[shown], wrong[shown]))]
    kinds = [KINDS[errors.kind[d]] if wrong[d] else "right" for d in shown]
    detections_view = [
        box(found.box[d], found.label[d], f"{matched.scores[d]:.2f} {kind}", wrong[d])
        for d, kind in zip(shown, kinds, strict=True)
    ]
    return [
        (f"Objects: {len(objects)}, missed: {missed[objects].sum()}", objects_view),
        (f"Detections: {len(shown)}, wrong: {wrong[shown].sum()}", detections_view),
    ]
