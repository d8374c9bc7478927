"""The report of a run as one page: what each section of the template shows, as plain data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import images_of
from retinanet.evaluation.matched import Matched, match_detections
from retinanet.evaluation.numbers import shown_name
from retinanet.evaluation.thresholds import find_thresholds, thresholds_of
from retinanet.fast.coco_eval import AREAS
from retinanet.tools.diagnose.confusion import find_confusion
from retinanet.tools.diagnose.errors import KINDS, NO_ERROR, Errors, find_errors
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.diagnose.worst import find_suspects, worst_images
from retinanet.tools.report.boxes import (
    DRAWN_SCORE,
    NAME_LETTERS,
    Box,
    choose_images,
    corners,
    panels_of,
    read_pixels,
)
from retinanet.tools.report.figures import pr_curves, training_curves
from retinanet.tools.report.page import Colored, Column, Exhibit, Table, exhibit, inline_svg, render
from retinanet.tools.report.run_record import Record, read_json
from retinanet.tools.report.style import class_color, plain_text
from retinanet.tools.report.tables import metrics_dict, warnings_of
from retinanet.training.run_directory import flatten

FILE = "report.html"
# Images of the gallery and of the worst that are shown, at most: together below 5 MB.
MOST_IMAGES, WORST_IMAGES = 12, 8
# Bad steps and warnings that are listed; the files have all.
LISTED_WARNINGS = 20
# Suspicious annotations of each reason, and pairs of classes, that are listed.
LISTED = 8
# Digits of a fingerprint or commit that distinguish it from others.
SHORT = 12
# Opacity of boxes that are right, which have no caption, among those that are wrong.
PALE = 0.45

# COCO's numbers that people ask for first.
TILES = {
    "AP": "average precision: 1 is every object detected, in place, and nothing else",
    "AP50": "boxes may be rough: overlap (IoU) of at least 0.50",
    "AP75": "boxes must fit well: overlap of at least 0.75",
    "AR100": "average recall: share of the objects detected, with {} detections an image",
    "APs": "small objects, below 32 \u00d7 32 px",
    "APm": "medium objects, in between",
    "APl": "large objects, above 96 \u00d7 96 px",
}
SIZES = {
    "s": "small: up to 32 \u00d7 32 px",
    "m": "medium: up to 96 \u00d7 96 px",
    "l": "large: above 96 \u00d7 96 px",
}
# Entries of metrics.json on the confidence threshold with the best F1, and their columns.
BEST_F1 = {
    "F1": Column("best F1", 3, None, "the largest of 2 precision recall / (precision + recall)"),
    "score_threshold": Column("at score", 3, None, "the confidence threshold with the best F1"),
    "precision": Column("precision", 3, None, "share of these detections that are right"),
    "recall": Column("recall", 3, None, "share of the objects that they detect"),
}
KIND_MEANINGS = {
    "class": "the place is right, the class is another",
    "localization": "the class is right, the box fits badly (overlap 0.1 to 0.5)",
    "both": "neither class nor place is right",
    "duplicate": "the object is detected already, by a better one",
    "background": "nothing is annotated there",
    "missed": "an object that nothing detects, or nearly detects",
}
REASONS = {
    "unlabelled": "detected where nothing is annotated",
    "other_class": "detected as another class",
    "not_seen": "annotated, and nothing is detected there",
}


def write_run_report(
    folder: Path, record: Record, scored: Scored | None, output: Path | None = None
) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        folder: ``eval/`` of the run, with the other files of the evaluation.
        record: of the run.
        scored: None where the data is gone: then curves and pictures of it are left out.
        output: file to write, which is returned; None: ``report.html`` in the folder.

    Raises:
        ValueError: a file of the evaluation is damaged.
    """
    metrics = diagnosis = None
    if scored is None or scored.evaluation is not None:
        metrics = read_json(folder / "metrics.json")
        diagnosis = read_json(folder / "diagnosis.json")
    if metrics is not None and "F1" not in metrics and scored is not None:  # an older run
        thresholds = find_thresholds(scored.data, scored.detections, scored.evaluation.max_dets[-1])
        metrics |= metrics_dict(scored.evaluation, thresholds)
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
    has_curves = any({"loss/class", "loss/box", "lr", "AP"} & row.keys() for row in record.rows)
    errors = _errors(scored) if has_objects else {"errors": None, "worst": []}
    predictions, legend = ([], []) if scored is None else _predictions(scored)
    command = (record.starts[-1] if record.starts else {}).get("command")
    return render(
        title=record.title,
        kind=record.kind,
        lead=_lead(record, metrics, scored),
        diagnosis=diagnosis,
        warnings=_warnings(record, scored),
        curves=inline_svg(training_curves(record.rows, record.step)) if has_curves else None,
        precision=inline_svg(pr_curves(evaluation)) if has_objects else None,
        metrics=metrics,
        **({} if metrics is None else _numbers(metrics, scored)),
        **errors,
        predictions=predictions,
        legend=legend,
        # An image of both galleries is embedded once.
        images={each.name: each for each in predictions + errors["worst"]},
        announced=record.announced,
        command=shlex.join(["python", *map(str, command)]) if command else None,
        environment=_environment(record, metrics, scored),
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
        f"{what}: {len(scored.detections):,} detections in "
        f"{len(scored.detections.evaluated):,} images{on}, "
        "which has no annotations to score them by."
    )


