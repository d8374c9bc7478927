"""What a detector gets wrong, in words and files: a table for the console, JSON, CSV, pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.data.coco import CocoData
from retinanet.terminal import fit
from retinanet.tools.diagnose.analyze import Analysis
from retinanet.tools.diagnose.errors import KINDS, MISSED, NO_ERROR, ErrorKind
from retinanet.tools.diagnose.worst import index_of
from retinanet.tools.report.error_pictures import draw_suspects, draw_worst
from retinanet.tools.report.figures import confusion, error_costs
from retinanet.tools.report.style import save_png
from retinanet.tools.report.tables import f1_entries

# Columns of errors.csv.
FIELDS = (
    *("image_id", "file_name", "kind", "score", "found", "annotated", "iou"),
    *("x", "y", "width", "height"),
)


def error_table(analysis: Analysis) -> str:
    """Every kind of error: how many, what they cost; at most 80 columns."""
    errors, score = analysis.errors, f"score >= {analysis.score:.2f}"

    def line(kind: ErrorKind) -> str:
        cost = "n/a" if kind.cost is None else f"{kind.cost:.3f}"
        return f"{kind.name:<18}{kind.count:>12}{kind.count_at_score:>16}{cost:>12}"

    total = sum(kind.cost or 0 for kind in errors.kinds)
    lines = [f"{'kind':<18}{'all scores':>12}{score:>16}{'AP50 lost':>12}{'share':>9}"]
    for kind in errors.kinds:
        share = f"{100 * kind.cost / total:.0f} %" if total else "n/a"
        lines.append(f"{line(kind)}{share:>9}")
    return "\n".join([*lines, "", line(errors.false_positives), line(errors.false_negatives)])


def confused_table(analysis: Analysis, most: int = 5) -> str:
    """The pairs of classes that are confused most often; empty where none is."""
    pairs = analysis.confusion.worst(most)
    lines = [f"{fit(name, 30)} found as  {fit(other, 28)}{n:>8}" for name, other, n in pairs]
    return "\n".join(["Classes confused most often", *lines]) if pairs else ""


def write_analysis(
    folder: Path, data: CocoData, analysis: Analysis, *, pictures: bool = True
) -> None:
    """Write errors.json, errors.csv, confusion.csv, sizes.csv, plots and sheets.

    Args:
        folder: made when missing.
        data: what was analyzed.
        analysis: of it.
        pictures: sheets of images too, which need the image files.
    """
    names, counts = analysis.confusion.names, analysis.confusion.counts.tolist()
    confusion_rows = [
        [name, *row] for name, row in zip([*names, "nothing there"], counts, strict=True)
    ]
    sizes = [dataclasses.asdict(row) for row in analysis.sizes]
    texts = {
        "errors.json": json.dumps(errors_dict(data, analysis), indent=2) + "\n",
        "errors.csv": csv_text(FIELDS, _error_rows(data, analysis)),
        "confusion.csv": csv_text(["object", *names, "not found"], confusion_rows),
        "sizes.csv": csv_text(sizes[0], [row.values() for row in sizes]),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    save_png(error_costs(analysis.errors), folder / "errors.png")
    save_png(confusion(analysis.confusion), folder / "confusion.png")
    if pictures:
        draw_worst(data, analysis, folder)
        draw_suspects(data, analysis, folder)


def errors_dict(data: CocoData, analysis: Analysis) -> dict[str, Any]:
    """What errors.json holds: kinds, classes, the worst images, suspicious annotations."""
    errors, matched = analysis.errors, analysis.matched
    # Errors of each kind and class, of at least the score. A wrong detection counts for the class
    # that it was detected as, a missed object for its own.
    wrong = (errors.kind != NO_ERROR) & (matched.scores >= analysis.score)
    counts = np.zeros((matched.num_classes, len(KINDS)), dtype=np.int64)
    np.add.at(counts, (matched.detections.label[wrong], errors.kind[wrong]), 1)
    np.add.at(counts[:, MISSED], matched.truth.label[errors.missed_at_score], 1)
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


def _error_rows(data: CocoData, analysis: Analysis) -> Iterable[Sequence[Any]]:
    """Every error of at least the score, by image: the wrong detections, then what is missed."""
    matched, errors, names = analysis.matched, analysis.errors, data.category_names
    wrong = np.flatnonzero((errors.kind != NO_ERROR) & (matched.scores >= analysis.score))
    missed = np.flatnonzero(errors.missed_at_score)
    image = np.concatenate([matched.detections.image[wrong], matched.truth.image[missed]])
    files = [data.file_name(row) for row in index_of(data, matched.image_ids[image])]
    for row in np.argsort(image, kind="stable"):
        where = int(matched.image_ids[image[row]]), files[row]
        if row < len(wrong):
            d = wrong[row]
            target = errors.target[d]
            annotated = names[matched.truth.label[target]] if target >= 0 else None
            iou = errors.iou[d] if target >= 0 else None
            what = KINDS[errors.kind[d]], matched.scores[d], names[matched.detections.label[d]]
            yield *where, *what, annotated, iou, *matched.detections.box[d].tolist()
        else:
            g = missed[row - len(wrong)]
            annotated = names[matched.truth.label[g]]
            box = matched.truth.box[g].tolist()
            yield *where, KINDS[MISSED], None, None, annotated, None, *box
