"""The report of a run as one page: what the template shows, as plain data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.numbers import shown_name
from retinanet.evaluation.thresholds import find_thresholds
from retinanet.fast.coco_eval import AREAS
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.error_sections import error_sections
from retinanet.tools.report.figures import pr_curves, training_curves
from retinanet.tools.report.gallery import prediction_gallery
from retinanet.tools.report.page import Colored, Column, Table, inline_svg, render
from retinanet.tools.report.run_record import Record, read_json
from retinanet.tools.report.style import class_color
from retinanet.tools.report.tables import metrics_dict, warnings_of
from retinanet.training.run_directory import flatten

FILE = "report.html"
# Entries of metrics.json on the confidence threshold with the best F1, and their columns.
BEST_F1 = ("F1", "score_threshold", "precision", "recall")
BEST_F1_COLUMNS = [
    Column("best F1", 3, meaning="the largest of 2 precision recall / (precision + recall)"),
    Column("at score", 3, meaning="keep detections from this score on"),
    Column("precision", 3, meaning="share of these detections that are right"),
    Column("recall", 3, meaning="share of the objects that they find"),
]
# Bad steps and warnings that are listed; the files have all.
LISTED = 20
# Digits of a fingerprint or commit that distinguish it from others.
SHORT = 12


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
        thresholds = find_thresholds(scored.data, scored.found, scored.evaluation.max_dets[-1])
        metrics |= metrics_dict(scored.evaluation, thresholds)
    diagnosis = read_json(folder / "diagnosis.json") if annotated else None
    path = folder / FILE if output is None else output
    write_whole(path, run_page(record, metrics, scored, diagnosis))
    return path


def run_page(
    record: Record,
    metrics: dict[str, Any] | None,
    scored: Scored | None,
    diagnosis: dict[str, Any] | None = None,
) -> str:
    """The page of a run; a section without anything to show is not in it.

    Args:
        record: of the run.
        metrics: what metrics.json holds; None for data without annotations.
        scored: see :func:`write_run_report`.
        diagnosis: what diagnosis.json holds; None where there is nothing to explain.
    """
    evaluation = None if scored is None else scored.evaluation
    has_objects = evaluation is not None and evaluation.num_gt > 0
    errors = error_sections(scored) if has_objects else {"errors": None, "worst": []}
    predictions, legend = ([], [])
    if scored is not None:
        predictions, legend = prediction_gallery(scored.data, scored.found, scored.num_drawn)
    has_curves = any({"loss/class", "loss/box", "lr", "AP"} & row.keys() for row in record.rows)
    numbers = {}
    if metrics is not None:
        sizes = _sizes(metrics, scored)
        numbers = {"tiles": _tiles(metrics), "classes": _classes(metrics), "sizes": sizes}
    start = record.starts[-1] if record.starts else {}
    command = start.get("command")
    return render(
        title=record.title,
        kind=record.kind,
        lead=_lead(record, metrics, scored),
        diagnosis=diagnosis,
        warnings=_warnings(record, scored),
        curves=inline_svg(training_curves(record.rows, record.step)) if has_curves else None,
        precision=inline_svg(pr_curves(evaluation)) if has_objects else None,
        metrics=metrics,
        **numbers,
        **errors,
        predictions=predictions,
        legend=legend,
        # An image of both galleries is embedded once.
        images={exhibit.image.name: exhibit.image for exhibit in predictions + errors["worst"]},
        announced=record.announced,
        command=shlex.join(["python", *map(str, command)]) if command else None,
        environment=_environment(record, start, metrics, scored and scored.data),
        typed=[tuple(text.split("=", 1)) for text in record.typed if "=" in text],
        settings=flatten(record.settings),
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


def _tiles(metrics: dict[str, Any]) -> list[tuple[str, float | None, str]]:
    """COCO's numbers that people ask for first: name, value, meaning."""
    max_dets = metrics["max_dets"]
    meanings = {
        "AP": "average precision: 1 is every object found, in place, and nothing else",
        "AP50": "boxes may be rough: overlap (IoU) of at least 0.50",
        "AP75": "boxes must fit well: overlap of at least 0.75",
        "AR100": f"average recall: share of the objects found in {max_dets[2]} detections an image",
        "APs": "small objects, below 32 \u00d7 32 px",
        "APm": "medium objects, in between",
        "APl": "large objects, above 96 \u00d7 96 px",
    }
    return [(shown_name(name, max_dets), metrics[name], text) for name, text in meanings.items()]


