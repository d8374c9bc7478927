"""What a detector gets wrong, in words and files: a table for the console, JSON, CSV, pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.data.coco import CocoData
from retinanet.terminal import fit
from retinanet.tools.diagnose.analyze import Analysis
from retinanet.tools.diagnose.errors import KINDS, MISSED, NO_ERROR, ErrorKind
from retinanet.tools.diagnose.worst import (
    NOT_SEEN,
    OTHER_CLASS,
    UNLABELLED,
    ImageErrors,
    Suspect,
    index_of,
)
from retinanet.tools.report.boxes import (
    FILE_LETTERS,
    NAME_LETTERS,
    Box,
    Panel,
    caption,
    class_names,
    corners,
    in_rows,
    read_pixels,
    write_sheets,
)
from retinanet.tools.report.figures import KIND_COLORS, RIGHT_COLOR, confusion, error_costs
from retinanet.tools.report.run_report import errors_of_image
from retinanet.tools.report.style import GRAY, plain_text, save_png
from retinanet.tools.report.tables import f1_entries

# Columns of errors.csv.
FIELDS = (
    *("image_id", "file_name", "kind", "score", "found", "annotated", "iou"),
    *("x", "y", "width", "height"),
)
SUSPECTS_PER_ROW = 3
# A suspicious box is shown with so many times its side, and never less than so many pixels.
CONTEXT, LEAST_CROP = 3.0, 96
CROP_RATIO = 3 / 4  # height / width
# What may be wrong with an annotation -> title of its pictures, and the color of its box.
SUSPECTS = {
    UNLABELLED: ("not annotated?", KIND_COLORS["background"]),
    OTHER_CLASS: ("another class?", KIND_COLORS["class"]),
    NOT_SEEN: ("not detected:", KIND_COLORS["missed"]),
}


def error_table(analysis: Analysis) -> str:
    """Every kind of error: how many, what they cost; at most 80 columns."""
    errors = analysis.errors
    total = sum(kind.cost or 0 for kind in errors.kinds)

    def line(kind: ErrorKind) -> str:
        cost = "n/a" if kind.cost is None else f"{kind.cost:.3f}"
        return f"{kind.name:<18}{kind.count:>12}{kind.count_at_score:>16}{cost:>12}"

    def share(kind: ErrorKind) -> str:
        return f"{100 * kind.cost / total:.0f} %" if total else "n/a"

    score = f"score >= {analysis.score:.2f}"
    lines = [f"{'kind':<18}{'all scores':>12}{score:>16}{'AP50 lost':>12}{'share':>9}"]
    lines += [f"{line(kind)}{share(kind):>9}" for kind in errors.kinds]
    return "\n".join([*lines, "", line(errors.false_positives), line(errors.false_negatives)])


def confused_table(analysis: Analysis) -> str:
    """The five pairs of classes that are confused most often; empty where none is."""
    pairs = analysis.confusion.worst(5)
    lines = [f"{fit(name, 30)} detected as  {fit(other, 28)}{n:>8}" for name, other, n in pairs]
    return "\n".join(["Classes confused most often", *lines]) if pairs else ""


def write_analysis(
    folder: Path, data: CocoData, analysis: Analysis, *, pictures: bool = True
) -> None:
    """Write errors.json, errors.csv, confusion.csv, sizes.csv, plots and sheets.

    With ``pictures``, for which the image files are needed, also ``worst_1.png``, ... and
    ``suspects_unlabelled_1.png``, ...; those of an earlier analysis are removed.
    """
    names, counts = analysis.confusion.names, analysis.confusion.counts.tolist()
    objects = zip([*names, "nothing there"], counts, strict=True)
    sizes = [dataclasses.asdict(row) for row in analysis.sizes]
    texts = {
        "errors.json": json.dumps(_errors_dict(analysis), indent=2) + "\n",
        "errors.csv": csv_text(FIELDS, _error_rows(data, analysis)),
        "confusion.csv": csv_text(
            ["object", *names, "not found"], [[name, *row] for name, row in objects]
        ),
        "sizes.csv": csv_text(sizes[0], [row.values() for row in sizes]),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    save_png(error_costs(analysis.errors), folder / "errors.png")
    save_png(confusion(analysis.confusion), folder / "confusion.png")
    if not pictures:
        return
    legend = {"right": RIGHT_COLOR, **KIND_COLORS, "other objects": GRAY}
    names = class_names(data)
    rows = (_worst_panels(data, analysis, image, names) for image in analysis.worst)
    write_sheets(rows, folder, "worst", legend)
    for reason, (_, color) in SUSPECTS.items():
        suspects = [suspect for suspect in analysis.suspects if suspect.reason == reason]
        panels = [_suspect_panel(data, analysis, suspect, names) for suspect in suspects]
        legend = {"this place": color, "annotated object": GRAY}
        write_sheets(in_rows(panels, SUSPECTS_PER_ROW), folder, f"suspects_{reason}", legend)


def _errors_dict(analysis: Analysis) -> dict[str, Any]:
    """What errors.json holds: kinds, classes, the worst images, suspicious annotations."""
    errors, matched = analysis.errors, analysis.matched
    # Errors of each kind and class, of at least the score. A wrong detection counts for the class
    # that it was detected as, a missed object for its own.
    wrong = (errors.kind != NO_ERROR) & (matched.scores >= analysis.score)
    counts = np.zeros((matched.num_classes, len(KINDS)), dtype=np.int64)
    np.add.at(counts, (matched.detections.label[wrong], errors.kind[wrong]), 1)
    np.add.at(counts[:, MISSED], matched.ground_truth.label[errors.missed_at_score], 1)
    per_class = zip(
        analysis.evaluation.per_class, analysis.thresholds.classes, counts.tolist(), strict=True
    )
    special = (errors.false_positives, errors.false_negatives)
    return {
        "AP50": errors.AP50,
        **f1_entries(analysis.thresholds.overall),
        "score": analysis.score,
        "kinds": [dataclasses.asdict(kind) for kind in errors.kinds],
        **{kind.name.replace(" ", "_"): dataclasses.asdict(kind) for kind in special},
        "advice": analysis.advice,
        "classes": [
            {
                "name": row.name,
                "AP50": row.AP50,
                "num_gt": row.num_gt,
                **f1_entries(best),
                "counts": dict(zip(KINDS, count, strict=True)),
            }
            for row, best, count in per_class
        ],
        "worst": [
            dataclasses.asdict(image) | {"counts": dict(zip(KINDS, image.counts, strict=True))}
            for image in analysis.worst
        ],
        "suspects": [dataclasses.asdict(suspect) for suspect in analysis.suspects],
    }


def _error_rows(data: CocoData, analysis: Analysis) -> Iterator[Sequence[Any]]:
    """Every error of at least the score, by image: the wrong detections, then what is missed."""
    matched, errors, names = analysis.matched, analysis.errors, data.category_names
    detections, ground_truth = matched.detections, matched.ground_truth
    wrong = np.flatnonzero((errors.kind != NO_ERROR) & (matched.scores >= analysis.score))
    missed = np.flatnonzero(errors.missed_at_score)
    image = np.concatenate([detections.image[wrong], ground_truth.image[missed]])
    files = [data.file_name(row) for row in index_of(data, matched.image_ids[image])]
    for row in np.argsort(image, kind="stable"):
        where = int(matched.image_ids[image[row]]), files[row]
        if row < len(wrong):
            d = wrong[row]
            g = errors.target[d]
            what = KINDS[errors.kind[d]], matched.scores[d], names[detections.label[d]]
            target = (names[ground_truth.label[g]], errors.iou[d]) if g >= 0 else (None, None)
            yield *where, *what, *target, *detections.box[d].tolist()
        else:
            g = missed[row - len(wrong)]
            target = names[ground_truth.label[g]], None
            yield *where, KINDS[MISSED], None, None, *target, *ground_truth.box[g].tolist()


def _worst_panels(
    data: CocoData, analysis: Analysis, worst: ImageErrors, names: Sequence[str]
) -> list[Panel]:
    """Ground truth, missed objects colored, and detections, colored by kind, of one image."""
    matched, errors = analysis.matched, analysis.errors
    ground_truth, detections = matched.ground_truth, matched.detections
    objects, missed, shown, wrong = errors_of_image(matched, errors, worst.image_id)
    colors = [KIND_COLORS["missed"] if lost else GRAY for lost in missed]
    annotated = [
        Box(corners(ground_truth.box[g]), color, names[ground_truth.label[g]])
        for g, color in zip(objects, colors, strict=True)
    ]
    kinds = errors.kind[shown]
    colors = [RIGHT_COLOR if kind == NO_ERROR else KIND_COLORS[KINDS[kind]] for kind in kinds]
    detected = [
        Box(
            corners(detections.box[d]),
            color,
            caption(names[detections.label[d]], matched.scores[d]),
        )
        for d, color in zip(shown, colors, strict=True)
    ]
    image, size = read_pixels(data, worst.index), tuple(data.sizes[worst.index].tolist())
    file = plain_text(worst.file_name, FILE_LETTERS)
    left = f"{file}, ground truth: {len(objects)}, missed: {missed.sum()}"
    right = f"score \u2265 {errors.score:.2f}: {len(shown)}, wrong: {wrong.sum()}"
    return [Panel(left, image, size, annotated), Panel(right, image, size, detected)]


def _suspect_panel(
    data: CocoData, analysis: Analysis, suspect: Suspect, names: Sequence[str]
) -> Panel:
    """The box in a part of the image of fixed shape, and what is annotated around it."""
    image = read_pixels(data, suspect.index, whole=True)
    x, y, w, h = suspect.box
    width = int(max(CONTEXT * w, CONTEXT * h / CROP_RATIO, LEAST_CROP))
    # No more than shows the whole image; what would lie outside of it is white.
    width = min(width, int(max(image.shape[1], image.shape[0] / CROP_RATIO)) + 1)
    side = np.array([width, round(CROP_RATIO * width)])
    room = np.array(image.shape[1::-1]) - side
    corner = (np.array([x + w / 2, y + h / 2]) - side / 2).astype(int)
    corner = np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))
    part = Image.new("RGB", tuple(side.tolist()), "white")
    part.paste(Image.fromarray(image), tuple((-corner).tolist()))

    matched = analysis.matched
    ground_truth = matched.ground_truth
    objects = np.flatnonzero(
        ground_truth.image == np.searchsorted(matched.image_ids, suspect.image_id)
    )
    if suspect.reason == NOT_SEEN:  # it is one of them
        objects = objects[(ground_truth.box[objects] != suspect.box).any(axis=1)]
    offset = np.array([*corner, 0, 0])
    boxes = [
        Box(corners(ground_truth.box[g] - offset), GRAY, names[ground_truth.label[g]])
        for g in objects
    ]
    # Only those of which something is seen.
    boxes = [box for box in boxes if (box.corners[:2] < side).all() and min(box.corners[2:]) > 0]
    title, color = SUSPECTS[suspect.reason]
    name = plain_text(suspect.found or suspect.annotated or "", NAME_LETTERS)
    name += "" if suspect.score is None else f" {suspect.score:.2f}"
    boxes.append(Box(corners(np.array(suspect.box) - offset), color, name))
    instead = "" if suspect.reason != OTHER_CLASS else f" on {plain_text(suspect.annotated, 14)}"
    title = f"{title} {name}{instead}, {plain_text(suspect.file_name, 32)}"
    return Panel(title, np.asarray(part), (int(side[1]), int(side[0])), boxes)