def _warnings(record: Record, scored: Scored | None) -> list[str]:
    """What the run warned of, and what its files show."""
    lines = list(record.warnings[:LISTED_WARNINGS])
    if len(record.warnings) > LISTED_WARNINGS:
        lines.append(f"and {len(record.warnings) - LISTED_WARNINGS} more in train.log.")
    cap = record.setting("postprocess", "detections")
    if scored is not None and cap is not None:
        lines += filter(None, [warnings_of(scored.evaluation, scored.detections, cap)])
    if record.bad_steps:
        steps = ", ".join(str(row["step"]) for row in record.bad_steps[:LISTED_WARNINGS])
        lines.append(
            f"{len(record.bad_steps)} steps had a loss or gradient that is not finite and changed "
            f"no weights (step {steps}); bad_steps.jsonl has their images. The last: "
            f"{record.bad_steps[-1].get('likely_cause', 'no cause recorded')}"
        )
    return lines


def _numbers(metrics: dict[str, Any], scored: Scored | None) -> dict[str, Any]:
    """The first numbers, those of every class, the best AP first, and those of every size."""
    max_dets = metrics["max_dets"]
    tiles = [
        (shown_name(name, max_dets), metrics[name], meaning.format(max_dets[2]))
        for name, meaning in TILES.items()
    ]

    best_f1 = BEST_F1 if metrics["classes"] and "F1" in metrics["classes"][0] else {}
    columns = {
        "num_gt": Column("objects", 0, meaning="in the images evaluated, crowds left out"),
        "AP": Column("AP", 3, bar=1.0),
        "AP50": Column("AP50", 3),
        "AP75": Column("AP75", 3),
        "AR100": Column(shown_name("AR100", max_dets), 3),
        "num_detections": Column("detections", 0, meaning="of any score, right or wrong"),
        **best_f1,
    }
    # Colors go by label, which is the order of the rows in the file.
    rows = [
        [Colored(row["name"], class_color(label)), *(row[name] for name in columns)]
        for label, row in enumerate(metrics["classes"])
    ]
    rows.sort(key=lambda row: (row[2] is None, -(row[2] or 0.0)))
    classes = Table("classes", [Column("class"), *columns.values()], rows, sorted_by="AP")

    counts: list[int | None] = [None] * 3
    if scored is not None:
        data = scored.data
        seen = np.isin(data.image_ids, scored.detections.evaluated)[images_of(data)] & ~data.crowd
        area = data.area[seen]
        # The first of COCO's sizes is all.
        counts = [int(((area >= low) & (area <= high)).sum()) for low, high in AREAS[1:]]
    bars = [Column("area in the file"), Column("objects", 0)]
    bars += [Column(name, 3, bar=1.0) for name in ("AP", "AR")]
    rows = [
        [meaning, count, metrics[f"AP{size}"], metrics[f"AR{size}"]]
        for (size, meaning), count in zip(SIZES.items(), counts, strict=True)
    ]
    return {"tiles": tiles, "classes": classes, "sizes": Table("sizes", bars, rows)}


def _predictions(scored: Scored) -> tuple[list[Exhibit], list[Colored]]:
    """Detections beside the ground truth of some images, and names and colors of their classes."""
    data, detections = scored.data, scored.detections
    # Names as they are: a browser finds fonts by itself.
    names = [plain_text(name, NAME_LETTERS) for name in data.category_names]
    exhibits, labels = [], set()
    for index in choose_images(data, detections, min(scored.num_drawn, MOST_IMAGES)):
        panels = panels_of(data, detections, index, names)
        # Titles without the name of the file, which the exhibit has.
        titles = (panel.title[max(panel.title.rfind("ground truth: "), 0) :] for panel in panels)
        views = [(t.capitalize(), panel.boxes) for t, panel in zip(titles, panels, strict=True)]
        exhibits.append(exhibit(data, index, panels[0].image, views))
        shown = (detections.image_ids == data.image_ids[index]) & (detections.scores >= DRAWN_SCORE)
        annotated = data.labels[slice(*data.first[index : index + 2])]
        labels |= {*annotated.tolist(), *detections.labels[shown].tolist()}
    return exhibits, [Colored(data.category_names[k], class_color(k)) for k in sorted(labels)]


