"""The report of a run as one page: numbers, curves, classes, pictures, and what ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import images_of
from retinanet.evaluation.numbers import shown_name
from retinanet.evaluation.thresholds import find_thresholds
from retinanet.fast.coco_eval import AREAS
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.curves import curve_section, precision_section
from retinanet.tools.report.environment import announced_section, what_ran_section
from retinanet.tools.report.error_sections import (
    Mistakes,
    confusion_section,
    error_section,
    find_mistakes,
    suspect_section,
    worst_section,
)
from retinanet.tools.report.gallery import Exhibit, Gallery
from retinanet.tools.report.image_grid import color_of, exhibits_of
from retinanet.tools.report.page import Block, Notice, Page, Prose, Section, Tile, Tiles
from retinanet.tools.report.run_record import Record, read_json
from retinanet.tools.report.sortable import Colored, Column, Table
from retinanet.tools.report.tables import metrics_dict, warnings_of

FILE = "report.html"
# What metrics.json says of the score to cut at, and how the table of classes heads it.
CUT = ("F1", "score_threshold", "precision", "recall")
CUT_COLUMNS = [
    Column("best F1", 3, meaning="the largest of 2 precision recall / (precision + recall)"),
    Column("at score", 3, meaning="keep detections from this score on"),
    Column("precision", 3, meaning="share of these detections that are right"),
    Column("recall", 3, meaning="share of the objects that they find"),
]
# Bad steps and warnings that are listed; the files have all.
LISTED = 20


def write_run_report(
    folder: Path, record: Record, scored: Scored | None, output: Path | None = None
) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        folder: ``eval/`` of the run, with the other files of the evaluation.
        record: of the run.
        scored: None where the data is gone: then curves and pictures of it are left out.
        output: file to write; None: ``report.html`` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: a file of the evaluation is damaged.
    """
    annotated = scored is None or scored.evaluation is not None
    metrics = read_json(folder / "metrics.json") if annotated else None
    if metrics is not None and "F1" not in metrics and scored is not None:  # an older run
        metrics |= _with_thresholds(scored)
    diagnosis = read_json(folder / "diagnosis.json") if annotated else None
    path = folder / FILE if output is None else output
    write_whole(path, run_page(record, metrics, scored, diagnosis).html())
    return path


def _with_thresholds(scored: Scored) -> dict[str, Any]:
    """The numbers of an evaluation with the scores to cut at."""
    thresholds = find_thresholds(scored.data, scored.found, scored.evaluation.max_dets[-1])
    return metrics_dict(scored.evaluation, thresholds)


def run_page(
    record: Record,
    metrics: dict[str, Any] | None,
    scored: Scored | None,
    diagnosis: dict[str, Any] | None = None,
) -> Page:
    """The page of a run; a section without anything to show is not in it.

    Args:
        record: of the run.
        metrics: what metrics.json holds; None for data without annotations.
        scored: see :func:`write_run_report`.
        diagnosis: what diagnosis.json holds; None where there is nothing to explain.
    """
    pictures, exhibits = _pictures(scored)
    mistakes = _mistakes(scored)
    num_drawn = scored.num_drawn if scored is not None else 0
    worst, worst_exhibits = worst_section(mistakes, num_drawn) if mistakes else (None, [])
    warnings = _warnings(record, scored)
    sections = [
        curve_section(record),
        precision_section(None if scored is None else scored.evaluation),
        _classes(metrics),
        _cut(metrics),
        _sizes(metrics, scored),
        *([error_section(mistakes), confusion_section(mistakes)] if mistakes else []),
        pictures,
        worst,
        suspect_section(mistakes) if mistakes else None,
        announced_section(record),
        what_ran_section(record, metrics, scored and scored.data),
    ]
    shown = [*exhibits, *worst_exhibits]
    return Page(
        title=record.title,
        kind=f"RetinaNet \u00b7 {record.kind}",
        lead=_lead(record, metrics, scored),
        top=[*_diagnosis(diagnosis), *([] if metrics is None else [headline(metrics)]), *warnings],
        sections=[section for section in sections if section is not None],
        images=list({exhibit.image.name: exhibit.image for exhibit in shown}.values()),
    )