def _warnings(record: Record, scored: Scored | None) -> list[str]:
    """What the run warned of, and what its files show."""
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
    return points


def _classes(metrics: dict[str, Any]) -> Table:
    """Numbers of every class, the best AP first."""
    names = ("AP", "AP50", "AP75", "AR100")
    has_best_f1 = metrics["classes"] and "F1" in metrics["classes"][0]
    columns = [
        Column("class"),
        Column("objects", 0, meaning="in the images evaluated, crowds left out"),
        Column("AP", 3, bar=1.0),
        Column("AP50", 3),
        Column("AP75", 3),
        Column(shown_name("AR100", metrics["max_dets"]), 3),
        Column("detections", 0, meaning="of any score, right or wrong"),
        *(BEST_F1_COLUMNS if has_best_f1 else []),
    ]
    # Colors go by label, which is the order of the rows in the file.
    rows = [
        [
            Colored(row["name"], class_color(label)),
            row["num_gt"],
            *(row[name] for name in names),
            row["num_detections"],
            *(row[name] for name in BEST_F1 if has_best_f1),
        ]
        for label, row in enumerate(metrics["classes"])
    ]
    rows.sort(key=lambda row: (row[2] is None, -(row[2] or 0.0)))
    return Table("classes", columns, rows, sorted_by="AP")


def _sizes(metrics: dict[str, Any], scored: Scored | None) -> Table:
    """AP and AR by size of the objects."""
    counts: list[int | None] = [None] * 3
    if scored is not None:
        data = scored.data
        seen = np.isin(data.image_ids, scored.found.evaluated)[images_of(data)] & ~data.crowd
        area = data.area[seen]
        # The first of COCO's sizes is all.
        counts = [int(((area >= low) & (area <= high)).sum()) for low, high in AREAS[1:]]
    names = {
        "s": "small: up to 32 \u00d7 32 px",
        "m": "medium: up to 96 \u00d7 96 px",
        "l": "large: above 96 \u00d7 96 px",
    }
    return Table(
        "sizes",
        [
            Column("area in the file"),
            Column("objects", 0),
            Column("AP", 3, bar=1.0),
            Column("AR", 3, bar=1.0),
        ],
        [
            [name, count, metrics[f"AP{key}"], metrics[f"AR{key}"]]
            for (key, name), count in zip(names.items(), counts, strict=True)
        ],
    )


def _environment(
    record: Record, start: dict[str, Any], metrics: dict[str, Any] | None, data: CocoData | None
) -> list[tuple[str, str]]:
    """Names and values of what ran, as far as they are known.

    Args:
        record: of the run.
        start: environment of its last start; empty where it is not known.
        metrics: of the evaluation; None for data without annotations.
        data: what was evaluated; None where it is gone.
    """
    times = [start["started"] for start in record.starts if "started" in start]
    times = [time.replace("T", " ")[:16] + " UTC" for time in times]  # to the minute
    started = "".join(times[:1])
    if len(times) > 1:
        started += f"; {len(times)} times in all, the last {times[-1]}"
    precision, processes = record.settings.get("precision"), start.get("processes")
    machine = [
        start.get("device"),
        precision and f"forward pass in {precision}",
        processes and f"{processes} {'process' if processes == 1 else 'processes'}",
        start.get("cpus") and f"{start['cpus']} CPU cores",
        start.get("platform"),
    ]
    git = start.get("git")
    versions = {"Python": start.get("python"), **start.get("versions", {})}
    evaluated_on = _fingerprint(start.get("val_data"))
    if data is not None:
        evaluated_on = f"{data.path}, {_fingerprint(data.fingerprint)}"
    facts = {
        "in folder": start.get("folder"),
        "started": started,
        "checkpoint": record.checkpoint,
        "step": None if record.step is None else f"{record.step:,}",
        "machine": ", ".join(str(part) for part in machine if part),
        "source": git
        and f"commit {git['commit'][:SHORT]}{' with changes' if git['changed'] else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "evaluator": metrics
        and f"evaluation.backend={metrics['backend']} evaluation.max_dets={metrics['max_dets']}",
        "training data": _fingerprint(start.get("train_data")),
        "evaluated on": evaluated_on,
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _fingerprint(fingerprint: str | None) -> str:
    return "" if not fingerprint else f"fingerprint {fingerprint[:SHORT]}"