def _errors(scored: Scored) -> dict[str, Any]:
    """Kinds of errors, the confusion of classes, the worst images, suspicious annotations."""
    data = scored.data
    matched = match_detections(data, scored.detections, scored.evaluation.max_dets[-1])
    score = thresholds_of(matched).overall.score or 0.0
    errors = find_errors(matched, score)
    confusion = find_confusion(matched, data.category_names, score)
    colored = {name: Colored(name, class_color(k)) for k, name in enumerate(data.category_names)}
    kinds = sorted(errors.kinds, key=lambda kind: -kind.cost)
    columns = [
        Column("error"),
        Column("costs AP50", 3, kinds[0].cost or 1.0, "what AP50 would gain without them"),
        Column(f"score \u2265 {score:.2f}", 0, meaning="errors among these detections"),
        Column("any score", 0),
        Column("what it is"),
    ]
    rows = [
        [kind.name, kind.cost, kind.count_at_score, kind.count, KIND_MEANINGS[kind.name]]
        for kind in kinds
    ]
    error_kinds = Table("errors", columns, rows, sorted_by="costs AP50")

    columns = [Column("object"), Column("detected as"), Column("times", 0)]
    rows = [[colored[name], colored[other], n] for name, other, n in confusion.worst(LISTED)]
    confused = Table("pairs of classes", columns, rows, sorted_by="times")

    columns = [Column("image"), Column("why"), Column("detected"), Column("score", 2)]
    columns += [Column("annotated"), Column("box: x, y, width, height")]
    rows = [
        [
            *(suspect.file_name, REASONS[suspect.reason], suspect.found or "", suspect.score),
            *(suspect.annotated or "", ", ".join(f"{side:.0f}" for side in suspect.box)),
        ]
        for suspect in find_suspects(data, matched, errors, LISTED)
    ]
    suspects = Table("places", columns, rows)

    return {
        "errors": errors,
        "error_kinds": error_kinds,
        "confusion": confusion,
        "confused": confused,
        "suspects": suspects,
        "worst": _worst(scored, matched, errors),
    }


def _worst(scored: Scored, matched: Matched, errors: Errors) -> list[Exhibit]:
    """The images with the most errors; what is right is pale."""
    data = scored.data

    def boxes(side: Any, rows: np.ndarray, texts: list[str], is_error: np.ndarray) -> list[Box]:
        return [
            Box(
                corners(side.box[row]),
                class_color(side.label[row]),
                f"{data.category_names[side.label[row]]} {text}",
                opacity=1.0 if error else PALE,
            )
            for row, text, error in zip(rows, texts, is_error, strict=True)
        ]

    exhibits = []
    for image in worst_images(data, matched, errors, min(WORST_IMAGES, scored.num_drawn)):
        objects, missed, shown, wrong = errors_of_image(matched, errors, image.image_id)
        states = ["missed" if error else "detected" for error in missed]
        kinds = ["right" if errors.kind[d] == NO_ERROR else KINDS[errors.kind[d]] for d in shown]
        texts = [f"{matched.scores[d]:.2f} {kind}" for d, kind in zip(shown, kinds, strict=True)]
        left = f"Objects: {len(objects)}, missed: {missed.sum()}"
        right = f"Detections: {len(shown)}, wrong: {wrong.sum()}"
        views = [
            (left, boxes(matched.ground_truth, objects, states, missed)),
            (right, boxes(matched.detections, shown, texts, wrong)),
        ]
        note = ", ".join(f"{n} {kind}" for kind, n in zip(KINDS, image.counts, strict=True) if n)
        exhibits.append(exhibit(data, image.index, read_pixels(data, image.index), views, note))
    return exhibits


def errors_of_image(
    matched: Matched, errors: Errors, image_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Objects and detections of an image in the order in which they are drawn, errors on top.

    Returns:
        Rows of the objects, and which of them are missed; rows of the detections of at least the
        score of ``errors``, the best last, and which of them are wrong.
    """
    image = np.searchsorted(matched.image_ids, image_id)
    objects = np.flatnonzero(matched.ground_truth.image == image)
    objects = objects[np.argsort(errors.missed_at_score[objects], kind="stable")]
    shown = (
        (matched.detections.image == image) & (matched.scores >= errors.score) & ~matched.ignored
    )
    shown = np.flatnonzero(shown)
    wrong = errors.kind != NO_ERROR
    shown = shown[np.lexsort((matched.scores[shown], wrong[shown]))]
    return objects, errors.missed_at_score[objects], shown, wrong[shown]


def _environment(
    record: Record, metrics: dict[str, Any] | None, scored: Scored | None
) -> list[tuple[str, str]]:
    """Names and values of what ran, as far as they are known."""
    start = record.starts[-1] if record.starts else {}
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

    def fingerprint(text: str | None) -> str:
        return f"fingerprint {text[:SHORT]}" if text else ""

    evaluated_on = fingerprint(start.get("val_data"))
    if scored is not None:
        evaluated_on = f"{scored.data.path}, {fingerprint(scored.data.fingerprint)}"
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
        "training data": fingerprint(start.get("train_data")),
        "evaluated on": evaluated_on,
    }
    return [(name, str(value)) for name, value in facts.items() if value]
