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
from retinanet.tools.diagnose.analyze import Analysis
from retinanet.tools.diagnose.errors import KINDS, MISSED, NO_ERROR, ErrorKind
from retinanet.tools.diagnose.worst import index_of
from retinanet.tools.report.error_pictures import draw_suspects, draw_worst
from retinanet.tools.report.figures import confusion, error_costs
from retinanet.tools.report.style import save_png
from retinanet.tools.report.tables import f1_entries, fit

# Columns of errors.csv.
FIELDS = (
    *("image_id", "file_name", "kind", "score", "found", "annotated", "iou"),
    *("x", "y", "width", "height"),
)


def error_table(analysis: Analysis) -> str:
    """Every kind of error: how many, what they cost; at most 80 columns."""
    errors, score = analysis.errors, f"score >= {analysis.score:.2f}"
    total = sum(kind.cost or 0 for kind in errors.kinds)
    header = f"{'kind':<18}{'all scores':>12}{score:>16}{'AP50 lost':>12}{'share':>9}"
    lines = [header]
    for kind in errors.kinds:
        share = f"{100 * kind.cost / total:.0f} %" if total else "n/a"
        lines.append(f"{_counts(kind)}{share:>9}")
    lines += ["", _counts(errors.false_positives), _counts(errors.false_negatives)]
    return "\n".join(lines)


def _counts(kind: ErrorKind) -> str:
    cost = "n/a" if kind.cost is None else f"{kind.cost:.3f}"
    return f"{kind.name:<18}{kind.count:>12}{kind.count_at_score:>16}{cost:>12}"


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
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "errors.json", json.dumps(errors_dict(data, analysis), indent=2) + "\n")
    write_whole(folder / "errors.csv", csv_text(FIELDS, _error_rows(data, analysis)))
    write_whole(folder / "confusion.csv", _confusion_csv(analysis))
    sizes = [dataclasses.asdict(row) for row in analysis.sizes]
    write_whole(folder / "sizes.csv", csv_text(list(sizes[0]), [row.values() for row in sizes]))
    save_png(error_costs(analysis.errors), folder / "errors.png")
    save_png(confusion(analysis.confusion), folder / "confusion.png")
    if pictures:
        draw_worst(data, analysis, folder)
        draw_suspects(data, analysis, folder)


def errors_dict(data: CocoData, analysis: Analysis) -> dict[str, Any]:
    """The summary: kinds, classes, the worst images, suspicious annotations."""
    errors = analysis.errors
    special = (errors.false_positives, errors.false_negatives)
    return {
        "AP50": errors.AP50,
        **f1_entries(analysis.thresholds.overall),
        "score": analysis.score,
        "kinds": [dataclasses.asdict(kind) for kind in errors.kinds],
        **{kind.name.replace(" ", "_"): dataclasses.asdict(kind) for kind in special},
        "advice": analysis.advice,
        "classes": _class_dicts(data, analysis),
        "worst": [
            dataclasses.asdict(image) | {"counts": dict(zip(KINDS, image.counts, strict=True))}
            for image in analysis.worst
        ],
        "suspects": [dataclasses.asdict(suspect) for suspect in analysis.suspects],
    }


def _class_dicts(data: CocoData, analysis: Analysis) -> list[dict[str, Any]]:
    """How many errors of each kind every class has, of at least the score; missed ones by theirs.

    A wrong detection counts for the class that it was found as.
    """
    matched, errors = analysis.matched, analysis.errors
    K = matched.num_classes
    counts = np.zeros((K, len(KINDS)), dtype=np.int64)
    wrong = (errors.kind != NO_ERROR) & (matched.scores >= analysis.score)
    np.add.at(counts, (matched.found.label[wrong], errors.kind[wrong]), 1)
    counts[:, MISSED] = np.bincount(matched.truth.label[errors.missed_at_score], minlength=K)
    return [
        {
            "name": row.name,
            "AP50": row.AP50,
            "num_gt": row.num_gt,
            **f1_entries(best),
            "counts": dict(zip(KINDS, count.tolist(), strict=True)),
        }
        for row, best, count in zip(
            analysis.evaluation.per_class, analysis.thresholds.classes, counts, strict=True
        )
    ]


def _error_rows(data: CocoData, analysis: Analysis) -> Iterable[Sequence[Any]]:
    """Every error of at least the score, by image: the wrong detections, then what is missed."""
    matched, errors, names = analysis.matched, analysis.errors, data.category_names
    wrong = np.flatnonzero((errors.kind != NO_ERROR) & (matched.scores >= analysis.score))
    lost = np.flatnonzero(errors.missed_at_score)
    image = np.concatenate([matched.found.image[wrong], matched.truth.image[lost]])
    files = [data.file_name(row) for row in index_of(data, matched.image_ids[image])]
    for place in np.argsort(image, kind="stable"):
        where = int(matched.image_ids[image[place]]), files[place]
        if place < len(wrong):
            d = wrong[place]
            target, kind = errors.target[d], errors.kind[d]
            found = names[matched.found.label[d]]
            annotated = names[matched.truth.label[target]] if target >= 0 else None
            iou = errors.iou[d] if target >= 0 else None
            box = matched.found.box[d].tolist()
            yield *where, KINDS[kind], matched.scores[d], found, annotated, iou, *box
        else:
            g = lost[place - len(wrong)]
            box = matched.truth.box[g].tolist()
            yield *where, KINDS[MISSED], None, None, names[matched.truth.label[g]], None, *box


def _confusion_csv(analysis: Analysis) -> str:
    names = analysis.confusion.names
    rows = zip([*names, "nothing there"], analysis.confusion.counts.tolist(), strict=True)
    return csv_text(["object", *names, "not found"], [[name, *counts] for name, counts in rows])