def _diagnosis(diagnosis: dict[str, Any] | None) -> list[Block]:
    """A box with the verdict, what to do about it, and what it rests on."""
    if diagnosis is None:
        return []
    first, *others = diagnosis["causes"]
    more = [f"Or else: {cause['name']}. {cause['verdict']}" for cause in others]
    return [
        Notice(
            f"Why AP is low: {first['name']}",
            [first["verdict"], f"What to do: {first['remedy']}", *more],
            diagnosis["evidence"],
        )
    ]


def headline(metrics: dict[str, Any]) -> Tiles:
    """COCO's numbers that people ask for first."""
    _, _, most = metrics["max_dets"]
    recall = "average recall: share of the objects found"
    meanings = {
        "AP": "average precision: 1 is every object found, in place, and nothing else",
        "AP50": "boxes may be rough: overlap (IoU) of at least 0.50",
        "AP75": "boxes must fit well: overlap of at least 0.75",
        "AR100": f"{recall} in {most} detections an image",
        "APs": "small objects, below 32 \u00d7 32 px",
        "APm": "medium objects, in between",
        "APl": "large objects, above 96 \u00d7 96 px",
    }
    return Tiles(
        [
            Tile(shown_name(name, metrics["max_dets"]), metrics[name], meaning)
            for name, meaning in meanings.items()
        ]
    )


def _lead(record: Record, metrics: dict[str, Any] | None, scored: Scored | None) -> str:
    """One sentence: what was evaluated on what."""
    what = record.checkpoint if record.step is None else f"The checkpoint of step {record.step:,}"
    on = "" if scored is None else f" of {scored.data.path}"
    if metrics is not None:
        return (
            f"{what}, evaluated on {metrics['num_images']:,} images{on} with "
            f"{metrics['num_gt']:,} objects: {metrics['num_detections']:,} detections."
        )
    if scored is None:
        return f"{what}. There is no evaluation to show."
    return (
        f"{what}: {len(scored.found):,} detections in {len(scored.found.evaluated):,} images{on}, "
        "which has no annotations to score them by."
    )


def _warnings(record: Record, scored: Scored | None) -> list[Block]:
    """A box with what the run warned of."""
    points = list(record.warnings[:LISTED])
    if len(record.warnings) > LISTED:
        points.append(f"and {len(record.warnings) - LISTED} more in train.log.")
    cap = record.setting("postprocess", "detections")
    if scored is not None and cap is not None:
        points += filter(None, [warnings_of(scored.evaluation, scored.found, cap)])
    if record.bad_steps:
        steps = ", ".join(str(row["step"]) for row in record.bad_steps[:LISTED])
        points.append(
            f"{len(record.bad_steps)} steps had a loss or gradient that is not finite and changed "
            f"no weights (step {steps}); bad_steps.jsonl has their images. The last: "
            f"{record.bad_steps[-1].get('likely_cause', 'no cause recorded')}"
        )
    return [Notice("Warnings of this run", points=points, severe=False)] if points else []


def _classes(metrics: dict[str, Any] | None) -> Section | None:
    """Numbers of every class."""
    if metrics is None:
        return None
    # Colors go by label, which is the order of these rows.
    columns = [
        Column("class"),
        Column("objects", meaning="in the images evaluated, crowds left out"),
        Column("AP", 3, bar=1.0),
        Column("AP50", 3),
        Column("AP75", 3),
        Column(shown_name("AR100", metrics["max_dets"]), 3),
        Column("detections", meaning="of any score, right or wrong"),
    ]
    cut = metrics["classes"] and "F1" in metrics["classes"][0]
    columns += CUT_COLUMNS if cut else []
    rows = [
        [
            Colored(row["name"], color_of(label)),
            row["num_gt"],
            *(row[name] for name in ("AP", "AP50", "AP75", "AR100")),
            row["num_detections"],
            *([row[name] for name in CUT] if cut else []),
        ]
        for label, row in enumerate(metrics["classes"])
    ]
    rows.sort(key=lambda row: (row[2] is None, -(row[2] or 0.0)))
    return Section(
        "Classes",
        "AP of the whole is the mean of this column over the classes that have objects. A low row "
        "with few objects says little; a low row with many is where to look. n/a: no object to "
        "find. A click on a title sorts.",
        [Table(columns, rows, what="classes", sorted_by="AP")],
    )


def _cut(metrics: dict[str, Any] | None) -> Section | None:
    """The score to cut at, of all classes together."""
    if metrics is None or metrics.get("F1") is None:
        return None
    F1, score, precision, recall = (metrics[name] for name in CUT)
    return Section(
        "Where to cut the scores",
        "AP looks at all scores at once; who uses the detector must choose one. F1 is large where "
        "precision and recall both are; the score where it is largest is a fair first choice. It "
        "was chosen on these very images, so elsewhere it is a little worse.",
        [
            Prose(
                [
                    f"All classes together: F1 is {F1:.3f} when detections with a score of at "
                    f"least {score:.3f} are kept. {precision:.1%} of them are right, and they find "
                    f"{recall:.1%} of the objects (overlap of at least 0.50). The table of classes "
                    "has the same for each."
                ]
            )
        ],
    )


def _sizes(metrics: dict[str, Any] | None, scored: Scored | None) -> Section | None:
    """AP and AR by size of the objects."""
    if metrics is None:
        return None
    counts = [None] * 3 if scored is None else _size_counts(scored)
    names = {
        "s": "small: up to 32 \u00d7 32 px",
        "m": "medium: up to 96 \u00d7 96 px",
        "l": "large: above 96 \u00d7 96 px",
    }
    rows = [
        [name, count, metrics[f"AP{key}"], metrics[f"AR{key}"]]
        for (key, name), count in zip(names.items(), counts, strict=True)
    ]
    columns = [Column("area in the file"), Column("objects"), Column("AP", 3, bar=1.0)]
    return Section(
        "Sizes",
        "The same numbers for small, medium and large objects, in pixels of the image files. Small "
        "objects are the hardest for every detector: larger images (data.min_size) or smaller "
        "anchors (anchors=small) help them.",
        [Table([*columns, Column("AR", 3, bar=1.0)], rows, what="sizes")],
    )


def _size_counts(scored: Scored) -> list[int]:
    """Objects of the images evaluated in each of COCO's sizes but the first, which is all."""
    data = scored.data
    seen = np.isin(data.image_ids, scored.found.evaluated)[images_of(data)] & ~data.crowd
    area = data.area[seen]
    return [int(((area >= low) & (area <= high)).sum()) for low, high in AREAS[1:]]


def _mistakes(scored: Scored | None) -> Mistakes | None:
    """None where there is no object to find, and so nothing to mistake."""
    if scored is None or scored.evaluation is None or not scored.evaluation.num_gt:
        return None
    return find_mistakes(scored.data, scored.found, scored.evaluation)


def _pictures(scored: Scored | None) -> tuple[Section | None, list[Exhibit]]:
    """Predictions beside ground truth."""
    if scored is None or not scored.num_drawn:
        return None, []
    exhibits, legend = exhibits_of(scored.data, scored.found, scored.num_drawn)
    section = Section(
        "Pictures",
        "Left what is there, right what was found. They are spread evenly over the images that "
        "have objects, not chosen by how well they went. A click enlarges a picture; the arrow "
        "keys lead to the others, and the pointer on a box names it.",
        [legend, Gallery(exhibits)],
    )
    return (section if exhibits else None), exhibits
